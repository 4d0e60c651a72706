"""The evaluate suite on a small log; the peer's figures are those of the evaluator."""

from __future__ import annotations

import numpy as np
import pytest

from raysys.bench import evaluate
from raysys.bench.evaluate import EvaluateBenchConfig
from raysys.config import load
from raysys.errors import ConfigError
from raysys.store.builds import Workspace

SMALL = {"n_items": 2000, "latent": 8, "metric_users": 500, "replicates": 20}


def test_users_are_evaluated_in_a_process_of_its_own(tmp_path):
    cfg = EvaluateBenchConfig(run=str(tmp_path), sizes=[300], **SMALL)
    size, ours, full, *peer = evaluate.rows(cfg)
    assert (size["users"], size["items"]) == (300, 2000)
    assert size["seconds"] > 0 < size["peak_pss_mb"]
    assert [ours["engine"], full["engine"]] == ["raysys metrics", "raysys metrics, 20 replicates"]
    assert not list((tmp_path / "bench-evaluate").iterdir())
    if peer:
        assert ours["largest_difference"] <= 1e-9


def test_simulated_profiles_hold_distinct_items_and_targets_for_everyone(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_SHARD_USERS", 64)
    cfg = EvaluateBenchConfig(run=str(tmp_path), sizes=[10], **SMALL)
    workspace = Workspace(str(tmp_path))
    evaluate._write_run(workspace, cfg, 150)
    build = workspace.current("profiles")
    assert len(build.files(prefix="shard-")) == 3
    for start in range(0, 150, 50):
        cells = evaluate._cells(cfg, start, start + 50)
        pairs = cells.rows * cfg.n_items + cells.item_num
        assert len(np.unique(pairs)) == cells.n_cells
        assert cells.in_windows([2]).counts.min() >= 1
        assert cells.in_windows([0, 1]).counts.min() >= 1


@pytest.mark.parametrize("words", [["sizes=[]"], ["n_items=10"], ["rows_per_user=0"]])
def test_settings_out_of_range_are_refused(words):
    with pytest.raises(ConfigError, match=words[0].partition("=")[0]):
        load(EvaluateBenchConfig, words)
