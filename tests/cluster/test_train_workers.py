"""What the launch settings ask Ray Train for, without a cluster."""

from types import SimpleNamespace

import pytest
import ray
import ray.train
import ray.train.torch
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.preemption import PreemptionInfo

from raysys.cluster import placement, train_workers
from raysys.cluster.placement import refuse_unplaceable
from raysys.cluster.train_workers import LaunchConfig, launch
from raysys.commands.train import TrainConfig
from raysys.config import load
from raysys.errors import BuildError, ConfigError
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
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    node = {"Alive": True, "NodeManagerHostname": "a", "NodeManagerAddress": "10.0.0.1"}
    node |= {"NodeID": "0", "Resources": {}}
    node["Resources"] |= {"CPU": 8, "GPU": 1}
    monkeypatch.setattr(ray, "nodes", lambda: [node, node | {"Alive": False}])
    monkeypatch.setattr(train_workers, "free_resources", lambda: {"a": node["Resources"]})
    monkeypatch.setattr(train_workers, "opened", lambda: mailbox)
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


def test_two_numbers_of_workers_are_the_fewest_and_the_most(asked):
    def scaling(*workers):
        return asked(workers=list(workers), gpu=False)["scaling_config"]

    assert scaling(1, 4).num_workers == (1, 4)
    assert scaling(1, 4).resources_per_worker == {"CPU": 1}
    assert scaling(16, 32).resources_per_worker == {"CPU": 0.4999}  # the fewest
    assert scaling(3, 3).num_workers == 3
    assert load(TrainConfig, ["launch.workers=[1,4]"]).launch.workers == [1, 4]
    assert load(TrainConfig, ["launch.workers=4"]).launch.workers == 4
    for refused in ("[4,1]", "[0,2]", "[1]", "[1,2,3]", "-1"):
        with pytest.raises(ConfigError, match=r"launch\.workers=.*\[fewest, most\]"):
            load(TrainConfig, [f"launch.workers={refused}"])


def test_an_elastic_training_asks_for_what_others_leave(asked, monkeypatch, caplog):
    free = {"a": {"CPU": 2.5}}
    monkeypatch.setattr(train_workers, "free_resources", lambda: free)
    monkeypatch.setattr(placement, "_SETTLE_S", 0.02)

    def workers(*most):
        return asked(workers=list(most), gpu=False)["scaling_config"].num_workers

    assert workers(1, 4) == (1, 2)
    assert "launch.workers=[1,4]: 2 at most, as the nodes have room for 2 of 4 now" in caplog.text
    assert workers(3, 4) == 3  # which waits, and says so
    monkeypatch.setattr(train_workers, "free_resources", lambda: {"a": {"CPU": 8.0}})
    assert workers(1, 16) == (1, 16)  # on hosts that come


def test_workers_without_room_are_a_line_where_nothing_is_tried_again(asked, monkeypatch):
    def late(self):
        raise ray.train.ControllerError(WorkerGroupStartupTimeoutError(2))

    asked()
    monkeypatch.setattr(ray.train.torch.TorchTrainer, "fit", late)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    told = r"no room .* within 30 s: free_CPU=1 launch\.workers=2: 2 workers of 1 CPU; the nodes"
    with pytest.raises(ConfigError, match=told):
        asked(workers=2, max_failures=0)

    def taken(self):
        raise ray.train.PreemptionError(PreemptionInfo(None, {"a": [0]}), drain_timed_out=True)

    monkeypatch.setattr(ray.train.torch.TorchTrainer, "fit", taken)
    with pytest.raises(ConfigError, match="was taken away: begun again it goes on"):
        asked(workers=2, max_failures=0)


def test_killed_processes_are_a_line_and_an_error_of_the_training_is_none(asked, monkeypatch):
    killed = ray.exceptions.ActorDiedError()
    closed = RuntimeError("connection closed by peer")  # of those that it worked with
    lost = {0: closed, 1: WorkerHealthCheckFailedError("poll failed", killed)}
    own = ray.train.WorkerGroupError("", {0: closed})
    asked()
    for error, expected, told in (
        (killed, BuildError, "the process that leads the training was killed"),
        (ray.train.WorkerGroupError("", lost), BuildError, "worker 1 was killed, .* begun again"),
        (own, ray.train.WorkerGroupError, "worker errors"),
    ):

        def fit(self, error=error):
            raise error

        monkeypatch.setattr(ray.train.torch.TorchTrainer, "fit", fit)
        with pytest.raises(expected, match=told):
            asked()


def test_as_many_find_room_as_train_counts():
    for fewest in range(1, 30):
        for cpus in range(1, 12):
            cfg, there = LaunchConfig(workers=[fewest, 40]), nodes(cpus)
            refuse_unplaceable(cfg, there)
            need = placement.needs_of(cfg, there)["CPU"]
            assert cpus // need >= fewest


def nodes(*cpus, gpus=0):
    return {f"node {n}": {"CPU": float(count), "GPU": gpus} for n, count in enumerate(cpus)}


@pytest.mark.parametrize(
    ("workers", "concurrent", "cpus"),
    [
        (2, 1, (2,)),
        (2, 1, (1, 1)),
        (4, 1, (1, 1)),
        (3, 1, (2,)),
        (7, 1, (3,)),
        (1, 3, (1, 2)),
        ([1, 8], 2, (2,)),
    ],
)
def test_workers_that_fit_are_not_refused(workers, concurrent, cpus):
    refuse_unplaceable(LaunchConfig(workers=workers), nodes(*cpus), concurrent=concurrent)
    refuse_unplaceable(LaunchConfig(workers=0), {}, concurrent=concurrent)


@pytest.mark.parametrize(
    ("workers", "concurrent", "cpus", "message"),
    [
        (3, 1, (1, 1), "launch.workers=3 needs 3 workers of 0.6666 CPU; the nodes hold 2"),
        ([3, 4], 1, (1, 1), r"launch.workers=\[3,4\] needs 3 workers of 0.6666 CPU; the nodes"),
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
