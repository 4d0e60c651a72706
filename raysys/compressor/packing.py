"""Packing: atoms and values of some rows -> what is stored of them.

A row's packing depends on nothing but the row, the dictionary and the codebook, so rows may be
packed in any pieces, by any process. Scales stay float32 until those of all rows are known: their
common unit follows from the largest (`fold_scale`). `codes` describes the formats.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.compressor import quantise
from raysys.config import require
from raysys.data.arrays import Floats
from raysys.errors import DataError

PACKINGS = ("packed4", "int8", "float16", "dense8")  # positions are the kernels' kinds
MAX_PACKED_ATOMS = 4096
SIMILARITIES = ("cosine", "inner_product")

_BITS = {"packed4": 4, "int8": 8, "float16": 16}
_LARGEST_SCALE = 1024.0


@dataclasses.dataclass(frozen=True)
class Packed:
    """M packed rows: entries uint16 [M, n], values int8 or float16 [M, *], scale float32 [M]."""

    entries: NDArray[np.uint16]
    values: NDArray[Any]
    scale: Floats


@dataclasses.dataclass(frozen=True)
class Packer:
    """What all rows of some codes share.

    Attributes:
        packing: one of PACKINGS.
        dictionary: [S, D] float32; [0, D] for dense8.
        codebook: [n, 16] float32 for packed4, else [0, 16].
        n_active: non-zeros of a row, 0 for dense8.
        similarity: one of SIMILARITIES.
    """

    packing: str
    dictionary: Floats
    codebook: Floats
    n_active: int
    similarity: str

    @classmethod
    def dense(cls, dim: int, *, similarity: str) -> Packer:
        """Return the packer of 8-bit dense rows."""
        require(similarity in SIMILARITIES, "similarity", similarity, " or ".join(SIMILARITIES))
        nothing = np.zeros((0, dim), dtype=np.float32)
        return cls("dense8", nothing, quantise.no_codebook(), 0, similarity)

    @classmethod
    def fit(
        cls,
        values: NDArray[np.floating[Any]],
        *,
        dictionary: Floats,
        similarity: str,
        value_bits: int,
        codebook: Floats | None = None,
    ) -> Packer:
        """Return the packer of sparse rows; steps are learned from `values` [M, n] if needed.

        `quantise.sample_stride` tells which rows of all decide about the steps.
        """
        require(similarity in SIMILARITIES, "similarity", similarity, " or ".join(SIMILARITIES))
        require(value_bits in (4, 8, 16), "value_bits", value_bits, "4, 8 or 16")
        dictionary = np.ascontiguousarray(dictionary, dtype=np.float32)
        packed = value_bits == 4 and len(dictionary) <= MAX_PACKED_ATOMS
        if not packed:
            codebook = quantise.no_codebook()
        elif codebook is None:
            codebook = quantise.fit_codebook(values)
        packing = "packed4" if packed else "int8" if value_bits == 8 else "float16"
        return cls(packing, dictionary, codebook, values.shape[1], similarity)

    @property
    def value_type(self) -> tuple[int, Any]:
        """Width and dtype of the stored values."""
        if self.packing == "dense8":
            return self.dictionary.shape[1], np.int8
        width = 0 if self.packing == "packed4" else self.n_active
        return width, np.float16 if self.packing == "float16" else np.int8

    def rows(
        self,
        atoms: NDArray[np.integer[Any]],
        values: NDArray[np.floating[Any]],
        vectors: NDArray[np.floating[Any]] | None,
        *,
        start: int = 0,
    ) -> Packed:
        """Pack rows.

        Args:
            atoms: [M, n] row numbers of the dictionary.
            values: [M, n].
            vectors: [M, D] to which steps and scale are fitted; None: to the values.
            start: number of the first row, for messages.

        Raises:
            DataError: a number is not finite, or an atom outside the dictionary.
        """
        values = np.ascontiguousarray(values, dtype=np.float32)
        check_finite(values, start)
        target = np.empty((0, self.dictionary.shape[1]), dtype=np.float32)
        if vectors is not None:
            target = np.ascontiguousarray(vectors, dtype=np.float32)
            check_finite(target, start)
        if atoms.size and int(atoms.max()) >= len(self.dictionary):
            raise DataError(
                f"atom {int(atoms.max())} is outside a dictionary of {len(self.dictionary)}"
            )
        chosen: NDArray[np.uint16] = np.ascontiguousarray(atoms, dtype=np.uint16)
        entries = chosen
        if self.packing == "packed4":
            steps = np.zeros(chosen.shape, dtype=np.uint8)
            quantise.choose_steps(chosen, values, target, self.dictionary, self.codebook, steps)
            stored: NDArray[Any] = np.empty((len(chosen), 0), dtype=np.int8)
            entries = (chosen << 4 | steps).astype(np.uint16)
            used = self.codebook[np.arange(chosen.shape[1]), steps]
        elif self.packing == "int8":
            stored, _ = _to_int8(values)
            used = stored.astype(np.float32)
        else:
            largest = np.abs(values).max(axis=1, keepdims=True, initial=1e-30)
            stored = (values / largest).astype(np.float16)
            used = stored.astype(np.float32)
        scale = _fit_scale(chosen, values, used, target, self.dictionary, self.similarity)
        return Packed(entries, stored, scale)

    def dense_rows(self, vectors: NDArray[np.floating[Any]], *, start: int = 0) -> Packed:
        """Round dense rows [M, D] to 8 bits.

        Raises:
            DataError: a number is not finite.
        """
        dense = np.ascontiguousarray(vectors, dtype=np.float32)
        check_finite(dense, start)
        values, scale = _to_int8(dense)
        if self.similarity == "cosine":
            norm = np.linalg.norm(values.astype(np.float32), axis=1)
            scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
        return Packed(np.empty((len(dense), 0), dtype=np.uint16), values, scale)


def bits_of(packing: str) -> int:
    """Return the `value_bits` that lead to a sparse packing."""
    return _BITS[packing]


def fold_scale(scale: Floats) -> tuple[NDArray[np.float16], Floats]:
    """Return float16 scales and the unit [1] that brings the largest to 1024."""
    largest = float(np.abs(scale).max(initial=0.0))
    unit = np.float32(largest / _LARGEST_SCALE) if largest > 0 else np.float32(1)
    return (scale / unit).astype(np.float16), np.array([unit], dtype=np.float32)


def check_finite(array: Floats, start: int) -> None:
    """Raise DataError naming the first row of [M, *] that holds a number that is not finite."""
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise DataError(f"row {start + int(bad[0])} holds a value that is not finite")


def _fit_scale(
    atoms: NDArray[np.uint16],
    values: Floats,
    used: Floats,
    vectors: Floats,
    dictionary: Floats,
    similarity: str,
) -> Floats:
    """Return the factor [M] that turns the stored values `used` into the row's score values."""
    energy = np.zeros(len(atoms), dtype=np.float32)
    product = np.zeros(len(atoms), dtype=np.float32)
    if len(vectors) == 0 and similarity == "inner_product":
        vectors = np.empty((len(atoms), dictionary.shape[1]), dtype=np.float32)
        quantise.write_reconstructions(atoms, values, dictionary, vectors)
    quantise.project(atoms, used, vectors, dictionary, energy, product)
    if len(vectors) == 0:
        product = np.sqrt(energy)
    elif similarity == "cosine":
        norm = np.linalg.norm(vectors, axis=1)
        product = np.divide(product, norm, out=np.zeros_like(norm), where=norm > 0)
        product = np.sqrt(np.maximum(product, 0) * np.sqrt(energy))  # length sqrt(cos)
    scale = np.divide(product, energy, out=np.zeros_like(energy), where=energy > 0)
    scale[~np.any(values, axis=1)] = 0
    return scale


def _to_int8(values: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return values as multiples of max/127 of their row, rounded, and these widths [M]."""
    width = np.abs(values).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
    safe = np.where(width > 0, width, 1)[:, None]
    return np.rint(values / safe).astype(np.int8), width
