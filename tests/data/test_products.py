import numpy as np
import pytest

from raysys.data.products import integer_products, laid, rounded, unlaid


@pytest.mark.parametrize(("size", "width"), [(0, 3), (1, 1), (16, 2), (130, 7), (256, 384)])
def test_rows_come_back_as_they_were_laid(size, width):
    rng = np.random.default_rng(size)
    rows = rng.integers(-127, 128, (size, width)).astype(np.int8)
    steps = rng.uniform(1, 2, size).astype(np.float32)
    rounded = laid(rows, steps)
    assert size == 0 or rounded.whole.ctypes.data % 64 == 0
    np.testing.assert_array_equal(unlaid(rounded)[:size, :width], rows)
    assert not unlaid(rounded)[size:].any()
    assert not unlaid(rounded)[:, width:].any()
    np.testing.assert_array_equal(rounded.steps[:size], steps)
    assert not rounded.steps[size:].any()


@pytest.mark.parametrize(("size", "width"), [(0, 3), (1, 1), (130, 7), (256, 384)])
def test_rows_are_rounded_to_the_nearest_step(size, width):
    rows = np.random.default_rng(size).normal(size=(size, width)).astype(np.float32)
    rows[1:2] = 0
    found = rounded(rows)
    steps = found.steps[:size, None]
    back = unlaid(found)[:size, :width] * steps
    assert (np.abs(back - rows) <= 0.5001 * steps).all()
    assert not back[1:2].any()
    assert not unlaid(found)[size:].any()
    largest = np.abs(unlaid(found)[:size]).max(axis=1)
    assert (np.delete(largest, slice(1, 2)) == 127).all()


@pytest.mark.parametrize("n_vectors", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize(("size", "width"), [(1, 1), (40, 33), (300, 64), (128, 5000)])
def test_products_are_exact_whatever_the_batch(size, width, n_vectors):
    rng = np.random.default_rng(width)
    rows = rng.integers(-127, 128, (size, width)).astype(np.int8)
    steps = rng.uniform(0.5, 2, size).astype(np.float32)
    vectors = rng.uniform(-3, 3, (n_vectors, width)).astype(np.float32)
    for vector, zeros in zip(vectors, (0, width // 2, width, 1), strict=False):
        vector[:zeros] = 0
        vector[width - zeros // 3 :] = 0
    rounded = laid(rows, steps)
    out = np.empty((n_vectors, len(rounded.steps)), np.float32)
    integer_products(rounded, vectors, 4, out)
    sizes = np.abs(vectors)
    total = np.cumsum(sizes, axis=1, dtype=np.float32)[:, -1]
    step = np.maximum(
        sizes.max(axis=1, initial=1e-30) / np.float32(32767),
        total / np.float32(2**31 // 127 - 2**16),
    )
    sums = np.rint(vectors / step[:, None]).astype(np.int64) @ rows.T.astype(np.int64)
    assert np.abs(sums).max() < 2**31
    wanted = sums.astype(np.float32) * (steps * (step * np.float32(4))[:, None])
    np.testing.assert_array_equal(out[:, :size], wanted)
    for q in range(n_vectors):
        alone = np.empty_like(out[:1])
        integer_products(rounded, vectors[q : q + 1], 4, alone)
        np.testing.assert_array_equal(alone[0], out[q])
