"""Index builds: what is written, and how it is opened again, memory-mapped.

shard-00000/   ivf: codes, biases and item_nums of a run of rows, in list order, so that a list
is one run on disk, which rows spilled into which lists, and the holders of atoms; also a graph with
equal items, whose lists are its entries; flat and other graphs read those of the codes and
embeddings builds
rows.npy starts.npy            where every item and every list lies, where rows lie in lists
router.hnsw mean.npy axes.npy  ivf and graph
unreached.npy                  ivf and graph: rows that the router compares directly
spread.npy                     of a model's items, where its catalogue is large
names/ histories/              ids and titles of items, ids and cells of users: `search/` maps them
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from raysys.compressor.codes import Codes
from raysys.compressor.embeddings import Embeddings
from raysys.compressor.files import Coded, Compressor
from raysys.data.arrays import Floats
from raysys.errors import BuildError
from raysys.index.efforts import Efforts
from raysys.index.head import HEAD_ROWS, Head
from raysys.index.holders import Holders
from raysys.index.index import Index
from raysys.index.kernels import Spills
from raysys.index.layout import Layout
from raysys.index.lists import RoutingSpace, Tasks, run_here
from raysys.index.router import EF, Router
from raysys.index.shards import Shards, shard_bounds
from raysys.store.builds import Build
from raysys.store.drafts import Draft
from raysys.store.kinds import Facts
from raysys.store.storage import join, open_filesystem

SPREAD = "spread.npy"  # of consume scores over users, see `scoring/normaliser.py`
_HOLDER_FILES = ("starts", "rows", "largest")
RecallRow = dict[str, int | float | dict[str, float]]


@dataclasses.dataclass(frozen=True)
class IndexFacts(Facts):
    """What an index is, and what was measured of it.

    Attributes:
        kind, similarity, packing, n_items, dim, n_bias, n_lists, n_routed: of the index.
        n_unreached: routed rows that the router compares directly.
        efforts, head_efforts, long_efforts: {top_k: smallest effort that reached the target
            recall}, see `Efforts`, as for long_lengths.
        own_efforts: for each bias, those of headed and of long queries that weigh it alone; None:
            they are the same for all.
        shard_rows: first row of every shard, and the end.
        norm: of the routing space; None for flat.
        heads, long_heads: least bias of each column's head, of queries and of long ones; None
            where it has none. No long_heads: they are the same.
        head_rows, long_head_rows: about how many rows each head has; None: a thousand.
        least_gains: for each bias, the gain from which on queries score holders; None: they do not.
            Empty: there are no holders.
        bytes_per_item, bytes_per_item_with_dictionary: of its files; with the dictionary's share.
        requested_kind, target_recall: asked for.
        recall_table: a row per effort tried, see `choose_efforts`; recall, head_recall and
            long_recall: the last ones of queries without a head, with one, and of long ones.
        normaliser: {measure: value} of log P(consume) over users against the exact sum; None
            where that is taken, in small catalogues, and without a model.
        candidate_recall: share of users' exact best 20 by consume score that is among their
            candidates; None as for the normaliser.
        build_s: seconds it took.
    """

    kind: str
    similarity: str
    packing: str
    n_items: int
    dim: int
    n_bias: int
    n_lists: int
    n_routed: int
    n_unreached: int
    efforts: dict[int, int]
    head_efforts: dict[int, int]
    long_efforts: dict[int, int]
    long_lengths: tuple[float | None, ...]
    shard_rows: tuple[int, ...]
    norm: float | None
    heads: tuple[float | None, ...]
    bytes_per_item: float
    bytes_per_item_with_dictionary: float
    requested_kind: str | None = None
    target_recall: float | None = None
    recall: RecallRow | None = None
    head_recall: RecallRow | None = None
    long_recall: RecallRow | None = None
    recall_table: tuple[RecallRow, ...] = ()
    head_rows: tuple[int, ...] | None = None
    long_heads: tuple[float | None, ...] | None = None
    long_head_rows: tuple[int, ...] | None = None
    least_gains: tuple[float | None, ...] = ()
    own_efforts: tuple[tuple[dict[int, int], dict[int, int]], ...] | None = None
    normaliser: dict[str, float] | None = None
    candidate_recall: float | None = None
    build_s: float | None = None

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return len(self.shard_rows) - 1


def save_index(
    index: Index, draft: Draft, *, n_shards: int = 1, tasks: Tasks = run_here
) -> IndexFacts:
    """Write what `open_index` needs beside the other builds, and return its facts.

    Args:
        index: a whole index.
        draft: the build that is being made.
        n_shards: runs of rows (ivf only), each of its own files.
        tasks: writes the shards, here or on Ray.
    """
    extra = index.n_bias * 4.0
    bounds = [0, index.n_items]
    if index.in_lists:
        bounds = shard_bounds(index, n_shards)
        runs = [(s, bounds[s], bounds[s + 1]) for s in range(n_shards)]
        shared_ones = (draft.url, index.codes, index.bias, index.layout, index.holders)
        tasks(write_item_shard, runs, shared_ones)
        for name in ("rows", "starts"):
            np.save(draft.path(f"{name}.npy"), getattr(index.layout, name))
        per_list = index.layout.starts.nbytes + 8 * len(index.layout.spills.rows)
        of_holders = sum(getattr(index.holders, name).nbytes for name in _HOLDER_FILES)
        of_holders = of_holders if len(index.holders.rows) else 0  # nothing is written then
        extra += 8 + (per_list + of_holders) / index.n_items
    if index.router is not None and index.space is not None:
        np.save(draft.path("mean.npy"), index.space.mean)
        if index.space.axes is not None:
            np.save(draft.path("axes.npy"), index.space.axes)
        np.save(draft.path("unreached.npy"), index.router.unreached)
        path = draft.path("router.hnsw")
        index.router.save(path)
        extra += path.stat().st_size / index.n_items
    shared = index.codes.bytes_per_item_with(index.dictionary.floats) - index.codes.bytes_per_item
    per_item = round(index.codes.bytes_per_item + extra, 2)
    return IndexFacts(
        kind=index.kind,
        similarity=index.similarity,
        packing=index.codes.packing,
        n_items=index.n_items,
        dim=index.dim,
        n_bias=index.n_bias,
        n_lists=index.n_lists,
        n_routed=index.n_routed,
        n_unreached=0 if index.router is None else len(index.router.unreached),
        efforts=dict(index.efforts.plain),
        head_efforts=dict(index.efforts.headed),
        long_efforts=dict(index.efforts.long),
        long_lengths=index.efforts.lengths,
        own_efforts=tuple((dict(headed), dict(long)) for headed, long in index.efforts.own),
        shard_rows=tuple(bounds),
        norm=None if index.router is None or index.space is None else index.space.norm,
        heads=index.heads[0].least,
        head_rows=index.heads[0].rows,
        long_heads=index.heads[1].least,
        long_head_rows=index.heads[1].rows,
        least_gains=_none_where_infinite(index.holders.least) if len(index.holders.rows) else (),
        bytes_per_item=per_item,
        bytes_per_item_with_dictionary=round(per_item + shared, 2),
    )


def write_item_shard(
    number: int,
    start: int,
    stop: int,
    url: str,
    codes: Codes,
    bias: Floats,
    layout: Layout,
    holders: Holders,
) -> None:
    """Write rows [start, stop) as one shard's files below `url` (one task)."""
    rows = slice(start, stop)
    held = layout.taken(start, stop)
    spills = {f"spill_{name}": part for name, part in held.spills._asdict().items()}
    arrays = {**codes.take(rows).arrays(), "bias": bias[rows], "items": held.items, **spills}
    if len(holders.rows):
        mine = holders.taken(start, stop)
        arrays |= {f"holder_{name}": getattr(mine, name) for name in _HOLDER_FILES}
    filesystem, folder = open_filesystem(join(url, _folder(number)))
    filesystem.create_dir(folder, recursive=True)
    for name, array in arrays.items():
        with filesystem.open_output_stream(f"{folder}/{name}.npy") as stream:
            np.save(stream, np.ascontiguousarray(array))


