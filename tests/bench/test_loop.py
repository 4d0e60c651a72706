"""The loop suite, small: real services, simulated users."""

import pytest

from raysys.bench import loop
from raysys.bench.loop import LoopBenchConfig, rows
from raysys.config import load
from raysys.errors import ConfigError
from raysys.events import fold


@pytest.mark.ray
@pytest.mark.slow
def test_users_answer_the_lists_of_services(tmp_path, monkeypatch, ray_cluster):
    monkeypatch.setattr(fold, "SETTLED_S", 0.0)
    monkeypatch.setattr(loop, "_tests", lambda *_: ())  # tests/long/loop_cases.py has them
    monkeypatch.setattr(loop, "CONDITIONS", ("frozen", "events"))  # and the third
    words = [f"run={tmp_path}", "suite=loop", "weeks=3", "ab_weeks=3", "n_users=300"]
    words += ["n_items=120", "n_interactions=6000", "latent=16", "bias=0.4", "taste_drift=0.2"]
    weeks = rows(load(LoopBenchConfig, words))
    assert [(row["condition"], row["week"]) for row in weeks] == [
        (condition, week) for condition in loop.CONDITIONS for week in range(3)
    ]
    assert all(0 < row["conversion"] < 1 and row["targets"] > 0 for row in weeks)
    first = [row["clicks"] for row in weeks if row["week"] == 0]
    assert len(set(first)) == 1  # the same users, the same luck, the same index
    later = {row["condition"]: row["conversion"] for row in weeks if row["week"] == 2}
    assert later["events"] != later["frozen"]
    assert (tmp_path / "loop.png").exists()


@pytest.mark.parametrize("word", ["weeks=2", "ab_weeks=99", "n_users=9", "n_items=9"])
def test_settings_that_cannot_be_used(word):
    with pytest.raises(ConfigError, match=word.split("=")[0]):
        load(LoopBenchConfig, ["suite=loop", word])
