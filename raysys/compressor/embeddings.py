"""Embeddings: the item vectors that are compressed and searched, with their biases and items.

N items, D dims, Q queries
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.data.arrays import Floats, new_file
from raysys.store.builds import Build
from raysys.store.drafts import Draft
from raysys.store.kinds import Facts

_VECTORS, _BIAS, _ITEMS = "vectors.npy", "bias.npy", "items.parquet"
_QUERY_PREFIX, _QUERY_SUFFIX = "queries-", ".npy"


@dataclasses.dataclass(frozen=True)
class EmbeddingsFacts(Facts):
    """What there is of embeddings.

    Attributes:
        n_items, dim: N and D.
        n_bias: biases of an item.
        similarity: `cosine` or `inner_product`.
        rankings: of the model that they come from; none for own vectors.
        candidate_recall: {ranking: recall of the model's best items by these vectors}.
    """

    n_items: int
    dim: int
    n_bias: int
    similarity: str
    rankings: tuple[str, ...] = ()
    candidate_recall: dict[str, float] | None = None


class Embeddings:
    """An `embeddings` build, opened; a file is fetched and mapped when it is asked for.

    Attributes:
        facts: what there is.
    """

    def __init__(self, build: Build) -> None:
        self._build = build
        self.facts = EmbeddingsFacts.of(build)

    @classmethod
    def open(cls, build: Build) -> Embeddings:
        """Open an `embeddings` build."""
        return cls(build)

    @property
    def similarity(self) -> str:
        """How vectors are compared: `cosine` or `inner_product`."""
        return self.facts.similarity

    @property
    def vectors_path(self) -> Path:
        """Local path of the vectors, a .npy file [N, D]."""
        return self._build.path(_VECTORS)

    @property
    def vectors(self) -> NDArray[np.floating[Any]]:
        """The vectors [N, D], mapped."""
        vectors: NDArray[np.floating[Any]] = np.load(self.vectors_path, mmap_mode="r")
        return vectors

    @property
    def bias(self) -> Floats:
        """The biases [N, n_bias], mapped."""
        bias: Floats = np.load(self._build.path(_BIAS), mmap_mode="r")
        return bias

    @property
    def queries(self) -> dict[str, Floats]:
        """{ranking: [Q, D + n_bias]} queries and weights of some users, mapped."""
        names = self._build.files(_QUERY_SUFFIX, prefix=_QUERY_PREFIX)
        return {
            name[len(_QUERY_PREFIX) : -len(_QUERY_SUFFIX)]: np.load(
                self._build.path(name), mmap_mode="r"
            )
            for name in names
        }

    @property
    def columns(self) -> list[str]:
        """Names of the columns of `items`."""
        names: list[str] = pq.read_schema(self._build.path(_ITEMS)).names
        return names

    def items(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read columns of the items, default all: row number = item_num."""
        names = None if columns is None else list(columns)
        return pq.read_table(self._build.path(_ITEMS), columns=names)

    def item_ids(self) -> list[str]:
        """Read the item ids, in item_num order."""
        ids: list[str] = self.items(["item_id"])["item_id"].to_pylist()
        return ids


def new_vectors(draft: Draft, n_items: int, dim: int) -> Floats:
    """Return the vectors [N, D] of a build that is being made, to be filled."""
    return new_file(draft.path(_VECTORS), (n_items, dim), np.float32)


def write_embeddings(
    draft: Draft,
    *,
    vectors: NDArray[np.floating[Any]],
    bias: Floats,
    items: pa.Table,
    similarity: str,
    queries: Mapping[str, Floats] | None = None,
) -> EmbeddingsFacts:
    """Write an `embeddings` build and return its facts.

    Args:
        draft: the build that is being made.
        vectors: [N, D], or what `new_vectors` returned, filled.
        bias: [N, n_bias].
        items: N rows in item_num order: item_num, item_id, title, attributes.
        similarity: how they are compared.
        queries: as in `Embeddings`.
    """
    path = draft.path(_VECTORS)
    filled = getattr(vectors, "filename", None)  # resolved, where a link leads to the run
    if filled is None or not path.exists() or not path.samefile(filled):
        np.save(path, np.ascontiguousarray(vectors, dtype=np.float32))
    np.save(draft.path(_BIAS), np.ascontiguousarray(bias, dtype=np.float32))
    pq.write_table(items, draft.path(_ITEMS))
    for ranking, rows in (queries or {}).items():
        np.save(draft.path(f"{_QUERY_PREFIX}{ranking}{_QUERY_SUFFIX}"), rows)
    n_items, dim = vectors.shape
    return EmbeddingsFacts(n_items, dim, bias.shape[1], similarity)
