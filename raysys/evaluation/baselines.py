"""Simple rankers that every report shows beside the model.

Letters: U users, B users in a block, N items of the catalogue.

popularity: training interactions. recent: those among the last fraction of the training log.
window: those of the last days before the cut. decayed: every interaction weighs
2^(-age / half-life). itemknn: cosine between items with shrinkage, each item keeps its k nearest.
ease: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019, equation 8. All see
presence only: a (user, item) pair counts once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

from raysys.data.cells import Cells
from raysys.errors import DataError
from raysys.evaluation.metrics import top_items

MAX_EASE_ITEMS = 15_000
_BLOCK_ITEMS = 1024
_SECONDS_PER_DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class ItemRanker:
    """Ranks by one score per item, the same for every user.

    Attributes:
        scores: [N].
    """

    scores: NDArray[Any]

    def __call__(self, history: Cells, top_k: int) -> NDArray[np.int32]:
        """Return the best items outside each history, int32 [B, top_k]."""
        n_items = len(self.scores)
        longest = int(history.counts.max(initial=0))
        head = top_items(self.scores[None], min(n_items, top_k + longest))[0]
        place = np.full(n_items, len(head), dtype=np.int64)
        place[head[head >= 0]] = np.flatnonzero(head >= 0)
        kept = np.tile(head >= 0, (history.n_users, 1))
        inside = history.item_num < n_items
        at = place[history.item_num[inside]]
        listed = at < len(head)
        kept[history.rows[inside][listed], at[listed]] = False
        lists: NDArray[np.int32] = np.full((history.n_users, top_k), -1, dtype=np.int32)
        rows, columns = np.nonzero(kept)
        position = (np.cumsum(kept, axis=1) - 1)[rows, columns]
        fits = position < top_k
        lists[rows[fits], position[fits]] = head[columns[fits]]
        return lists

    def save(self, folder: Path, name: str) -> None:
        """Write the scores as `<name>.npy`."""
        np.save(folder / f"{name}.npy", self.scores)

    @classmethod
    def load(cls, folder: Path, name: str) -> ItemRanker:
        """Read what `save` wrote."""
        return cls(np.load(folder / f"{name}.npy"))


@dataclasses.dataclass(frozen=True)
class ItemKNN:
    """Ranks item i by the summed similarity of i to the items j of the history.

    Attributes:
        similarity: float32 CSR [N, N]; [j, i] is set where j is among the nearest neighbours of i.
    """

    similarity: sparse.csr_matrix

    def __call__(self, history: Cells, top_k: int) -> NDArray[np.int32]:
        """Return the best items outside each history, int32 [B, top_k]."""
        scores = (presence(history, self.similarity.shape[0]) @ self.similarity).toarray()
        lists: NDArray[np.int32] = top_items(scores, top_k, exclude=history)
        return lists

    def save(self, folder: Path, name: str) -> None:
        """Write the similarities as three arrays."""
        for part in ("data", "indices", "indptr"):
            np.save(folder / f"{name}.{part}.npy", getattr(self.similarity, part))

    @classmethod
    def load(cls, folder: Path, name: str) -> ItemKNN:
        """Read what `save` wrote."""
        parts = [np.load(folder / f"{name}.{part}.npy") for part in ("data", "indices", "indptr")]
        n_items = len(parts[2]) - 1
        return cls(sparse.csr_matrix(tuple(parts), shape=(n_items, n_items)))


@dataclasses.dataclass(frozen=True)
class Ease:
    """Ranks by a full linear item-to-item map with an empty diagonal.

    Attributes:
        weights: float32 [N, N]; the score of i is the sum of weights[j, i] over the history.
    """

    weights: NDArray[np.float32]

    def __call__(self, history: Cells, top_k: int) -> NDArray[np.int32]:
        """Return the best items outside each history, int32 [B, top_k]."""
        scores = presence(history, len(self.weights)) @ self.weights
        lists: NDArray[np.int32] = top_items(scores, top_k, exclude=history)
        return lists

    def save(self, folder: Path, name: str) -> None:
        """Write the weights as `<name>.npy`."""
        np.save(folder / f"{name}.npy", self.weights)

    @classmethod
    def load(cls, folder: Path, name: str) -> Ease:
        """Map what `save` wrote."""
        return cls(np.load(folder / f"{name}.npy", mmap_mode="r"))


def presence(cells: Cells, n_items: int) -> sparse.csr_matrix:
    """Return the float32 CSR matrix [U, N] of ones where a user has an item of the catalogue."""
    inside = cells.take(cells.item_num < n_items)
    matrix = sparse.csr_matrix(
        (np.ones(inside.n_cells, dtype=np.float32), inside.item_num, inside.offsets),
        shape=(cells.n_users, n_items),
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def item_counts(cells: Cells, n_items: int) -> NDArray[np.int64]:
    """Return how many users have each item of the catalogue, int64 [N]."""
    return np.bincount(presence(cells, n_items).indices, minlength=n_items).astype(np.int64)


def popularity(cells: Cells, n_items: int) -> ItemRanker:
    """Rank by the number of training users."""
    return ItemRanker(item_counts(cells, n_items))


def recent(cells: Cells, n_items: int, *, fraction: float) -> ItemRanker:
    """Rank by interactions in the last `fraction` of the training log, ties by all of it."""
    times = np.sort(cells.timestamp)
    start = times[min(int((1 - fraction) * len(times)), len(times) - 1)] if len(times) else 0
    return _since(cells, n_items, start)


def window(cells: Cells, n_items: int, *, days: float) -> ItemRanker:
    """Rank by interactions in the last `days` of the training log, ties by all of it."""
    start = cells.timestamp.max(initial=0) - days * _SECONDS_PER_DAY
    return _since(cells, n_items, start)


def _since(cells: Cells, n_items: int, start: float) -> ItemRanker:
    """Rank by interactions at or after `start`, ties by all of them."""
    late = item_counts(cells.take(cells.timestamp >= start), n_items)
    order = np.lexsort((np.arange(n_items), -item_counts(cells, n_items), -late))
    scores = np.empty(n_items, dtype=np.float32)
    scores[order] = -np.arange(n_items)
    return ItemRanker(scores)


def decayed(cells: Cells, n_items: int, *, half_life_days: float) -> ItemRanker:
    """Rank by interactions that lose half their weight every `half_life_days`."""
    inside = cells.take(cells.item_num < n_items)
    age = inside.timestamp.max(initial=0) - inside.timestamp
    weights = np.exp2(-age / (half_life_days * _SECONDS_PER_DAY))
    return ItemRanker(np.bincount(inside.item_num, weights=weights, minlength=n_items))


def itemknn(cells: Cells, n_items: int, settings: Sequence[tuple[int, float]]) -> list[ItemKNN]:
    """Fit one ItemKNN per (neighbours k, shrinkage); those of one shrinkage share the work."""
    matrix = presence(cells, n_items)
    norms = np.sqrt(np.bincount(matrix.indices, minlength=n_items)).astype(np.float32)
    transposed = matrix.T.tocsr()
    parts: list[list[sparse.csr_matrix]] = [[] for _ in settings]
    for start in range(0, n_items, _BLOCK_ITEMS):
        rows = np.arange(start, min(start + _BLOCK_ITEMS, n_items))
        together = (transposed[rows] @ matrix).toarray()
        together[np.arange(len(rows)), rows] = 0.0
        lengths = np.outer(norms[rows], norms)
        for shrink in dict.fromkeys(shrink for _, shrink in settings):
            similarity = together / (lengths + np.float32(shrink + 1e-12))
            similarity[together == 0] = -np.inf
            nearest = top_items(similarity, max(k for k, s in settings if s == shrink))
            for part, (k, wanted) in zip(parts, settings, strict=True):
                if wanted == shrink:
                    part.append(_sparse_rows(similarity, nearest[:, :k]))
    return [ItemKNN(sparse.vstack(part, format="csr").T.tocsr()) for part in parts]


def ease(cells: Cells, n_items: int, penalties: Sequence[float]) -> Iterator[Ease]:
    """Fit one EASE per L2 penalty lambda, sharing the item-item counts.

    Raises:
        DataError: the catalogue is too large for an [N, N] inverse.
    """
    if n_items > MAX_EASE_ITEMS:
        raise DataError(f"EASE takes up to {MAX_EASE_ITEMS} items, the catalogue has {n_items}")
    matrix = presence(cells, n_items)
    gram = (matrix.T @ matrix).tocsr()
    for penalty in penalties:
        system = gram.toarray(order="F")
        system[np.diag_indices(n_items)] += penalty
        factor, failed = lapack.spotrf(system, lower=True, overwrite_a=True)
        if failed:
            raise DataError(f"EASE with penalty {penalty:g} is not positive definite")
        inverse, _ = lapack.spotri(factor, lower=True, overwrite_c=True)
        yield Ease(_mirrored_weights(inverse))


def _mirrored_weights(inverse: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return -P[i, j] / P[j, j] off the diagonal, from the lower triangle of P."""
    n_items = len(inverse)
    scale = -1.0 / np.diag(inverse)
    weights = np.empty((n_items, n_items), dtype=np.float32)
    for start in range(0, n_items, _BLOCK_ITEMS):
        stop = min(start + _BLOCK_ITEMS, n_items)
        square = np.tril(inverse[start:stop, start:stop])
        weights[start:stop, start:stop] = square + np.tril(square, -1).T
        weights[start:stop, :start] = inverse[start:stop, :start]
        weights[:start, start:stop] = inverse[start:stop, :start].T
    weights *= scale
    np.fill_diagonal(weights, 0.0)
    return weights


def _sparse_rows(similarity: NDArray[np.float32], kept: NDArray[np.int32]) -> sparse.csr_matrix:
    """Return the similarities at the listed columns of each row; -1 lists nothing."""
    rows, places = np.nonzero(kept >= 0)
    columns = kept[rows, places]
    return sparse.csr_matrix((similarity[rows, columns], (rows, columns)), shape=similarity.shape)
