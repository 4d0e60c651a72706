from types import SimpleNamespace

import pytest
import ray.tune
import yaml

from raysys.commands import tune as command
from raysys.commands.train import TrainConfig
from raysys.commands.tune import TuneConfig, _write, typed
from raysys.config import load
from raysys.errors import ConfigError
from raysys.store.builds import Workspace
from raysys.training.optim import OptimConfig

TRAIN = TrainConfig()


def space(*words):
    return load(TuneConfig, list(words)).space


def test_values_have_the_type_of_the_key_that_they_are_for():
    found = space(
        "space={autoencoder: {profile_exponent: [0.3, 1]}, compressor: {n_active: [null, 32]}}",
        "space.optim.lr={low: 1e-3, high: 1, log: on}",
        "space.optim.epochs={low: 2, high: 4}",
        "space.autoencoder.zero_diagonal=[on, false]",
    )
    assert found == {
        "autoencoder.profile_exponent": [0.3, 1.0],
        "compressor.n_active": [None, 32],
        "optim.lr": {"low": 0.001, "high": 1.0, "log": True},
        "optim.epochs": {"low": 2, "high": 4, "log": False},
        "autoencoder.zero_diagonal": [True, False],
    }
    assert isinstance(found["optim.lr"]["high"], float)
    assert isinstance(found["optim.epochs"]["low"], int)
    assert typed("optim.lr", [0.1, 1], TRAIN) == [0.1, 1.0]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "space.optim.lrr=[1]",
            r"unknown key 'space\.optim\.lrr'; did you mean 'space",
        ),
        ("space.optim.lr=[fast]", r"space\.optim\.lr='fast' is not accepted: expected a number"),
        ("space.optim.lr=[-1]", r"optim\.lr=-1\.0 is not accepted"),
        ("space.optim.lr=[]", "expected a list or"),
        ("space.optim.lr={low: 2, high: 1}", "expected low < high"),
        ("space.compressor.keep={low: null, high: 4}", "expected low < high"),
        ("space.optim.lr={low: 1, high: 2, log: 3}", r"space\.optim\.lr\.log='3' is not accepted"),
        ("space=3", "expected a mapping"),
    ],
)
def test_a_space_that_cannot_be_searched_is_one_line(word, message):
    with pytest.raises(ConfigError, match=message):
        space(word)


def test_keys_of_before_are_searched_by_their_names_of_today(monkeypatch, caplog):
    gone, domain = "space.autoencoder.level_weight=[1,5]", [0.1, 0.2]
    assert space(gone, "space.optim.lr=[0.1, 0.2]") == {"optim.lr": domain}
    assert caplog.text.count("key space.autoencoder.level_weight is gone") == 1
    with pytest.raises(ConfigError, match=r"space=.*level_weight.* is not accepted"):
        space(gone)
    monkeypatch.setattr(OptimConfig, "RENAMED", {"rate": "lr"}, raising=False)
    assert space("space.optim.rate=[0.1, 0.2]") == {"optim.lr": domain}
    assert "key space.optim.rate is called space.optim.lr now" in caplog.text
    with pytest.raises(ConfigError, match="one key with two values"):
        space("space.optim.rate=[0.1]", "space.optim.lr=[0.2]")


def test_the_winner_is_a_config_file_of_train(tmp_path):
    values = {"optim.lr": 1e-05, "compressor.n_active": None, "refit": "none"}
    folder = _write(Workspace(str(tmp_path)), "s", [], {"values": values})
    assert yaml.safe_load((tmp_path / "sweeps/s/best.yaml").read_text()) == values
    cfg = load(TrainConfig, yaml_path=f"{folder}/best.yaml")
    assert (cfg.optim.lr, cfg.compressor.n_active, cfg.refit) == (1e-05, None, "none")


@pytest.fixture
def tuner(monkeypatch, tmp_path):
    """Return a function from settings to what Ray Tune is asked for."""
    made = []

    class Tuner:
        @staticmethod
        def can_restore(*_, **__):
            return False

        def __init__(self, trainable, **settings):
            made.append(SimpleNamespace(**settings))

    monkeypatch.setattr(ray.tune, "Tuner", Tuner)
    profiles = SimpleNamespace(build_id="p")

    def ask(*words):
        cfg = load(TuneConfig, [f"run={tmp_path}", *words])
        command._tuner(cfg, Workspace(cfg.run), profiles, cfg.train, "sweep")
        return cfg, made[-1].tune_config

    return ask


def test_settings_reach_the_sweep(tuner):
    cfg, plain = tuner()
    assert (plain.num_samples, plain.max_concurrent_trials) == (4, 1)
    assert (plain.metric, plain.mode, cfg.train.select) == (cfg.metric, "max", cfg.metric)
    assert plain.scheduler is not None
    cfg, asked = tuner("trials=9", "concurrent=3", "stop_early=false", "metric=ndcg@100")
    assert (asked.num_samples, asked.max_concurrent_trials) == (9, 3)
    assert (asked.metric, cfg.train.select, asked.scheduler) == ("ndcg@100", "ndcg@100", None)
    assert tuner("metric=nll")[1].mode == "min"
    assert tuner("space.optim.lr=[0.1, 0.2]", "trials=9")[1].num_samples == 1  # a grid
