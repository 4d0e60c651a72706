"""Intervals that are read once: against closed forms and by their coverage."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_ind

from raysys.evaluation.looks import Mean, gap, ratio_of, share_of


def users(rng, n, rate=0.1):
    """Impressions and conversions of users; a few have a hundred times those of others."""
    sizes = np.minimum(1 + rng.pareto(1.2, n), 100).astype(int)
    chance = rng.beta(0.5, 0.5 / rate - 0.5, n)
    return rng.binomial(sizes, chance).astype(float), sizes.astype(float)


@pytest.mark.parametrize("hits", [0, 1, 17, 50])
def test_a_share_has_wilsons_interval(hits):
    found = share_of(np.arange(50) < hits, alpha=0.1)
    expected = binomtest(hits, 50).proportion_ci(0.9, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_newcombes_difference_is_that_of_his_table():
    """Newcombe 1998, table II, (a) 56/70 - 48/80 and (h) 10/10 - 0/10, method 10."""
    arms = [share_of(np.arange(n) < hits, alpha=0.05) for hits, n in ((56, 70), (48, 80))]
    found = gap(*arms, alpha=0.05, hybrid=True)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    extremes = [share_of(np.full(10, value), alpha=0.05) for value in (True, False)]
    found = gap(*extremes, alpha=0.05, hybrid=True)
    assert (found.low, found.high) == pytest.approx((0.6075, 1.0), abs=5e-5)
    assert found.lift is None  # the control has nothing to be relative to


def test_the_error_of_a_ratio_is_the_bootstraps():
    rng = np.random.default_rng(0)
    amounts, sizes = users(rng, 2000)
    found = ratio_of(amounts, sizes, alpha=0.05)
    draws = rng.integers(0, 2000, (2000, 2000))
    ratios = amounts[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    assert found.error == pytest.approx(ratios.std(), rel=0.1)
    assert found.value == pytest.approx(amounts.sum() / sizes.sum())


def test_intervals_cover_although_impressions_of_a_user_are_correlated():
    rng = np.random.default_rng(1)
    every = users(rng, 500_000)
    truth = every[0].sum() / every[1].sum()
    n, held, naive = 600, 0, 0
    for _ in range(n):
        amounts, sizes = users(rng, 1000)
        found = ratio_of(amounts, sizes, alpha=0.05)
        held += found.low <= truth <= found.high
        error = np.sqrt(found.value * (1 - found.value) / sizes.sum())
        naive += abs(found.value - truth) <= 1.96 * error
    assert 0.925 * n <= held <= 0.975 * n
    assert naive < 0.7 * n  # what counting impressions as independent would give


def test_alike_users_have_students_interval():
    """Residuals of one size: the interval of a mean with n - 1 degrees of freedom."""
    values = np.tile([0.0, 2.0], 8)
    found = ratio_of(values, np.ones(16), alpha=0.05)
    assert found.freedom == pytest.approx(15)
    assert found.error == pytest.approx(values.std(ddof=1) / 4)
    other = ratio_of(3 * values, np.ones(16), alpha=0.05)
    welch = ttest_ind(3 * values, values, equal_var=False).confidence_interval(0.95)
    span = gap(other, found, alpha=0.05)
    assert (span.low, span.high) == pytest.approx((welch.low, welch.high))


def test_a_lift_covers():
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(500):
        arms = [ratio_of(*users(rng, 1500, rate), alpha=0.05) for rate in (0.12, 0.1)]
        found = gap(*arms, alpha=0.05)
        held += found.lift_low <= 0.2 <= found.lift_high
    assert 460 <= held <= 490


def test_what_has_no_variance_has_no_interval():
    nothing = ratio_of(np.zeros(0), np.zeros(0), alpha=0.05)
    assert nothing == Mean(None, None, None)
    alike = ratio_of(np.zeros(9), np.ones(9), alpha=0.05)
    assert (alike.value, alike.low) == (0.0, None)
    assert ratio_of(np.ones(1), np.ones(1), alpha=0.05).low is None
    assert share_of(np.zeros(0, bool), alpha=0.05).value is None
    assert gap(nothing, alike, alpha=0.05).difference is None
    assert gap(alike, alike, alpha=0.05).low is None
