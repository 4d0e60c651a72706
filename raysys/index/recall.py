"""Choose what the queries of an index cost by measured recall: heads and efforts (Ray-free).

Recall is measured against the index's own exact ranking: the share of a sampled query's results
whose score reaches that of the exact ranking's last, so that ties count. Sampled queries:

    similar   dense vectors of items, the item itself excluded, no bias
    distinct  dense vectors that all differ, nothing excluded, where those of `similar` do not: what
              a thousand copies of one vector find says nothing of the other vectors
    others    queries that the embeddings build brings along, one set per ranking: what the model
              asks for real users; the longest tenth of them has efforts of its own

A head of more rows saves lists: items of a large bias lie in all of them. It is doubled as long as
a query that scores it then scores fewer rows. Holders (see `holders.py`) are scored by all of these
queries until the efforts stand, and then by those that can gain as much along an atom as the least
that found more with them.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys import progress
from raysys.data.arrays import Floats
from raysys.errors import BuildError
from raysys.index.build import PROBE_QUERIES, TARGET_RECALL, IndexParams
from raysys.index.efforts import PLAIN, Efforts, is_long
from raysys.index.head import HEAD_ROWS, MOST_ROWS
from raysys.index.index import Index
from raysys.index.request import SearchRequest

log = logging.getLogger(__name__)

TOP_KS = (10, 100, 300)
_QUERY_PURPOSE = 0x9E
_LONG = 0.9  # quantile of lengths beyond which queries of users are long
_ROUNDING = 1 + 1e-5  # queries of one length are none of them long
_MORE = 0.01  # share of a query's results that holders alone find, from which on they count
_DISTINCT_AMONG = 50  # vectors looked at for each distinct one that is wanted


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


Chosen = tuple[dict[int, int], list[dict[str, Any]]]  # efforts by top_k, and the measured table


def set_efforts(
    index: Index, probes: list[Probe], *, params: IndexParams, keep: bool = False
) -> list[list[dict[str, Any]]]:
    """Set the efforts of queries without a head, with one, and of the longest tenth of these.

    Long ones are of the users who like few items much more than others do: they need other lists
    than most, and a mean over all would hide what they miss. Those that weigh one bias have efforts
    of their own. The size of the heads is set, too.

    Returns:
        The measured table of each sort. Arguments and errors are those of `choose_efforts`.
    """
    index.efforts = Efforts()
    holders = index.holders
    index.set_holders(holders._replace(least=np.zeros_like(holders.least)))
    first = [int(index.sorts(p.queries[:1], p.weights[:1])[0]) for p in probes]
    plain = [probe for probe, sort in zip(probes, first, strict=True) if sort == PLAIN]
    headed = [probe for probe, sort in zip(probes, first, strict=True) if sort != PLAIN]
    lengths: list[float | None] = [None] * index.n_bias
    for probe in headed:
        column = int(np.argmax(probe.weights[0]))
        longest = np.quantile(np.linalg.norm(probe.queries, axis=1), _LONG)
        lengths[column] = float(longest) * _ROUNDING
    index.efforts = Efforts(lengths=tuple(lengths))
    far = [is_long(index.sorts(probe.queries, probe.weights)) for probe in headed]
    usual = [probe.only(~rows) for probe, rows in zip(headed, far, strict=True)]
    long = [probe.only(rows) for probe, rows in zip(headed, far, strict=True) if rows.any()]
    found = [choose_efforts(index, plain, params=params, keep=keep)]
    for some, of_long in ((usual, False), (long, True)):
        found.append(_with_heads(index, some, long=of_long, params=params, keep=keep))
    tables = [table for _, table in found]
    own = []
    for column in range(index.n_bias):
        names = {
            probe.name for probe in headed if np.flatnonzero(probe.weights[0]).tolist() == [column]
        }
        own.append((_chosen(tables[1], names, params), _chosen(tables[2], names, params)))
    plain_efforts, headed_efforts, long_efforts = (efforts for efforts, _ in found)
    index.efforts = Efforts(plain_efforts, headed_efforts, long_efforts, tuple(lengths), tuple(own))
    if len(index.holders.rows):
        _set_least_gains(index, headed)
    return tables


def _set_least_gains(index: Index, probes: list[Probe]) -> None:
    """Set the gains from which on queries score holders, for each bias.

    Where no sampled query finds more with them, those with larger gains still score them.
    """
    top_k, holders = _top_ks(index)[-1], index.holders
    with_holders = [_search(index, probe, top_k, None) for probe in probes]
    index.set_holders(holders._replace(least=np.full(index.n_bias, np.inf, dtype=np.float32)))
    least, largest = (np.full(index.n_bias, value, np.float32) for value in (np.inf, 0))
    for probe, found in zip(probes, with_holders, strict=True):
        column = int(np.argmax(probe.weights[0]))
        kept = _recalls(_search(index, probe, top_k, None), found, top_k)
        gains = holders.gains(index.codes.table(probe.queries, index.dictionary))
        more = kept < 1 - _MORE
        least[column] = min(least[column], gains[more].min(initial=np.inf))
        largest[column] = max(largest[column], gains.max(initial=0))
        log.info(
            "holders ranking=%s n_queries=%d found_more=%d", probe.name, len(gains), int(more.sum())
        )
    unseen = np.isinf(least) & (largest > 0)
    least[unseen] = np.nextafter(largest[unseen], np.float32(np.inf))
    index.set_holders(holders._replace(least=least))


def _chosen(
    table: list[dict[str, Any]], names: Collection[str], params: IndexParams
) -> dict[int, int]:
    """Return {top_k: smallest effort with which some probes reach the target, else the last}.

    Args:
        table: of `choose_efforts`.
        names: of the probes; those that the table does not tell of do not count.
        params: its `target_recall` counts.
    """
    told = [name for name in names if table and name in table[-1]]
    last = {int(k): table[-1]["effort"] for name in told[:1] for k in table[-1][name]}
    return last | _reached(table, told, params)


def _reached(
    table: list[dict[str, Any]], names: Collection[str], params: IndexParams
) -> dict[int, int]:
    """Return what `_chosen` does of those top_k for which the probes reach the target."""
    target = TARGET_RECALL if params.target_recall is None else params.target_recall
    found: dict[int, int] = {}
    for row in table:
        for k, recall in _least(row, names).items():
            if recall >= target:
                found.setdefault(k, row["effort"])
    return found


def _least(row: Mapping[str, Any], names: Collection[str]) -> dict[int, float]:
    """Return {top_k: least recall of some probes} of a row of `choose_efforts`' table."""
    recalls = [row[name] for name in names]
    return {int(k): min(of[k] for of in recalls) for k in recalls[0]} if recalls else {}


