"""The experiments suite in small: its rows, and what they say of the report."""

import pytest

from raysys.bench import experiments
from raysys.bench.experiments import ExperimentsBenchConfig
from raysys.config import load
from raysys.errors import ConfigError


@pytest.mark.slow
def test_reports_are_hardly_ever_wrong(monkeypatch):
    monkeypatch.setattr(experiments, "_SPLIT_USERS", 4000)
    cfg = load(ExperimentsBenchConfig, ["streams=100", "n_users=600", "lifts=[0.9]"])
    rows = experiments.rows(cfg)
    alike = [row for row in rows if "alarms" in row]
    assert len(alike) == 4
    for row in alike:
        assert row["alarms"] <= 9  # of 100 at 5 %; more by luck in 3 % of such tests
        assert row["z_test_alarms"] > 15  # what reading a z-test after every user does
        assert (row["streams"], row["users"]) == (100, 600)
    [better] = [row for row in rows if "decided" in row]
    assert (better["wrong"], better["streams"]) == (0, 20)
    assert better["decided"] >= 18
    assert better["median_users"] < 1.5 * better["z_test_users"]
    covered = {row["interval"]: row["coverage"] for row in rows if "coverage" in row}
    assert len(covered) == 6
    assert min(covered.values()) > 0.88
    assert covered["difference of shares, all looks of the sequence"] > 0.93
    split = [row for row in rows if "split" in row]
    assert [row["called_at_any_time"] > 50 for row in split] == [False, False, False, True]
    assert split[0]["called_at_any_time"] <= 4


def test_settings_out_of_range_are_refused():
    for word in ("streams=1", "n_users=50", "lifts=[-1]"):
        with pytest.raises(ConfigError, match=word.partition("=")[0]):
            load(ExperimentsBenchConfig, [word])
