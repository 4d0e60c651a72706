"""The only place that builds a TorchTrainer: runs the training loop on Ray Train workers."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    remove_placement_group,
)
from torch import Tensor, nn

from raysys import progress
from raysys.cluster.mailbox import Losses, emptied, opened, told
from raysys.cluster.node_probes import free_resources, node_resources
from raysys.cluster.placement import (
    Nodes,
    Resources,
    most_now,
    needs_of,
    refuse_unplaceable,
    spelled,
    sum_of,
)
from raysys.cluster.torch_setup import Setup
from raysys.config import local, require
from raysys.errors import BuildError, ConfigError
from raysys.store.storage import Storage
from raysys.store.temporary import prefix
from raysys.training.ledger import reset_peak
from raysys.training.loop import train
from raysys.training.optim import OptimConfig
from raysys.training.task import Ranks, State, Task

log = logging.getLogger(__name__)

_USUAL_WORKERS = 2
_STATE = "state.pt"
_GROW_S = 30.0  # between two looks whether there is room for more workers
_RECORD_ERROR = "CheckpointManagerInitializationError"  # of Ray Train
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
PLACEMENT_GROUP = "placement_group"  # metric that names what the workers hold, in hex

Factory = Callable[..., Sequence[Callable[[], Task]]]
OnRecord = Callable[[dict[str, Any]], None]


@dataclasses.dataclass
class LaunchConfig:
    """How many workers train, and what happens when one is lost.

    Attributes:
        workers: Ray Train workers; 0 trains inside the calling process; two numbers are the fewest
            and the most: as many as there is room for, fewer when a host is lost, more when one
            comes. null: two, unless the catalogue and the hosts suggest another number.
        max_failures: lost workers to recover from, each time from the newest saved state.
        gpu: one GPU per worker; null takes GPUs where the cluster has enough.
    """

    workers: int | list[int] | None = local(None)
    max_failures: int = local(2)
    gpu: bool | None = local(None)

    def __post_init__(self) -> None:
        """Raise ConfigError for counts that make no sense."""
        given = self.workers
        fit = given is None or (
            given >= 0 if isinstance(given, int) else len(given) == 2 and 1 <= given[0] <= given[1]
        )
        require(fit, "launch.workers", given, "at least 0, [fewest, most] of at least 1, or null")
        require(self.max_failures >= 0, "launch.max_failures", self.max_failures, "at least 0")

    @property
    def fewest(self) -> int:
        """Workers without which nothing trains."""
        return self._pair[0]

    @property
    def most(self) -> int:
        """Workers that train where there is room for all."""
        return self._pair[1]

    @property
    def _pair(self) -> tuple[int, int]:
        given = _USUAL_WORKERS if self.workers is None else self.workers
        return (given, given) if isinstance(given, int) else (given[0], given[1])


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
    chosen: State | None = None,
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
        chosen: what the first phase would choose, see `task.chosen`; None: it does.

    Raises:
        ConfigError: there is no room for the workers. BuildError: too many were lost.
    """
    if cfg.most == 0:
        ranks = Ranks() if on_record is None else Ranks(save=lambda record, _: on_record(record))
        ranks.restored = chosen
        reset_peak()
        with torch.random.fork_rng():
            return train(factory(**settings), optim, seed=seed, ranks=ranks)
    nodes = node_resources()
    refuse_unplaceable(cfg, nodes)
    needs = needs_of(cfg, nodes)
    scaling = _scaling(cfg, nodes, needs)
    # A report waits until the controller looks; by default it looks every two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Until then Train waits for workers on a host that is gone, before it looks for others.
    os.environ.setdefault(_START_TIMEOUT, "30")
    mailbox = opened()
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={
            "mailbox": mailbox,
            "factory": factory,
            "settings": settings,
            "optim": dataclasses.asdict(optim),
            "seed": seed,
            "chosen": chosen,
        },
        torch_config=Setup(),
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=f"{storage.root}/training",
            storage_filesystem=None if storage.is_local else storage.filesystem,
            failure_config=_failures(cfg.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[Losses(mailbox), *callbacks],
        ),
    )
    log.info("training started workers=%s gpu=%s name=%s", spelled(cfg), scaling.use_gpu, name)
    with (
        progress.stage("train workers", lines=progress.NONE),
        emptied(mailbox, waiting=lambda: _shortage(cfg, needs)),
        _unplaced(cfg, needs),
        _killed(storage.url(f"training/{name}")),
    ):
        result = trainer.fit()
        if result.error is not None:
            raise result.error
    return _read_state(result.checkpoint)


