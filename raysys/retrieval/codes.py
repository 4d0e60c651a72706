"""Sparse codes as they are stored, scored and read back.

    N items, n = n_active, D dims, S = code_dim atoms

Stored: for each item n entries and one float16 scale. The score of a query q is asymmetric: the
query stays dense, t = Dict q once, then score_i = scale_i * sum_j value_ij * t[atom_ij], which is
the dot product of q with the stored reconstruction.

    packing   entries              values           bytes per item
    packed4   uint16 = atom << 4   4-bit level of   2 n + 2    (S <= 4096; the default)
              | level              a codebook
    float16   uint16 atom          float16          4 n + 2
    int8      uint16 atom          int8             3 n + 2
    dense8    -                    int8 per dim     D + 2      (catalogues too small for atoms)

The scale absorbs the quantiser's step and the item's norm. For `inner_product` it brings the
stored sum xhat nearest to x: x . xhat / |xhat|^2. For `cosine` it gives xhat the length
sqrt(cos(x, xhat)), between unit length and least squares (length cos): lower scores for what is
reconstructed badly rank better, but least squares lowers them too much. Where the dense vectors are
not at hand, the length is 1. Entries keep the order in which they were given, so a code can be cut
to fewer.
Files: `entries.npy`, `values.npy`, `codebook.npy`, `scale.npy`, `unit.npy`; opened memory-mapped.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.builds import Build, Draft
from raysys.config import require
from raysys.errors import BuildError, DataError
from raysys.retrieval import quantise
from raysys.retrieval.dictionary import Dictionary
from raysys.retrieval.kernels import Stored

PACKINGS = ("packed4", "int8", "float16", "dense8")  # positions are the kernels' kinds
MAX_PACKED_ATOMS = 4096
MIN_SPARSE_ITEMS = 256
SIMILARITIES = ("cosine", "inner_product")

_FILES = ("entries", "values", "codebook", "scale", "unit")
_CHUNK_ROWS = 16_384
_LARGEST_SCALE = 1024.0

Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Codes:
    """Codes of N items, in memory or memory-mapped.

    Attributes:
        packing: one of PACKINGS.
        entries: [N, n] uint16; [N, 0] for dense8.
        values: [N, n] int8 or float16, [N, D] int8 for dense8, [N, 0] int8 for packed4.
        codebook: [n, 16] float32 for packed4, else [0, 16].
        scale: [N] float16.
        unit: [1] float32, common to all items: keeps `scale` inside float16's range.
    """

    packing: str
    entries: NDArray[np.uint16]
    values: NDArray[Any]
    codebook: Floats
    scale: NDArray[np.float16]
    unit: Floats

    def __post_init__(self) -> None:
        """Make the arrays read-only: kernels then compile once for memory and for files."""
        for name in _FILES:
            view = np.asarray(getattr(self, name)).view()
            view.setflags(write=False)
            object.__setattr__(self, name, view)

    # -- sizes -----------------------------------------------------------------------------

    @property
    def n_items(self) -> int:
        """Number of items N."""
        return len(self.scale)

    @property
    def n_active(self) -> int:
        """Stored non-zeros per item; 0 for dense8."""
        return int(self.entries.shape[1])

    @property
    def bytes_per_item(self) -> float:
        """Bytes that one item adds: entries, values and scale."""
        rows = (self.entries, self.values, self.scale)
        return float(sum(a.dtype.itemsize * (a.shape[1] if a.ndim == 2 else 1) for a in rows))

    def bytes_per_item_with(self, dictionary: Floats) -> float:
        """Return bytes per item with the shares of the dictionary and the codebook."""
        shared = self.codebook.nbytes + (0 if self.packing == "dense8" else dictionary.nbytes)
        return self.bytes_per_item + shared / max(self.n_items, 1)

    # -- scoring ---------------------------------------------------------------------------

    def table(self, queries: Floats, dictionary: Dictionary) -> Floats:
        """Return what the kernels look up: [Q, S] unit * Dict q, or unit * q for dense8."""
        if self.packing == "dense8":
            return np.ascontiguousarray(queries * self.unit[0], dtype=np.float32)
        return dictionary.products(queries, float(self.unit[0]))

    def stored(self, bias: Floats, items: NDArray[np.int32]) -> Stored:
        """Return what kernels read: these rows with their biases [N, n_bias] and item_nums."""
        values = self.values.view(np.uint16) if self.packing == "float16" else self.values
        kind = PACKINGS.index(self.packing)
        scale = self.scale.view(np.uint16)
        return Stored(kind, self.entries, values, self.codebook, scale, bias, items)

    # -- reading back ----------------------------------------------------------------------

    def atoms(self) -> NDArray[np.uint16]:
        """Return the atoms [N, n] of all rows (not for dense8)."""
        return np.asarray(self.entries >> 4 if self.packing == "packed4" else self.entries)

    def atoms_and_values(self, rows: NDArray[Any]) -> tuple[NDArray[np.uint16], Floats]:
        """Return the atoms [C, n] and scaled values [C, n] of some rows (not for dense8)."""
        entries = self.entries[rows]
        factor = (self.scale[rows].astype(np.float32) * self.unit[0])[:, None]
        if self.packing == "packed4":
            position = np.arange(self.n_active)
            return entries >> 4, self.codebook[position, entries & 15] * factor
        return entries, self.values[rows].astype(np.float32) * factor

    def decode(self, dictionary: Floats, rows: NDArray[Any] | None = None) -> Floats:
        """Return the stored reconstructions [C, D] of `rows` (default: all)."""
        chosen = np.arange(self.n_items) if rows is None else np.asarray(rows)
        if self.packing == "dense8":
            factor = (self.scale[chosen].astype(np.float32) * self.unit[0])[:, None]
            return np.asarray(self.values[chosen].astype(np.float32) * factor)
        dictionary = np.ascontiguousarray(dictionary)
        out = np.empty((len(chosen), dictionary.shape[1]), dtype=np.float32)
        for start in range(0, len(chosen), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            atoms, values = self.atoms_and_values(chosen[part])
            quantise.reconstruct(atoms, values, dictionary, out[part])
        return out

    # -- making ----------------------------------------------------------------------------

    @classmethod
    def pack(
        cls,
        atoms: NDArray[np.integer[Any]],
        values: NDArray[np.floating[Any]],
        *,
        dictionary: Floats,
        vectors: NDArray[np.floating[Any]] | None = None,
        similarity: str = "cosine",
        value_bits: int = 4,
        codebook: Floats | None = None,
    ) -> Codes:
        """Quantise and pack codes. Arrays may be memory-mapped: rows are read in chunks.

        Args:
            atoms: [N, n] row numbers of `dictionary`, the most important first.
            values: [N, n] finite, any common factor per row.
            dictionary: [S, D] float32, S <= 65536.
            vectors: [N, D] the dense vectors: levels and scale are then fitted to them. Without
                them the codes reproduce `values` (which must carry the norm, for inner_product).
            similarity: `cosine` or `inner_product`.
            value_bits: 4, 8 or 16; 4 turns into 16 where S > 4096, as atoms then need 16 bits.
            codebook: levels to use for 4-bit values, e.g. of an earlier part; default: learned.

        Raises:
            DataError: values or vectors are not finite (the row is named).
        """
        require(similarity in SIMILARITIES, "similarity", similarity, " or ".join(SIMILARITIES))
        require(value_bits in (4, 8, 16), "value_bits", value_bits, "4, 8 or 16")
        dictionary = np.ascontiguousarray(dictionary, dtype=np.float32)
        packed = value_bits == 4 and len(dictionary) <= MAX_PACKED_ATOMS
        if not packed:
            codebook = np.zeros((0, quantise.N_LEVELS), dtype=np.float32)
        elif codebook is None:
            codebook = quantise.fit_codebook(values)
        kind = "packed4" if packed else "int8" if value_bits == 8 else "float16"
        parts = []
        for start in range(0, len(atoms), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            chunk = [np.ascontiguousarray(values[rows], dtype=np.float32)]
            if vectors is not None:
                chunk.append(np.ascontiguousarray(vectors[rows], dtype=np.float32))
            for array in chunk:
                _check_finite(array, start)
            target = chunk[1] if vectors is not None else np.empty((0, dictionary.shape[1]))
            parts.append(
                _pack_chunk(
                    np.ascontiguousarray(atoms[rows], dtype=np.uint16),
                    chunk[0],
                    target.astype(np.float32, copy=False),
                    dictionary,
                    codebook,
                    kind,
                    similarity,
                )
            )
        n_active = atoms.shape[1]
        if not parts:
            width = 0 if packed else n_active
            value_type = np.float16 if kind == "float16" else np.int8
            empty = np.empty((0, width), dtype=value_type)
            parts = [(np.empty((0, n_active), np.uint16), empty, np.empty(0, np.float32))]
        entries, stored, scale = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return cls(kind, entries, stored, codebook, *_fold_scale(scale))

    @classmethod
    def pack_dense(cls, vectors: NDArray[np.floating[Any]], *, similarity: str) -> Codes:
        """Keep vectors [N, D] as 8-bit dense ones, for catalogues of a few hundred items."""
        require(similarity in SIMILARITIES, "similarity", similarity, " or ".join(SIMILARITIES))
        dense = np.ascontiguousarray(vectors, dtype=np.float32)
        _check_finite(dense, 0)
        values, step = _to_int8(dense)
        scale = step
        if similarity == "cosine":
            norm = np.linalg.norm(values.astype(np.float32), axis=1)
            scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
        nothing = np.zeros((0, quantise.N_LEVELS), dtype=np.float32)
        entries = np.empty((len(dense), 0), dtype=np.uint16)
        return cls("dense8", entries, values, nothing, *_fold_scale(scale))

    def truncate(self, n_active: int, *, dictionary: Floats, similarity: str) -> Codes:
        """Keep the first `n_active` entries of every item, values and scale fitted again.

        The target is the stored reconstruction, so no dense vectors are needed.

        Raises:
            ConfigError: `n_active` is not between 1 and what is stored.
        """
        require(0 < n_active <= self.n_active, "n_active", n_active, f"1..{self.n_active}")
        targets = self.decode(dictionary)
        atoms, values = self.atoms_and_values(np.arange(self.n_items))
        values = quantise.least_squares(atoms[:, :n_active], targets, dictionary)
        bits = {"packed4": 4, "int8": 8, "float16": 16}[self.packing]
        return Codes.pack(
            atoms[:, :n_active],
            values,
            dictionary=dictionary,
            vectors=targets,
            similarity=similarity,
            value_bits=bits,
        )

    def take(self, rows: NDArray[Any] | slice) -> Codes:
        """Return the codes of some rows, in that order."""
        return dataclasses.replace(
            self, entries=self.entries[rows], values=self.values[rows], scale=self.scale[rows]
        )

    def joined(self, other: Codes) -> Codes:
        """Return the rows of both, packed alike; scales of `other` are brought to this unit."""
        factor = other.unit[0] / self.unit[0]
        scale = (other.scale.astype(np.float32) * factor).astype(np.float16)
        return dataclasses.replace(
            self,
            entries=np.concatenate([self.entries, other.entries]),
            values=np.concatenate([self.values, other.values]),
            scale=np.concatenate([self.scale, scale]),
        )

    # -- files -----------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return {name: array} of what is stored."""
        return {name: getattr(self, name) for name in _FILES}

    def save(self, draft: Draft) -> None:
        """Write the arrays into a build that is being made."""
        for name, array in self.arrays().items():
            np.save(draft.path(f"{name}.npy"), array)

    @classmethod
    def open(cls, build: Build, *, folder: str = "") -> Codes:
        """Open what `save` wrote, memory-mapped; needs the fact `packing`.

        Args:
            build: the build.
            folder: where in the build the arrays lie, ending with a slash.

        Raises:
            BuildError: the build holds no codes, or of an unknown packing.
        """
        packing = build.facts.get("packing")
        if packing not in PACKINGS:
            raise BuildError(f"{build.kind} {build.build_id} has packing {packing!r}: {PACKINGS}")
        arrays = [np.load(build.path(f"{folder}{name}.npy"), mmap_mode="r") for name in _FILES]
        return cls(str(packing), *arrays)


