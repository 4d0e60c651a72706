"""Sparse codes as they are stored, scored and read back.

    N items, n = n_active, D dims, S = code_dim atoms

Stored: for each item n entries and one float16 scale. The score of a query q is asymmetric: the
query stays dense, t = Dict q once, then score_i = scale_i * sum_j value_ij * t[atom_ij], which is
the dot product of q with the stored reconstruction.

    packing   entries              values           bytes per item
    packed4   uint16 = atom << 4   4-bit step of    2 n + 2    (S <= 4096; the default)
              | step               a codebook
    float16   uint16 atom          float16          4 n + 2
    int8      uint16 atom          int8             3 n + 2
    dense8    -                    int8 per dim     D + 2      (catalogues too small for atoms)

The scale absorbs the quantiser's width and the item's norm. For `inner_product` it brings the
stored sum xhat nearest to x: x . xhat / |xhat|^2. For `cosine` it gives xhat the length
sqrt(cos(x, xhat)), between unit length and least squares (length cos): lower scores for what is
reconstructed badly rank better, but least squares lowers them too much. Where the dense vectors are
not at hand, the length is 1. Entries keep the order in which they were given, so a code can be cut
to fewer.
Files: `entries.npy`, `values.npy`, `codebook.npy`, `scale.npy`, `unit.npy`; opened memory-mapped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.compressor import quantise
from raysys.compressor.dictionary import Dictionary
from raysys.compressor.kernels import Stored
from raysys.compressor.packing import PACKINGS, Packed, Packer, bits_of, fold_scale
from raysys.config import require
from raysys.data.arrays import Floats, new_file, release, row_blocks
from raysys.errors import BuildError
from raysys.store.builds import Build
from raysys.store.drafts import Draft
from raysys.store.kinds import Facts

_FILES = ("entries", "values", "codebook", "scale", "unit")
_CHUNK_ROWS = 16_384


@dataclasses.dataclass(frozen=True)
class CodesFacts(Facts):
    """What codes are.

    Attributes:
        n_items, code_dim, n_active: N, S (0 without atoms) and n.
        packing: one of PACKINGS.
        similarity: `cosine` or `inner_product`.
        bytes_per_item, bytes_per_item_with_dictionary: of the codes; with the dictionary's share.
        mean_cosine: of reconstructions with their vectors; None where it was not measured.
    """

    n_items: int
    code_dim: int
    n_active: int
    packing: str
    similarity: str
    bytes_per_item: float
    bytes_per_item_with_dictionary: float
    mean_cosine: float | None = None


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
            quantise.write_reconstructions(atoms, values, dictionary, out[part])
        return out

    # -- making ----------------------------------------------------------------------------

    @classmethod
    def assemble(
        cls, packer: Packer, parts: Iterable[Packed], *, n_items: int, draft: Draft | None = None
    ) -> Codes:
        """Put packed rows together, in memory or straight in the files of a draft.

        Args:
            packer: what they were packed with.
            parts: all rows in order; of a part only the scales (4 bytes a row) stay in memory
                where a draft is given.
            n_items: rows of all parts.
            draft: the build that is being made; the result is then memory-mapped.
        """
        width, dtype = packer.value_type
        entries = _new("entries", (n_items, packer.n_active), np.uint16, draft)
        values = _new("values", (n_items, width), dtype, draft)
        scales = np.empty(n_items, dtype=np.float32)
        start = 0
        for part in parts:
            rows = slice(start, start + len(part.scale))
            entries[rows], values[rows], scales[rows] = part.entries, part.values, part.scale
            start = rows.stop
            release(entries)
            release(values)
        assert start == n_items, (start, n_items)
        scale, unit = fold_scale(scales)
        if draft is not None:
            for name, array in (("codebook", packer.codebook), ("scale", scale), ("unit", unit)):
                np.save(draft.path(f"{name}.npy"), array)
        return cls(packer.packing, entries, values, packer.codebook, scale, unit)

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
            vectors: [N, D] the dense vectors: steps and scale are then fitted to them. Without
                them the codes reproduce `values` (which must carry the norm, for inner_product).
            similarity: `cosine` or `inner_product`.
            value_bits: 4, 8 or 16; 4 turns into 16 where S > 4096, as atoms then need 16 bits.
            codebook: steps to use for 4-bit values, e.g. of an earlier part; default: learned.

        Raises:
            DataError: values or vectors are not finite (the row is named).
        """
        packer = Packer.fit(
            values,
            dictionary=dictionary,
            similarity=similarity,
            value_bits=value_bits,
            codebook=codebook,
        )
        parts = (
            packer.rows(
                atoms[start : start + _CHUNK_ROWS],
                values[start : start + _CHUNK_ROWS],
                None if vectors is None else vectors[start : start + _CHUNK_ROWS],
                start=start,
            )
            for start in range(0, len(atoms), _CHUNK_ROWS)
        )
        return cls.assemble(packer, parts, n_items=len(atoms))

    @classmethod
    def pack_dense(
        cls, vectors: NDArray[np.floating[Any]], *, similarity: str, draft: Draft | None = None
    ) -> Codes:
        """Keep vectors [N, D] as 8-bit dense ones, where codes would be no smaller."""
        packer = Packer.dense(vectors.shape[1], similarity=similarity)
        parts = (packer.dense_rows(rows, start=start) for start, rows in row_blocks(vectors))
        return cls.assemble(packer, parts, n_items=len(vectors), draft=draft)

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
    def open(cls, build: Build) -> Codes:
        """Open a `codes` build, memory-mapped."""
        return cls.mapped(build, CodesFacts.of(build).packing)

    @classmethod
    def mapped(cls, build: Build, packing: str, *, folder: str = "") -> Codes:
        """Open what `save` wrote, memory-mapped.

        Args:
            build: the build.
            packing: how the codes are packed.
            folder: where in the build the arrays lie, ending with a slash.

        Raises:
            BuildError: the packing is unknown.
        """
        if packing not in PACKINGS:
            raise BuildError(f"{build.kind} {build.build_id} has packing {packing!r}: {PACKINGS}")
        return cls(packing, *(_mapped(build, f"{folder}{name}.npy") for name in _FILES))

    def facts(
        self, dictionary: Floats, *, similarity: str, mean_cosine: float | None = None
    ) -> CodesFacts:
        """Return what a build of these codes over a dictionary says of them."""
        return CodesFacts(
            n_items=self.n_items,
            code_dim=len(dictionary),
            n_active=self.n_active,
            packing=self.packing,
            similarity=similarity,
            bytes_per_item=self.bytes_per_item,
            bytes_per_item_with_dictionary=self.bytes_per_item_with(dictionary),
            mean_cosine=mean_cosine,
        )


