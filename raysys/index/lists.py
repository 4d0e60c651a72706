"""Lists of an ivf index: where items lie, and the space in which a router finds them.

    N items, L lists, D' dims of the routing space

Routing space: unit vectors whose cosine orders items as their scores do. For `cosine` these are the
reconstructions. For `inner_product` a row is y = [xhat, bias] minus its mean (a shift that every
item shares changes no ranking and makes M smaller), extended to [y, sqrt(M^2 - |y|^2)] / M with
M = max |y|; a query is [q, weights, 0]. Beyond 128 dims both are cut to the 128 principal axes of
the items and made unit rows again: a third of the centroids' bytes and of their comparisons, for a
quarter more lists probed. Source of the extension: Bachrach et al., "Speeding up the
Xbox recommender system using a Euclidean transformation for inner-product spaces", RecSys 2014.

Lists come from a two-level spherical k-means: about sqrt(L) coarse lists, each split alone (one
task per coarse list), then all items are assigned over all lists by hnswlib (one task per run of
rows), each to two of them. Every task's input is fixed by sizes and the seed, never by how many
workers there are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import CHUNK_ROWS, Floats, chunks, unit_rows
from raysys.index.kernels import combined
from raysys.index.router import Router

Tasks = Callable[..., list[Any]]
"""`tasks(function, argument_tuples, shared=())` -> [function(*arguments, *shared)], in order."""

_STEPS = 8
_NEAR_LISTS = 8  # among which an item's second list is
_ROUTED_DIMS = 128
_AXES_ROWS = 50_000


def run_here(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    shared: tuple[Any, ...] = (),
) -> list[Any]:
    """Run tasks one after another in this process."""
    return [function(*each, *shared) for each in arguments]


@dataclasses.dataclass(frozen=True)
class RoutingSpace:
    """How items and queries enter the routing space.

    Attributes:
        similarity: `cosine` or `inner_product`.
        mean: [D + n_bias] float32 shift of inner_product rows; zeros for cosine.
        norm: M, the largest shifted norm; 1 for cosine.
        axes: [W, D'] float32, orthonormal columns; None: the W dims are kept.
    """

    similarity: str
    mean: Floats
    norm: float
    axes: Floats | None = None

    @classmethod
    def fit(
        cls,
        decode: Callable[[NDArray[np.int64]], Floats],
        bias: Floats,
        similarity: str,
        *,
        cut: bool = True,
    ) -> RoutingSpace:
        """Measure shift and norm on all items, and the principal axes.

        Args:
            decode: returns the reconstructions [M, D] of some rows.
            bias: [N, n_bias].
            similarity: `cosine` or `inner_product`.
            cut: keep at most 128 dims; lists can do with fewer, a graph of items cannot.
        """
        n_items = len(bias)
        width = decode(np.zeros(1, dtype=np.int64)).shape[1] + bias.shape[1]
        if similarity == "cosine":
            space = cls(similarity, np.zeros(width, dtype=np.float32), 1.0)
            return space._with_axes(decode, bias) if cut else space
        total = np.zeros(width)
        for rows in chunks(n_items):
            total += np.concatenate([decode(rows), bias[rows]], axis=1).sum(0, dtype=np.float64)
        mean = (total / max(n_items, 1)).astype(np.float32)
        largest = 0.0
        for rows in chunks(n_items):
            shifted = np.concatenate([decode(rows), bias[rows]], axis=1) - mean
            largest = max(largest, float((shifted * shifted).sum(1).max()))
        space = cls(similarity, mean, math.sqrt(largest) * (1 + 1e-6) or 1.0)
        return space._with_axes(decode, bias) if cut else space

    def _with_axes(
        self, decode: Callable[[NDArray[np.int64]], Floats], bias: Floats
    ) -> RoutingSpace:
        """Return the space cut to the principal axes of (a fixed stride of) the items."""
        if self.dim <= _ROUTED_DIMS:
            return self
        square = np.zeros((self.dim, self.dim))
        sample = np.arange(0, len(bias), -(-len(bias) // _AXES_ROWS), dtype=np.int64)
        for start in range(0, len(sample), CHUNK_ROWS):
            rows = sample[start : start + CHUNK_ROWS]
            part = self.items(decode(rows), bias[rows])
            square += part.T @ part
        axes = np.linalg.eigh(square)[1][:, ::-1][:, :_ROUTED_DIMS]
        return dataclasses.replace(self, axes=np.ascontiguousarray(axes, dtype=np.float32))

    @property
    def dim(self) -> int:
        """Dimensions D' of the routing space."""
        if self.axes is not None:
            return int(self.axes.shape[1])
        return len(self.mean) + (self.similarity == "inner_product")

    def items(self, vectors: Floats, bias: Floats) -> Floats:
        """Return reconstructions [M, D] with biases [M, n_bias] as unit rows [M, D']."""
        if self.similarity == "cosine":
            return self._cut(unit_rows(vectors))
        y = (np.concatenate([vectors, bias], axis=1) - self.mean) / np.float32(self.norm)
        rest = np.sqrt(np.maximum(0, 1 - (y * y).sum(1, keepdims=True)))
        return self._cut(np.asarray(np.concatenate([y, rest], axis=1), dtype=np.float32))

    def queries(self, queries: Floats, weights: Floats) -> Floats:
        """Return queries [Q, D] with weights [Q, n_bias] as rows [Q, D'].

        Their lengths are left as they are: they change no order.
        """
        if self.axes is not None:
            out = np.empty((len(queries), self.axes.shape[1]), dtype=np.float32)
            none = weights[:, :0] if self.similarity == "cosine" else weights
            combined(queries, none, self.axes, out)
            return out
        if self.similarity == "cosine":
            return queries
        return np.pad(np.concatenate([queries, weights], axis=1), ((0, 0), (0, 1)))

    def matrix(self, dim: int) -> Floats:
        """Return what makes rows [Q, D'] of queries [Q, D] followed by weights: [W, D'].

        Of W, rows past those of queries and weights are there for items alone.
        """
        if self.axes is not None:
            return self.axes
        return np.eye(dim if self.similarity == "cosine" else self.dim, dtype=np.float32)

    def _cut(self, rows: Floats) -> Floats:
        return rows if self.axes is None else unit_rows(rows @ self.axes)


def fit_lists(points: Floats, n_lists: int, *, seed: int, tasks: Tasks = run_here) -> Floats:
    """Return unit centroids [L, D'] of a two-level spherical k-means over points [M, D']."""
    n_lists = min(n_lists, len(points))
    n_coarse = max(1, math.isqrt(n_lists))
    coarse = kmeans(points, n_coarse, seed)
    member = nearest_centroid(points, coarse)
    sizes = np.bincount(member, minlength=len(coarse))
    shares = _split(n_lists, sizes)
    order = np.argsort(member, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    arguments = [
        (points[order[bounds[c] : bounds[c + 1]]], int(shares[c]), seed + 1 + c)
        for c in range(len(coarse))
        if shares[c] > 0
    ]
    return np.concatenate(tasks(kmeans, arguments))


def kmeans(points: Floats, n_lists: int, seed: int) -> Floats:
    """Return unit centroids [L, D'] of spherical k-means; empty lists take the worst-fitting rows.

    Args:
        points: [M, D'] unit rows, M >= n_lists.
        n_lists: L, 1 or more.
        seed: of the starting rows.
    """
    rng = np.random.default_rng([seed, 0xCE11])
    centroids = points[np.sort(rng.choice(len(points), n_lists, replace=False))]
    for _ in range(_STEPS if n_lists > 1 else 1):
        member = nearest_centroid(points, centroids)
        order = np.argsort(member, kind="stable")
        sizes = np.bincount(member, minlength=n_lists)
        filled = np.flatnonzero(sizes)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        centroids = np.zeros_like(centroids)
        centroids[filled] = np.add.reduceat(points[order], starts[filled], axis=0)
        centroids = unit_rows(centroids)
        empty = np.flatnonzero(sizes == 0)
        if len(empty):
            fit = np.einsum("md,md->m", points, centroids[member])
            centroids[empty] = points[np.argsort(fit, kind="stable")[: len(empty)]]
    return centroids


def nearest_centroid(points: Floats, centroids: Floats) -> NDArray[np.int64]:
    """Return the list [M] with the largest dot product for every point."""
    out = np.empty(len(points), dtype=np.int64)
    for rows in chunks(len(points)):
        out[rows] = np.argmax(points[rows] @ centroids.T, axis=1)
    return out


def assign(points: Floats, router: Router, centroids: Floats) -> NDArray[np.int32]:
    """Return two lists [M, 2] of every unit row, by hnswlib; the same twice where there is but one.

    The first is the nearest. The second, of the next nearest, adds to its squared distance that
    of its residual along the first one's, so that it is near for queries that the first is not
    near for: SOAR (Sun et al., NeurIPS 2023) with lambda = 1.
    """
    near = router.nearest(points, _NEAR_LISTS)
    residuals = points[:, None] - centroids[near]
    first = unit_rows(residuals[:, 0])
    along = np.einsum("mkd,md->mk", residuals, first)
    loss = np.einsum("mkd,mkd->mk", residuals, residuals) + along * along
    loss[:, 0] = np.inf  # the first again only where there is no other
    second = np.take_along_axis(near, loss.argmin(axis=1)[:, None], axis=1)
    return np.concatenate([near[:, :1], second], axis=1).astype(np.int32)


def _split(total: int, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Share `total` lists out in proportion to `sizes`, 1 or more each, never more than members."""
    wanted = total * sizes / max(int(sizes.sum()), 1)
    shares = np.minimum(np.maximum(np.floor(wanted).astype(np.int64), sizes > 0), sizes)
    while shares.sum() < total and (shares < sizes).any():
        gap = np.where(shares < sizes, wanted - shares, -np.inf)
        shares[int(np.argmax(gap))] += 1
    return shares
