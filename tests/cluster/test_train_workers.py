"""What the launch settings ask Ray Train for, without a cluster."""

from types import SimpleNamespace

import pytest
import ray
import ray.train
import ray.train.torch

from raysys.cluster import train_workers
from raysys.cluster.train_workers import LaunchConfig, launch
from raysys.store.storage import Storage
from raysys.training.optim import OptimConfig


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Return a function from launch settings to what the trainer is made with."""
    calls = []

    class Trainer:
        def __init__(self, worker, **settings):
            calls.append(settings)

        def fit(self):
            return SimpleNamespace(error=None, checkpoint=None)

    mailbox = SimpleNamespace(take=SimpleNamespace(remote=list))
    actor = SimpleNamespace(remote=lambda: mailbox)
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8, "GPU": 1})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8, "GPU": 1}}])
    monkeypatch.setattr(ray, "remote", lambda **_: lambda cls: actor)
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(train_workers, "_read_state", lambda checkpoint: {})

    def ask(**settings):
        storage = Storage(str(tmp_path))
        how = {"optim": OptimConfig(), "seed": 0, "storage": storage, "name": "n"}
        launch(list, {}, cfg=LaunchConfig(**settings), **how)
        return calls[-1]

    return ask


def test_lost_workers_are_recovered_from_as_often_as_asked(asked):
    assert asked()["run_config"].failure_config.max_failures == 2
    assert asked(max_failures=5)["run_config"].failure_config.max_failures == 5


def test_gpus_are_taken_where_there_are_enough_or_as_asked(asked):
    def gpu(**settings):
        return asked(**settings)["scaling_config"].use_gpu

    assert gpu(workers=1)
    assert not gpu(workers=2)
    assert not gpu(workers=1, gpu=False)
    assert gpu(workers=2, gpu=True)
    assert asked(workers=3)["scaling_config"].num_workers == 3
