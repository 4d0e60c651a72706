"""Full linear item-to-item maps in closed form: EASE, and RDLAE with its relaxed diagonal.

With X [U, N] the presence of items, G a diagonal of penalties and P = (X'X + G)^-1, both are
B[i, j] = -P[i, j] s[j] off the diagonal, and a user with row x ranks by x B.

    EASE   G = penalty,  s[j] = 1 / P[j, j], so the diagonal would be 0
           Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019, equation 8
    RDLAE  G = penalty + drop / (1 - drop) X'X on the diagonal,
           s[j] = max(G[j], (1 - relaxed) / P[j, j]), so the diagonal is at most `relaxed`
           Moon, Kim, Lee, "It's Enough: Relaxing Diagonal Constraints in Linear Autoencoders for
           Recommendation", SIGIR 2023, section 4

Where users are fewer than items, P is never made: with K = I + X G^-1 X' [U, U] (Woodbury),
(x P)[i] = -(x G^-1 X' K^-1 X)[i] / G[i] for every i that x has not.

Letters: U users, B users in a block, N items of the catalogue.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

from raysys.data.cells import Cells
from raysys.errors import DataError
from raysys.evaluation.metrics import top_items
from raysys.evaluation.presence import presence

MAX_SIDE = 15_000
"""Most rows of a matrix that is inverted: the smaller of users and items."""

_BLOCK_ITEMS = 1024

Vector = NDArray[np.float32]
Matrix = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class ItemMap:
    """Ranks by a full linear item-to-item map with an empty diagonal.

    Attributes:
        weights: float32 [N, N]; the score of i is the sum of weights[j, i] over the history.
    """

    weights: Matrix

    def __call__(self, history: Cells, top_k: int) -> NDArray[np.int32]:
        """Return the best items outside each history, int32 [B, top_k]."""
        scores = presence(history, len(self.weights)) @ self.weights
        lists: NDArray[np.int32] = top_items(scores, top_k, exclude=history)
        return lists

    def save(self, folder: Path, name: str) -> None:
        """Write the weights as `<name>.npy`."""
        np.save(folder / f"{name}.npy", self.weights)


@dataclasses.dataclass(frozen=True)
class UserMap:
    """Ranks as an `ItemMap` does, from matrices of the size of the training users.

    Attributes:
        users: float32 CSR [U, N], what the training users have.
        inverse: float32 [U, U], K^-1.
        penalty: float32 [N], the diagonal of G.
        scale: float32 [N], s.
    """

    users: sparse.csr_matrix
    inverse: Matrix
    penalty: Vector
    scale: Vector

    def __call__(self, history: Cells, top_k: int) -> NDArray[np.int32]:
        """Return the best items outside each history, int32 [B, top_k]."""
        inside = presence(history, len(self.penalty)) @ sparse.diags(1 / self.penalty)
        near = (inside @ self.users.T).toarray() @ self.inverse  # [B, U]
        scores = (self.users.T @ near.T).T * (self.scale / self.penalty)
        lists: NDArray[np.int32] = top_items(scores, top_k, exclude=history)
        return lists

    def save(self, folder: Path, name: str) -> None:
        """Write the matrices, one file each."""
        arrays = {
            "indices": self.users.indices,
            "indptr": self.users.indptr,
            "inverse": self.inverse,
            "penalty": self.penalty,
            "scale": self.scale,
        }
        for part, array in arrays.items():
            np.save(folder / f"{name}.{part}.npy", array)


def load(folder: Path, name: str) -> ItemMap | UserMap:
    """Read what `save` of either form wrote."""
    whole = folder / f"{name}.npy"
    if whole.exists():
        return ItemMap(np.load(whole, mmap_mode="r"))
    parts = ("indices", "indptr", "inverse", "penalty", "scale")
    indices, indptr, inverse, penalty, scale = (
        np.load(folder / f"{name}.{part}.npy", mmap_mode="r") for part in parts
    )
    ones = np.ones(len(indices), dtype=np.float32)
    users = sparse.csr_matrix((ones, indices, indptr), shape=(len(indptr) - 1, len(penalty)))
    return UserMap(users, inverse, penalty, scale)


def ease(cells: Cells, n_items: int, penalties: Sequence[float]) -> Iterator[ItemMap | UserMap]:
    """Fit one EASE per L2 penalty, sharing the counts.

    Raises:
        DataError: users and items are too many for an inverse.
    """
    yield from rdlae(cells, n_items, [(penalty, 0.0, 0.0) for penalty in penalties])


def rdlae(
    cells: Cells, n_items: int, settings: Sequence[tuple[float, float, float]]
) -> Iterator[ItemMap | UserMap]:
    """Fit one RDLAE per (penalty, drop, relaxed); neighbours that differ in the last share work.

    Args:
        cells: of the training users.
        n_items: size N of the catalogue.
        settings: L2 penalty above 0, share of dropped entries in [0, 1), largest value that the
            diagonal may have, in [0, 1).

    Raises:
        DataError: users and items are too many for an inverse.
    """
    matrix = presence(cells, n_items)
    matrix = matrix[np.diff(matrix.indptr) > 0]
    if min(matrix.shape) > MAX_SIDE:
        raise DataError(
            f"EASE and RDLAE take up to {MAX_SIDE} users or items, there are {matrix.shape[0]} "
            f"and {matrix.shape[1]}"
        )
    counts = np.bincount(matrix.indices, minlength=n_items)
    dual = matrix.shape[0] < n_items
    gram = None if dual else (matrix.T @ matrix).tocsr()
    done: tuple[float, float] | None = None
    for penalty, drop, relaxed in settings:
        if done != (penalty, drop):
            done = (penalty, drop)
            extra = (penalty + drop / (1 - drop) * counts).astype(np.float32)
            if gram is None:
                inverse = _inverse(_kernel(matrix, extra))
                diagonal = _dual_diagonal(matrix, inverse, extra)
            else:
                system = gram.toarray(order="F")
                system[np.diag_indices(n_items)] += extra
                inverse = _inverse(system)
                diagonal = np.diag(inverse)
        scale = np.maximum(extra, (1 - relaxed) / diagonal)
        if dual:
            yield UserMap(matrix, inverse, extra, scale)
        else:
            yield ItemMap(_weights(inverse, scale))


def _kernel(matrix: sparse.csr_matrix, penalty: Vector) -> Matrix:
    """Return K = I + X G^-1 X' [U, U]."""
    system: Matrix = (matrix @ sparse.diags(1 / penalty) @ matrix.T).toarray(order="F")
    system = system.astype(np.float32, copy=False)
    system[np.diag_indices(len(system))] += 1
    return system


