"""What an experiment says: on simulated logs whose truth is known, and where there is little."""

import dataclasses

import numpy as np
import pytest

from raysys.errors import DataError
from raysys.evaluation.anytime import compare
from raysys.evaluation.attribution import Attribution
from raysys.evaluation.experiment import assess
from raysys.simulate.experiment import ExperimentSpec, experiment_tables
from raysys.simulate.world import DAY, START

EVER = 1 << 40


def users_of(spec):
    events, impressions = experiment_tables(spec)
    columns = ["event_id", "user_id", "item_id", "timestamp"]
    log = Attribution(events.select(columns), window_s=DAY, horizon_s=DAY)
    log.add(impressions)
    return log.users()


def two_arms(lift=0.0, **others):
    return ExperimentSpec({"control": (0.5, 0.0), "new": (0.5, lift)}, **others)


def first_users(users, n):
    names = ("arm", "first", "impressions", "conversions", "early", "shares")
    cut = {name: getattr(users, name)[:n] for name in names}
    return dataclasses.replace(users, user_ids=users.user_ids.slice(0, n), **cut)


def test_the_better_arm_is_named():
    found = assess(users_of(two_arms(0.8, n_users=3000)), until=EVER, horizon_s=DAY)
    [comparison] = found.comparisons
    assert comparison.better == "new"
    assert found.verdict.startswith("new is better than control, decided after")
    assert 0 < comparison.low < comparison.effect < comparison.high
    assert comparison.low < comparison.outcome.low < comparison.outcome.high < comparison.high
    assert comparison.outcome.lift_low > 0.2
    assert comparison.per_impression.low > 0
    turned = assess(users_of(two_arms(0.8, n_users=3000)), until=EVER, horizon_s=DAY, control="new")
    assert turned.comparisons[0].effect == pytest.approx(-comparison.effect, rel=1e-9)
    assert turned.comparisons[0].better == "new"


def test_the_past_of_the_sequence_does_not_change():
    """A report that is read early says what a later one says of that time."""
    users = users_of(two_arms(0.4, n_users=3000))
    late = assess(users, until=EVER, horizon_s=DAY).comparisons[0]
    until = START + 8 * DAY
    early = assess(users, until=until, horizon_s=DAY).comparisons[0]
    assert 1000 < early.users < late.users
    prefix = first_users(users, int((users.first + DAY <= until).sum()))
    alone = assess(prefix, until=EVER, horizon_s=DAY).comparisons[0]
    assert (early.users, early.low, early.p_value) == (alone.users, alone.low, alone.p_value)
    assert early.steps == alone.steps


def test_nothing_is_decided_between_arms_that_are_alike():
    found = assess(users_of(two_arms(n_users=2000, seed=3)), until=EVER, horizon_s=DAY)
    assert found.comparisons[0].decided_at is None
    assert found.verdict.startswith("Nothing is decided yet: new would take about")
    assert found.split.is_as_configured


def test_a_wrong_split_is_said_first():
    spec = two_arms(0.8, n_users=3000, split={"control": 0.6, "new": 0.4})
    found = assess(users_of(spec), until=EVER, horizon_s=DAY)
    assert found.comparisons[0].decided_at is not None
    assert "not split as configured" in found.verdict
    assert "not to be trusted" in found.verdict


def test_several_arms_share_alpha():
    arms = {"a": (0.2, 0.0), "b": (0.4, 0.0), "c": (0.4, 0.9)}
    users = users_of(ExperimentSpec(arms, n_users=6000))
    found = assess(users, until=EVER, horizon_s=DAY)
    assert (found.control, [arm.name for arm in found.arms]) == ("a", ["a", "b", "c"])
    alike, better = found.comparisons
    assert alike.decided_at is None
    assert better.better == "c"
    assert better.users == sum(arm.mature for arm in found.arms if arm.name != "b")
    assert found.verdict == f"c is better than a, decided after {better.decided_at:,} users."
    rows = np.flatnonzero(users.arm != 1)
    values = (users.early[rows] > 0).astype(float)
    alone = compare(users.arm[rows] == 2, values, np.full(len(rows), 2 / 3), alpha=0.025)
    assert better.p_value == pytest.approx(2 * alone.p_value[-1])
    assert better.decided_at == alone.decided_at(0.025)
    assert (better.low, better.high) == pytest.approx((alone.low[-1], alone.high[-1]))


