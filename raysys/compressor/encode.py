"""Encode: vectors -> dictionary and sparse codes.

Pursuit of a row depends on nothing but the row and the dictionary, so rows may be coded in any
blocks and anywhere; the result is the same. `encode` keeps all codes in memory.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from raysys import progress
from raysys.compressor import pursuit
from raysys.compressor.model import WIDE_FACTOR, CompresSAE
from raysys.compressor.packing import MAX_PACKED_ATOMS
from raysys.compressor.quantise import fit_codebook
from raysys.data.arrays import row_blocks, take_rows
from raysys.training.threads import torch_on_one_thread

ENCODE_ROWS = 4096
_ROUNDS = 8  # four more gained .001 cosine
_ROWS_PER_ATOM = 16  # more rows than this per atom did not make a better dictionary


def unit_tensor(vectors: NDArray[np.floating[Any]]) -> Tensor:
    """Return rows of unit length; zero rows (an item that nothing is known of) stay zero."""
    return F.normalize(torch.from_numpy(np.array(vectors, dtype=np.float32)), dim=1)


@torch.no_grad()
def fit_dictionary(
    vectors: NDArray[np.floating[Any]], *, code_dim: int, seed: int, n_active: int = 32
) -> Tensor:
    """Return a dictionary [S, D] by alternating pursuit and the method of optimal directions.

    Memory: the rows used, their codes, and 17 bytes for each of the N rows to pick them from.

    Args:
        vectors: [N, D], perhaps memory-mapped; at most 16 S rows are used, picked by the seed.
        code_dim: atoms S, at most N.
        seed: picks the rows and the first atoms, which are rows themselves.
        n_active: atoms per row, at most S / 4. One dictionary serves codes of any length.
    """
    n_active = max(1, min(n_active, code_dim // WIDE_FACTOR))
    rng = np.random.default_rng([seed, 0xD1C7])
    known = np.concatenate([np.any(rows, axis=1) for _, rows in row_blocks(vectors)])
    order = rng.permutation(np.flatnonzero(known))[: _ROWS_PER_ATOM * code_dim]
    x = unit_tensor(take_rows(vectors, np.sort(order)))
    dictionary = x[torch.from_numpy(rng.permutation(len(x))[:code_dim])].clone()
    if len(dictionary) < code_dim:
        extra = torch.randn(
            code_dim - len(dictionary), x.shape[1], generator=torch.Generator().manual_seed(seed)
        )
        dictionary = torch.cat([dictionary, F.normalize(extra, dim=1)])
    with progress.stage("dictionary", total=_ROUNDS, unit="rounds", lines=progress.STEPS) as work:
        for round_ in range(_ROUNDS):
            codes = _pursue_here(x, dictionary, n_active)
            cosine = float(F.cosine_similarity(x, pursuit.reconstruct(codes, dictionary)).mean())
            dictionary = pursuit.update_dictionary(x, codes, dictionary)
            work.add()
            work.say(
                f"dictionary round={round_ + 1}/{_ROUNDS} cosine={cosine:.4f}",
                note=f"cosine {cosine:.4f}",
            )
    return dictionary.contiguous()  # an index maps the file as it lies


def rows_passed(n_items: int, *, code_dim: int) -> int:
    """Return how many rows all rounds of `fit_dictionary` go over, where none is zero."""
    return _ROUNDS * min(n_items, _ROWS_PER_ATOM * code_dim)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What coding a row needs.

    Attributes:
        dictionary: [S, D].
        gram: [S, S] = dictionary dictionary^T.
        n_active: atoms per row.
        model: encode with this trained encoder alone (the paper's way); None: pursuit.
        codebook: [n, 16] steps to round pursuit's codes to, where atoms can still be exchanged
            for others; None: values are not rounded.
    """

    dictionary: Tensor
    gram: Tensor
    n_active: int
    model: CompresSAE | None
    codebook: NDArray[np.float32] | None

    @classmethod
    @torch_on_one_thread()
    def fit(
        cls,
        vectors: NDArray[np.floating[Any]],
        dictionary: Tensor,
        *,
        n_active: int,
        model: CompresSAE | None,
        value_bits: int = 4,
        codebook: NDArray[np.float32] | None = None,
    ) -> Encoder:
        """Return an encoder of vectors [N, D]; steps default to those of some of the rows.

        Only pursuit's codes that are packed into 4 bits are rounded.
        """
        gram = dictionary @ dictionary.T
        if model is not None or value_bits != 4 or len(dictionary) > MAX_PACKED_ATOMS:
            codebook = None
        elif codebook is None:
            some = np.unique(np.linspace(0, len(vectors) - 1, ENCODE_ROWS).astype(np.int64))
            x = unit_tensor(take_rows(vectors, some))
            codebook = fit_codebook(_encode_rows(x, dictionary, gram, n_active, None)[1].numpy())
        return cls(dictionary, gram, n_active, model, codebook)

    @torch_on_one_thread()
    def block(
        self, vectors: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the atoms and values [M, n] of at most `ENCODE_ROWS` rows [M, D]."""
        x = unit_tensor(vectors)
        atoms, values = _encode_rows(x, self.dictionary, self.gram, self.n_active, self.model)
        if self.codebook is not None:
            codes = pursuit.SparseCodes(atoms, values)
            codes = pursuit.exchange(x, codes, self.dictionary, self.gram, self.codebook)
            atoms, values = codes.atoms, codes.values
        return atoms.numpy(), values.numpy()


def encode(
    vectors: NDArray[np.floating[Any]],
    dictionary: Tensor,
    *,
    n_active: int,
    model: CompresSAE | None,
    value_bits: int = 4,
    codebook: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the atoms [N, n] and values [N, n] of vectors [N, D], large values first.

    Args:
        vectors: perhaps memory-mapped.
        dictionary: [S, D].
        n_active: atoms per row.
        model: as `Encoder` has it.
        value_bits: of the packing that follows.
        codebook: the steps [n, 16] to round to; default: those of some of the rows.
    """
    encoder = Encoder.fit(
        vectors,
        dictionary,
        n_active=n_active,
        model=model,
        value_bits=value_bits,
        codebook=codebook,
    )
    parts = [encoder.block(rows) for _, rows in row_blocks(vectors, ENCODE_ROWS)]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


@torch.no_grad()
def _encode_rows(
    x: Tensor, dictionary: Tensor, gram: Tensor, n_active: int, model: CompresSAE | None
) -> tuple[Tensor, Tensor]:
    """Encode unit rows; a zero row gets the first atoms with zero values."""
    known = torch.nonzero(x.any(dim=1))[:, 0]
    atoms = torch.arange(n_active).repeat(len(x), 1)
    values = torch.zeros(len(x), n_active)
    if len(known) and model is not None:
        atoms[known], values[known] = model.encode(x[known], n_active)
    elif len(known):
        proposal = (x[known] @ dictionary.T).abs().topk(n_active, dim=1).indices
        codes = pursuit.best_codes(x[known], dictionary, gram, n_active, proposal)
        codes = pursuit.by_magnitude(codes)
        atoms[known], values[known] = codes.atoms, codes.values
    return atoms, values


def _pursue_here(x: Tensor, dictionary: Tensor, n_active: int) -> pursuit.SparseCodes:
    gram = dictionary @ dictionary.T
    parts = [
        pursuit.matching_pursuit(x[start : start + ENCODE_ROWS], dictionary, gram, n_active)
        for start in range(0, len(x), ENCODE_ROWS)
    ]
    return pursuit.SparseCodes(
        torch.cat([part.atoms for part in parts]), torch.cat([part.values for part in parts])
    )
