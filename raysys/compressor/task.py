"""Training the compressor's sparse autoencoder on a matrix of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysys.compressor.model import CompresSAE
from raysys.training.task import Task


class CompressorTask:
    """Rows of an embedding matrix, each of weight 1; a fixed number of epochs.

    Args:
        vectors: [N, D], memory-mapped or in memory.
        sizes: arguments of `CompresSAE`.
    """

    def __init__(self, vectors: NDArray[np.floating[Any]], sizes: dict[str, Any]) -> None:
        self.module = CompresSAE(vectors.shape[1], **sizes)
        self.weights = np.ones(len(vectors))
        self._vectors = vectors

    def batch(self, rows: NDArray[np.int64], epoch: int) -> Tensor:
        """Return the rows [B, D] as float32."""
        del epoch
        picked = np.asarray(self._vectors[np.sort(rows)], dtype=np.float32)
        return torch.from_numpy(picked).to(self.module.bias.device)


def compressor_phases(path: str, sizes: dict[str, Any]) -> Sequence[Callable[[], Task]]:
    """Return the one phase of the compressor; `path` is a .npy file [N, D] each worker can read."""
    return [lambda: CompressorTask(np.load(path, mmap_mode="r"), sizes)]