def test_a_difference_that_fades_is_said():
    users = users_of(two_arms(n_users=6000))
    early = np.where(np.arange(6000) < 150, users.arm, np.arange(6000) % 2)
    faded = dataclasses.replace(users, early=early)
    verdict = assess(faded, until=EVER, horizon_s=DAY).verdict
    assert verdict.startswith("new is better than control, decided after")
    assert verdict.endswith("The interval holds 0 again: the difference has faded since.")


def test_conversions_count_where_asked():
    users = users_of(two_arms(0.5, n_users=3000, rate=0.4))
    found = assess(users, until=EVER, horizon_s=DAY, outcome="conversions")
    for arm in found.arms:
        own = users.early[users.arm == users.arms.index(arm.name)]
        assert arm.outcome.value == pytest.approx(own.mean())
    assert found.arms[1].outcome.value > 1.2 * found.arms[0].outcome.value
    assert found.comparisons[0].better == "new"


def test_little_is_said_of_little():
    few = assess(users_of(two_arms(n_users=20)), until=EVER, horizon_s=DAY)
    assert few.verdict.startswith("Nothing is decided yet: new and the control have 20 users")
    assert few.comparisons[0].low is None
    immature = assess(users_of(two_arms()), until=START, horizon_s=DAY)
    assert immature.verdict == "Nothing is decided yet: no user's horizon has passed."
    assert immature.arms[0].outcome.value is None
    assert immature.arms[0].users > 900
    one = assess(users_of(ExperimentSpec({"only": (1.0, 0.0)})), until=EVER, horizon_s=DAY)
    assert one.verdict == "There is one arm: nothing to compare."
    assert (one.split, one.comparisons) == (None, [])
    nobody = assess(first_users(users_of(two_arms()), 0), until=EVER, horizon_s=DAY)
    assert nobody.verdict == "No two arms have users of their own: nothing to compare."


def test_an_arm_is_compared_with_those_who_came_while_it_was_there():
    """Everybody converts before the second half, in which an arm joins that changes nothing."""
    n = 4000
    rng = np.random.default_rng(0)
    arm = np.where(np.arange(n) < n / 2, 0, rng.integers(0, 2, n))
    early = np.where(np.arange(n) < n / 2, 1, rng.random(n) < 0.2).astype(np.int64)
    shares = np.where(np.arange(n)[:, None] < n / 2, [1.0, 0.0], [0.5, 0.5])
    users = dataclasses.replace(users_of(two_arms(n_users=n)), arm=arm, early=early, shares=shares)
    found = assess(users, until=EVER, horizon_s=DAY)
    assert found.comparisons[0].users == n / 2
    assert found.comparisons[0].decided_at is None
    assert found.comparisons[0].outcome.high < 0  # what is read once mixes the times
    assert found.split.is_as_configured


def test_an_arm_without_conversions_is_beaten():
    found = assess(users_of(two_arms(-1.0, n_users=1500)), until=EVER, horizon_s=DAY)
    assert found.arms[1].conversions == 0
    assert found.comparisons[0].better == "control"
    assert found.comparisons[0].outcome.lift == -1
    nobody = assess(users_of(two_arms(rate=1e-9)), until=EVER, horizon_s=DAY)
    assert nobody.comparisons[0].decided_at is None
    assert nobody.verdict.startswith("Nothing is decided yet: new is so close to the control")


def test_a_control_is_an_arm():
    with pytest.raises(DataError, match="control='old' is no arm of this experiment: control, new"):
        assess(users_of(two_arms(n_users=100)), until=EVER, horizon_s=DAY, control="old")
