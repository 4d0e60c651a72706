"""The dictionary as searches read it: 8-bit atoms, a quarter of the bytes of float32.

    Q queries, S atoms, D dims

A query begins with Dict q, a pass over the whole dictionary, which no cache of a core holds: bytes
are time there. An atom is kept as integers of -127..127 times a step that gives it its length back;
a query enters with 16 bits per dim. The sums are whole numbers, so they are the same on every
machine and in every batch. The rounded dictionary is the dictionary of everything that an index
answers: scores, decoded vectors and explanations agree.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.kernels import Rounded, integer_products
from raysys.data.arrays import Floats
from raysys.data.compiled import LANES

_LARGEST = 127
_LINE = 64  # bytes
_STEP_BITS = 2**16  # integer * step is then exact in float32: rounding again changes no bit


class Dictionary:
    """A rounded dictionary.

    Args:
        atoms: [S, D] float32.

    Attributes:
        size, dim: atoms S and dimensions D.
        rounded: the atoms, as kernels read them.
    """

    def __init__(self, atoms: Floats) -> None:
        atoms = np.ascontiguousarray(atoms, dtype=np.float32)
        largest = np.abs(atoms).max(axis=1, keepdims=True, initial=1e-30)
        size, self.dim = len(atoms), int(atoms.shape[1])
        whole = _aligned(-(-size // 4) * 4, -(-self.dim // LANES) * LANES)
        whole[:size, : self.dim] = np.rint(atoms * (_LARGEST / largest))
        squares = np.einsum("sd,sd->s", atoms, atoms, dtype=np.float64)
        counts = np.einsum("sd,sd->s", whole[:size], whole[:size], dtype=np.float64)
        mantissa, exponent = np.frexp(np.sqrt(squares / np.maximum(counts, 1)))
        mantissa = np.rint(mantissa * _STEP_BITS) / _STEP_BITS
        steps = np.zeros(len(whole), dtype=np.float32)
        steps[:size] = np.ldexp(mantissa, exponent)
        self.size, self.rounded = size, Rounded(whole, steps)

    @classmethod
    def of(cls, atoms: Floats | Dictionary) -> Dictionary:
        """Return atoms [S, D] rounded, unless they are already."""
        return atoms if isinstance(atoms, Dictionary) else cls(atoms)

    @cached_property
    def floats(self) -> Floats:
        """The rounded atoms [S, D] as float32, made when something first asks for them."""
        whole, steps = self.rounded
        return np.asarray((whole * steps[:, None])[: self.size, : self.dim], dtype=np.float32)

    def products(self, queries: Floats, factor: float) -> Floats:
        """Return factor * Dict q [Q, S] of queries [Q, D]."""
        out = np.empty((len(queries), len(self.rounded.steps)), dtype=np.float32)
        integer_products(self.rounded, np.ascontiguousarray(queries), factor, out)
        return np.ascontiguousarray(out[:, : self.size])


def _aligned(size: int, width: int) -> NDArray[np.int8]:
    """Return zeros [size, width] that begin with a line of the cache: loads then touch one each."""
    room = np.zeros(size * width + _LINE, dtype=np.int8)
    first = -room.ctypes.data % _LINE
    return room[first : first + size * width].reshape(size, width)
