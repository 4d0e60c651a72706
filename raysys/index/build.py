"""Make an index from codes and choose its effort by measured recall (Ray-free).

Recall is measured against the index's own exact ranking: the share of a sampled query's results
whose score reaches that of the exact ranking's last, so that ties count. Sampled queries:

    similar   dense vectors of items, the item itself excluded, no bias
    distinct  dense vectors that all differ, nothing excluded, where those of `similar` do not: what
              a thousand copies of one vector find says nothing of the other vectors
    others    queries that the embeddings build brings along, one set per ranking: what the model
              asks for real users; the longest tenth of them has efforts of its own
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys import progress
from raysys.compressor.codes import Codes
from raysys.config import require
from raysys.data.arrays import Floats, chunks
from raysys.errors import BuildError
from raysys.index.efforts import LONG, PLAIN, Efforts
from raysys.index.entries import number_entries
from raysys.index.index import INDEX_KINDS, Index
from raysys.index.layout import Layout
from raysys.index.lists import RoutingSpace, Tasks, assign, fit_lists, run_here
from raysys.index.request import SearchRequest
from raysys.index.router import Router

log = logging.getLogger(__name__)

MIN_ROUTED_ITEMS = 1000
ITEMS_PER_LIST = 48
TARGET_RECALL = 0.95
PROBE_QUERIES = 200  # measured, per sort of query
TOP_KS = (10, 100, 300)
_MAX_POINTS = 400_000
_DECODED_ROWS = 8192
_QUERY_PURPOSE = 0x9E
_LONG = 0.9  # quantile of lengths beyond which queries of users are long
_MANY_UNREACHED = 0.01  # of a router's rows: comparing more with every query is worth a warning
_DISTINCT_AMONG = 50  # vectors looked at for each distinct one that is wanted


@dataclasses.dataclass
class IndexParams:
    """What decides an index.

    Attributes:
        kind: flat, ivf or graph; catalogues below 1000 items become flat.
        n_lists: lists of ivf; null: one per 48 items.
        target_recall: share of the exact ranking that the effort must find, in (0, 1]; an index
            that misses it is refused. null aims at 0.95 and keeps the index whatever it finds.
        effort: lists (ivf) or steps (graph) of a query, instead of the measured choice.
        n_shards: item shards that an ivf index is written as, for as many processes or nodes.
    """

    RENAMED = {"n_cells": "n_lists", "n_probe": "effort"}
    GONE = {
        "allow_miss": "target_recall=null keeps an index whatever its recall",
        "sample": f"recall is measured with {PROBE_QUERIES} queries of each sort",
    }

    kind: str = "ivf"
    n_lists: int | None = None
    target_recall: float | None = TARGET_RECALL
    effort: int | None = None
    n_shards: int = 1

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot be used."""
        require(self.kind in INDEX_KINDS, "kind", self.kind, ", ".join(INDEX_KINDS))
        require(self.n_lists is None or self.n_lists >= 1, "n_lists", self.n_lists, ">= 1")
        target = self.target_recall
        require(target is None or 0 < target <= 1, "target_recall", target, "in (0, 1], or null")
        require(self.effort is None or self.effort >= 1, "effort", self.effort, ">= 1")
        require(self.n_shards >= 1, "n_shards", self.n_shards, ">= 1")
        sharded = self.kind == "ivf" or self.n_shards == 1
        require(sharded, "n_shards", self.n_shards, f"1 for kind={self.kind}")


@dataclasses.dataclass(frozen=True)
class Probe:
    """Queries of one sort whose recall is measured: [Q, D], [Q, n_bias], exclusions."""

    name: str
    queries: Floats
    weights: Floats
    exclude: list[NDArray[np.int32]]

    def only(self, rows: NDArray[np.bool_]) -> Probe:
        """Return some of the queries."""
        kept = [nums for nums, chosen in zip(self.exclude, rows.tolist(), strict=True) if chosen]
        return Probe(self.name, self.queries[rows], self.weights[rows], kept)


