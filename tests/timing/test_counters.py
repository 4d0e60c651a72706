"""Decayed counters: brought up to date, they are those counted anew."""

import numpy as np
import pytest

from raysys.timing.counters import HALF_LIVES_D, Counters

DAY = 86_400


def events(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 7, n), np.sort(rng.integers(0, 50 * DAY, n))


def test_added_events_give_the_counters_of_all_of_them():
    items, times = events(500)
    whole = Counters.of(items, times, n_items=7, time=int(times[-1]) + 1)
    part = Counters.of(items[:300], times[:300], n_items=7, time=int(times[299]) + 1)
    for first, last in ((300, 310), (310, 500)):
        part = part.added(items[first:last], times[first:last])
    assert part.time == whole.time
    np.testing.assert_allclose(part.values, whole.values, rtol=1e-4, atol=1e-6)


def test_a_late_event_adds_what_is_left_of_it():
    none = Counters.of(np.zeros(0, int), np.zeros(0, int), n_items=2, time=10 * DAY)
    late = none.added(np.array([1]), np.array([9 * DAY]))
    assert late.time == none.time
    assert late.values[HALF_LIVES_D.index(1.0), 1] == pytest.approx(0.5)
    assert late.totals.tolist() == [0, 1]
    assert none.added(np.zeros(0, int), np.zeros(0, int)) is none


def test_shares_are_those_of_a_mixture():
    items, times = events(400)
    counters = Counters.of(items, times, n_items=9, time=50 * DAY)  # items 7 and 8 have no events
    single = np.eye(len(HALF_LIVES_D))
    parts = [np.exp(counters.log_share(row)) for row in single]
    assert all(part.sum() == pytest.approx(1, abs=1e-5) and part.min() > 0 for part in parts)
    mixed = np.exp(counters.log_share([0.25, 0, 0, 0.75, *[0] * 6]))
    np.testing.assert_allclose(mixed, 0.25 * parts[0] + 0.75 * parts[3], rtol=1e-5)


def test_without_recent_events_a_share_is_that_of_all_time():
    counters = Counters.of(np.array([1, 1, 0]), np.zeros(3, int), n_items=3, time=9000 * DAY)
    always = np.exp(counters.log_share(np.eye(len(HALF_LIVES_D))[-1]))
    recent = np.exp(counters.log_share(np.eye(len(HALF_LIVES_D))[0]))
    np.testing.assert_allclose(recent, always)
    np.testing.assert_allclose(always, np.array([1.3, 2.3, 0.3]) / 3.9, rtol=1e-5)
