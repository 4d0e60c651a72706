import numpy as np
import pytest
import torch
from torch.nn import functional as F

from raysys.compressor.sparse_kernels import sparse_decode, top_magnitudes


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 7, 64])
def test_top_magnitudes_are_a_stable_sort(n):
    a = numbers(50, 64)
    a[3] = 0
    a[4, ::2] = -0.0
    a[5] = torch.round(a[5])  # ties, also across signs
    a[6, 10] = float("inf")
    a[7] *= 1e-42  # subnormal
    expected = np.argsort(-a.abs().numpy(), axis=1, kind="stable")[:, :n]
    np.testing.assert_array_equal(top_magnitudes(a, n).numpy(), expected)


def test_no_more_columns_than_there_are():
    with pytest.raises(AssertionError):
        top_magnitudes(numbers(2, 8), 12)


def test_top_magnitudes_of_a_view():
    a = numbers(64, 20).T
    assert torch.equal(top_magnitudes(a, 5), top_magnitudes(a.contiguous(), 5))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_are_those_of_embedding_bag(threads):
    atoms = torch.stack(
        [torch.randperm(30, generator=torch.Generator().manual_seed(b))[:6] for b in range(40)]
    )
    weights = numbers(40, 17, seed=3)
    found = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for decode in (sparse_decode, reference):
            values = numbers(40, 6, seed=1).requires_grad_()
            dictionary = numbers(30, 17, seed=2).requires_grad_()
            out = decode(atoms, values, dictionary)
            (out * weights).sum().backward()
            found.append((out.detach(), values.grad, dictionary.grad))
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def reference(atoms, values, dictionary):
    return F.embedding_bag(atoms, dictionary, per_sample_weights=values, mode="sum")
