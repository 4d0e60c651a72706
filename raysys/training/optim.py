"""The optimiser and its settings, and what follows from them and a position alone.

The order of a phase's batches, the learning rate of a step and the random state that it starts from
are functions of (seed, phase, epoch, step): a position is all that a resumed run needs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysys.config import local, require

SCHEDULES = ("constant", "cosine")
USUAL_BATCH = 512
"""Rows of a batch where nobody says another number."""

_LEAST_STEPS = 8  # per epoch: batches shrink on small data
_PURPOSE = 0x7261  # keeps the shuffling apart from other uses of the seed


@dataclasses.dataclass
class OptimConfig:
    """Settings of the optimiser (Adam with decoupled weight decay).

    Attributes:
        lr: learning rate.
        schedule: `constant`, or `cosine`: down to zero over `epochs`, early stopping or not.
        warmup_epochs: the learning rate grows linearly over these.
        epochs: upper bound of the passes over the data.
        batch_size: rows of a global batch, over all ranks; at most an eighth of the data. null:
            512 of a catalogue's users, more where it has over 100,000 items, up to 8192.
        accumulate: parts that a rank cuts its share of a batch into, to need less memory; the
            gradient is that of the whole.
        weight_decay: decoupled weight decay.
        patience: epochs without a gain of 0.1 % in any head's metric before stopping; 0 never.
        checkpoint_steps: steps between two saved states; 0 saves none.
    """

    lr: float = 0.003
    schedule: str = "constant"
    warmup_epochs: float = 0.0
    epochs: int = 40
    batch_size: int | None = 256
    accumulate: int = 1
    weight_decay: float = 0.0
    patience: int = 4
    checkpoint_steps: int = local(100)

    def __post_init__(self) -> None:
        """Raise ConfigError for values that no training can use."""
        require(self.lr > 0, "optim.lr", self.lr, "a positive number")
        known = self.schedule in SCHEDULES
        require(known, "optim.schedule", self.schedule, " or ".join(SCHEDULES))
        for name in ("epochs", "batch_size", "accumulate"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"optim.{name}", value, "at least 1")
        for name in ("warmup_epochs", "weight_decay", "patience", "checkpoint_steps"):
            value = getattr(self, name)
            require(value >= 0, f"optim.{name}", value, "at least 0")

    def lr_factor(self, epoch: float) -> float:
        """Return what the learning rate is multiplied by at a (fractional) epoch from 0."""
        warm = min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs else 1.0
        if self.schedule == "cosine":
            warm *= 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / self.epochs)))
        return warm

    def batch_rows(self, n_rows: int) -> int:
        """Return the rows of a global batch of data with so many rows."""
        return min(self.batch_size or USUAL_BATCH, max(1, n_rows // _LEAST_STEPS))


def adamw(module: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """Return the optimiser of a module, its groups the module's own where it has a say.

    `initial_lr` of a group is what `lr_factor` multiplies.
    """
    own: Any = getattr(module, "parameter_groups", None)
    plain = [{"params": list(module.parameters()), "weight_decay": cfg.weight_decay}]
    optimiser = torch.optim.AdamW(own(cfg.lr) if own else plain, lr=cfg.lr, fused=True)
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    return optimiser


def global_batches(
    n_rows: int, batch_size: int, key: tuple[int, int, int]
) -> list[NDArray[np.int64]]:
    """Return the rows of each global batch of one epoch.

    Args:
        n_rows: rows there are.
        batch_size: rows of a batch; the last one may be smaller.
        key: (seed, phase, epoch), which alone decides the order.
    """
    order = np.random.default_rng([_PURPOSE, *key]).permutation(n_rows)
    return [order[start : start + batch_size] for start in range(0, n_rows, batch_size)]


def rank_rows(
    rows: NDArray[np.int64], weights: NDArray[np.float64], rank: int, world: int
) -> NDArray[np.int64]:
    """Return a rank's share of a global batch.

    Rows are dealt out back and forth, heaviest first: ranks get equally many (or one more) and
    about equally much to do, so none waits long for the others. A share keeps the batch's order.

    Args:
        rows: of the global batch.
        weights: [n_rows] weight of every row of the data.
        rank: of this process.
        world: number of ranks.
    """
    turn, seat = np.divmod(np.arange(len(rows)), world)
    seat = np.where(turn % 2 == 0, seat, world - 1 - seat)
    heaviest_first = np.argsort(-weights[rows], kind="stable")
    return np.asarray(rows[np.sort(heaviest_first[seat == rank])])


def step_seed(key: tuple[int, int, int], step: int, rank: int) -> int:
    """Return the seed of what is random within one step of a rank, e.g. dropout."""
    return hash((*key, step, rank)) & 0x7FFFFFFF
