"""Training the compressor's sparse autoencoder on a matrix of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysys.compressor.model import CompresSAE
from raysys.training.loop import Head, Ranks, Task


class CompressorTask:
    """Rows of an embedding matrix, each of weight 1; a fixed number of epochs.

    Args:
        vectors: [N, D], memory-mapped or in memory.
        sizes: arguments of `CompresSAE`.
    """

    heads: Sequence[Head] = ()

    def __init__(self, vectors: NDArray[np.floating[Any]], sizes: dict[str, Any]) -> None:
        self.module = CompresSAE(vectors.shape[1], **sizes)
        self.weights = np.ones(len(vectors))
        self._vectors = vectors

    def batch(self, rows: NDArray[np.int64], epoch: int) -> Tensor:
        """Return the rows [B, D] as float32."""
        del epoch
        picked = np.asarray(self._vectors[np.sort(rows)], dtype=np.float32)
        return torch.from_numpy(picked).to(self.module.bias.device)

    def start(self, choices: dict[str, float], ranks: Ranks) -> dict[str, float]:
        """Leave the model as it is: nothing can be solved without gradient steps."""
        del choices, ranks
        return {}

    def validate(self, rank: int, world: int) -> Tensor | None:
        """Return None: there is nothing to choose."""
        del rank, world
        return None

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Return no metrics."""
        del sums
        return {}

    def finish(self, choices: dict[str, float]) -> dict[str, float]:
        """Leave the model as it is."""
        del choices
        return {}

    def report(self) -> dict[str, float]:
        """Return nothing: there is no validation."""
        return {}


def compressor_phases(path: str, sizes: dict[str, Any]) -> Sequence[Callable[[], Task]]:
    """Return the one phase of the compressor; `path` is a .npy file [N, D] each worker can read."""
    return [lambda: CompressorTask(np.load(path, mmap_mode="r"), sizes)]
