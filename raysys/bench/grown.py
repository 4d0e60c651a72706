"""A larger set of vectors grown from a real one by a fixed rule, and results kept between runs.

Row i of the first B is row i of the base. A later row is unit(x_a + (x_b - x_c) / 2), a, b, c drawn
from the base with a generator seeded by (seed, block of 8192 rows): a neighbour of a real row (its
cosine with x_a is near .83), displaced along a direction in which real rows differ. Row i depends
on the base, the seed and i alone, so a smaller grown set is the beginning of a larger one.
Queries are those held out of the base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.bench.vectors import Dataset
from raysys.data.arrays import Floats, unit_rows

_BLOCK_ROWS = 8192
_PURPOSE = 0x6209


class Kept:
    """Arrays and files of a bench, kept in a folder so that a second run only measures.

    Args:
        folder: where to keep; whoever gives one answers for using it with the same settings.
        scratch: used where `folder` is empty.
    """

    def __init__(self, folder: str, scratch: str) -> None:
        self._folder = Path(folder or scratch)
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        return self._folder / name

    def array(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return an array memory-mapped, made first where it is not kept yet."""
        path = self.path(f"{name}.npy")
        if not path.exists():
            part = path.with_suffix(".part.npy")
            np.save(part, make())
            part.rename(path)
        return np.asarray(np.load(path, mmap_mode="r"))


def grow(data: Dataset, n_items: int, *, seed: int, kept: Kept) -> Dataset:
    """Return the data with its vectors grown to `n_items` rows (see the module's docstring)."""
    path = kept.path(f"grown-{n_items}.npy")
    if not path.exists():
        part = path.with_suffix(".part.npy")
        shape = n_items, data.vectors.shape[1]
        out = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, n_items, _BLOCK_ROWS):
            out[start : start + _BLOCK_ROWS] = grown_block(data.vectors, start, n_items, seed)
        out.flush()
        del out
        part.rename(path)
    vectors = np.load(path, mmap_mode="r")
    bias = np.zeros((n_items, data.bias.shape[1]), dtype=np.float32)
    name = f"{data.name} grown"
    return dataclasses.replace(data, name=name, vectors=vectors, bias=bias)


def grown_block(base: Floats, start: int, n_items: int, seed: int) -> Floats:
    """Return rows [start, start + 8192), cut at `n_items`; `start` is a multiple of 8192."""
    rows = np.arange(start, min(start + _BLOCK_ROWS, n_items))
    rng = np.random.default_rng([seed, _PURPOSE, start // _BLOCK_ROWS])
    a, b, c = rng.integers(0, len(base), (3, _BLOCK_ROWS))[:, : len(rows)]
    made = unit_rows(base[a] + np.float32(0.5) * (base[b] - base[c]))
    real = rows < len(base)
    made[real] = base[rows[real]]
    return made
