"""Rows of matrices: runs of them, unit rows, and those of files larger than memory.

Pages of a memory-mapped file count as the process's memory once they are touched. `row_blocks` and
`take_rows` let go of the pages behind them, so a pass takes the memory of a block.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BLOCK_ROWS = 16_384
CHUNK_ROWS = 8192


def new_file(path: Path, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return the array of a new .npy file, to be filled.

    Raises:
        OSError: the disk cannot hold it; found out here, as writing to a mapped page of a full
            disk would end the process.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def release(array: NDArray[Any]) -> None:
    """Let go of the pages of a memory-mapped array; nothing is lost, arrays in memory stay."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)


def row_blocks(array: NDArray[Any], size: int = BLOCK_ROWS) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (number of the first row, the rows) of blocks of `size` rows, pages released behind."""
    for start in range(0, len(array), size):
        yield start, array[start : start + size]
        release(array)


def take_rows(array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return a copy of some rows, given in ascending order."""
    out = np.empty((len(rows), *array.shape[1:]), dtype=array.dtype)
    blocks = row_blocks(array, BLOCK_ROWS)
    cuts = np.searchsorted(rows, np.arange(0, len(array) + BLOCK_ROWS, BLOCK_ROWS))
    for (start, block), low, high in zip(blocks, cuts, cuts[1:], strict=False):
        out[low:high] = block[rows[low:high] - start]
    return out


def chunks(n_rows: int) -> list[NDArray[np.int64]]:
    """Return all row numbers in runs of a fixed length."""
    every = np.arange(n_rows, dtype=np.int64)
    return [every[start : start + CHUNK_ROWS] for start in range(0, n_rows, CHUNK_ROWS)]


def unit_rows(rows: Floats) -> Floats:
    """Return rows divided by their norms; zero rows stay zero."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0))


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view: kernels then compile once for memory and for files."""
    view = np.asarray(array).view()
    view.setflags(write=False)
    return view
