"""Sparse coding over a trained dictionary: orthogonal matching pursuit and its refinements.

    B rows in a batch, D embedding, S atoms of unit norm, n = n_active

The encoder of CompresSAE picks atoms by one matrix product; pursuit picks them one by one, each for
what the others left over, and fits all values again by least squares. It costs about
n * (n + 1) / 2 * S multiply-adds per row on top of the product.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numba
import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from raysys.compressor.kernels import nearest_step
from raysys.data.compiled import compiled_with

_RIDGE = 1e-6  # keeps the normal equations of nearly parallel atoms solvable
_BLOCK = 128
_SWEEPS = 2  # a third sweep gained less than .001 recall
_MATHS = {"nnan", "nsz"}
"""Finite numbers only, so that a largest one is found in vectors, but sums as they are written:
what compiles a parallel kernel and what loads it from numba's cache run code that was optimised
once and twice, and would round differently. Parts of one build are coded by both."""


@dataclasses.dataclass(frozen=True)
class SparseCodes:
    """Codes of N rows: atoms int64 [N, n] in selection order and values float32 [N, n]."""

    atoms: Tensor
    values: Tensor


def least_squares(x: Tensor, atoms: Tensor, dictionary: Tensor) -> Tensor:
    """Return the values [B, n] that bring the chosen atoms [B, n] closest to x [B, D]."""
    chosen = dictionary[atoms]  # [B, n, D]
    gram = chosen @ chosen.transpose(1, 2)
    gram.diagonal(dim1=1, dim2=2).add_(_RIDGE)
    right = (chosen @ x[:, :, None])[:, :, 0]
    factor = torch.linalg.cholesky_ex(gram).L
    return torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]


def matching_pursuit(x: Tensor, dictionary: Tensor, gram: Tensor, n_active: int) -> SparseCodes:
    """Choose atoms greedily, each by its correlation with the residual of a least-squares fit.

    Args:
        x: [B, D] rows.
        dictionary: [S, D] atoms of unit norm.
        gram: [S, S] = dictionary dictionary^T.
        n_active: atoms per row, at most S.

    Source: Pati, Rezaiifar, Krishnaprasad, "Orthogonal Matching Pursuit", Asilomar 1993; the
    Gram form is Rubinstein, Zibulevsky, Elad, Technion CS-2008-08.
    """
    start = (x @ dictionary.T).numpy()
    atoms = np.zeros((len(x), n_active), dtype=np.int64)
    values = np.zeros((len(x), n_active), dtype=np.float32)
    _pursue(start, gram.numpy(), atoms, values)
    return SparseCodes(torch.from_numpy(atoms), torch.from_numpy(values))


@compiled_with(parallel=True, fastmath=_MATHS)
def _pursue(start: Any, gram: Any, atoms: Any, values: Any) -> None:
    """Fill atoms and values [B, n] from correlations start [B, S]; one row a thread.

    `factor` is the growing Cholesky factor of the chosen atoms' Gram matrix; `half` the forward
    solution of its normal equations, which gains one entry a step.
    """
    n_rows, n_atoms = start.shape
    n_active = atoms.shape[1]
    for b in numba.prange(n_rows):
        residual = start[b].copy()
        factor = np.zeros((n_active, n_active), dtype=np.float32)
        half = np.zeros(n_active, dtype=np.float32)
        for t in range(n_active):
            best = np.float32(-1.0)
            pick = 0
            for s in range(n_atoms):
                size = abs(residual[s])
                if size > best:
                    best = size
                    pick = s
            corner = np.float32(1.0 + 1e-6)
            for i in range(t):
                total = gram[pick, atoms[b, i]]
                for j in range(i):
                    total -= factor[i, j] * factor[t, j]
                factor[t, i] = total / factor[i, i]
                corner -= factor[t, i] * factor[t, i]
            factor[t, t] = np.sqrt(max(corner, np.float32(1e-6)))
            total = start[b, pick]
            for j in range(t):
                total -= factor[t, j] * half[j]
            half[t] = total / factor[t, t]
            atoms[b, t] = pick
            for i in range(t, -1, -1):
                total = half[i]
                for j in range(i + 1, t + 1):
                    total -= factor[j, i] * values[b, j]
                values[b, i] = total / factor[i, i]
            residual[:] = start[b]
            for j in range(t + 1):
                row = gram[atoms[b, j]]
                weight = values[b, j]
                for s in range(n_atoms):
                    residual[s] -= weight * row[s]
            for j in range(t + 1):
                residual[atoms[b, j]] = 0.0


def exchange(
    x: Tensor,
    codes: SparseCodes,
    dictionary: Tensor,
    gram: Tensor,
    codebook: NDArray[np.float32],
) -> SparseCodes:
    """Round values to steps and exchange atoms for better ones, position by position.

    The atom at a position is taken out and the one nearest to what is then left over put in its
    place, at the nearest step; the row's scale is fitted again between sweeps. So atoms are
    chosen for what rounding left, which pursuit cannot know.

    Args:
        x: [B, D] rows.
        codes: where to start, largest values first; zero rows stay as they are.
        dictionary: [S, D] atoms of unit norm.
        gram: [S, S] = dictionary dictionary^T.
        codebook: [n, 16] steps of each position, of values over their row's root mean square.

    Returns:
        Codes whose values are steps times one scale per row.

    Source: coordinate descent as in local search quantisation (Martinez, Clement, Hoos, Little,
    ECCV 2016), over one dictionary with values instead of many codebooks.
    """
    start = (x @ dictionary.T).numpy()
    atoms, values = codes.atoms.numpy().copy(), codes.values.numpy().copy()
    _exchange(start, gram.numpy(), codebook, atoms, values)
    return SparseCodes(torch.from_numpy(atoms), torch.from_numpy(values))


@compiled_with(parallel=True, fastmath=_MATHS)
def _exchange(start: Any, gram: Any, codebook: Any, atoms: Any, values: Any) -> None:
    """Change atoms and values [B, n] in place; see `exchange`. One row a thread."""
    n_active = atoms.shape[1]
    for b in numba.prange(len(start)):
        held, x = atoms[b], start[b]
        scale = np.sqrt(np.sum(values[b] * values[b]) / np.float32(n_active))
        if scale == 0:
            continue
        steps = np.empty(n_active, dtype=np.float32)
        for j in range(n_active):
            steps[j] = codebook[j, nearest_step(codebook[j], values[b, j] / scale)]
        left = np.empty_like(x)
        kept = np.empty(n_active, dtype=np.float32)
        for _ in range(_SWEEPS):
            left[:] = x
            for j in range(n_active):
                left -= scale * steps[j] * gram[held[j]]
            for j in range(n_active):
                value, old = scale * steps[j], gram[held[j]]
                for i in range(n_active):  # atoms at other positions do not compete
                    if i != j:
                        kept[i] = left[held[i]]
                        left[held[i]] = -value * old[held[i]]
                pick = _strongest(left, value, old)
                for i in range(n_active):
                    if i != j:
                        left[held[i]] = kept[i]
                wish = (left[pick] + value * old[pick]) / scale
                wish = codebook[j, nearest_step(codebook[j], wish)]
                if pick != held[j] or wish != steps[j]:
                    new, added = gram[pick], scale * wish
                    for s in range(len(left)):
                        left[s] += value * old[s] - added * new[s]
                    held[j], steps[j] = pick, wish
            fit = np.float32(0)
            energy = np.float32(0)
            for j in range(n_active):
                fit += steps[j] * x[held[j]]
                energy += steps[j] * (x[held[j]] - left[held[j]]) / scale
            if energy > 0 and fit > 0:
                scale = fit / energy
        values[b] = scale * steps


@compiled_with(fastmath=_MATHS)
def _strongest(left: Any, factor: Any, row: Any) -> int:
    """Return where |left + factor * row| is largest; by blocks, whose maxima are vectorised."""
    best = np.float32(-1)
    block = 0
    for first in range(0, len(left), _BLOCK):
        top = np.float32(0)
        for s in range(first, min(first + _BLOCK, len(left))):
            size = abs(left[s] + factor * row[s])
            top = size if size > top else top
        if top > best:
            best, block = top, first
    best, pick = np.float32(-1), block
    for s in range(block, min(block + _BLOCK, len(left))):
        size = abs(left[s] + factor * row[s])
        if size > best:
            best, pick = size, s
    return pick


def reconstruct(codes: SparseCodes, dictionary: Tensor) -> Tensor:
    """Return the reconstructions [B, D]."""
    return F.embedding_bag(
        codes.atoms, dictionary, per_sample_weights=codes.values.contiguous(), mode="sum"
    )


@torch.no_grad()
def best_codes(
    x: Tensor, dictionary: Tensor, gram: Tensor, n_active: int, proposal: Tensor | None = None
) -> SparseCodes:
    """Return, per row, the better of pursuit and of least squares on the proposed atoms [B, n].

    Greedy choice alone is worse than the encoder's proposal for some rows.
    """
    codes = matching_pursuit(x, dictionary, gram, n_active)
    if proposal is None:
        return codes
    other = SparseCodes(proposal, least_squares(x, proposal, dictionary))
    errors = [(x - reconstruct(c, dictionary)).square().sum(dim=1) for c in (codes, other)]
    keep = (errors[0] <= errors[1])[:, None]
    return SparseCodes(
        torch.where(keep, codes.atoms, other.atoms), torch.where(keep, codes.values, other.values)
    )


def by_magnitude(codes: SparseCodes) -> SparseCodes:
    """Return the codes with the largest |value| of each row first, ties in their old order."""
    order = codes.values.abs().argsort(dim=1, descending=True, stable=True)
    return SparseCodes(codes.atoms.gather(1, order), codes.values.gather(1, order))


@torch.no_grad()
def update_dictionary(x: Tensor, codes: SparseCodes, dictionary: Tensor) -> Tensor:
    """Return the unit-norm dictionary that fits fixed codes best in squared error.

    Atoms that no row uses are replaced by the rows that are reconstructed worst.

    Args:
        x: [N, D] rows.
        codes: their codes over `dictionary`.
        dictionary: [S, D].

    Source: Engan, Aase, Husoy, "Method of Optimal Directions for Frame Design", ICASSP 1999.
    """
    rows = np.arange(0, codes.atoms.numel() + 1, codes.atoms.shape[1])
    sparse = scipy.sparse.csr_matrix(
        (codes.values.numpy().ravel(), codes.atoms.numpy().ravel(), rows),
        shape=(len(x), len(dictionary)),
    )
    cross = torch.from_numpy((sparse.T @ sparse).toarray())
    right = torch.from_numpy(sparse.T @ x.numpy())
    energy = cross.diagonal().clone()
    used = energy > 0
    ridge = 1e-3 * energy[used].mean()
    cross.diagonal().add_(ridge)
    right += ridge * dictionary
    fresh = torch.cholesky_solve(right, torch.linalg.cholesky(cross))
    unused = torch.nonzero(~used)[:, 0]
    if len(unused):
        error = (x - reconstruct(codes, dictionary)).square().sum(dim=1)
        worst = error.topk(min(len(unused), len(x))).indices
        fresh[unused[: len(worst)]] = x[worst]
    return F.normalize(fresh, dim=1)