def build_index(
    codes: Codes,
    dictionary: Floats,
    bias: Floats,
    *,
    similarity: str,
    params: IndexParams,
    seed: int = 0,
    tasks: Tasks = run_here,
) -> Index:
    """Return an index without efforts: `choose_efforts` measures them.

    Args:
        codes: codes of N items by item_num.
        dictionary: [S, D] float32.
        bias: [N, n_bias] float32 by item_num.
        similarity: `cosine` or `inner_product`.
        params: kind and sizes.
        seed: of the k-means and the graphs.
        tasks: runs independent pieces, here or on Ray.
    """
    kind = params.kind
    if codes.n_items < MIN_ROUTED_ITEMS and kind != "flat":
        log.info("index flat n_items=%d below=%d", codes.n_items, MIN_ROUTED_ITEMS)
        kind = "flat"
    common = {"kind": kind, "similarity": similarity, "dictionary": dictionary}
    if kind == "flat":
        return Index(codes=codes, bias=bias, **common)  # type: ignore[arg-type]
    space = RoutingSpace.fit(
        lambda rows: codes.decode(dictionary, rows), bias, similarity, cut=kind == "ivf"
    )
    started = time.perf_counter()
    with progress.stage(f"index {kind}", lines=progress.NONE):
        if kind == "graph":
            layout, router = _graph(codes, dictionary, bias, space, seed)
        else:
            layout, router = _lists(codes, dictionary, bias, space, seed, params.n_lists, tasks)
    log.info(
        "%s n_items=%d n_routed=%d seconds=%.1f",
        *(kind, codes.n_items, router.n_rows, time.perf_counter() - started),
    )
    if len(router.unreached):
        _report_unreached(kind, router)
    if layout is not None:
        codes, bias = codes.take(layout.items), np.asarray(bias)[layout.items]
    return Index(
        codes=codes,
        bias=bias,
        layout=layout,
        space=space,
        router=router,
        **common,  # type: ignore[arg-type]
    )


def _graph(
    codes: Codes, dictionary: Floats, bias: Floats, space: RoutingSpace, seed: int
) -> tuple[Layout | None, Router]:
    """Return a graph of the entries, and where their items lie; None: each is one item."""
    member = number_entries(codes, bias, space.similarity)
    _, first = np.unique(member, return_index=True)
    router = Router.fit(decode_points(first, codes, dictionary, bias, space), seed=seed)
    if len(first) == codes.n_items:
        return None, router
    log.info("equal items n_items=%d n_entries=%d", codes.n_items, len(first))
    return Layout.of_lists(np.stack([member, member], axis=1), len(first)), router