def _pack_chunk(
    atoms: NDArray[np.uint16],
    values: Floats,
    vectors: Floats,
    dictionary: Floats,
    codebook: Floats,
    kind: str,
    similarity: str,
) -> tuple[NDArray[np.uint16], NDArray[Any], Floats]:
    """Return (entries, stored values, scale as float32) of one chunk of rows."""
    if atoms.size and int(atoms.max()) >= len(dictionary):
        raise DataError(f"atom {int(atoms.max())} is outside a dictionary of {len(dictionary)}")
    if kind == "packed4":
        levels = np.zeros(atoms.shape, dtype=np.uint8)
        quantise.choose_levels(atoms, values, vectors, dictionary, codebook, levels)
        stored: NDArray[Any] = np.empty((len(atoms), 0), dtype=np.int8)
        entries = (atoms << 4 | levels).astype(np.uint16)
        used = codebook[np.arange(atoms.shape[1]), levels]
    elif kind == "int8":
        stored, _ = _to_int8(values)
        entries, used = atoms, stored.astype(np.float32)
    else:
        largest = np.abs(values).max(axis=1, keepdims=True, initial=1e-30)
        stored = (values / largest).astype(np.float16)
        entries, used = atoms, stored.astype(np.float32)
    return entries, stored, _fit_scale(atoms, values, used, vectors, dictionary, similarity)


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
        quantise.reconstruct(atoms, values, dictionary, vectors)
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
    """Return values rounded to steps of max/127 per row, and the steps."""
    step = np.abs(values).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
    safe = np.where(step > 0, step, 1)[:, None]
    return np.rint(values / safe).astype(np.int8), step


def _fold_scale(scale: Floats) -> tuple[NDArray[np.float16], Floats]:
    """Return float16 scales and the unit that brings the largest to 1024."""
    largest = float(np.abs(scale).max(initial=0.0))
    unit = np.float32(largest / _LARGEST_SCALE) if largest > 0 else np.float32(1)
    return (scale / unit).astype(np.float16), np.array([unit], dtype=np.float32)


def _check_finite(array: Floats, start: int) -> None:
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise DataError(f"row {start + int(bad[0])} holds a value that is not finite")
