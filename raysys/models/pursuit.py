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
from torch import Tensor
from torch.nn import functional as F

from raysys.errors import DataError

_RIDGE = 1e-6  # keeps the normal equations of nearly parallel atoms solvable


@dataclasses.dataclass(frozen=True)
class SparseCodes:
    """Codes of N rows: atoms int64 [N, n] in selection order and values float32 [N, n]."""

    atoms: Tensor
    values: Tensor

    def truncated(self, n_active: int, x: Tensor, dictionary: Tensor) -> SparseCodes:
        """Keep the first `n_active` atoms and fit their values again to rows x [N, D]."""
        atoms = self.atoms[:, :n_active].contiguous()
        return SparseCodes(atoms, least_squares(x, atoms, dictionary))


def check_rows(x: Tensor) -> None:
    """Raise DataError naming the first row of x [N, D] that is zero or not finite."""
    norms = x.norm(dim=1)
    bad = torch.nonzero(~((norms > 0) & torch.isfinite(norms)))
    if len(bad):
        raise DataError(f"embedding row {int(bad[0])} is zero or not finite")


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


@numba.njit(parallel=True, fastmath=True, cache=True)  # type: ignore[untyped-decorator]
def _pursue(start: Any, gram: Any, atoms: Any, values: Any) -> None:
    """Fill atoms and values [B, n] from correlations start [B, S]; one row a thread.

    `factor` is the growing Cholesky factor of the chosen atoms' Gram matrix; `half` the forward
    solution of its normal equations, which gains one entry a step.
    """
    n_rows, n_atoms = start.shape
    n_active = atoms.shape[1]
    for b in numba.prange(n_rows):
        left = start[b].copy()
        factor = np.zeros((n_active, n_active), dtype=np.float32)
        half = np.zeros(n_active, dtype=np.float32)
        for t in range(n_active):
            best = np.float32(-1.0)
            pick = 0
            for s in range(n_atoms):
                size = abs(left[s])
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
            left[:] = start[b]
            for j in range(t + 1):
                row = gram[atoms[b, j]]
                weight = values[b, j]
                for s in range(n_atoms):
                    left[s] -= weight * row[s]
            for j in range(t + 1):
                left[atoms[b, j]] = 0.0


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