def _dual_diagonal(matrix: sparse.csr_matrix, inverse: Matrix, penalty: Vector) -> Vector:
    """Return the diagonal of P [N] from K^-1."""
    columns = matrix.T.tocsr()
    through = np.empty(len(penalty), dtype=np.float32)
    for start in range(0, len(penalty), _BLOCK_ITEMS):
        block = columns[start : start + _BLOCK_ITEMS]
        through[start : start + _BLOCK_ITEMS] = np.asarray(
            block.multiply(block @ inverse).sum(axis=1)
        ).ravel()
    diagonal: Vector = (1 - through / penalty) / penalty
    return diagonal


def _inverse(system: Matrix) -> Matrix:
    """Return the inverse of a positive definite matrix, in its place."""
    factor, failed = lapack.spotrf(system, lower=True, overwrite_a=True)
    if failed:
        raise DataError("EASE and RDLAE need a larger penalty: the system is not positive definite")
    lower, _ = lapack.spotri(factor, lower=True, overwrite_c=True)
    size = len(lower)
    for start in range(0, size, _BLOCK_ITEMS):
        stop = min(start + _BLOCK_ITEMS, size)
        square = np.tril(lower[start:stop, start:stop])
        lower[start:stop, start:stop] = square + np.tril(square, -1).T
        lower[start:stop, stop:] = lower[stop:, start:stop].T
    whole: Matrix = lower
    return whole


def _weights(inverse: Matrix, scale: Vector) -> Matrix:
    """Return -P[i, j] s[j] off the diagonal."""
    weights = np.multiply(inverse, -scale, order="C", dtype=np.float32)
    np.fill_diagonal(weights, 0.0)
    return weights
