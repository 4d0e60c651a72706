"""The steer suite on a planted run."""

import pytest

from raysys.bench.steer import SteerBenchConfig, rows
from raysys.errors import ConfigError
from tests.support.runs import model_run, vectors_run


def test_muting_is_measured(tmp_path):
    workspace, _ = model_run(tmp_path, n_items=300, sparse=True)
    found = rows(SteerBenchConfig(run=workspace.run, users=12, timed=2))
    [mute] = [row for row in found if row["part"] == "mute" and row["ranking"] == "like"]
    assert mute["users"] >= 10
    assert mute["users_without"] == mute["pairs_without"] == 1
    assert mute["gone_holds_more"] > 0.9
    units = {row["weight"]: row for row in found if row["part"] == "unit"}
    assert units[0.0]["changed"] == 0
    assert units[-1.0]["changed"] >= units[-0.5]["changed"] > 0
    assert units[1.0]["strongest"] > units[1.0]["strongest_before"]
    assert {row["part"] for row in found} == {"mute", "unit", "time"}


def test_a_run_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no model"):
        rows(SteerBenchConfig(run=vectors_run(tmp_path)[0].run))
