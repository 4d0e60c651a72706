"""The closed form of the consume block against EASE's own formula."""

import functools

import numpy as np
import pytest
import torch

from raysys.autoencoder import closed_form
from raysys.autoencoder.closed_form import closed_ranks, spectrum
from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.model import Conv4Rec
from raysys.data.batches import Ragged
from raysys.data.schema import RatingLevels

N_USERS, N_ITEMS = 60, 12


@pytest.fixture
def pairs():
    seen = np.random.default_rng(3).random((N_USERS, N_ITEMS)) < np.linspace(0.1, 0.6, N_ITEMS)
    return np.nonzero(seen)


def solved(pairs, rank):
    rows, items = pairs
    return spectrum(rows, items, n_users=N_USERS, n_items=N_ITEMS, rank=rank, seed=0)


def ease(pairs, penalty):
    """B = -P / diag P off the diagonal, with the module's weights of users and penalties."""
    X = np.zeros((N_USERS, N_ITEMS))
    X[pairs] = 1
    per_user, per_item = X.sum(1).clip(1), X.sum(0).clip(1)
    weight = (per_user / per_user.mean()) ** -0.5
    penalties = penalty * (per_item / per_item.mean()) ** 0.4
    P = np.linalg.inv(X.T @ (weight[:, None] * X) + np.diag(penalties))
    return -P / np.diag(P)


@pytest.mark.parametrize("penalty", [1.0, 20.0])
def test_full_rank_is_ease(pairs, penalty):
    A, (encoder, decoder) = solved(pairs, N_ITEMS).item_vectors(penalty, N_ITEMS)
    B = (A * encoder[:, None]) @ (A * decoder[:, None]).T
    off = ~np.eye(N_ITEMS, dtype=bool)
    np.testing.assert_allclose(B[off], ease(pairs, penalty)[off], atol=2e-5)


def test_rows_and_order_of_the_log_change_nothing(pairs):
    rows, items = pairs
    twice = np.concatenate([rows[::-1], rows]), np.concatenate([items[::-1], items])
    a, b = solved(pairs, 4), solved(twice, 4)
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.vectors, b.vectors)


def test_the_model_scores_as_the_closed_form_with_a_zero_diagonal(pairs):
    A, scales = solved(pairs, N_ITEMS).item_vectors(5.0, N_ITEMS)
    levels = RatingLevels(names=("view",), values=(float("nan"),), liked=(True,))
    cfg = Conv4RecConfig(latent=N_ITEMS, level_latent=2, profile_exponent=0.0)
    model = Conv4Rec(cfg, n_items=N_ITEMS, levels=levels)
    model.solve_consume(torch.from_numpy(A), torch.from_numpy(scales))
    profile = torch.tensor([1, 4, 7])
    batch = Ragged(torch.tensor([0, 3]), profile, torch.zeros(3, dtype=torch.long))
    with torch.no_grad():
        scores = model.split(model.encode(batch))[0] @ model.consume_vectors().T
        scores[0, profile] -= model.own_scores(batch)
    B = ease(pairs, 5.0)
    np.fill_diagonal(B, 0.0)
    np.testing.assert_allclose(scores[0].numpy(), B[profile.numpy()].sum(0), atol=5e-5)


def test_more_dims_are_tried_where_they_are_cheap():
    assert closed_ranks(6000, 3700, 512) == [512, 1024]
    assert closed_ranks(6000, 70_000, 512) == [512]
    assert closed_ranks(70_000, 3700, 512) == [512]
    assert closed_ranks(500_000, 3700, 512) == []
    assert closed_ranks(6000, 512, 512) == [512]  # as many dims as items: there are no more
    assert closed_ranks(900, 20_000, 512) == [512, 900]
    assert closed_ranks(100, 20_000, 512) == [100]


def test_a_smaller_rank_is_the_larger_one_cut(pairs):
    small, large = solved(pairs, 3), solved(pairs, N_ITEMS)
    A, scales = large.item_vectors(5.0, 3)
    B, others = small.item_vectors(5.0, 3)
    np.testing.assert_allclose(A @ A.T, B @ B.T, atol=1e-4)
    np.testing.assert_allclose(scales, others, rtol=1e-4)


@pytest.mark.parametrize("penalty", [1.0, 20.0])
def test_fewer_users_than_items_are_solved_on_the_side_of_the_users(pairs, penalty):
    users, items = np.array(pairs)[:, np.array(pairs)[0] < 7]
    found = spectrum(users, items, n_users=7, n_items=N_ITEMS, rank=7, seed=0)
    whole = np.linalg.svd(scaled(users, items), full_matrices=False)
    np.testing.assert_allclose(found.values, whole.S, rtol=1e-4)
    A, B = (
        found.item_vectors(penalty, 7)[0],
        whole.Vh.T * np.sqrt(whole.S**2 / (whole.S**2 + penalty)),
    )
    np.testing.assert_allclose(A @ A.T, B @ B.T, atol=1e-5)


def scaled(users, items):
    X = np.zeros((7, N_ITEMS))
    X[users, items] = 1
    per_user, per_item = X.sum(1).clip(1), X.sum(0).clip(1)
    weight, scale = (per_user / per_user.mean()) ** -0.25, (per_item / per_item.mean()) ** -0.2
    return weight[:, None] * X * scale


@pytest.mark.parametrize("sizes", [(60, 12), (12, 60)])
def test_the_iterated_subspace_is_that_of_the_whole_decomposition(monkeypatch, sizes):
    seen = np.random.default_rng(5).random(sizes) < 0.3
    solve = functools.partial(
        spectrum, *np.nonzero(seen), n_users=sizes[0], n_items=sizes[1], rank=4, seed=0
    )
    exact = solve()
    monkeypatch.setattr(closed_form, "_MAX_EXACT", 0)
    found = solve()
    np.testing.assert_allclose(found.values, exact.values, rtol=1e-4)
    A, B = exact.item_vectors(5.0, 4)[0], found.item_vectors(5.0, 4)[0]
    np.testing.assert_allclose(A @ A.T, B @ B.T, atol=1e-4)
