"""Rolling backtests: windows, no look ahead, means with intervals."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from raysys import cli
from raysys.commands import backtest as backtest_module
from raysys.commands.backtest import BacktestConfig, backtest
from raysys.commands.evaluate import EvaluateConfig
from raysys.commands.prepare import prepare
from raysys.commands.train import TrainConfig, train
from raysys.config import load
from raysys.data.profiles import Profiles
from raysys.errors import ConfigError, DataError
from raysys.evaluation.comparison import users_of_report
from raysys.prepare.config import PrepareConfig
from raysys.store.builds import StageResult, Workspace
from raysys.store.storage import Storage

SMALL = ["autoencoder.latent=8", "autoencoder.level_latent=4", "optim.epochs=2"]


@pytest.mark.ray
def test_every_window_is_a_run_of_its_own(ray_cluster, small_log, tmp_path):
    run = str(tmp_path / "run")
    prepare(load(PrepareConfig, [f"run={run}", f"source={small_log}", "min_item_rows=2"]))
    words = [f"run={run}", "launch.workers=0"]
    train(load(TrainConfig, [*words, *SMALL, "model=autoencoder"]))
    cfg = load(BacktestConfig, [*words, "windows=2", "replicates=50", "baselines=[popularity]"])
    result = backtest(cfg)
    first, second = result.extra["backtest"]
    own = Workspace(run).current("profiles").record()["cutoffs"]
    assert second["test"] == own["test"]
    assert first["end"] == second["test"]
    assert second["end"] - second["test"] == first["end"] - first["test"]
    for window in (first, second):
        built = Profiles.open(Workspace(window["run"]).current("profiles"))
        assert built.cells().timestamp.max() < window["end"]
        assert built.facts.cutoffs == {"val": window["val"], "test": window["test"]}
        kept = Workspace(window["run"]).current("profiles").manifest.config
        assert kept["min_item_rows"] == 2
        trained = Workspace(window["run"]).current("autoencoder")
        assert trained.manifest.config == Workspace(run).current("autoencoder").manifest.config
        assert trained.record()["fitted_until"] == window["test"]
        assert set(window["baselines"]) == {"popularity"}
    mean = result.metrics["recall@20^0.3"]
    both = [window["metrics"]["recall@20^0.3"]["mean"] for window in (first, second)]
    assert mean["mean"] == pytest.approx(np.mean(both))
    assert mean["ci_low"] <= mean["mean"] <= mean["ci_high"]
    users = [
        users_of_report(Storage(w["run"]), "reports/evaluate-test-model", "model").num_rows
        for w in (first, second)
    ]
    assert [w["evaluated"]["rows"] for w in (first, second)] == users
    record = json.loads(Path(result.extra["report"]).read_text())
    assert record["backtest"] == [first, second]
    assert record["metrics"] == result.metrics
    assert record["left_out"] == []
    gap = record["differences"]["recall@20^0.3"]["chosen"]
    assert gap["baselines"] == ["popularity", "popularity"]
    others = [w["baselines"]["popularity"]["recall@20^0.3"]["mean"] for w in (first, second)]
    assert gap["difference"] == pytest.approx(np.mean(np.subtract(both, others)))
    assert backtest(cfg).metrics == result.metrics


def test_a_backtest_has_windows(tmp_path):
    assert load(BacktestConfig, yaml_path="configs/backtest.yaml") == BacktestConfig()
    with pytest.raises(ConfigError, match="windows=0"):
        load(BacktestConfig, [f"run={tmp_path}", "windows=0"])


@pytest.mark.parametrize("text", [None, "backtest: 3\nperiod: test\nlaunch:\n  workers: 0\n"])
def test_evaluate_backtest_is_the_command_of_today(monkeypatch, tmp_path, text):
    seen = []

    def seeing(cfg):
        seen.append(cfg)
        return StageResult()

    monkeypatch.setattr(backtest_module, "backtest", seeing)
    words = ["backtest=3", "period=test", "launch.workers=0"]
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
        words = [f"--config={tmp_path / 'c.yaml'}"]
    assert cli.main(["evaluate", f"run={tmp_path}", *words]) == 0
    assert [(cfg.windows, cfg.launch.workers) for cfg in seen] == [(3, 0)]
    assert load(EvaluateConfig, ["backtest=0"]) == EvaluateConfig()


def test_a_window_with_too_little_data_is_left_out(monkeypatch, tmp_path):
    windows = [backtest_module._Window(n, 10 * n, 10 * n + 5, 10 * n + 10) for n in (1, 2, 3)]
    figures = {"recall@20": {"mean": 0.5, "ci_low": None, "ci_high": None}}

    def run_window(cfg, subject, window):
        if window.number in missing:
            raise DataError("nobody to evaluate")
        extra = {
            "evaluated": {},
            "baselines": {"window": figures},
            "validation": {"window": {"recall@20": 0.4}},
            "report": f"w{window.number}/reports/x.json",
        }
        return f"w{window.number}", StageResult(metrics=figures, extra=extra)

    monkeypatch.setattr(backtest_module, "_windows", lambda *_: windows)
    monkeypatch.setattr(backtest_module, "_run_window", run_window)
    monkeypatch.setattr(backtest_module, "_means", lambda *_: figures)
    monkeypatch.setattr(backtest_module, "connected", lambda _: contextlib.nullcontext())
    subject = SimpleNamespace(build_ids={})
    monkeypatch.setattr(backtest_module.Subject, "open", lambda *_: subject)
    missing = {1}
    result = backtest(BacktestConfig(run=str(tmp_path), windows=3))
    assert [entry["number"] for entry in result.extra["backtest"]] == [2, 3]
    assert result.extra["left_out"] == [{"number": 1, "reason": "nobody to evaluate"}]
    assert result.extra["differences"]["recall@20"]["chosen"]["difference"] == 0
    missing = {1, 2, 3}
    with pytest.raises(DataError, match="no window"):
        backtest(BacktestConfig(run=str(tmp_path), windows=3))
