"""The per-worker training loop of both models. It knows ranks but not Ray.

The global batch and its order follow from (seed, phase, epoch) alone and each rank takes every
`world`-th row of it, so a batch is the same whatever the number of ranks. A row's share of the loss
is its weight divided by the weight of the whole global batch, so gradients are too.

A model has heads: blocks that share no parameters, each judged by a metric of its own. Training
goes in phases: the first one is validated and chooses the number of epochs of each head; later ones
(a refit on more data) run that many epochs without looking. A head keeps the weights of its epoch.
State is saved between epochs; a run that is resumed there continues as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysys.config import require
from raysys.errors import ConfigError

log = logging.getLogger(__name__)

_LEAST_STEPS = 8  # per epoch: batches shrink on small data
_LEAST_GAIN = 1e-3  # relative gain of a metric that patience counts
_PURPOSE = 0x7261  # keeps the shuffling apart from other uses of the seed

State = dict[str, Any]


@dataclasses.dataclass
class OptimConfig:
    """Settings of the optimiser (Adam with decoupled weight decay).

    Attributes:
        lr: learning rate.
        epochs: upper bound of the passes over the data.
        batch_size: rows of a global batch, over all ranks; at most an eighth of the data.
        weight_decay: decoupled weight decay.
        patience: epochs without a gain of 0.1 % in any head's metric before stopping; 0 never.
        checkpoint_every: epochs between two saved states.
    """

    lr: float = 0.003
    epochs: int = 40
    batch_size: int = 256
    weight_decay: float = 0.0
    patience: int = 4
    checkpoint_every: int = 5

    def __post_init__(self) -> None:
        """Raise ConfigError for values that no training can use."""
        require(self.lr > 0, "optim.lr", self.lr, "a positive number")
        for name in ("epochs", "batch_size", "checkpoint_every"):
            value = getattr(self, name)
            require(value >= 1, f"optim.{name}", value, "at least 1")
        for name in ("weight_decay", "patience"):
            value = getattr(self, name)
            require(value >= 0, f"optim.{name}", value, "at least 0")


@dataclasses.dataclass(frozen=True)
class Head:
    """A block of a model with its own early stopping.

    Attributes:
        metric: the validation metric that decides.
        minimise: whether lower is better.
        names: entries of the model's state that belong to the block.
    """

    metric: str
    minimise: bool
    names: tuple[str, ...]


class Task(Protocol):
    """What a model brings to the loop."""

    weights: NDArray[np.float64]  # [n_rows] share of each row in the loss, e.g. its cells
    heads: Sequence[Head]  # empty: the last epoch's weights are kept

    @property
    def module(self) -> nn.Module:
        """The model; its forward returns a dict of losses with the key `loss`."""

    def batch(self, rows: NDArray[np.int64], epoch: int) -> Any:
        """Return the model's input for these rows; the loss is their weighted mean."""

    def start(self, choices: dict[str, float], ranks: Ranks) -> dict[str, float]:
        """Solve heads without gradient steps where that is possible.

        May add to `choices`; in a later phase it finds what the first one chose.

        Returns:
            {metric: value} of the heads that it solved; nothing leaves the model as it was.
        """

    def validate(self, rank: int, world: int) -> Tensor | None:
        """Return this rank's sums for `metrics`, or None when there is nothing to validate."""

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Turn sums over all ranks into named metrics."""

    def finish(self, choices: dict[str, float]) -> dict[str, float]:
        """Complete the model after its last epoch; return what the next phase needs to know."""


@dataclasses.dataclass
class Ranks:
    """This worker's place among the others and the ways to reach them.

    Attributes:
        rank, world: this worker and how many there are.
        device: where the model and its batches live.
        wrap: moves a module to the device and, with several ranks, keeps gradients in step.
        total: sums a tensor over the ranks, in place.
        save: keeps a state (on rank 0) and reports metrics; None state reports only.
        restored: the state to go on from, if any.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    total: Callable[[Tensor], Any] = lambda tensor: tensor
    save: Callable[[dict[str, Any], State | None], None] = lambda metrics, state: None
    restored: State | None = None


