"""Simulated sites: their logs, their own feedback, their A/B tests."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from raysys.data.cells import Cells
from raysys.simulate.site import Site, SiteSpec, cells_of
from raysys.simulate.world import WorldSpec

WORLD = WorldSpec(n_users=300, n_items=120, n_interactions=4500, days=100, drift=0.0, seed=4)


def constant(items):
    """A recommender that shows the same items to everyone, positions in the world."""
    return lambda cells, n_items: (
        lambda history, k: np.tile(np.array(items[:k], np.int32), (history.n_users, 1))
    )


def oracle(site, log, sign=1.0):
    """The best unseen items by true utility at the end of the log."""

    def rank(history: Cells, k: int):
        users = history.user_num.astype(np.int64)
        items = np.tile(log.items, (len(users), 1))
        worth = sign * site.utility(users, items, np.full(len(users), float(site.spec.world.days)))
        worth[history.rows, history.item_num] = -np.inf
        return np.argsort(-worth, axis=1)[:, :k].astype(np.int32)

    return rank


def test_logs_are_split_in_time_and_numbered_by_first_appearance():
    log = Site(SiteSpec(WORLD)).log()
    cells = log.cells
    times = [cells.timestamp[cells.window == w] for w in range(3)]
    assert times[0].max() < log.cutoffs["val"] <= times[1].min()
    assert times[1].max() < log.cutoffs["test"] <= times[2].min() <= times[2].max() < log.end
    first = np.full(len(log.items), np.iinfo(np.int64).max)
    np.minimum.at(first, cells.item_num, cells.timestamp)
    assert (np.diff(first) >= 0).all()
    for period, cut in {**log.cutoffs, "all": log.end}.items():
        assert log.catalogue[period] == (first < cut).sum()
    pairs = cells.rows * 1000 + cells.item_num
    assert len(np.unique(pairs)) == cells.n_cells
    same_user = np.diff(cells.rows) == 0
    assert (np.diff(cells.timestamp)[same_user] >= 0).all()


def test_the_same_spec_makes_the_same_log():
    one, other = (Site(SiteSpec(WORLD)).log().cells for _ in range(2))
    np.testing.assert_array_equal(one.item_num, other.item_num)
    moved = Site(SiteSpec(dataclasses.replace(WORLD, seed=5))).log().cells
    assert not np.array_equal(one.item_num[:50], moved.item_num[:50])


def test_bias_makes_popularity_that_tastes_do_not():
    shares = {}
    for bias in (0.0, 1.0):
        site = Site(SiteSpec(WORLD, bias=bias))
        log = site.log()
        counts = np.zeros(WORLD.n_items)
        counts[log.items] = np.bincount(log.cells.item_num, minlength=len(log.items))
        shares[bias] = np.corrcoef(site.world.popularity, counts)[0, 1]
    assert shares[1.0] > 0.6 > 0.2 > abs(shares[0.0])


def test_the_sites_own_recommendations_reach_the_log():
    world = dataclasses.replace(WORLD, n_items=400)
    start = Site(SiteSpec(world)).world.release == 0
    shown = np.flatnonzero(start)[:20].tolist()
    found = []
    for feedback in (0.0, 1.0):
        site = Site(SiteSpec(world, bias=0.0, feedback=feedback), constant(shown))
        log = site.log()
        found.append(np.isin(log.items[log.cells.item_num], shown).mean())
    assert found[1] > 2 * found[0]
    with pytest.raises(ValueError, match="recommender"):
        Site(SiteSpec(world, feedback=0.5))


def test_tastes_move_as_far_as_the_drift_says():
    users, days = np.arange(50), np.full(50, float(WORLD.days))
    still, moved = (Site(SiteSpec(WORLD, taste_drift=d)) for d in (0.0, 1.0))
    np.testing.assert_allclose(still.tastes(users, days), still.world.users[:50], atol=1e-6)
    np.testing.assert_allclose(moved.tastes(users, 0 * days), moved.world.users[:50], atol=1e-6)
    np.testing.assert_allclose(moved.tastes(users, days), moved._later[:50], atol=1e-6)


def test_the_ab_test_prefers_what_users_like():
    site = Site(SiteSpec(WORLD, taste_drift=0.5))
    log = site.log()
    rankers = [oracle(site, log), oracle(site, log, sign=-1.0)]
    best, worst = site.click_rates(log, rankers)
    assert 1 > best > 0.5 > 0.1 > worst > 0
    assert site.click_rates(log, rankers[::-1]) == [worst, best]


def test_click_rates_equal_the_choice_model():
    site = Site(SiteSpec(WORLD))
    log = site.log()
    [rate] = site.click_rates(log, [constant(range(10))(None, 0)], visits=1)
    users = np.flatnonzero(log.cells.counts > 0)
    items = np.tile(log.items[:10], (len(users), 1))
    worth = np.exp(site.utility(users, items, np.full(len(users), 100.0))).sum(axis=1)
    assert rate == pytest.approx((worth / (worth + 10 * np.exp(2.0))).mean())


def test_clicked_items_join_the_history():
    site = Site(SiteSpec(WORLD))
    log = site.log()
    lengths = []

    def rank(history, k):
        lengths.append(history.n_cells)
        assert (np.diff(history.offsets) == history.counts).all()
        return oracle(site, log)(history, k)

    site.click_rates(log, [rank], visits=3)
    assert lengths[0] == log.cells.n_cells
    assert lengths[0] < lengths[1] < lengths[2]


def test_cells_keep_the_first_of_repeats():
    cells = cells_of(
        np.array([1, 0, 1, 1]),
        np.array([3, 2, 3, 1]),
        np.array([1, 2, 3, 4]),
        np.array([0, 0, 2, 2], np.uint8),
        3,
    )
    assert cells.offsets.tolist() == [0, 1, 3, 3]
    assert cells.item_num.tolist() == [2, 3, 1]
    assert cells.timestamp.tolist() == [2, 1, 4]
    assert cells.window.tolist() == [0, 0, 2]
