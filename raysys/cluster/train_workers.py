"""The only place that builds a TorchTrainer: runs the training loop on Ray Train workers."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    remove_placement_group,
)
from torch import Tensor, nn

from raysys import progress
from raysys.cluster.mailbox import Mailbox, emptied, told
from raysys.config import local, require
from raysys.errors import ConfigError
from raysys.store.storage import Storage
from raysys.training.ledger import reset_peak
from raysys.training.loop import train
from raysys.training.optim import OptimConfig
from raysys.training.task import Ranks, State, Task

log = logging.getLogger(__name__)

_STATE = "state.pt"
_LEAST = 1e-4  # of a resource, Ray's unit
PLACEMENT_GROUP = "placement_group"  # metric that names what the workers hold, in hex

Factory = Callable[..., Sequence[Callable[[], Task]]]
OnRecord = Callable[[dict[str, Any]], None]


@dataclasses.dataclass
class LaunchConfig:
    """How many workers train, and what happens when one is lost.

    Attributes:
        workers: Ray Train workers; 0 trains inside the calling process.
        max_failures: lost workers to recover from, each time from the newest saved state.
        gpu: one GPU per worker; null takes GPUs where the cluster has enough.
    """

    workers: int = local(2)
    max_failures: int = local(2)
    gpu: bool | None = local(None)

    def __post_init__(self) -> None:
        """Raise ConfigError for counts that make no sense."""
        require(self.workers >= 0, "launch.workers", self.workers, "at least 0")
        require(self.max_failures >= 0, "launch.max_failures", self.max_failures, "at least 0")


def launch(
    factory: Factory,
    settings: dict[str, Any],
    *,
    optim: OptimConfig,
    seed: int,
    cfg: LaunchConfig,
    storage: Storage,
    name: str,
    callbacks: Sequence[Any] = (),
    on_record: OnRecord | None = None,
) -> State:
    """Train on the cluster that the process is connected to and return the final state.

    Args:
        factory: module-level function; `factory(**settings)` returns the phases on each worker.
        settings: its arguments, picklable.
        optim: the optimiser's settings.
        seed: seed of initialisation, order and dropout.
        cfg: workers.
        storage: the run; states are kept below `training/<name>` in it, see `Draft.scratch`.
        name: identity of this training; a second launch under the same name goes on where the
            first one stopped.
        callbacks: Ray Train callbacks, e.g. the one that reports to a sweep.
        on_record: called with what the loop reports where it runs in this process; what it raises
            ends the training, of which nothing is left.
    """
    if cfg.workers == 0:
        ranks = Ranks() if on_record is None else Ranks(save=lambda record, _: on_record(record))
        reset_peak()
        with torch.random.fork_rng():
            return train(factory(**settings), optim, seed=seed, ranks=ranks)
    nodes = cluster_nodes()
    refuse_unplaceable(cfg, nodes)
    needs = _needs(cfg, nodes)
    gpu = "GPU" in needs
    # A report waits until the controller looks; by default it looks every two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={
            "mailbox": mailbox,
            "factory": factory,
            "settings": settings,
            "optim": dataclasses.asdict(optim),
            "seed": seed,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=cfg.workers, use_gpu=gpu, resources_per_worker={"CPU": needs["CPU"]}
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=f"{storage.root}/training",
            storage_filesystem=None if storage.is_local else storage.filesystem,
            failure_config=_failures(cfg.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=list(callbacks),
        ),
    )
    log.info("training started workers=%d gpu=%s name=%s", cfg.workers, gpu, name)
    with (
        progress.stage("train workers", lines=progress.NONE),
        emptied(mailbox),
    ):
        result = trainer.fit()
    if result.error is not None:
        raise result.error
    return _read_state(result.checkpoint)


def _failures(most: int) -> ray.train.FailureConfig:
    """Return what Train recovers from; with 0 nothing at all, as someone else begins it again.

    By itself Train would go on without end after failures of its own and of preempted nodes, and
    take workers anew for a training that was stopped from outside.
    """
    if most:
        return ray.train.FailureConfig(max_failures=most)
    return ray.train.FailureConfig(
        max_failures=0, controller_failure_limit=0, max_preemption_failures=0
    )


def cluster_nodes() -> dict[str, Mapping[str, float]]:
    """Return the resources of the nodes that are alive, each by a name that tells it apart."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    hosts = [node["NodeManagerHostname"] for node in alive]
    return {
        host if hosts.count(host) == 1 else f"{host} {node['NodeID'][:6]}": node["Resources"]
        for host, node in zip(hosts, alive, strict=True)
    }


