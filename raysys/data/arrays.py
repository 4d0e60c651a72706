"""Rows of matrices that may be larger than memory.

Pages of a memory-mapped file count as the process's memory once they are touched. What is here
walks over the rows and lets go of the pages behind it, so a pass takes the memory of a block.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 16_384


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
