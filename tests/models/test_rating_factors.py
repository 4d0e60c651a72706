"""Factors of ratings on a planted world, and where there is nothing to find."""

import numba
import numpy as np
import pytest
import torch

from raysys.data.batches import Ragged
from raysys.models.ragged import UserTables, user_levels
from raysys.models.rating_factors import N_FACTORS, rating_factors

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
        users.append(user_levels(batch, tables)[:, : 1 + N_FACTORS].numpy())
    found = np.concatenate(users)[rows[held]]
    return factors.item_bias[items[held]] + (found * factors.loadings[items[held]]).sum(axis=1)


def rmse(found, wanted):
    return float(np.sqrt(np.mean(np.square(found - wanted))))


def test_planted_factors_are_found_up_to_the_noise():
    rows, items, values, held = planted(0.7)
    factors = rating_factors(rows[~held], items[~held], values[~held], n_items=N_ITEMS)
    found = predict(factors, rows, items, values, held)
    assert rmse(found, values[held]) < 0.6  # .5 is noise
    # so many factors were made, two are in use
    sizes = np.sort(np.square(factors.loadings[:, 1:]).mean(axis=0) / factors.penalties[1:])[::-1]
    assert sizes[2:].sum() < 0.1 * sizes.sum()


def test_without_factors_in_the_ratings_biases_are_what_is_left():
    rows, items, values, held = planted(0.0)
    factors = rating_factors(rows[~held], items[~held], values[~held], n_items=N_ITEMS)
    assert rmse(predict(factors, rows, items, values, held), values[held]) < 0.53


def test_unrated_items_and_threads_change_nothing():
    rows, items, values, held = planted(0.7)
    one = rating_factors(rows[~held], items[~held], values[~held], n_items=N_ITEMS + 4)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        two = rating_factors(rows[~held], items[~held], values[~held], n_items=N_ITEMS + 4)
    finally:
        numba.set_num_threads(before)
    for name in ("item_bias", "loadings", "variance", "penalties"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert np.abs(one.item_bias[N_ITEMS:]).max() == 0
    assert np.abs(one.loadings[N_ITEMS:, 1:]).max() == 0


@pytest.mark.parametrize("n_ratings", [0, 1, 2])
def test_next_to_no_ratings_are_no_trouble(n_ratings):
    numbers = np.arange(n_ratings)
    factors = rating_factors(numbers * 0, numbers, numbers * 1.0, n_items=3)
    for name in ("item_bias", "loadings", "variance", "penalties"):
        assert np.isfinite(getattr(factors, name)).all()
    assert (factors.penalties > 0).all()