def train(
    phases: Sequence[Callable[[], Task]], optim: OptimConfig, *, seed: int, ranks: Ranks
) -> State:
    """Run all phases.

    Returns:
        State with `model` (weights of the last phase), `epochs` ({metric: epochs}), `metrics`
        ({metric: value} at these epochs), `choices` (what phases decided) and `history` (one
        record per epoch).

    Raises:
        ConfigError: the loss is no longer finite; raised on all ranks before the update.
    """
    state: State = ranks.restored or {
        "phase": 0,
        "epoch": 0,
        "history": [],
        "best": {},
        "epochs": {},
        "metrics": {},
        "choices": {},
    }
    for phase in range(state["phase"], len(phases)):
        torch.manual_seed(seed)
        _run_phase(phase, phases[phase](), state, optim=optim, seed=seed, ranks=ranks)
        if phase + 1 < len(phases):
            state |= {"phase": phase + 1, "epoch": 0, "best": {}}
            state |= {"model": None, "optimiser": None}
    state["optimiser"] = None
    return state


def _run_phase(
    phase: int, task: Task, state: State, *, optim: OptimConfig, seed: int, ranks: Ranks
) -> None:
    """Train one phase; afterwards `state["model"]` holds its weights."""
    if state.get("model") is not None:
        task.module.load_state_dict(state["model"])
    wrapped = ranks.wrap(task.module)
    module: nn.Module = getattr(wrapped, "module", wrapped)
    optimiser = torch.optim.AdamW(_groups(module, optim), lr=optim.lr)
    if state.get("optimiser") is not None:
        optimiser.load_state_dict(state["optimiser"])
    last = max(state["epochs"].values(), default=optim.epochs)
    solved = _solve(task, module, state, phase, ranks)
    for epoch in range(state["epoch"], last):
        started = time.perf_counter()
        torch.manual_seed(hash((seed, phase, epoch, ranks.rank)) & 0x7FFFFFFF)
        record = _run_epoch(wrapped, task, optimiser, (seed, phase, epoch), optim, ranks)
        sums = _validate(module, task, ranks) if phase == 0 else None
        record |= {} if sums is None else task.metrics(sums)
        _keep_best(task, module, state, record, epoch + 1, validated=sums is not None)
        record |= {"phase": phase, "epoch": epoch + 1, "seconds": time.perf_counter() - started}
        state["history"].append(record)
        log.info("trained %s", " ".join(f"{k}={v:.5g}" for k, v in record.items()))
        state["epoch"] = epoch + 1
        waited = [epoch + 1 - best["gained"] for best in state["best"].values()]
        if phase == 0 and optim.patience and waited and min(waited) >= optim.patience:
            break
        due = (epoch + 1) % optim.checkpoint_every == 0 and epoch + 1 < last
        if due:
            state |= {"model": _weights(module), "optimiser": optimiser.state_dict()}
        ranks.save(record, state if due else None)
    for head in task.heads:
        best = solved.get(head.metric)
        if best is not None and _improves(head, best["value"], state["best"].get(head.metric)):
            state["best"][head.metric] = best
    for best in state["best"].values():
        module.load_state_dict(best["weights"], strict=False)
    if phase == 0:
        state["epochs"] = {name: best["epoch"] for name, best in state["best"].items()}
        state["metrics"] = {name: best["value"] for name, best in state["best"].items()}
    module.eval()
    with torch.no_grad():
        state["choices"] |= task.finish(state["choices"])
    state["model"] = _weights(module)


def _solve(
    task: Task, module: nn.Module, state: State, phase: int, ranks: Ranks
) -> dict[str, dict[str, Any]]:
    """Return the heads that need no training as candidates of epoch 0; the model stays as it was.

    A later phase solves those alone for which the first one chose that.
    """
    if phase > 0 and 0 not in state["epochs"].values():
        return {}
    before = _weights(module)
    module.eval()
    with torch.no_grad():
        values = task.start(state["choices"], ranks)
    after = module.state_dict()
    wanted = [h for h in task.heads if h.metric in values]
    if phase > 0:
        wanted = [h for h in wanted if state["epochs"].get(h.metric) == 0]
    solved: dict[str, dict[str, Any]] = {}
    for head in wanted:
        log.info("solved phase=%d %s=%.5g", phase, head.metric, values[head.metric])
        weights = {name: after[name].detach().cpu().clone() for name in head.names}
        value = values[head.metric]
        solved[head.metric] = {"epoch": 0, "gained": 0, "value": value, "weights": weights}
    module.load_state_dict(before)
    return solved


