"""Normalisers of P(i | u): in chunks as in one piece, by a sample near the whole."""

import pytest
import torch

from raysys.autoencoder import losses
from raysys.autoencoder.losses import log_normalisers, sampled_log_normalisers
from raysys.autoencoder.ragged_ops import Pairs, bag
from raysys.data.batches import ragged
from tests.support import models

N_USERS, N_ITEMS, DIM = 6, 500, 4


def problem():
    draw = torch.Generator().manual_seed(3)
    z, g = torch.randn(N_USERS, DIM, generator=draw), torch.randn(N_ITEMS, DIM, generator=draw)
    bias = 0.5 * torch.randn(N_ITEMS, generator=draw)
    row = torch.arange(N_USERS).repeat_interleave(5)[:-5]  # the last user has no items
    item = torch.cat([torch.randperm(60, generator=draw)[:5] * 8 for _ in range(N_USERS - 1)])
    return [x.requires_grad_() for x in (z, g, bias)], (row, item), torch.rand(len(row))


@pytest.mark.parametrize("elements", [6, 600, 2999])
@pytest.mark.parametrize("zero_diagonal", [True, False])
def test_chunks_give_the_whole_and_its_gradients(monkeypatch, elements, zero_diagonal):
    inputs, pairs, own = problem()
    own = own.requires_grad_() if zero_diagonal else None
    scores = torch.addmm(inputs[2], inputs[0], inputs[1].T)
    if own is not None:
        scores = scores.index_put(pairs, -own, accumulate=True)
    expected = scores.logsumexp(dim=1)
    wanted = [*inputs, *([own] if zero_diagonal else [])]
    gradients = torch.autograd.grad((expected * torch.arange(1.0, 7)).sum(), wanted)
    monkeypatch.setattr(losses, "MAX_SCORES", elements)
    found = log_normalisers(*inputs, pairs, own)
    torch.testing.assert_close(found, expected)
    again = torch.autograd.grad((found * torch.arange(1.0, 7)).sum(), wanted)
    for one, other in zip(again, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("zero_diagonal", [True, False])
def test_chunks_under_autocast_stay_near_full_precision(monkeypatch, zero_diagonal):
    inputs, pairs, own = problem()
    own = own.requires_grad_() if zero_diagonal else None
    wanted = [*inputs, *([own] if zero_diagonal else [])]
    monkeypatch.setattr(losses, "MAX_SCORES", 600)
    exact = log_normalisers(*inputs, pairs, own)
    gradients = torch.autograd.grad(exact.sum(), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = log_normalisers(*inputs, pairs, own)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0.01)
    for one, other in zip(torch.autograd.grad(found.sum(), wanted), gradients, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.02 * float(other.abs().max()), rtol=0.05)


def test_a_sample_estimates_the_sum_without_bias():
    (z, g, bias), pairs, own = problem()
    with torch.no_grad():
        scores = torch.addmm(bias, z, g.T)
        pair_scores = scores[pairs] - own
        exact = scores.index_put(pairs, pair_scores).logsumexp(dim=1).exp()
        torch.manual_seed(0)
        draws = [
            sampled_log_normalisers(z, g, bias, pairs, pair_scores, n_sampled=64).exp()
            for _ in range(3000)
        ]
        found = torch.stack(draws)
        error = found.std(dim=0) / len(draws) ** 0.5
        assert ((found.mean(dim=0) - exact).abs() < 4 * error).all()
        many = sampled_log_normalisers(z, g, bias, pairs, pair_scores, n_sampled=200_000)
        torch.testing.assert_close(many.exp(), exact, rtol=0.03, atol=0)


def test_a_sample_has_a_gradient_and_an_empty_batch_a_value():
    inputs, pairs, own = problem()
    z, g, bias = inputs
    scores = (z[pairs[0]] * g[pairs[1]]).sum(dim=1) + bias[pairs[1]] - own
    sampled_log_normalisers(*inputs, pairs, scores, n_sampled=100).sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.any() for x in inputs)
    none = torch.zeros(0, dtype=torch.int64)
    alone = sampled_log_normalisers(*inputs, (none, none), torch.zeros(0), n_sampled=100)
    assert alone.isfinite().all()


@pytest.mark.parametrize("zero_diagonal", [True, False])
def test_the_cosine_loss_of_scores_is_that_of_the_gram_matrix(monkeypatch, zero_diagonal):
    draw = torch.Generator().manual_seed(4)
    batch = ragged(models.random_cells(2, 1, sizes=(6, 4, 0, 7)))
    g = torch.nn.functional.normalize(
        torch.randn(models.N_ITEMS, 5, generator=draw)
    ).requires_grad_()
    own = torch.full((len(batch.item_num),), 0.1) if zero_diagonal else None
    found = []
    for most in (losses._MAX_SCORES_COSINE, 0):
        monkeypatch.setattr(losses, "_MAX_SCORES_COSINE", most)
        z = bag(batch, g, torch.ones(len(batch.item_num)))
        loss = losses.cosine_loss(z, g, batch, Pairs(batch, models.N_ITEMS), own)
        found.append((loss, *torch.autograd.grad(loss, [g])))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
