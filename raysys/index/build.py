"""Make an index from codes (Ray-free); `recall.py` then chooses its efforts."""

from __future__ import annotations

import dataclasses
import logging
import time

import numpy as np
from numpy.typing import NDArray

from raysys import progress
from raysys.compressor.codes import Codes
from raysys.config import require
from raysys.data.arrays import Floats, chunks
from raysys.index.entries import number_entries
from raysys.index.holders import Holders
from raysys.index.index import INDEX_KINDS, Index
from raysys.index.layout import Layout
from raysys.index.lists import RoutingSpace, Tasks, assign, fit_lists, run_here
from raysys.index.router import Router

log = logging.getLogger(__name__)

MIN_ROUTED_ITEMS = 1000
PROBE_QUERIES = 200  # whose recall is measured, per sort of query
ITEMS_PER_LIST = 48
TARGET_RECALL = 0.95
_MAX_POINTS = 400_000
_DECODED_ROWS = 8192
_MANY_UNREACHED = 0.01  # of a router's rows: comparing more with every query is worth a warning


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
    """Return an index without efforts: `set_efforts` measures them.

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
    made = Index(
        codes=codes,
        bias=bias,
        layout=layout,
        space=space,
        router=router,
        **common,  # type: ignore[arg-type]
    )
    if kind == "ivf":
        made.set_holders(Holders.of(made.stored, made.dictionary.size))
    return made


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
