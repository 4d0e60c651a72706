"""The tables of a simulated experiment have what the experiment says."""

import numpy as np
import pyarrow.compute as pc
import pytest

from raysys.simulate.experiment import ExperimentSpec, experiment_tables
from raysys.simulate.world import DAY, START

ARMS = {"a": (0.6, 0.0), "b": (0.2, 1.0)}


def test_users_differ_and_an_arm_is_better():
    spec = ExperimentSpec(ARMS, n_users=20_000, rate=0.05, days=10)
    events, impressions = experiment_tables(spec)
    counts = np.array(pc.value_counts(impressions["user_id"]).field("counts"))
    assert (counts.min(), counts.max(), len(counts)) == (1, 100, 20_000)
    assert np.median(counts) <= 2
    users = impressions.group_by(["user_id", "arm"]).aggregate([])
    assert len(users) == 20_000  # of one arm each
    in_a = pc.mean(pc.equal(users["arm"], "a")).as_py()
    assert in_a == pytest.approx(0.75, abs=0.02)
    arm_of = dict(zip(users["user_id"].to_pylist(), users["arm"].to_pylist()))
    done = [arm_of[user] for user in events["user_id"].to_pylist()]
    shown = impressions["arm"].to_pylist()
    rates = {arm: done.count(arm) / shown.count(arm) for arm in ARMS}
    assert rates["a"] == pytest.approx(0.05, rel=0.15)
    assert rates["b"] / rates["a"] == pytest.approx(2, rel=0.15)
    assert START <= pc.min(impressions["timestamp"]).as_py() < START + DAY
    assert set(impressions["weight"].to_pylist()) == {0.6, 0.2}


def test_users_may_be_drawn_by_other_shares_than_configured():
    spec = ExperimentSpec(ARMS, n_users=5000, split={"a": 0.5, "b": 0.5})
    impressions = experiment_tables(spec)[1]
    users = impressions.group_by(["user_id", "arm"]).aggregate([])
    assert pc.mean(pc.equal(users["arm"], "a")).as_py() == pytest.approx(0.5, abs=0.03)
    assert experiment_tables(spec)[1] == impressions
    assert experiment_tables(ExperimentSpec(ARMS, n_users=5000, seed=1))[1] != impressions