def _improves(head: Head, value: float, old: dict[str, Any] | None) -> bool:
    """Tell whether a value of the head's metric is better than the candidate kept so far."""
    if old is None:
        return True
    return bool(value < old["value"] if head.minimise else value > old["value"])


def _groups(module: nn.Module, optim: OptimConfig) -> Any:
    """Return the optimiser's parameter groups: the model's own where it has a say."""
    own: Any = getattr(module, "parameter_groups", None)
    if own is not None:
        return own(optim.lr)
    return [{"params": list(module.parameters()), "weight_decay": optim.weight_decay}]


def _keep_best(
    task: Task,
    module: nn.Module,
    state: State,
    record: dict[str, float],
    epoch: int,
    *,
    validated: bool,
) -> None:
    """Keep the weights of every head whose metric is at its best, or whose epoch has come."""
    for head in task.heads:
        old = state["best"].get(head.metric)
        if validated:
            value = record[head.metric]
            better = _improves(head, value, old)
        else:
            value, better = 0.0, state["epochs"].get(head.metric) == epoch
        if better:
            weights = module.state_dict()
            kept = {name: weights[name].detach().cpu().clone() for name in head.names}
            gained = epoch
            if old is not None and abs(value - old["value"]) < _LEAST_GAIN * abs(old["value"]):
                gained = old["gained"]  # better, but not by enough to wait for more
            state["best"][head.metric] = {
                "epoch": epoch,
                "gained": gained,
                "value": value,
                "weights": kept,
            }


def _run_epoch(
    wrapped: nn.Module,
    task: Task,
    optimiser: torch.optim.Optimizer,
    key: tuple[int, int, int],
    optim: OptimConfig,
    ranks: Ranks,
) -> dict[str, float]:
    """Make one pass and return the weighted means of the losses over all ranks."""
    wrapped.train()
    module: Any = getattr(wrapped, "module", wrapped)
    sums: dict[str, float] = {}
    batch_size = min(optim.batch_size, max(1, len(task.weights) // _LEAST_STEPS))
    for rows in global_batches(len(task.weights), batch_size, key):
        mine = rows[ranks.rank :: ranks.world]
        share = float(task.weights[mine].sum() / max(task.weights[rows].sum(), 1e-12))
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=ranks.device.type == "cuda"):
            losses = wrapped(task.batch(mine, key[2]))
        optimiser.zero_grad(set_to_none=True)
        (losses["loss"] * (share * ranks.world)).backward()
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in wrapped.parameters() if p.grad is not None]
        )
        if not torch.isfinite(norm):
            raise ConfigError(
                f"the loss is not finite in epoch {key[2] + 1}: lower optim.lr={optim.lr}"
            )
        if hasattr(module, "before_step"):
            module.before_step()
        optimiser.step()
        if hasattr(module, "after_step"):
            module.after_step()
        weight = float(task.weights[mine].sum())
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + weight * float(value.detach())
    names = sorted(sums)
    total = torch.tensor([*(sums[n] for n in names)], dtype=torch.float64, device=ranks.device)
    ranks.total(total)
    means = (total / max(float(task.weights.sum()), 1e-12)).tolist()
    return dict(zip(names, means, strict=True))


def _validate(module: nn.Module, task: Task, ranks: Ranks) -> Tensor | None:
    module.eval()
    with torch.no_grad():
        sums = task.validate(ranks.rank, ranks.world)
    if sums is not None:
        sums = sums.to(ranks.device, torch.float64)
        ranks.total(sums)
    return sums


def global_batches(
    n_rows: int, batch_size: int, key: tuple[int, int, int]
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each global batch of one epoch.

    Args:
        n_rows: rows there are.
        batch_size: rows of a batch; the last one may be smaller.
        key: (seed, phase, epoch), which alone decides the order.
    """
    order = np.random.default_rng([_PURPOSE, *key]).permutation(n_rows)
    for start in range(0, n_rows, batch_size):
        yield order[start : start + batch_size]


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone() for k, v in module.state_dict().items()}
