"""The recovery and train suites at sizes of seconds."""

from __future__ import annotations

import json

import pytest

from raysys.bench import recovery, steps, training
from raysys.bench.recovery import RecoveryBenchConfig
from raysys.bench.training import TrainBenchConfig
from raysys.config import load
from raysys.errors import ConfigError


def test_the_joint_model_recovers_more_with_more_draws(tmp_path):
    cfg = RecoveryBenchConfig(
        run=str(tmp_path), draws=[600, 20_000], n_users=100, n_items=40, latent=8, discover=False
    )
    few, many, slope = recovery.rows(cfg)
    assert (few["draws"], many["draws"]) == (600, 20_000)
    assert many["model"] < 0.6 * few["model"]
    assert many["model"] < min(many[name] for name in ("popularity", "independent", "rating-blind"))
    assert slope["model"] < -0.15
    written = json.loads((tmp_path / "bench-recovery" / "recovery.json").read_text())
    assert written == [few, many, slope]
    assert (tmp_path / "bench-recovery" / "recovery.png").stat().st_size > 10_000


def test_the_sparse_path_is_lighter_than_the_textbook_form(tmp_path, monkeypatch):
    two = {name: training.ENGINES[name] for name in [*training.ENGINES][:2]}
    monkeypatch.setattr(training, "ENGINES", two)  # every engine takes a process
    cfg = TrainBenchConfig(
        run=str(tmp_path), n_items=8000, batch=256, latent=8, steps=2, workers=False
    )
    textbook, ours = training.rows(cfg)
    assert (textbook["engine"], ours["engine"]) == tuple(two)
    assert ours["profiles_per_s"] > 0
    assert ours["peak_mb"] < textbook["peak_mb"]


def test_a_step_is_bound_by_the_slower_of_memory_and_matrix_units():
    sizes = steps.Sizes(n_items=1000, batch=64, profile=10, latent=8, steps=1, seed=0)
    slow_copies = steps.Rates(bytes_per_s=1e6, flops_per_s=1e15)
    slow_units = steps.Rates(bytes_per_s=1e15, flops_per_s=1e6)
    engine = "sparse, likelihood"
    assert steps.bound_seconds(engine, sizes, 500, slow_copies) == pytest.approx(32 * 500 / 1e6)
    products = 3 * 2 * 64 * 1000 * 8  # forward and twice backward, a multiplication and an addition
    assert steps.bound_seconds(engine, sizes, 500, slow_units) == pytest.approx(products / 1e6)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (RecoveryBenchConfig, ["draws=[100]"]),
        (RecoveryBenchConfig, ["n_items=0"]),
        (TrainBenchConfig, ["epochs=1"]),
        (TrainBenchConfig, ["profile=9000"]),
    ],
)
def test_settings_out_of_range_are_refused(schema, words):
    with pytest.raises(ConfigError, match=words[0].partition("=")[0]):
        load(schema, words)
