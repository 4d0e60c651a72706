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

from raysys.data.arrays import Floats
from raysys.data.products import LARGEST, integer_products, laid, unlaid

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
        self.size, self.dim = len(atoms), int(atoms.shape[1])
        whole = np.rint(atoms * (LARGEST / largest)).astype(np.int8)
        squares = np.einsum("sd,sd->s", atoms, atoms, dtype=np.float64)
        counts = np.einsum("sd,sd->s", whole, whole, dtype=np.float64)
        mantissa, exponent = np.frexp(np.sqrt(squares / np.maximum(counts, 1)))
        mantissa = np.rint(mantissa * _STEP_BITS) / _STEP_BITS
        steps = np.ldexp(mantissa, exponent).astype(np.float32)
        self.rounded = laid(whole, steps)

    @classmethod
    def of(cls, atoms: Floats | Dictionary) -> Dictionary:
        """Return atoms [S, D] rounded, unless they are already."""
        return atoms if isinstance(atoms, Dictionary) else cls(atoms)

    @cached_property
    def floats(self) -> Floats:
        """The rounded atoms [S, D] as float32, made when something first asks for them."""
        whole, steps = unlaid(self.rounded)[: self.size, : self.dim], self.rounded.steps
        return np.asarray(whole * steps[: self.size, None], dtype=np.float32)

    def products(self, queries: Floats, factor: float) -> Floats:
        """Return factor * Dict q [Q, S] of queries [Q, D]."""
        out = np.empty((len(queries), len(self.rounded.steps)), dtype=np.float32)
        integer_products(self.rounded, np.ascontiguousarray(queries), factor, out)
        return np.ascontiguousarray(out[:, : self.size])
