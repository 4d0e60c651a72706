"""Simple rankers that every report shows beside the model.

Letters: U users, B users in a block, N items of the catalogue.

popularity: training interactions. recent: those among the last fraction of the training log.
window: those of the last days before the cut. decayed: every interaction weighs
2^(-age / half-life). itemknn: cosine between items with shrinkage, each item keeps its k nearest.
EASE and RDLAE stand in `linear_items.py`. All see presence only: a (user, item) pair counts once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from raysys.data.cells import Cells
from raysys.evaluation.metrics import top_items
from raysys.evaluation.presence import item_counts, presence

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


def _sparse_rows(similarity: NDArray[np.float32], kept: NDArray[np.int32]) -> sparse.csr_matrix:
    """Return the similarities at the listed columns of each row; -1 lists nothing."""
    rows, places = np.nonzero(kept >= 0)
    columns = kept[rows, places]
    return sparse.csr_matrix((similarity[rows, columns], (rows, columns)), shape=similarity.shape)
