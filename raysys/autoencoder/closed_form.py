"""Item vectors of the consume block without gradient steps: EASE in low rank.

EASE (Steck, WWW 2019) predicts a 0/1 row x by x B with a zero diagonal, in closed form:
    P = (X' X + L)^-1,   B[i, j] = -P[i, j] / P[j, j]
With users weighted by w_u = n_u^-a and penalties L_i = penalty (n_i / mean n)^b, and the leading
singular triplets of the scaled matrix sqrt(w) X S = U s V', S = (L / penalty)^-1/2,
    A = V sqrt(s^2 / (s^2 + penalty)),   B[i, j] = (S_i A_i) . (A_j / (S_j (1 - |A_j|^2)))
so one vector A_i per item, scaled once for the encoder and once for the decoder, holds the whole
model (exactly at full rank), and another penalty or a smaller rank costs nothing.
Exponents a, b: validation on two logs (docs/decisions/008-closed-form.md).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from raysys import progress
from raysys.data.arrays import Floats, row_blocks

PENALTIES = (50.0, 100.0, 200.0, 400.0, 800.0, 1600.0)
MAX_ELEMENTS = 1 << 28  # of a users x rank or items x rank matrix
_USER_EXPONENT = 0.5
_PENALTY_EXPONENT = 0.4
_OVERSAMPLE = 32
_ITERATIONS = 10
_LEAST_SQUARE = 1e-10  # of the largest one; smaller ones are rounding
_MAX_EXACT = 4096


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The leading singular triplets of a scaled interaction matrix.

    Attributes:
        values: float32 [H] singular values s, zeros beyond the matrix's rank.
        vectors: float32 [N, H] right singular vectors V.
        scale: float32 [N] S.
    """

    values: Floats
    vectors: Floats
    scale: Floats

    def item_vectors(self, penalty: float, rank: int) -> tuple[Floats, Floats]:
        """Return A [N, rank] and its scales [2, N]: for the encoder, for the decoder."""
        square = self.values[:rank] ** 2
        vectors = self.vectors[:, :rank] * np.sqrt(square / (square + np.float32(penalty)))
        rest = np.maximum(1 - (vectors * vectors).sum(axis=1), 1e-6)
        return vectors, np.stack([self.scale, 1 / (self.scale * rest)]).astype(np.float32)


def closed_ranks(n_users: int, n_items: int, latent: int) -> list[int]:
    """Return the ranks H to try for a model of `latent` dims, ascending; none above about 2 GB.

    Dims cost no gradient steps here, so twice as many are tried too where that takes up to 0.5 GB.
    There are never more than users or items.
    """
    least = min(n_users, n_items)  # the matrix has no more singular values
    sizes = [(min(latent, least), MAX_ELEMENTS)]
    if least > latent:
        sizes.append((min(2 * latent, least), MAX_ELEMENTS // 4))
    rows = max(n_users, n_items)
    return [rank for rank, most in sizes if rows * (rank + _OVERSAMPLE) <= most]


def spectrum(
    rows: NDArray[np.integer[Any]],
    items: NDArray[np.integer[Any]],
    *,
    n_users: int,
    n_items: int,
    rank: int,
    seed: int,
) -> Spectrum:
    """Decompose on the side of the users or of the items, whichever are fewer.

    Up to 4096 of these the Gram matrix is decomposed in full. Beyond, a subspace is iterated on
    (Halko, Martinsson, Tropp, 2011).

    Args:
        rows: [M] users; an item that a user has several times counts once.
        items: [M] their items.
        n_users: rows of the matrix.
        n_items: N.
        rank: H.
        seed: of the starting subspace.
    """
    pairs = np.unique(rows.astype(np.int64) * n_items + items)
    rows, items = pairs // n_items, pairs % n_items
    per_user = np.bincount(rows, minlength=n_users).clip(1)
    per_item = np.bincount(items, minlength=n_items).clip(1)
    weight = (per_user / per_user.mean()) ** (-_USER_EXPONENT / 2)
    scale = (per_item / per_item.mean()) ** (-_PENALTY_EXPONENT / 2)
    values = (weight[rows] * scale[items]).astype(np.float32)
    matrix = sparse.csr_matrix((values, (rows, items)), shape=(n_users, n_items))
    few = matrix if n_users < n_items else matrix.T.tocsr()
    many = few.T.tocsr()
    if few.shape[0] <= _MAX_EXACT:
        basis = np.eye(few.shape[0], dtype=np.float32)
        gram = (few.astype(np.float64) @ many).toarray()
    else:
        width = min(rank + _OVERSAMPLE, few.shape[0])
        draw = np.random.default_rng([seed, 0x33])
        basis = draw.standard_normal((few.shape[0], width), dtype=np.float32)
        with progress.stage("spectrum", total=_ITERATIONS, unit="iterations") as work:
            for number in range(_ITERATIONS):
                last = number == _ITERATIONS - 1
                basis = _orthonormal(few @ (many @ basis), passes=2 if last else 1)
                work.add()
        image = many @ basis
        gram = (image.T @ image).astype(np.float64)
    squares, rotation = np.linalg.eigh(gram)
    order = np.argsort(-squares)[:rank]
    order = order[squares[order] > _LEAST_SQUARE * squares.max(initial=0.0)]
    found = np.zeros(rank, dtype=np.float32)
    found[: len(order)] = np.sqrt(squares[order])
    vectors = np.zeros((n_items, rank), dtype=np.float32)
    sides = basis @ rotation[:, order].astype(np.float32)
    vectors[:, : len(order)] = many @ sides / found[: len(order)] if few is matrix else sides
    return Spectrum(found, vectors, scale.astype(np.float32))


def _orthonormal(basis: Floats, *, passes: int) -> Floats:
    """Return orthonormal columns of the same span, [N, W], by the Gram matrix.

    For tall matrices that is several times faster than Householder's QR, and as good once it is
    repeated, with the Gram matrix in float64 (CholeskyQR2, Yamamoto et al., 2015); one pass is
    enough between iterations. Directions that are not there stay near zero.
    """
    for _ in range(passes):
        gram = np.zeros((basis.shape[1],) * 2)
        for _, rows in row_blocks(basis):
            part = rows.astype(np.float64)
            gram += part.T @ part
        squares, rotation = np.linalg.eigh(gram)
        squares = np.maximum(squares, squares[-1] * _LEAST_SQUARE)
        basis = basis @ (rotation / np.sqrt(squares)).astype(np.float32)
    return basis
