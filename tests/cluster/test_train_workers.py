"""What the launch settings ask Ray Train for, without a cluster."""

from types import SimpleNamespace

import pytest
import ray
import ray.train
import ray.train.torch

from raysys.cluster import train_workers
from raysys.cluster.train_workers import LaunchConfig, launch, refuse_unplaceable
from raysys.errors import ConfigError
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
    node = {"Alive": True, "NodeManagerHostname": "a", "NodeID": "0", "Resources": {}}
    node["Resources"] |= {"CPU": 8, "GPU": 1}
    monkeypatch.setattr(ray, "nodes", lambda: [node, node | {"Alive": False}])
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
    with pytest.raises(ConfigError, match=r"needs 2 workers of 4 CPU and 1 GPU; .* hold 1 \(a: 1"):
        gpu(workers=2, gpu=True)
    assert asked(workers=3)["scaling_config"].num_workers == 3


def nodes(*cpus, gpus=0):
    return {f"node {n}": {"CPU": float(count), "GPU": gpus} for n, count in enumerate(cpus)}


@pytest.mark.parametrize(
    ("workers", "concurrent", "cpus"),
    [(2, 1, (2,)), (2, 1, (1, 1)), (4, 1, (1, 1)), (3, 1, (2,)), (7, 1, (3,)), (1, 3, (1, 2))],
)
def test_workers_that_fit_are_not_refused(workers, concurrent, cpus):
    refuse_unplaceable(LaunchConfig(workers=workers), nodes(*cpus), concurrent=concurrent)
    refuse_unplaceable(LaunchConfig(workers=0), {}, concurrent=concurrent)


@pytest.mark.parametrize(
    ("workers", "concurrent", "cpus", "message"),
    [
        (3, 1, (1, 1), "launch.workers=3 needs 3 workers of 0.6666 CPU; the nodes hold 2"),
        (1, 3, (1, 1), "launch.workers=1 with concurrent=3 needs 3 workers of 1 CPU"),
        (3, 3, (2, 4), r"needs 9 workers of 1 CPU; the nodes hold 6 \(node 0: 2, node 1: 4\)"),
    ],
)
def test_workers_that_no_node_has_room_for_are_refused_with_the_arithmetic(
    workers, concurrent, cpus, message
):
    cfg = LaunchConfig(workers=workers)
    with pytest.raises(ConfigError, match=message):
        refuse_unplaceable(cfg, nodes(*cpus), concurrent=concurrent)


def test_gpus_are_counted_node_by_node():
    refuse_unplaceable(LaunchConfig(workers=2), nodes(4, 4, gpus=1))
    with pytest.raises(ConfigError, match="needs 4 workers of 2 CPU and 1 GPU; the nodes hold 2"):
        refuse_unplaceable(LaunchConfig(workers=2), nodes(4, 4, gpus=1), concurrent=2)