def refuse_unplaceable(
    cfg: LaunchConfig, nodes: Mapping[str, Mapping[str, float]], *, concurrent: int = 1
) -> None:
    """Refuse workers for which the nodes have no room, one by one, before anything waits for it.

    Args:
        cfg: how many workers each training has.
        nodes: {name: resources} of the cluster, see `cluster_nodes`.
        concurrent: trainings at a time.

    Raises:
        ConfigError: with the arithmetic.
    """
    if cfg.workers == 0:
        return
    needs = _needs(cfg, nodes)
    rooms = {name: _room(node, needs) for name, node in nodes.items()}
    wanted = cfg.workers * concurrent
    if sum(rooms.values()) >= wanted:
        return
    beside = f" with concurrent={concurrent}" if concurrent > 1 else ""
    each = " and ".join(f"{amount:.4g} {name}" for name, amount in needs.items())
    held = ", ".join(f"{name}: {room}" for name, room in rooms.items())
    raise ConfigError(
        f"launch.workers={cfg.workers}{beside} needs {wanted} workers of {each}; the nodes hold "
        f"{sum(rooms.values())} ({held})"
    )


def _needs(cfg: LaunchConfig, nodes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return what a worker takes: a CPU or its share of all, and with GPUs one of these."""
    totals = {name: sum(node.get(name, 0.0) for node in nodes.values()) for name in ("CPU", "GPU")}
    if totals["GPU"] >= cfg.workers if cfg.gpu is None else cfg.gpu:
        return {"CPU": gpu_worker_cpus(list(nodes.values())), "GPU": 1.0}
    share = min(1.0, totals["CPU"] / cfg.workers)
    return {"CPU": math.floor(share / _LEAST) * _LEAST}  # rounded up, the last would not fit


def _room(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """Return how many workers a node holds."""
    held = [int((node.get(k, 0.0) + _LEAST / 2) / amount) for k, amount in needs.items() if amount]
    return min(held, default=0)


def gpu_worker_cpus(nodes: Sequence[Mapping[str, float]]) -> float:
    """Return the CPUs of a worker with a GPU: half of what its node has for each.

    Closed forms and factors are solved on them; the other half is for the rest of the job. Where
    half would be less than one, it is one, or what there is.

    Args:
        nodes: resources of the cluster's nodes; the poorest one with a GPU decides.
    """
    shares = [node.get("CPU", 0) / node["GPU"] for node in nodes if node.get("GPU")]
    share = min(shares, default=1.0)
    return min(share, max(1.0, share // 2))


def forget(storage: Storage, name: str) -> None:
    """Delete the states that a finished training left behind."""
    storage.delete(f"training/{name}")


def release(placement_group: str) -> None:
    """Free what the workers of a training hold that was killed from outside.

    Train's own cleaner asks the dashboard whether the controller lives; where that does not answer,
    the workers' CPUs stay taken for good.

    Args:
        placement_group: the last value that the training reported as `PLACEMENT_GROUP`.
    """
    ident = ray.PlacementGroupID(bytes.fromhex(placement_group))
    remove_placement_group(PlacementGroup(ident))


def _worker(config: dict[str, Any]) -> None:
    """Run on each Ray Train worker."""
    context = ray.train.get_context()
    checkpoint = ray.train.get_checkpoint()
    device = ray.train.torch.get_device()
    ranks = Ranks(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=device,
        wrap=_distributed,
        total=_total,
        share=_share,
        save=_save,
        restored=None if checkpoint is None else _read_state(checkpoint),
    )
    with told(config["mailbox"], ranks.rank):
        reset_peak()
        if ranks.rank == 0:
            log.info("training workers ready workers=%d", ranks.world)
        state = train(
            config["factory"](**config["settings"]),
            OptimConfig(**config["optim"]),
            seed=config["seed"],
            ranks=ranks,
        )
    _save(state["history"][-1] if state["history"] else {}, state)


def _distributed(module: nn.Module) -> nn.Module:
    """Move a module to the device and keep its gradients in step over the ranks.

    Rank 0's parameters and buffers become those of all. No step changes a buffer, and sending
    them at every step would only wait.
    """
    settings = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
    prepared: nn.Module = ray.train.torch.prepare_model(module, parallel_strategy_kwargs=settings)
    _from_rank_0(prepared.buffers())
    return prepared


def _share(module: nn.Module) -> None:
    _from_rank_0(module.state_dict().values())


def _from_rank_0(tensors: Iterable[Tensor]) -> None:
    if torch.distributed.is_initialized():
        for tensor in tensors:
            whole = tensor.contiguous()
            torch.distributed.broadcast(whole, src=0)
            tensor.copy_(whole)


def _total(tensor: Tensor) -> None:
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)


def _save(metrics: dict[str, Any], state: State | None) -> None:
    """Report to the controller; rank 0 hands over the state, which is complete on disk first."""
    metrics = metrics | {PLACEMENT_GROUP: get_current_placement_group().id.hex()}
    if state is None or ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    folder = tempfile.mkdtemp(prefix="raysys-state-")
    try:
        torch.save(state, Path(folder) / _STATE)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_state(checkpoint: ray.train.Checkpoint) -> State:
    with checkpoint.as_directory() as folder:
        path = Path(folder) / _STATE  # may have been saved on a GPU that is not here
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state
