"""The arithmetic of the sweeps suite; the sweeps themselves are tested with the command."""

import contextlib
import json

import pytest

from raysys.bench import sweeps
from raysys.bench.sweeps import SweepsBenchConfig
from raysys.commands.tune import TuneConfig
from raysys.config import load
from raysys.errors import ConfigError
from raysys.store.builds import StageResult
from tests.support.sweeps import LEAD, sweep_record
from tests.support.training import planted_run


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Return the sweeps that the suite asks for; each leaves a record that is made up."""
    found = []

    def tune(cfg):
        found.append(cfg)
        ways = [(LEAD, "max"), ("bytes", "min")][: len(cfg.metrics)]
        made = sweep_record(n_trials=cfg.trials + 1, objectives=ways, seed=len(found))
        record = json.loads(json.dumps(made).replace(LEAD, cfg.metrics[0]))
        record["winner"] = record["best"]
        record["totals"] |= {"worker_seconds": 100.0 * len(found), "trial_seconds": 50.0}
        folder = tmp_path / f"sweep-{len(found)}"
        folder.mkdir()
        (folder / "sweep.json").write_text(json.dumps(record))
        return StageResult(extra={"sweep": str(folder)})

    def compare(cfg):
        row = {"mean": 0.12, "other": 0.11, "difference": 0.01, "ci_low": 0.001, "ci_high": 0.02}
        return StageResult(extra={"comparison": {"recall@20": row}, "common_users": 80})

    monkeypatch.setattr(sweeps, "tune", tune)
    monkeypatch.setattr(sweeps, "compare", compare)
    monkeypatch.setattr(sweeps, "train", lambda cfg: None)
    monkeypatch.setattr(sweeps, "load", lambda schema, given, **_: loaded(schema, given))
    monkeypatch.setattr(sweeps, "_compared", lambda *_: {"difference": -0.001, "users": 80})
    monkeypatch.setattr(sweeps, "connected", lambda _: contextlib.nullcontext())
    return found


def loaded(schema, given):
    return load(schema, given) if schema is TuneConfig else given


def test_the_parts_of_the_suite(asked, tmp_path):
    run = planted_run(tmp_path / "run").run
    words = {"run": run, "trials": 12, "epochs": 9, "metric": "recall@20"}
    rows = sweeps.rows(load(SweepsBenchConfig, words))
    early, whole = (row for row in rows if row["part"] == "asha")
    assert [cfg.stop_early for cfg in asked[:2]] == [True, False]
    assert all(cfg.force and cfg.sampler == "random" for cfg in asked[:2])
    assert {cfg.train.optim.epochs for cfg in asked[:2]} == {9}
    assert (early["worker_share"], whole["worker_share"]) == (0.5, 1.0)
    assert whole["winner"] != early["winner"]
    assert early["difference"] == -0.001
    [winner] = [row for row in rows if row["part"] == "winner"]
    assert (winner["test"], winner["defaults_test"], winner["difference"]) == (0.12, 0.11, 0.01)
    fronts = {row["sampler"]: row for row in rows if row["part"] == "front"}
    assert set(fronts) == {"random", "tpe", "nsga2"}
    assert len({row["corner"] for row in fronts.values()}) == 1
    assert all(row["hypervolume"] >= row["halfway"] >= 0 for row in fronts.values())
    only = sweeps.rows(load(SweepsBenchConfig, words | {"parts": ["winner"]}))
    assert [row["part"] for row in only] == ["winner"]
    with pytest.raises(ConfigError, match="parts="):
        load(SweepsBenchConfig, {"run": run, "parts": ["none"]})