def open_index(index: Build, coded: Coded) -> Index | Shards:
    """Open an index build, all of its shards; arrays stay on disk until they are touched.

    Args:
        index: the build.
        coded: what it was made from.
    """
    facts = IndexFacts.of(index)
    shared = _open_router(index, facts)
    parts: list[Index] = []
    for number in range(facts.n_shards):
        parts.append(_open_part(index, facts, coded, number, shared))
        shared["dictionary"] = parts[0].dictionary  # rounded once
    return parts[0] if len(parts) == 1 else Shards(parts)


def open_shard(index: Build, coded: Coded, number: int) -> Index:
    """Open one shard of an index build; no other shard's files are fetched or read.

    Raises:
        BuildError: there is no such shard.
    """
    facts = IndexFacts.of(index)
    return _open_part(index, facts, coded, number, _open_router(index, facts))


def _open_part(
    index: Build, facts: IndexFacts, coded: Coded, number: int, shared: dict[str, Any]
) -> Index:
    if not 0 <= number < facts.n_shards:
        raise BuildError(
            f"index {index.build_id} has shards 0 to {facts.n_shards - 1}, not {number}"
        )
    parts: dict[str, Any] = {"n_items": facts.n_items, "first_row": facts.shard_rows[number]}
    if "starts.npy" in index.files():
        folder = _folder(number)
        codes = Codes.mapped(index, facts.packing, folder=folder)
        names = [f"{folder}bias", f"{folder}items", "rows", "starts"]
        bias, items, rows, starts = (
            np.asarray(np.load(index.path(f"{name}.npy"), mmap_mode="r")) for name in names
        )
        names = [f"{folder}spill_{name}" for name in Spills._fields]
        spills = (np.load(index.path(f"{name}.npy"), mmap_mode="r") for name in names)
        parts["layout"] = Layout(items, rows, starts, Spills(*spills))
        if facts.least_gains:
            names = [f"{folder}holder_{name}" for name in _HOLDER_FILES]
            each, rows, largest = (
                np.load(index.path(f"{name}.npy"), mmap_mode="r") for name in names
            )
            gains = [np.inf if gain is None else gain for gain in facts.least_gains]
            parts["holders"] = Holders(each, rows, largest, np.array(gains, dtype=np.float32))
    else:
        codes = Codes.open(coded.codes)
        bias = Embeddings.open(coded.embeddings).bias
    if "dictionary" not in shared:
        parts["dictionary"] = Compressor.open(coded.compressor).dictionary_of(codes)
    least = facts.heads if facts.long_heads is None else facts.long_heads
    thousand = (HEAD_ROWS,) * facts.n_bias
    usual = Head(tuple(facts.head_rows or thousand), tuple(facts.heads))
    long = Head(tuple(facts.long_head_rows or thousand), tuple(least))
    return Index(
        kind=facts.kind,
        similarity=facts.similarity,
        codes=codes,
        bias=bias,
        efforts=Efforts(
            facts.efforts,
            facts.head_efforts,
            facts.long_efforts,
            tuple(facts.long_lengths),
            tuple(facts.own_efforts or ()),
        ),
        heads=(usual, long),
        **parts,
        **shared,
    )


def _open_router(index: Build, facts: IndexFacts) -> dict[str, Any]:
    """Return the router and its space, as arguments of an index; none for flat."""
    if facts.norm is None:
        return {}
    axes = np.load(index.path("axes.npy")) if "axes.npy" in index.files() else None
    mean = np.load(index.path("mean.npy"))
    space = RoutingSpace(facts.similarity, mean, facts.norm, axes)
    router = Router.open(
        index.path("router.hnsw"),
        dim=space.dim,
        n_rows=facts.n_routed,
        unreached=np.load(index.path("unreached.npy")),
    )
    if facts.own_efforts is None:  # of before: efforts were measured with longer walks
        router.short_ef = EF
    return {"space": space, "router": router}


def _none_where_infinite(gains: Floats) -> tuple[float | None, ...]:
    return tuple(gain if gain < np.inf else None for gain in gains.tolist())


def _folder(number: int) -> str:
    return f"shard-{number:05d}/"
