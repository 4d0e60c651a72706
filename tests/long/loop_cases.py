"""The experiments of the loop suite, small; takes two minutes: pytest tests/long/loop_cases.py."""

import pytest

from raysys.bench import loop
from raysys.bench.loop import LoopBenchConfig, rows
from raysys.config import load
from raysys.events import fold


@pytest.mark.ray
def test_models_meet_the_users_of_a_service(tmp_path, monkeypatch, ray_cluster):
    monkeypatch.setattr(fold, "SETTLED_S", 0.0)
    monkeypatch.setattr(loop, "CONDITIONS", ("refreshed",))
    monkeypatch.setattr(loop, "_CONTENDERS", {"wide": {}, "narrow": {"latent": 2}})
    words = [f"run={tmp_path}", "suite=loop", "weeks=3", "ab_weeks=3", "n_users=300"]
    words += ["n_items=120", "n_interactions=6000", "latent=16"]
    found = rows(load(LoopBenchConfig, words))
    weeks = [row for row in found if row["part"] == "weeks"]
    assert [row["week"] for row in weeks] == [0, 1, 2]
    assert all(0 < row["conversion"] < 1 for row in weeks)
    tests = {row["experiment"]: row for row in found if row["part"] == "ab"}
    assert [*tests] == ["winners", "first and last"]
    for test in tests.values():
        assert {test["arm"], test["control"]} == {"wide", "narrow"}
        assert test["users"] > 30
        assert test["difference_low"] < test["difference"] < test["difference_high"]
    assert {row["experiments"] for row in found if row["part"] == "agreement"} == {2}
