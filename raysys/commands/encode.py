"""Encode embeddings into sparse codes held in memory.

Rows are coded in fixed blocks: here up to 100,000 rows, as Ray tasks beyond that; the result is the
same. `encode_parts` keeps the codes in files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raysys.cluster.tasks import distribute
from raysys.compressor.encode import BLOCK_ROWS, Encoder
from raysys.compressor.model import CompresSAE

DISTRIBUTED_ROWS = 100_000


def encode(
    path: Path,
    dictionary: Tensor,
    *,
    n_active: int,
    model: CompresSAE | None,
    value_bits: int = 4,
    codebook: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the atoms [N, n] and values [N, n] of every row of a .npy matrix, large values first.

    Args:
        path: the matrix [N, D], readable by every worker.
        dictionary: [S, D].
        n_active: atoms per row.
        model: as `Encoder` has it.
        value_bits: of the packing that follows.
        codebook: the levels [n, 16] to round to; default: those of some of the rows.
    """
    vectors = np.load(path, mmap_mode="r")
    encoder = Encoder.fit(
        vectors,
        dictionary,
        n_active=n_active,
        model=model,
        value_bits=value_bits,
        codebook=codebook,
    )

    def block(start: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return encoder.block(np.load(path, mmap_mode="r")[start : start + BLOCK_ROWS])

    starts = list(range(0, len(vectors), BLOCK_ROWS))
    here = len(vectors) <= DISTRIBUTED_ROWS
    parts = distribute(block, starts, stage="encode", rows=lambda part: len(part[0]), here=here)
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
