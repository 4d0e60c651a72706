"""Changes between builds: items that came, changed or went since an index was built.

    N items of the build, M upserted rows, D dims; upserted row m has item_num N + m

Upserted rows are compared exactly with every query (a small side buffer), deleted and replaced
items of the build are tombstones. Both are the content of one `changes` build, bound to the
embeddings that the index was made from; the next build takes them in.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.data.arrays import Floats, unit_rows
from raysys.data.attributes import joined
from raysys.errors import BuildError, SearchError, UnknownItemError
from raysys.index.kernels import products
from raysys.index.layout import Nums
from raysys.index.request import SearchRequest
from raysys.index.shards import Searchable, merge
from raysys.store.builds import Build, Workspace
from raysys.store.drafts import Draft
from raysys.store.kinds import Facts
from raysys.timing.files import Timed

log = logging.getLogger(__name__)

KIND = "changes"
_FEW = 100  # items of the build that are gone
EDIT = f"{KIND}/edit"  # lease under which the current changes are read and others written


@dataclasses.dataclass(frozen=True)
class ChangesFacts(Facts):
    """How much changed.

    Attributes:
        n_upserted, n_deleted: items.
        cold_recall, cold_held_out: recall@10 of the map from content to vectors, and the items
            it was measured on; None where the last update needed no map.
        counted_until: UTC seconds that the items' counters stand at; None: as they were trained.
    """

    n_upserted: int
    n_deleted: int
    cold_recall: float | None = None
    cold_held_out: int | None = None

    counted_until: int | None = None

    @property
    def any(self) -> bool:
        """Tell whether anything changed."""
        return bool(self.n_upserted or self.n_deleted or self.counted_until)


@dataclasses.dataclass(frozen=True)
class Changes:
    """What differs from a build.

    Attributes:
        items: M rows: item_id, title, further attributes.
        vectors: [M, D] float32.
        bias: [M, n_bias] float32.
        deleted: ids of the build's items that are gone.
        timed: counters of the build's items since the training; None: as they were then.
    """

    items: pa.Table
    vectors: Floats
    bias: Floats
    deleted: tuple[str, ...]
    timed: Timed | None = None

    @classmethod
    def none(cls, dim: int, n_bias: int) -> Changes:
        """Return no changes."""
        text = pa.array([], pa.string())
        items = pa.table({"item_id": text, "title": text})
        vectors, bias = (np.zeros((0, width), np.float32) for width in (dim, n_bias))
        return cls(items, vectors, bias, ())

    @property
    def item_ids(self) -> list[str]:
        """Ids of the upserted rows."""
        ids: list[str] = self.items["item_id"].to_pylist()
        return ids

    def upsert(self, items: pa.Table, vectors: Floats, bias: Floats) -> Changes:
        """Return the changes with further rows; an id that is there already is replaced."""
        ids = set(items["item_id"].to_pylist())
        kept = self._without(ids)
        return dataclasses.replace(
            self,
            items=joined([kept.items, items]),
            vectors=np.concatenate([kept.vectors, vectors]),
            bias=np.concatenate([kept.bias, bias]),
            deleted=tuple(i for i in self.deleted if i not in ids),
        )

    def delete(self, ids: Iterable[str], known: Mapping[str, int]) -> Changes:
        """Return the changes with items gone.

        Args:
            ids: of the build's items or of upserted ones.
            known: the build's items.

        Raises:
            UnknownItemError: neither holds an id.
        """
        gone = set(ids)
        for item_id in sorted(gone - set(self.item_ids)):
            if item_id not in known or item_id in self.deleted:
                raise UnknownItemError(f"delete: item_id={item_id!r} is not in the catalogue")
        kept = self._without(gone)
        base = [i for i in dict.fromkeys([*self.deleted, *sorted(gone)]) if i in known]
        return dataclasses.replace(kept, deleted=tuple(base))

    def save(self, draft: Draft) -> ChangesFacts:
        """Write the changes and return the facts of their build."""
        pq.write_table(self.items, draft.path("items.parquet"))
        np.save(draft.path("vectors.npy"), self.vectors)
        np.save(draft.path("bias.npy"), self.bias)
        draft.path("deleted.json").write_text(json.dumps(self.deleted))
        if self.timed is not None:
            self.timed.save(draft)
        until = None if self.timed is None else self.timed.counters.time
        return ChangesFacts(len(self.items), len(self.deleted), counted_until=until)

    @classmethod
    def open(cls, build: Build) -> Changes:
        """Read what `save` wrote."""
        deleted = json.loads(build.path("deleted.json").read_text())
        arrays = [np.load(build.path(f"{name}.npy")) for name in ("vectors", "bias")]
        items = pq.read_table(build.path("items.parquet"))
        return cls(items, arrays[0], arrays[1], tuple(deleted), Timed.of_build(build))

    def _without(self, ids: set[str]) -> Changes:
        keep = np.array([i not in ids for i in self.item_ids], dtype=bool)
        return dataclasses.replace(
            self,
            items=self.items.filter(pa.array(keep, pa.bool_())),
            vectors=self.vectors[keep],
            bias=self.bias[keep],
        )


def current_changes(
    workspace: Workspace, embeddings: Build, without: Collection[str] = ()
) -> Build | None:
    """Return the newest `changes` build that was made for these embeddings, but for some ids.

    It is the current one, or where an index of before is served again one that was so before.
    """
    if not workspace.has(KIND):
        return None
    current = workspace.current(KIND)
    if current.made_from(embeddings) and current.build_id not in without:
        return current
    for build_id in workspace.before(KIND):
        if build_id in without:
            continue
        with suppress(BuildError):  # deleted since
            build = workspace.open(KIND, build_id)
            if build.made_from(embeddings):
                return build
    if ChangesFacts.of(current).any:
        log.warning(
            "changes ignored build_id=%s reason=made for other embeddings", current.build_id
        )
    return None


class Changed:
    """An index with changes on top, behind the same interface.

    Args:
        index: of N items.
        changes: upserted rows become item_nums N and up.
        known: {item_id: item_num} of the N items.
        cosine: compare directions, as the index does.

    Attributes:
        n_items, dim: of all of them, and of queries.
        alive: [N + M] which are neither deleted nor replaced by a later row.
        few_gone: item_nums of those that are, where they are so few that every query leaves them
            out one by one, for which a mask of all items would take longer; None: they are many.
    """

    def __init__(
        self, index: Searchable, changes: Changes, known: Mapping[str, int], *, cosine: bool
    ) -> None:
        self._index = index
        self._vectors = np.ascontiguousarray(
            unit_rows(changes.vectors) if cosine else changes.vectors
        )
        self._bias = changes.bias
        gone = gone_mask(changes, known, index.n_items)
        self._alive = ~gone if gone.any() else None
        nums = np.flatnonzero(gone).astype(np.int32)
        self.few_gone = nums if len(nums) <= _FEW else None
        self.alive = np.concatenate([~gone, np.ones(len(changes.items), dtype=bool)])
        self._cosine = cosine
        self.n_items = index.n_items + len(changes.items)
        self.dim = index.dim

    def over(self, index: Searchable) -> Changed:
        """Return the same changes over another index of the same items."""
        moved = copy.copy(self)
        moved._index = index
        return moved

    def search(self, request: SearchRequest) -> tuple[Nums, Floats]:
        """Return item_nums and scores [Q, K]; see `Index.search`.

        Scores of upserted rows are those of their dense vectors.
        """
        first, allow = self._index.n_items, request.allow
        if allow is not None and (allow.shape != (self.n_items,) or allow.dtype != np.bool_):
            raise SearchError(
                f"allow has shape {allow.shape} and dtype {allow.dtype}, "
                f"expected ({self.n_items},) bool"
            )
        lists = None if request.exclude is None else [np.asarray(nums) for nums in request.exclude]
        old = None if lists is None else [nums[nums < first] for nums in lists]
        base = None if allow is None else allow[:first]
        if self._alive is not None and self.few_gone is not None:
            nobody: list[Nums] = [self.few_gone[:0]] * len(request.queries)
            old = [np.concatenate([nums, self.few_gone]) for nums in old or nobody]
        elif self._alive is not None:
            base = self._alive if base is None else base & self._alive
        answer = self._index.search(dataclasses.replace(request, exclude=old, allow=base))
        fresh = self._score(request.queries, request.weights)
        if allow is not None:
            fresh[:, ~allow[first:]] = -np.inf
        for row, nums in enumerate(lists or ()):
            fresh[row, nums[nums >= first] - first] = -np.inf
        numbers = np.arange(first, self.n_items, dtype=np.int32)
        nums = np.where(np.isfinite(fresh), numbers, np.int32(-1))
        return merge([answer, (nums, fresh)], top_k=request.top_k)

    def _score(self, queries: Floats, weights: Floats | None) -> Floats:
        """Return the scores of all upserted rows [Q, M]."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        out = np.empty((len(queries), len(self._vectors)), dtype=np.float32)
        products(self._vectors, unit_rows(queries) if self._cosine else queries, out)
        if weights is not None and self._bias.shape[1]:
            share = np.empty_like(out)
            products(
                np.ascontiguousarray(self._bias),
                np.ascontiguousarray(weights, dtype=np.float32),
                share,
            )
            out += share
        return out


def gone_mask(changes: Changes, known: Mapping[str, int], n_items: int) -> NDArray[np.bool_]:
    """Return which items [N] of the build are deleted or replaced."""
    gone = np.zeros(n_items, dtype=bool)
    ids = (*changes.deleted, *changes.item_ids)
    gone[[known[i] for i in ids if i in known]] = True
    return gone


def joined_items(items: pa.Table, changes: Changes) -> pa.Table:
    """Return the rows of the build's items followed by the upserted ones."""
    return joined([items, changes.items])