def truncated(
    codes: Codes, n_active: int, *, dictionary: Floats, similarity: str, draft: Draft | None = None
) -> Codes:
    """Return the first `n_active` entries of every item, values and scale fitted again.

    The target is the stored reconstruction, so no dense vectors are needed. Rows are cut in
    chunks; with a draft the result lies in its files.

    Raises:
        ConfigError: `n_active` is not between 1 and what is stored.
    """
    require(0 < n_active <= codes.n_active, "n_active", n_active, f"1..{codes.n_active}")
    dictionary = np.ascontiguousarray(dictionary)

    def cut(rows: NDArray[Any]) -> tuple[NDArray[np.uint16], Floats, Floats]:
        targets = codes.decode(dictionary, rows)
        atoms = codes.atoms_and_values(rows)[0][:, :n_active]
        release(codes.entries)
        release(codes.values)
        return atoms, quantise.fit_values(atoms, targets, dictionary), targets

    def chunks(stride: int) -> Iterator[NDArray[Any]]:
        for start in range(0, codes.n_items, stride * _CHUNK_ROWS):
            yield np.arange(start, min(start + stride * _CHUNK_ROWS, codes.n_items), stride)

    sample = [cut(rows)[1] for rows in chunks(quantise.sample_stride(codes.n_items))]
    packer = Packer.fit(
        np.concatenate([np.empty((0, n_active), dtype=np.float32), *sample]),
        dictionary=dictionary,
        similarity=similarity,
        value_bits=bits_of(codes.packing),
    )
    parts = (packer.rows(*cut(rows), start=int(rows[0])) for rows in chunks(1))
    return Codes.assemble(packer, parts, n_items=codes.n_items, draft=draft)


def _mapped(build: Build, name: str) -> NDArray[Any]:
    array: NDArray[Any] = np.load(build.path(name), mmap_mode="r")
    return array


def _new(name: str, shape: tuple[int, ...], dtype: Any, draft: Draft | None) -> NDArray[Any]:
    """Return an array to fill, in a draft's file where one is given."""
    if draft is None:
        return np.empty(shape, dtype=dtype)
    return new_file(draft.path(f"{name}.npy"), shape, dtype)
