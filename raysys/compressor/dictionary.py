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

from raysys.compressor.kernels import integer_products
from raysys.data.arrays import Floats

_LARGEST = 127
_STEP_BITS = 2**16  # integer * step is then exact in float32: rounding again changes no bit


class Dictionary:
    """A rounded dictionary.

    Args:
        atoms: [S, D] float32.
    """

    def __init__(self, atoms: Floats) -> None:
        atoms = np.ascontiguousarray(atoms, dtype=np.float32)
        largest = np.abs(atoms).max(axis=1, keepdims=True, initial=1e-30)
        self._whole = np.rint(atoms * (_LARGEST / largest)).astype(np.int8)
        squares = np.einsum("sd,sd->s", atoms, atoms, dtype=np.float64)
        counts = np.einsum("sd,sd->s", self._whole, self._whole, dtype=np.float64)
        mantissa, exponent = np.frexp(np.sqrt(squares / np.maximum(counts, 1)))
        mantissa = np.rint(mantissa * _STEP_BITS) / _STEP_BITS
        self._steps = np.ldexp(mantissa, exponent).astype(np.float32)

    @classmethod
    def of(cls, atoms: Floats | Dictionary) -> Dictionary:
        """Return atoms [S, D] rounded, unless they are already."""
        return atoms if isinstance(atoms, Dictionary) else cls(atoms)

    @property
    def dim(self) -> int:
        """Dimensions D."""
        return int(self._whole.shape[1])

    @cached_property
    def floats(self) -> Floats:
        """The rounded atoms [S, D] as float32, made when something first asks for them."""
        return np.asarray(self._whole * self._steps[:, None], dtype=np.float32)

    def products(self, queries: Floats, factor: float) -> Floats:
        """Return factor * Dict q [Q, S] of queries [Q, D]."""
        out = np.empty((len(queries), len(self._whole)), dtype=np.float32)
        integer_products(self._whole, self._steps, queries, factor, out)
        return out
