import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.compressor.dictionary import Dictionary


def random_atoms(n_atoms, dim, seed=0):
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(n_atoms, dim)).astype(np.float32)
    return atoms * rng.uniform(1e-4, 1e4, (n_atoms, 1)).astype(np.float32)


def test_rounded_atoms_keep_their_length_and_direction():
    atoms = random_atoms(50, 64)
    rounded = Dictionary(atoms).floats
    lengths = np.linalg.norm(atoms, axis=1)
    np.testing.assert_allclose(np.linalg.norm(rounded, axis=1), lengths, rtol=2e-5)
    assert ((atoms * rounded).sum(1) / lengths**2).min() > 0.9999


@given(st.integers(1, 20), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_rounding_again_changes_no_bit(n_atoms, dim, seed):
    once = Dictionary(random_atoms(n_atoms, dim, seed)).floats
    np.testing.assert_array_equal(Dictionary(once).floats, once)


@pytest.mark.parametrize("dim", [1, 7, 33, 384, 2000])
def test_products_are_those_of_the_rounded_atoms(dim):
    dictionary = Dictionary(random_atoms(70, dim))
    queries = np.random.default_rng(4).normal(size=(9, dim)).astype(np.float32)
    out = dictionary.products(queries, 0.5)
    step = np.abs(queries).max(axis=1, keepdims=True) / 32767
    wanted = 0.5 * (np.rint(queries / step) * step).astype(np.float64) @ dictionary.floats.T
    lengths = np.linalg.norm(dictionary.floats, axis=1)
    np.testing.assert_allclose(out / lengths, wanted / lengths, atol=1e-5)
    for q in range(9):
        np.testing.assert_array_equal(dictionary.products(queries[q : q + 1], 0.5)[0], out[q])


def test_sums_of_many_large_values_do_not_overflow():
    dictionary = Dictionary(np.ones((1, 5000), dtype=np.float32))
    out = dictionary.products(np.ones((1, 5000), dtype=np.float32), 1.0)
    np.testing.assert_allclose(out, 5000, rtol=1e-4)


def test_zero_atoms_and_no_atoms():
    zero = Dictionary(np.zeros((2, 8), dtype=np.float32))
    assert not zero.floats.any()
    assert not zero.products(np.ones((1, 8), np.float32), 1.0).any()
    assert Dictionary(np.zeros((0, 8), np.float32)).products(
        np.ones((3, 8), np.float32), 1.0
    ).shape == (3, 0)
