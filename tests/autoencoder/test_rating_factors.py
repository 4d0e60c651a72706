"""Factors of ratings on a planted world, and where there is nothing to find."""

import dataclasses

import numpy as np
import pytest
import torch

from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.factor_kernels import solve, solve_one
from raysys.autoencoder.level_init import level_start
from raysys.autoencoder.model import Conv4Rec
from raysys.autoencoder.ragged_ops import (
    USER_TABLES,
    Pairs,
    UserTables,
    factors_at,
    factors_left_out,
    shares_left_out,
    user_levels,
)
from raysys.autoencoder.rating_factors import _Fit, n_factors_of, rating_factors
from raysys.data.batches import Ragged, ragged
from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels, default_liked

N_USERS, N_ITEMS, PER_USER = 600, 80, 30


def planted(strength):
    """Ratings from two factors of the given strength, biases and noise .5; 5 a user held out."""
    rng = np.random.default_rng(3)
    likes, traits = rng.standard_normal((N_USERS, 2)), rng.standard_normal((N_ITEMS, 2))
    rows = np.repeat(np.arange(N_USERS), PER_USER)
    items = np.concatenate([rng.permutation(N_ITEMS)[:PER_USER] for _ in range(N_USERS)])
    values = strength * (likes[rows] * traits[items]).sum(axis=1)
    values += 0.5 * rng.standard_normal(N_ITEMS)[items] + 0.3 * rng.standard_normal(N_USERS)[rows]
    values += 0.5 * rng.standard_normal(len(rows))
    held = np.arange(len(rows)) % PER_USER >= PER_USER - 5
    return rows, items, values, held


def predict(factors, rows, items, values, held):
    """Held-out ratings by the profile's ridge regression."""
    kept = ~held
    offsets = np.arange(N_USERS + 1) * (PER_USER - 5)
    cells = int(kept.sum())
    # one level per rating: its residual is the item's
    residual = values[kept] - factors.item_bias[items[kept]]
    tables = UserTables(
        residual=torch.from_numpy(residual).float()[None].expand(N_ITEMS, -1),
        log_overall=torch.full((cells,), -np.log(cells)).float(),
        loadings=torch.from_numpy(factors.loadings),
        loading_variance=torch.from_numpy(factors.variance),
        penalties=torch.from_numpy(factors.penalties),
    )
    level = torch.arange(cells)
    users = []
    for user in range(0, N_USERS, 60):  # a few at a time: the levels' shares are wide here
        part = slice(int(offsets[user]), int(offsets[user + 60]))
        here = torch.from_numpy(offsets[user : user + 61] - offsets[user])
        batch = Ragged(here, torch.from_numpy(items[kept][part]), level[part])
        users.append(user_levels(batch, tables)[:, : factors.loadings.shape[1]].numpy())
    found = np.concatenate(users)[rows[held]]
    return factors.item_bias[items[held]] + (found * factors.loadings[items[held]]).sum(axis=1)


def rmse(found, wanted):
    return float(np.sqrt(np.mean(np.square(found - wanted))))


def test_planted_factors_are_found_up_to_the_noise():
    rows, items, values, held = planted(0.7)
    train = rows[~held], items[~held], values[~held]
    factors = rating_factors(*train, n_items=N_ITEMS, n_factors=16)
    found = predict(factors, rows, items, values, held)
    assert rmse(found, values[held]) < 0.6  # .5 is noise
    # so many factors were made, two are in use
    sizes = np.sort(np.square(factors.loadings[:, 1:]).mean(axis=0) / factors.penalties[1:])[::-1]
    assert sizes[2:].sum() < 0.1 * sizes.sum()


def test_without_factors_in_the_ratings_biases_are_what_is_left():
    rows, items, values, held = planted(0.0)
    factors = rating_factors(rows[~held], items[~held], values[~held], n_items=N_ITEMS)
    assert rmse(predict(factors, rows, items, values, held), values[held]) < 0.53


def dense(n_factors, n_users=300, n_items=120, per_user=90):
    """Ratings from so many factors of variance 1 in all, biases and noise .3."""
    rng = np.random.default_rng([4, n_factors])
    likes = rng.standard_normal((n_users, n_factors)) / np.sqrt(n_factors)
    traits = rng.standard_normal((n_items, n_factors))
    rows = np.repeat(np.arange(n_users), per_user)
    items = np.concatenate([rng.permutation(n_items)[:per_user] for _ in range(n_users)])
    values = (likes[rows] * traits[items]).sum(axis=1) + 0.3 * rng.standard_normal(len(rows))
    return rows, items, values + 0.5 * rng.standard_normal(n_items)[items], n_items


@pytest.mark.parametrize(("planted", "chosen"), [(5, {16}), (30, {32, 64})])
def test_the_number_of_factors_follows_the_log(planted, chosen):
    rows, items, values, n_items = dense(planted)
    found = n_factors_of(rows, items, values.astype(np.float32), n_items=n_items)
    assert found in chosen


def test_rows_of_few_ratings_are_solved_as_those_of_many():
    """Nine ratings of 17 unknowns, against the normal equations."""
    rng = np.random.default_rng(0)
    given = rng.standard_normal((30, 17)).astype(np.float32)
    spread = rng.random((30, 17)).astype(np.float32)
    values, offset = (rng.standard_normal(size).astype(np.float32) for size in (9, 30))
    other = rng.permutation(30)[:9]
    starts, order, precision = np.array([0, 9]), np.arange(9), rng.random(17) + 0.5
    mean, variance = np.zeros((1, 17), np.float32), np.zeros((1, 17), np.float32)
    solve(starts, order, other, given, spread, values, offset, 0.4, precision, mean, variance)
    rows = given[other].astype(np.float64)
    gram = rows.T @ rows + np.diag(spread[other].sum(axis=0) + 0.4 * precision)
    wanted = np.linalg.solve(gram, rows.T @ (values - offset[other]))
    np.testing.assert_allclose(mean[0], wanted, atol=1e-4)
    np.testing.assert_allclose(variance[0], 0.4 * np.diag(np.linalg.inv(gram)), rtol=1e-3)


