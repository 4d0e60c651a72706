"""A training that begins at an earlier model of the same log: its items keep their numbers.

Only what gradient steps move is taken over, and only where its shape fits: rows of items that are
new, factors and closed forms begin as they do without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from raysys.autoencoder.files import Autoencoder
from raysys.autoencoder.model import Conv4Rec
from raysys.autoencoder.validation import RECALL
from raysys.store.builds import Build

_CONSUME = ("items", "decoder", "consume_bias")
_PER_ITEM = (*_CONSUME, "level_in", "level_out", "level_bias")


@dataclasses.dataclass(frozen=True)
class Beginning:
    """An earlier model.

    Attributes:
        state: its weights, rows of items by their numbers.
        solved: whether its consume block is a closed form, which is no start for gradient steps.
    """

    state: Mapping[str, Tensor]
    solved: bool

    @classmethod
    def of(cls, build: Build) -> Beginning:
        """Read an `autoencoder` build."""
        opened = Autoencoder.open(build)
        head = build.manifest.config.get("select", RECALL)
        return cls(opened.model.state_dict(), solved=opened.facts.epochs.get(head) == 0)


@torch.no_grad()
def begin_at(model: Conv4Rec, before: Beginning) -> list[str]:
    """Let parameters of a model begin at those of an earlier one; return their names."""
    taken = []
    for name, parameter in model.named_parameters():
        old = before.state.get(name)
        if old is None or (name in _CONSUME and before.solved):
            continue
        per_item = name in _PER_ITEM
        if old.shape[per_item:] != parameter.shape[per_item:]:
            continue
        if name == "level_bias":
            old = old - before.state["level_offset"]
        rows = min(len(old), len(parameter))
        parameter[:rows] = old[:rows].to(parameter)
        taken.append(name)
    return taken