def _lists(
    codes: Codes,
    dictionary: Floats,
    bias: Floats,
    space: RoutingSpace,
    seed: int,
    n_lists: int | None,
    tasks: Tasks,
) -> tuple[Layout, Router]:
    """Return the lists of a k-means over what is different of the items, and their router."""
    n_lists = n_lists or max(1, codes.n_items // ITEMS_PER_LIST)
    require(n_lists <= codes.n_items, "n_lists", n_lists, f"1..{codes.n_items} (items)")
    stride = -(-codes.n_items // _MAX_POINTS)
    sample = np.arange(0, codes.n_items, stride)
    member = number_entries(codes.take(sample), np.asarray(bias)[sample], space.similarity)
    sample = sample[np.unique(member, return_index=True)[1]]
    points = decode_points(sample, codes, dictionary, bias, space)
    centroids = fit_lists(points, n_lists, seed=seed, tasks=tasks)
    del points
    router = Router.fit(centroids, seed=seed, thorough=True)
    shared = (codes, dictionary, bias, space, router, centroids)
    parts = tasks(assign_rows, [(rows,) for rows in chunks(codes.n_items)], shared)
    return Layout.of_lists(np.concatenate(parts), len(centroids)), router


def _report_unreached(kind: str, router: Router) -> None:
    """Log how many rows the graph may miss; a warning where comparing them costs time."""
    n_unreached = len(router.unreached)
    many = n_unreached > _MANY_UNREACHED * router.n_rows
    log.log(
        logging.WARNING if many else logging.INFO,
        "%s n_unreached=%d of %d: no links lead to them, they are compared with every query",
        *(kind, n_unreached, router.n_rows),
    )


def decode_points(
    rows: NDArray[np.int64], codes: Codes, dictionary: Floats, bias: Floats, space: RoutingSpace
) -> Floats:
    """Return some items [M, D'] in the routing space; few are decoded at a time."""
    out = np.empty((len(rows), space.dim), dtype=np.float32)
    for start in range(0, len(rows), _DECODED_ROWS):
        part = rows[start : start + _DECODED_ROWS]
        decoded = codes.decode(dictionary, part)
        out[start : start + len(part)] = space.items(decoded, np.asarray(bias)[part])
    return out


def assign_rows(
    rows: NDArray[np.int64],
    codes: Codes,
    dictionary: Floats,
    bias: Floats,
    space: RoutingSpace,
    router: Router,
    centroids: Floats,
) -> NDArray[np.int32]:
    """Return the two lists [M, 2] of some items (one task)."""
    return assign(decode_points(rows, codes, dictionary, bias, space), router, centroids)


def sample_probes(
    vectors: NDArray[Any],
    n_bias: int,
    *,
    similarity: str,
    seed: int,
    sample: int = PROBE_QUERIES,
    users: Mapping[str, NDArray[Any]] | None = None,
) -> list[Probe]:
    """Draw the queries that recall is measured with (see the module's docstring).

    Args:
        vectors: [N, D] dense vectors.
        n_bias: biases per item.
        similarity: `cosine` leaves out rows of zeros.
        seed: of the draw.
        sample: queries per sort, at most N.
        users: {ranking: [P, D + n_bias]} queries of real users, each followed by its weights.
    """
    rng = np.random.default_rng([seed, _QUERY_PURPOSE])
    count = min(sample, len(vectors))
    picked = np.sort(rng.choice(len(vectors), count, replace=False)).astype(np.int32)
    items = np.asarray(vectors[picked], dtype=np.float32)
    if similarity == "cosine":
        picked, items = picked[items.any(axis=1)], items[items.any(axis=1)]
    weights = np.zeros((len(picked), n_bias), dtype=np.float32)
    probes = [Probe("similar", items, weights, [picked[i : i + 1] for i in range(len(picked))])]
    if len(np.unique(items, axis=0)) < len(items):
        among = np.sort(rng.permutation(len(vectors))[: _DISTINCT_AMONG * count])
        different = np.unique(np.asarray(vectors[among], dtype=np.float32), axis=0)
        different = rng.permutation(different[different.any(axis=1)])[:count]
        weights = np.zeros((len(different), n_bias), dtype=np.float32)
        nobody = [np.zeros(0, dtype=np.int32)] * len(different)
        probes.append(Probe("distinct", different, weights, nobody))
    dim = vectors.shape[1]
    for name, rows in (users or {}).items():
        drawn = rng.permutation(len(rows))[:sample]
        both = np.asarray(rows[np.sort(drawn)], dtype=np.float32)
        nobody = [np.zeros(0, dtype=np.int32)] * len(both)
        probes.append(Probe(name, both[:, :dim].copy(), both[:, dim:].copy(), nobody))
    return probes


def set_efforts(
    index: Index, probes: list[Probe], *, params: IndexParams, keep: bool = False
) -> list[list[dict[str, Any]]]:
    """Set the efforts of queries without a head, with one, and of the longest tenth of these.

    Long ones are of the users who like few items much more than others do: they need other lists
    than most, and a mean over all would hide what they miss.

    Returns:
        The measured table of each sort. Arguments and errors are those of `choose_efforts`.
    """
    index.efforts = Efforts()
    first = [int(index.sorts(p.queries[:1], p.weights[:1])[0]) for p in probes]
    plain = [probe for probe, sort in zip(probes, first, strict=True) if sort == PLAIN]
    headed = [probe for probe, sort in zip(probes, first, strict=True) if sort != PLAIN]
    lengths: list[float | None] = [None] * index.n_bias
    for probe in headed:
        column = int(np.argmax(probe.weights[0]))
        lengths[column] = float(np.quantile(np.linalg.norm(probe.queries, axis=1), _LONG))
    index.efforts = Efforts(lengths=tuple(lengths))
    far = [index.sorts(probe.queries, probe.weights) == LONG for probe in headed]
    usual = [probe.only(~rows) for probe, rows in zip(headed, far, strict=True)]
    long = [probe.only(rows) for probe, rows in zip(headed, far, strict=True) if rows.any()]
    shared: dict[str, Any] = {"params": params, "keep": keep}
    found = [choose_efforts(index, some, **shared) for some in (plain, usual, long)]
    index.efforts = Efforts(found[0][0], found[1][0], found[2][0], tuple(lengths))
    return [table for _, table in found]


def choose_efforts(
    index: Index, probes: list[Probe], *, params: IndexParams, keep: bool = False
) -> tuple[dict[int, int], list[dict[str, Any]]]:
    """Return {top_k: smallest effort that reaches the target}, and the measured table.

    Each row of the table: effort, ms per query (top_k=10, one thread), and recall per sort of query
    and top_k.

    Args:
        index: without efforts.
        probes: what recall is measured with.
        params: its `target_recall` and `effort` count.
        keep: take the last effort where the target is missed, as target_recall=null does.

    Raises:
        BuildError: `target_recall` is missed.
    """
    if index.kind == "flat" or not probes:
        return {}, []
    target = TARGET_RECALL if params.target_recall is None else params.target_recall
    top_ks = [k for k in TOP_KS if 4 * k <= index.n_items]
    truth = [_search(index, probe, top_ks[-1], index.n_routed) for probe in probes]
    efforts: dict[int, int] = {}
    table: list[dict[str, Any]] = []
    with progress.stage("index recall", unit="efforts", lines=progress.STEPS) as work:
        for effort in _ladder(index, top_ks, params.effort):
            row: dict[str, Any] = {"effort": effort, "ms": _milliseconds(index, probes, effort)}
            for probe, exact in zip(probes, truth, strict=True):
                found = _search(index, probe, top_ks[-1], effort)
                row[probe.name] = {str(k): round(_recall(found, exact, k), 4) for k in top_ks}
            table.append(row)
            least = {k: min(row[p.name][str(k)] for p in probes) for k in top_ks}
            work.add()
            work.say(
                f"recall {row}",
                note=f"recall {min(least.values()):.4f} of {target:g}",
            )
            for k in top_ks:
                if least[k] >= target:
                    efforts.setdefault(k, effort)
            if len(efforts) == len(top_ks):
                break
    missed = [k for k in top_ks if k not in efforts]
    if missed:
        text = f"{index.kind} index misses target_recall={target} for top_k={missed}"
        if params.target_recall is not None and not keep:
            raise BuildError(f"{text}, last measured {table[-1]}; target_recall=null keeps it")
        log.warning("%s", text)
        efforts.update(dict.fromkeys(missed, table[-1]["effort"]))
    return efforts, table


def _ladder(index: Index, top_ks: list[int], fixed: int | None) -> list[int]:
    """Return ascending efforts to try: powers of sqrt(2), or the fixed one."""
    if fixed is not None:
        return [fixed]
    low = 1 if index.kind == "ivf" else top_ks[0]
    high = index.n_routed if index.kind == "ivf" else min(index.n_routed, 8192)
    efforts = np.rint(low * 2 ** (np.arange(40) / 2)).astype(int)
    return [*dict.fromkeys(int(e) for e in efforts if e < high), high]


def _search(index: Index, probe: Probe, top_k: int, effort: int) -> Floats:
    return index.search(
        SearchRequest(
            probe.queries,
            weights=probe.weights,
            exclude=probe.exclude,
            top_k=top_k,
            effort=effort,
            guarantee=False,
        )
    )[1]


def _recall(found: Floats, exact: Floats, k: int) -> float:
    """Share of the first k scores that reach the exact k-th, missing exact results not counted."""
    wanted = np.isfinite(exact[:, :k]).sum(axis=1)
    last = np.take_along_axis(exact, np.maximum(wanted - 1, 0)[:, None], axis=1)
    hits = ((found[:, :k] >= last) & np.isfinite(found[:, :k])).sum(axis=1)
    return float(np.mean(hits / np.maximum(wanted, 1)))


def _milliseconds(index: Index, probes: list[Probe], effort: int) -> float:
    """Return ms per query for top_k=10, queries one by one as a server gets them."""
    started, count = time.perf_counter(), 0
    for probe in probes:
        for q in range(min(len(probe.queries), 50)):
            one = slice(q, q + 1)
            index.search(
                SearchRequest(
                    probe.queries[one], weights=probe.weights[one], top_k=10, effort=effort
                )
            )
            count += 1
    return round((time.perf_counter() - started) / count * 1e3, 4)
