"""How an engine of the retrieval suite is measured, the same for ours and for every peer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.bench.resources import resident_bytes, timed_cpu
from raysys.bench.vectors import Dataset, recall
from raysys.data.arrays import Floats

Search = Callable[[Floats], NDArray[Any]]
"""Queries [Q, D] to item numbers [Q, 10], best first."""

TOP = 10
ROUNDS = 3
DENSE_TARGETS = (0.9, 0.95, 0.99)
_TUNING_QUERIES = 400
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Opened:
    """An index that answers.

    Attributes:
        search_at: a search at a setting.
        settings: what to try, from fast to thorough.
        own: item numbers [Q, 10] of the engine's own scores, every item compared; None: the dense
            truth.
    """

    search_at: Callable[[int], Search]
    settings: list[int]
    own: Search | None = None


def measure(
    open_: Callable[[], Opened], data: Dataset, truth: NDArray[Any], *, target: float
) -> dict[str, Any]:
    """Return recalls, latencies, throughput, load time and memory of an engine.

    The setting is the first that finds `target` of the engine's own exact ranking on 400 of the
    held-out queries; everything is then measured on all of them. `p50_cpu_ms_at_*` are of the first
    settings that find so much of the dense truth, where one does. `resident_bytes` is what the
    process grew by from before the engine was opened to after it answered them.
    """
    before = resident_bytes()
    opened, load_s = timed_cpu(open_)[:2]
    few = data.queries[:_TUNING_QUERIES]
    search = opened.search_at(opened.settings[-1])
    for query in few[:20]:  # compiles
        search(query[None])
    search(data.queries)
    grown = resident_bytes() - before
    own = truth if opened.own is None else opened.own(data.queries)
    setting = _least(opened, few, own, target) or opened.settings[-1]
    search = opened.search_at(setting)
    found = one_by_one(search, data.queries)
    row = {
        "setting": setting,
        "recall@10": recall(found, truth, TOP),
        "own_recall@10": recall(found, own, TOP),
        **latency(search, data.queries),
        "batch_cpu_ms": batched(search, data.queries),
        "qps": throughput(search, data.queries, threads=1),
        "qps_2_threads": throughput(search, data.queries, threads=2),
        "load_s": load_s,
        "resident_bytes": grown,
    }
    for share in DENSE_TARGETS:
        within = recall(own[: len(few)], truth[: len(few)], TOP) >= share
        least = _least(opened, few, truth, share) if within else None
        if least is not None:
            row[f"p50_cpu_ms_at_{share}"] = latency(opened.search_at(least), few)["p50_cpu_ms"]
    return row


def _least(opened: Opened, queries: Floats, truth: NDArray[Any], target: float) -> int | None:
    """Return the first setting that finds `target` of the truth; None: none does."""
    for setting in opened.settings:
        found = one_by_one(opened.search_at(setting), queries)
        if recall(found, truth[: len(queries)], TOP) >= target:
            return setting
    return None


def one_by_one(search: Search, queries: Floats) -> NDArray[Any]:
    """Return the answers of single queries, [Q, 10]."""
    return np.concatenate([search(queries[q : q + 1]) for q in range(len(queries))])


def latency(search: Search, queries: Floats) -> dict[str, float]:
    """Return p50_ms and p99_ms of single queries on this thread, and their CPU times.

    Every query is asked in three rounds and its fastest answer counts: what stays is what the
    query itself costs, not what other processes took.
    """
    wall, cpu = np.empty((2, ROUNDS, len(queries)))
    for turn in range(ROUNDS):
        for q in range(len(queries)):
            started, used = time.perf_counter(), time.thread_time()
            search(queries[q : q + 1])
            cpu[turn, q] = time.thread_time() - used
            wall[turn, q] = time.perf_counter() - started
    p50, p99 = np.quantile(wall.min(axis=0), [0.5, 0.99]) * 1e3
    p50_cpu, p99_cpu = np.quantile(cpu.min(axis=0), [0.5, 0.99]) * 1e3
    return {
        "p50_ms": round(float(p50), 4),
        "p99_ms": round(float(p99), 4),
        "p50_cpu_ms": round(float(p50_cpu), 4),
        "p99_cpu_ms": round(float(p99_cpu), 4),
    }


def batched(search: Search, queries: Floats) -> float:
    """Return the CPU time of a query in batches of 64 on this thread, in ms; the best of rounds."""
    times = []
    for _ in range(ROUNDS):
        used = time.thread_time()
        for start in range(0, len(queries), _BATCH):
            search(queries[start : start + _BATCH])
        times.append(time.thread_time() - used)
    return round(min(times) / len(queries) * 1e3, 4)


def throughput(search: Search, queries: Floats, *, threads: int) -> float:
    """Return single queries per second of `threads` threads that share the queries."""
    parts = [queries[start::threads] for start in range(threads)]
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: one_by_one(search, part), parts))
    return round(len(queries) / (time.perf_counter() - started), 1)


def ladder(low: int, high: int) -> list[int]:
    """Return ascending settings in steps of the fourth root of 2, up to `high`."""
    steps = np.rint(low * 2 ** (np.arange(80) / 4)).astype(int)
    return [*dict.fromkeys(int(s) for s in steps if s < high), high]