def test_threads_change_nothing_and_are_torchs():
    rows, items, values, held = planted(0.7)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(rating_factors(rows[~held], items[~held], values[~held], n_items=N_ITEMS))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for name in ("item_bias", "loadings", "variance", "penalties"):
        np.testing.assert_array_equal(*(getattr(each, name) for each in found))


def test_users_without_ratings_change_nothing_and_items_have_nothing():
    rows, items, values, held = planted(0.7)
    one = rating_factors(rows[~held], items[~held], values[~held], n_items=N_ITEMS)
    rows = rows * 10 + 7  # nine users without ratings for each with
    two = rating_factors(rows[~held], items[~held], values[~held], n_items=N_ITEMS)
    np.testing.assert_allclose(two.penalties, one.penalties, rtol=1e-5)
    np.testing.assert_allclose(two.loadings, one.loadings, atol=1e-5)
    more = rating_factors(rows[~held], items[~held], values[~held], n_items=N_ITEMS + 400)
    assert more.penalties[0] == pytest.approx(one.penalties[0], rel=0.05)
    assert np.abs(more.item_bias[N_ITEMS:]).max() == 0
    assert np.abs(more.loadings[N_ITEMS:, 1:]).max() == 0


@pytest.mark.parametrize("n_levels", [2, 5])
def test_ratings_that_are_explained_exactly_leave_finite_losses(n_levels):
    """Users who always give the same level, some of a single rating."""
    rng = np.random.default_rng(0)
    profiles = [
        [(int(i), user % n_levels) for i in rng.permutation(N_ITEMS)[: 1 + user % 39]]
        for user in range(400)
    ]
    cells = Cells.from_lists(profiles)
    values = tuple(float(v) for v in range(1, n_levels + 1))
    levels = RatingLevels(tuple(f"{v:g}" for v in values), values, default_liked(values))
    start = level_start(cells.rows, cells.item_num, cells.level, n_items=N_ITEMS, levels=levels)
    cfg = Conv4RecConfig(latent=4, level_latent=4)
    model = Conv4Rec(cfg, n_items=N_ITEMS, levels=levels, start=start)
    losses = model(ragged(cells))
    assert all(loss.isfinite() for loss in losses.values())


def test_a_rating_left_out_is_as_if_it_were_not_there():
    """With fitted factors: but for the variance of the item's loadings, see the function."""
    rows, items, values, held = planted(0.7)
    level = np.digitize(values, [-1, -0.3, 0.3, 1])
    levels = RatingLevels(tuple("12345"), (1.0, 2.0, 3.0, 4.0, 5.0), (False,) * 4 + (True,))
    start = level_start(rows[~held], items[~held], level[~held], n_items=N_ITEMS, levels=levels)
    tables = UserTables(*(getattr(start, name) for name in USER_TABLES))
    profile = [(int(i), int(r)) for i, r in zip(items[:12], level[:12])]
    batch = ragged(Cells.from_lists([profile]))
    pairs = Pairs(batch, N_ITEMS)
    parts = factors_left_out(batch, pairs, tables), shares_left_out(batch, pairs, tables)
    left = torch.cat(parts, dim=1)
    for cell in range(12):
        rest = ragged(Cells.from_lists([profile[:cell] + profile[cell + 1 :]]))
        own = dataclasses.replace(
            tables, penalties=tables.penalties + tables.loading_variance[profile[cell][0]]
        )
        factors, shares = user_levels(rest, own).tensor_split([own.loadings.shape[1]], dim=1)
        here = factors_at(factors, tables.loadings[batch.item_num[cell : cell + 1]])
        wanted = torch.cat([here, shares], dim=1)[0]
        torch.testing.assert_close(left[cell], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_ratings", [0, 1, 2])
def test_next_to_no_ratings_are_no_trouble(n_ratings):
    numbers = np.arange(n_ratings)
    factors = rating_factors(numbers * 0, numbers, numbers * 1.0, n_items=3)
    for name in ("item_bias", "loadings", "variance", "penalties"):
        assert np.isfinite(getattr(factors, name)).all()
    assert (factors.penalties > 0).all()


def test_many_factors_are_solved_without_threads_within_threads(capfd):
    rng = np.random.default_rng(0)
    rows, items = rng.integers(0, 40, 6000), rng.integers(0, 30, 6000)
    fit = _Fit.of(rows, items, rng.normal(size=6000).astype(np.float32), 30, 100)
    fit.round(sure=True)
    assert "OpenBLAS" not in capfd.readouterr().err


def test_one_rating_is_solved_as_a_matrix_of_one_row_would_be():
    rng = np.random.default_rng(3)
    given, spread = rng.normal(size=(5, 9)), rng.uniform(0.1, 0.5, (5, 9))
    precision, offset = rng.uniform(0.5, 2, 9), np.zeros(5, np.float32)
    floats = (given.astype(np.float32), spread.astype(np.float32), np.float32([0.7]), offset)
    order, other = np.array([0]), np.array([2])
    mean, variance = np.zeros((2, 9), np.float32)
    solve_one(order, other, *floats, 0.6, precision, mean, variance)
    left = np.diag(spread[2] + 0.6 * precision) + np.outer(given[2], given[2])
    np.testing.assert_allclose(mean, np.linalg.solve(left, 0.7 * given[2]), rtol=1e-4)
    np.testing.assert_allclose(variance, 0.6 * np.diag(np.linalg.inv(left)), rtol=1e-4)
