"""The start of the level block on planted ratings, and where there is little or no order."""

import numpy as np
import pytest
import torch

from raysys.autoencoder.level_init import level_start, no_start
from raysys.data.schema import RatingLevels, default_liked

VALUES = (1.0, 2.0, 3.0, 4.0, 5.0)
STARS = RatingLevels(tuple("12345"), VALUES, default_liked(VALUES))
EVENTS = RatingLevels(("view", "buy"), (None, None), (False, True))


def planted(n_users=400, n_items=60, per_user=15):
    """Ratings of items' means and users' moods, both known."""
    rng = np.random.default_rng(7)
    means, moods = rng.normal(3, 0.7, n_items), rng.normal(0, 0.5, n_users)
    rows = np.repeat(np.arange(n_users), per_user)
    items = np.concatenate([rng.permutation(n_items)[:per_user] for _ in range(n_users)])
    rating = means[items] + moods[rows] + rng.normal(0, 0.6, len(rows))
    return means, rows, items, np.clip(np.round(rating), 1, 5).astype(int) - 1


def test_means_are_found_and_shares_have_them():
    means, rows, items, level = planted()
    start = level_start(rows, items, level, n_items=60, levels=STARS)
    shares = start.log_shares.exp()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(60))
    found = shares @ torch.tensor(VALUES)
    assert np.corrcoef(found, means)[0, 1] > 0.97
    # a residual is how far the level lies above the item's mean: zero at the mean
    spread = 1 / (start.residual[:, 1] - start.residual[:, 0])
    torch.testing.assert_close(1 - start.residual[:, 0] * spread, found, atol=0.15, rtol=0)
    # noise .6 and moods .5, with rounding
    assert 1 < float(start.penalties[0]) < 3


def test_an_item_with_one_rating_stays_near_the_overall_distribution():
    _, rows, items, level = planted()
    rows, items, level = (np.append(a, b) for a, b in ((rows, 0), (items, 60), (level, 0)))
    start = level_start(rows, items, level, n_items=62, levels=STARS)
    overall = start.log_overall.exp() @ torch.tensor(VALUES)
    one, none = start.log_shares[60:].exp() @ torch.tensor(VALUES)
    assert none == pytest.approx(float(overall), abs=0.02)
    assert 0.05 < float(overall - one) < 1.0


def test_levels_without_an_order_have_shares_alone():
    start = level_start(
        np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0, 1, 1]), n_items=2, levels=EVENTS
    )
    assert start.residual.isnan().all()
    assert start.log_shares[0, 0] > start.log_overall[0]
    assert start.log_shares[1, 1] > start.log_overall[1]


@pytest.mark.parametrize("levels", [STARS, EVENTS])
def test_without_cells_every_item_is_the_same(levels):
    start = no_start(3, levels)
    torch.testing.assert_close(start.log_shares, start.log_overall.expand(3, -1))
    assert start.log_shares.isfinite().all()
    assert start.penalties.isfinite().all()
    assert (start.loadings[:, 0] == 1).all()
    assert (start.loadings[:, 1:] == 0).all()