def _scaling(cfg: LaunchConfig, nodes: Nodes, needs: Resources) -> ray.train.ScalingConfig:
    """Return how many workers Train asks for, and what each takes."""
    most = most_now(cfg, nodes, free_resources)
    return ray.train.ScalingConfig(
        num_workers=most if cfg.fewest == most else (cfg.fewest, most),
        use_gpu="GPU" in needs,
        resources_per_worker={"CPU": needs["CPU"]},
        elastic_resize_monitor_interval_s=_GROW_S,
    )


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


def _shortage(cfg: LaunchConfig, needs: Resources) -> str:
    """Return what workers that do not come would need, of what there is."""
    free = ray.available_resources()
    left = " ".join(f"free_{name}={free.get(name, 0):g}" for name in needs)
    return f"{left} launch.workers={spelled(cfg)}: {sum_of(cfg.fewest, node_resources(), needs)}"


@contextlib.contextmanager
def _unplaced(cfg: LaunchConfig, needs: Resources) -> Iterator[None]:
    """Raise ConfigError where a training that recovers from nothing has no room, or no more."""
    try:
        yield
    except ray.train.ControllerError as error:
        if not isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            raise
        seconds = os.environ.get(_START_TIMEOUT, "")
        raise ConfigError(
            f"no room for the workers within {seconds} s: {_shortage(cfg, needs)}; "
            "launch.max_failures=1 or more waits on"
        ) from error
    except ray.train.PreemptionError as error:
        raise ConfigError(
            "a host of the training was taken away: begun again it goes on from the last saved "
            "state; launch.max_failures=1 or more does so by itself"
        ) from error


@contextlib.contextmanager
def _killed(record: str) -> Iterator[None]:
    """Raise BuildError where processes of the training were killed, once too often.

    `record` is where Train writes down how far it is; another Ray may not be able to read it.
    """
    try:
        yield
    except ray.exceptions.RayActorError as error:  # of Train's controller
        if _RECORD_ERROR in str(error):
            reason = " ".join(str(error).rpartition(_RECORD_ERROR)[2].lstrip(": ").split())
            raise BuildError(
                f"Ray {ray.__version__} cannot read what an interrupted training left in {record} "
                f"({reason}): go on with the Ray that wrote it, or remove that folder and the "
                "training begins anew"
            ) from error
        raise _as_lost("the process that leads the training") from error
    except ray.train.WorkerGroupError as error:
        failures = error.worker_failures.items()
        causes = {n: getattr(each, "health_check_failure", each) for n, each in failures}
        lost = [n for n, each in causes.items() if isinstance(each, ray.exceptions.RayActorError)]
        if not lost:  # an error of the training itself
            raise
        raise _as_lost(f"worker {min(lost)}") from error


def _as_lost(what: str) -> BuildError:
    return BuildError(
        f"{what} was killed, or its host is gone: begun again the training goes on from its last "
        "saved state; if the memory of a host is short, dmesg names the killed process, and fewer "
        "launch.workers= or a smaller autoencoder.latent= need less"
    )


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
        restored=config["chosen"] if checkpoint is None else _read_state(checkpoint),
        warned=_warned,
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


def _warned() -> bool:
    return ray.train.get_preemption_info() is not None


def _save(metrics: dict[str, Any], state: State | None) -> None:
    """Report to the controller; rank 0 hands over the state, which is complete on disk first.

    It goes to the storage while training goes on. The next state waits until it is there, so that
    a slow storage never has more than two states on this host's disk.
    """
    metrics = metrics | {PLACEMENT_GROUP: get_current_placement_group().id.hex()}
    beside = ray.train.CheckpointUploadMode.ASYNC  # of all reports: they arrive in order
    if state is None or ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics, checkpoint_upload_mode=beside)
        return
    folder = tempfile.mkdtemp(prefix=prefix("state"))
    torch.save(state, Path(folder) / _STATE)
    committed = ray.train.CheckpointConsistencyMode.COMMITTED
    ray.train.get_all_reported_checkpoints(consistency_mode=committed)
    checkpoint = ray.train.Checkpoint.from_directory(folder)
    ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_mode=beside)


def _read_state(checkpoint: ray.train.Checkpoint) -> State:
    with checkpoint.as_directory() as folder:
        path = Path(folder) / _STATE  # may have been saved on a GPU that is not here
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state
