"""What the training loop asks of a model, and how a worker reaches the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

State = dict[str, Any]


@dataclasses.dataclass
class Ranks:
    """This worker's place among the others and the ways to reach them.

    Attributes:
        rank, world: this worker and how many there are.
        device: where the model and its batches live.
        wrap: moves a module to the device and, with several ranks, keeps gradients in step.
        total: sums a tensor over the ranks, in place.
        share: gives all ranks the weights of rank 0, which alone keeps copies of good ones.
        save: keeps a state (on rank 0) and reports metrics; None state reports only. Called on all
            ranks after the same steps; the state's tensors change after it returns.
        restored: the state to go on from, if any.
        warned: tells whether a host of these ranks is to be taken away soon; the same on all ranks,
            which call it after the same steps.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    total: Callable[[Tensor], Any] = lambda tensor: tensor
    share: Callable[[nn.Module], Any] = lambda module: None
    save: Callable[[dict[str, Any], State | None], None] = lambda metrics, state: None
    restored: State | None = None
    warned: Callable[[], bool] | None = None


def chosen(
    epochs: Mapping[str, int], metrics: Mapping[str, float], choices: Mapping[str, float]
) -> State:
    """Return the state of a training whose first phase found these; it goes on with the second."""
    found = {"epochs": dict(epochs), "metrics": dict(metrics), "choices": dict(choices)}
    return {"phase": 1, **found}


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
    """What a model brings to the loop; the last epoch's weights are kept."""

    weights: NDArray[np.float64]  # [n_rows] share of each row in the loss, e.g. its cells

    @property
    def module(self) -> nn.Module:
        """The model; its forward returns a dict of losses with the key `loss`."""

    def batch(self, rows: NDArray[np.int64], epoch: int) -> Any:
        """Return the model's input for these rows; the loss is their weighted mean."""


@runtime_checkable
class Validated(Task, Protocol):
    """A task whose heads are judged: each keeps the weights of its best epoch."""

    heads: Sequence[Head]

    def start(self, choices: dict[str, float], ranks: Ranks) -> dict[str, float]:
        """Solve heads without gradient steps where that is possible.

        May add to `choices`; in a later phase it finds what the first one chose. Entries of the
        module's state are replaced, not written to, so the ones of before can be put back.

        Returns:
            {metric: value} of the heads that it solved; nothing leaves the model as it was.
        """

    def settle(self, metrics: Collection[str]) -> None:
        """Leave out the heads of these metrics from now on: of losses, validation and metrics.

        Their parameters need no gradients any more.
        """

    def validate(self, rank: int, world: int) -> Tensor | None:
        """Return this rank's sums for `metrics`, or None when there is nothing to validate."""

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Turn sums over all ranks into named metrics."""

    def finish(self, choices: dict[str, float]) -> dict[str, float]:
        """Complete the model after its last epoch; return what the next phase needs to know.

        Called on rank 0 alone.
        """

    def report(self) -> dict[str, float]:
        """Return further metrics of the finished model on what it was validated on.

        Called on rank 0 alone.
        """