def _with_heads(
    index: Index, probes: list[Probe], *, long: bool, params: IndexParams, keep: bool
) -> Chosen:
    """Set the heads with which queries score the fewest rows, and return their efforts then.

    Long queries that are not sampled have the heads of the others.
    """
    if not probes:
        for column, rows in enumerate(index.heads[0].rows):
            index.set_head(column, rows, long=long)
        return {}, []
    exact = _exact(index, probes)
    if index.kind == "ivf" and params.effort is None:
        columns = [int(np.argmax(probe.weights[0])) for probe in probes]
        for column in sorted(set(columns)):
            mine = [number for number, other in enumerate(columns) if other == column]
            some = [probes[number] for number in mine]
            _set_head(index, column, some, [exact[number] for number in mine], long, params)
    return choose_efforts(index, probes, params=params, keep=keep, exact=exact, headed=True)


def _set_head(
    index: Index,
    column: int,
    probes: list[Probe],
    exact: list[Floats],
    long: bool,
    params: IndexParams,
) -> None:
    """Set the size of a head by what is measured with the queries that weigh its column.

    It is doubled while it alone has fewer rows than a query scored so far, until two sizes have
    saved nothing; then three quarters of the best are tried.
    """
    most = max(HEAD_ROWS, min(MOST_ROWS, index.n_items // 2))

    def scored(size: int, limit: float) -> float:
        index.set_head(column, size, long=long)
        efforts, _ = choose_efforts(
            index, probes, params=params, keep=True, exact=exact, most=limit - size, headed=True
        )
        return size + _rows_scored(index, efforts)

    best, size, vain = HEAD_ROWS, 2 * HEAD_ROWS, 0
    least = scored(best, np.inf)
    while size < least and size <= most and vain < 2:
        rows = scored(size, least)
        best, least, vain = (size, rows, 0) if rows < least else (best, least, vain + 1)
        size *= 2
    size = best * 3 // 4
    if best > HEAD_ROWS and (rows := scored(size, least)) < least:
        best, least = size, rows
    index.set_head(column, best, long=long)
    if best > HEAD_ROWS:
        log.info(
            "head%s column=%d rows=%d rows_scored=%d n_items=%d",
            *(" of long queries" if long else "", column, best, least, index.n_items),
        )


def _rows_scored(index: Index, efforts: Mapping[int, int]) -> float:
    """Return how many rows of lists queries score, on average over top_k; inf without efforts."""
    return index.rows_for(float(np.mean([*efforts.values()]))) if efforts else np.inf


def _top_ks(index: Index) -> list[int]:
    return [k for k in TOP_KS if 4 * k <= index.n_items]


def _exact(index: Index, probes: list[Probe]) -> list[Floats]:
    """Return the scores of the exact ranking, by probe."""
    if index.kind == "flat":
        return []
    return [_search(index, probe, _top_ks(index)[-1], index.n_routed) for probe in probes]


def choose_efforts(
    index: Index,
    probes: list[Probe],
    *,
    params: IndexParams,
    keep: bool = False,
    exact: list[Floats] | None = None,
    most: float = np.inf,
    headed: bool = False,
) -> Chosen:
    """Return {top_k: smallest effort that reaches the target}, and the measured table.

    Each row of the table: effort, ms per query (top_k=10, one thread), and recall per sort of query
    and top_k.

    Args:
        index: without efforts.
        probes: what recall is measured with.
        params: its `target_recall` and `effort` count.
        keep: take the last effort where the target is missed, as target_recall=null does.
        exact: scores of the exact ranking, by probe; None: they are searched.
        most: rows of lists; no efforts are returned where queries score as many on average.
        headed: the queries score heads, which may be enough.

    Raises:
        BuildError: `target_recall` is missed.
    """
    if index.kind == "flat" or not probes:
        return {}, []
    target = TARGET_RECALL if params.target_recall is None else params.target_recall
    top_ks = _top_ks(index)
    exact = _exact(index, probes) if exact is None else exact
    names = [probe.name for probe in probes]
    efforts: dict[int, int] = {}
    table: list[dict[str, Any]] = []
    with progress.stage("index recall", unit="efforts", lines=progress.STEPS) as work:
        for effort in _ladder(index, top_ks, params.effort, headed=headed):
            if _rows_scored(index, {k: efforts.get(k, effort) for k in top_ks}) >= most:
                return {}, table
            row: dict[str, Any] = {"effort": effort, "ms": _milliseconds(index, probes, effort)}
            for probe, scores in zip(probes, exact, strict=True):
                found = _search(index, probe, top_ks[-1], effort)
                row[probe.name] = {str(k): round(_recall(found, scores, k), 4) for k in top_ks}
            table.append(row)
            work.add()
            least = min(_least(row, names).values())
            work.say(f"recall {row}", note=f"recall {least:.4f} of {target:g}")
            efforts = _reached(table, names, params)
            if len(efforts) == len(top_ks):
                break
    missed = [k for k in top_ks if k not in efforts]
    if missed:
        text = f"{index.kind} index misses target_recall={target} for top_k={missed}"
        if params.target_recall is not None and not keep:
            raise BuildError(f"{text}, last measured {table[-1]}; target_recall=null keeps it")
        log.warning("%s", text)
    return _chosen(table, names, params), table


def _ladder(index: Index, top_ks: list[int], fixed: int | None, *, headed: bool) -> list[int]:
    """Return ascending efforts to try: powers of sqrt(2), or the fixed one."""
    if fixed is not None:
        return [fixed]
    low = 1 if index.kind == "ivf" else top_ks[0]
    high = index.n_routed if index.kind == "ivf" else min(index.n_routed, 8192)
    efforts = np.rint(low * 2 ** (np.arange(40) / 2)).astype(int)
    none = [0] if headed and index.kind == "ivf" else []
    return [*none, *dict.fromkeys(int(e) for e in efforts if e < high), high]


def _search(index: Index, probe: Probe, top_k: int, effort: int | None) -> Floats:
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
    return float(np.mean(_recalls(found, exact, k)))


def _recalls(found: Floats, exact: Floats, k: int) -> Floats:
    """Return what `_recall` is the mean of, by query."""
    wanted = np.isfinite(exact[:, :k]).sum(axis=1)
    last = np.take_along_axis(exact, np.maximum(wanted - 1, 0)[:, None], axis=1)
    hits = ((found[:, :k] >= last) & np.isfinite(found[:, :k])).sum(axis=1)
    return np.asarray(hits / np.maximum(wanted, 1), dtype=np.float32)


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
