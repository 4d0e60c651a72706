"""A module's weights: taken, kept beside a training, put back."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights on the CPU: the module's own tensors where it lies there, no copies."""
    return {name: tensor.cpu() for name, tensor in module.state_dict().items()}


def kept_weights(module: nn.Module, names: Sequence[str], rank: int) -> dict[str, Tensor]:
    """Return entries of the state that later steps leave alone: on rank 0 mapped from a file.

    The file has no name any more. Other ranks keep shapes only.
    """
    state = module.state_dict()
    if rank != 0:
        return {name: state[name].to("meta") for name in names}
    with tempfile.TemporaryDirectory(prefix="raysys-weights-") as folder:
        path = Path(folder) / "weights.pt"
        torch.save({name: state[name].cpu() for name in names}, path)
        kept: dict[str, Tensor] = torch.load(path, mmap=True, weights_only=True)
    return kept


def assign(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Let entries of a module's state be these tensors, of whatever shapes; none is copied.

    Parameters stay the same objects and share memory with `state` from then on. For a tensor that
    is a shape only, memory is set aside.
    """
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        new = state.get(name)
        if new is not None:
            empty = new.is_meta
            tensor.data = torch.empty_like(new, device=tensor.device) if empty else new.to(tensor)
