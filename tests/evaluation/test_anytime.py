"""Tests that may be read at any time: against closed forms, plain loops and simulation."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import betaln
from scipy.stats import chisquare, norm

from raysys.evaluation import anytime
from raysys.evaluation.anytime import BURN_IN, check_split, compare, half_width, users_needed


def stream(rng, n, *, rate, share, lift=0.0, counts=False):
    """Users whose chances differ and drift, and of whom a few do very much."""
    chance = rng.beta(0.5, 0.5 / rate - 0.5, n) * (1 + 0.8 * np.sin(np.linspace(0, 5, n)))
    in_arm = rng.random(n) < share
    chance = np.clip(chance * (1 + lift * in_arm), 0, 1)
    tries = np.minimum(1 + rng.pareto(1.2, n), 100).astype(int) if counts else np.ones(n, int)
    return in_arm, rng.binomial(tries, chance).astype(float)


def test_the_effect_is_the_mean_of_the_users_own_estimates():
    rng = np.random.default_rng(0)
    in_arm, values = stream(rng, 300, rate=0.2, share=0.3, counts=True)
    found = compare(in_arm, values, np.full(300, 0.3), alpha=0.05)
    z = []
    for n in range(300):
        centred = values[n] - (values[:n].mean() if n else 0.0)
        z.append(centred / 0.3 if in_arm[n] else -centred / 0.7)
    assert found.effect[-1] == pytest.approx(np.mean(z))
    assert found.effect[-1] == pytest.approx(
        values[in_arm].mean() - values[~in_arm].mean(), abs=0.3
    )
    assert np.isinf(found.low[: BURN_IN - 1]).all()
    assert np.isfinite(found.low[BURN_IN - 1 :]).all()
    assert (np.diff(found.p_value) <= 0).all()


def test_the_interval_is_where_the_mixture_reaches_one_over_alpha():
    n, deviation, alpha = 700.0, 2.5, 0.02
    width = half_width(np.array([n]), np.array([deviation]), alpha=alpha)[0]
    eta = np.linspace(-2, 2, 400_001)  # the effect over its deviation, normal with variance rho^2
    prior = norm.pdf(eta, scale=math.sqrt(anytime.spread(alpha)))
    path = eta * n * width / deviation - n * eta**2 / 2
    assert np.trapezoid(prior * np.exp(path), eta) == pytest.approx(1 / alpha, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.001])
def test_the_interval_is_narrowest_where_it_should_be(alpha):
    n = anytime.SHARP_AT

    def width(rho2):
        return 2 * (1 + 1 / (n * rho2)) * (math.log1p(n * rho2) / 2 - math.log(alpha))

    best = minimize_scalar(lambda x: width(math.exp(x)), bounds=(-20, 0), method="bounded")
    assert anytime.spread(alpha) == pytest.approx(math.exp(best.x), rel=1e-3)


def test_bets_on_the_assignment_are_a_martingale_of_mean_one():
    """Over all assignments of six users, outcomes fixed, the mixture is 1 on average."""
    x, share = np.array([0.3, -1.0, 40.0, 0.0, 2.0, -0.5]), np.array([0.2, 0.2, 0.2, 0.5, 0.5, 0.9])
    total = np.zeros(6)
    for number in range(1 << 6):
        in_arm = (number >> np.arange(6) & 1).astype(bool)
        chance = np.prod(np.where(in_arm, share, 1 - share))
        total += chance * np.exp(anytime._bets(in_arm, x, share, 0.05))
    assert total == pytest.approx(np.ones(6))


def test_bets_in_blocks_are_the_bets(monkeypatch):
    rng = np.random.default_rng(1)
    in_arm, x = rng.random(100) < 0.4, rng.normal(size=100)
    whole = anytime._bets(in_arm, x, np.full(100, 0.4), 0.05)
    monkeypatch.setattr(anytime, "_BLOCK", 7)
    assert anytime._bets(in_arm, x, np.full(100, 0.4), 0.05) == pytest.approx(whole)


@pytest.mark.parametrize("share", [0.5, 0.05])
@pytest.mark.parametrize("counts", [False, True])
def test_arms_that_are_alike_are_hardly_ever_called_different(share, counts):
    """300 streams read after every user; a plain z-test alarms in a third of them and more."""
    alarms = 0
    for seed in range(300):
        rng = np.random.default_rng([seed, 1])
        in_arm, values = stream(rng, 1500, rate=0.05, share=share, counts=counts)
        found = compare(in_arm, values, np.full(1500, share), alpha=0.05)
        alarms += found.decided_at(0.05) is not None
    assert alarms <= 21  # 5 %, and the chance of more by luck is 5 %


def test_a_better_arm_is_called_about_when_it_was_foretold():
    after, ahead = [], 0
    for seed in range(40):
        rng = np.random.default_rng([seed, 2])
        in_arm, values = stream(rng, 8000, rate=0.2, share=0.5, lift=0.3)
        found = compare(in_arm, values, np.full(8000, 0.5), alpha=0.05)
        after.append(found.decided_at(0.05) or 8000)
        ahead += found.low[after[-1] - 1] > 0
    control, better = 0.2 * 0.9, 0.26 * 0.9
    deviation = math.sqrt(2 * (control * (1 - control) + better * (1 - better)))
    foretold = users_needed(better - control, deviation, alpha=0.05)
    assert 0.4 * foretold < np.median(after) < 1.3 * foretold
    assert ahead == 40  # a decision never contradicts its interval


def test_users_needed_are_the_least_whose_interval_is_narrow_enough():
    n = users_needed(-0.02, 0.7, alpha=0.05)
    widths = half_width(np.array([n - 1.0, n]), np.full(2, 0.7), alpha=0.05)
    assert widths[0] > 0.02 >= widths[1]
    assert users_needed(0.0, 0.7, alpha=0.05) is None
    assert users_needed(5.0, 0.7, alpha=0.05) == BURN_IN


def test_outcomes_that_do_not_differ_decide_nothing():
    for values in (np.zeros(400), np.ones(400)):
        in_arm = np.arange(400) % 2 == 0
        found = compare(in_arm, values, np.full(400, 0.5), alpha=0.05)
        assert found.decided_at(0.05) is None
        assert np.isfinite(found.effect).all()


def test_a_few_users_decide_nothing():
    in_arm = np.arange(60) % 2 == 0
    assert (
        compare(in_arm, in_arm.astype(float), np.full(60, 0.5), alpha=0.05).decided_at(0.05) is None
    )


def test_the_split_of_fixed_shares_is_the_dirichlet_mixture():
    rng = np.random.default_rng(3)
    share = np.array([0.2, 0.3, 0.5])
    arm = rng.choice(3, 900, p=[0.28, 0.3, 0.42])
    found = check_split(arm, np.tile(share, (900, 1)))
    evidence = []
    for n in range(1, 901):
        counts, prior = np.bincount(arm[:n], minlength=3), anytime._PRIOR * share
        log_beta = _log_beta(prior + counts) - _log_beta(prior)
        evidence.append(log_beta - (counts * np.log(share)).sum())
    assert found.p_value == pytest.approx(math.exp(-max(0, *evidence)))
    counts = np.bincount(arm)
    assert found.chi_square == pytest.approx(chisquare(counts, 900 * share).pvalue)
    assert not found.is_as_configured


def _log_beta(values):
    total = 0.0
    for at in range(1, len(values)):
        total += betaln(values[:at].sum(), values[at])
    return total


def test_shares_that_change_are_no_wrong_split():
    rng = np.random.default_rng(4)
    shares = np.repeat([[0.9, 0.1], [0.5, 0.5]], 3000, axis=0)
    arm = (rng.random(6000) < shares[:, 1]).astype(np.int64)
    assert check_split(arm, shares).is_as_configured
    assert not check_split(arm, np.full((6000, 2), 0.5)).is_as_configured
    assert not check_split(arm, np.tile([0.7, 0.3], (6000, 1))).is_as_configured  # on the way


def test_a_right_split_is_hardly_ever_called_wrong():
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(300):
        arm = (rng.random(3000) < 0.1).astype(np.int64)
        wrong += not check_split(arm, np.tile([0.9, 0.1], (3000, 1))).is_as_configured
    assert wrong <= 6
