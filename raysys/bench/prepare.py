"""prepare against polars doing the same work, in the same run on the same cores.

    raysys bench suite=prepare run=runs/bench [sizes=[1000000,3000000,10000000]]

Both read Parquet files with string ids, check the rows, keep the first of repeats, number users and
items, cut in time and write clean rows, items, users and sorted profiles. Every measurement has a
process of its own; memory is the sum of PSS over its process tree (shared pages count once), so it
holds Ray's processes and object store too. `cpu_s` counts all of them; on a machine that does other
work compare that rather than seconds. Seconds leave Ray's start out, `seconds_with_ray` does not.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.bench.suites import BenchConfig
from raysys.config import RayConfig, require, require_run
from raysys.errors import RaysysError
from raysys.prepare.config import PrepareConfig

log = logging.getLogger(__name__)

_FILE_ROWS = 1 << 20
_START = 1_700_000_000
_SPAN_S = 31_000_000
_EVERY_S = 0.25


@dataclasses.dataclass
class PrepareBenchConfig(BenchConfig):
    """Settings of the prepare suite.

    Attributes:
        sizes: rows of the logs; users and items stay the same.
        n_users, n_items: distinct ids.
        peers: measure polars too, where it is installed.
    """

    sizes: list[int] = dataclasses.field(default_factory=lambda: [10**6, 3 * 10**6, 10**7])
    n_users: int = 100_000
    n_items: int = 50_000
    peers: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that make no log."""
        require(bool(self.sizes), "sizes", self.sizes, "at least one number of rows")
        require(min(self.sizes, default=1) >= 1000, "sizes", self.sizes, "1000 rows or more")


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run in a process of its own.

    Attributes:
        seconds: of the work; total_s: with Ray's start.
        cpu_s: of the process tree during the work.
        peak_bytes: highest sum of PSS over the process tree.
        rows: clean rows written.
    """

    seconds: float
    total_s: float
    cpu_s: float
    peak_bytes: int
    rows: int


def rows(cfg: PrepareBenchConfig) -> list[dict[str, Any]]:
    """Measure every size, ours and polars."""
    require_run(cfg)
    found: list[dict[str, Any]] = []
    with_polars = cfg.peers and importlib.util.find_spec("polars") is not None
    before: Measured | None = None
    for size in cfg.sizes:
        folder = Path(cfg.run) / "bench-prepare" / str(size)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            write_log(folder / "log", n_rows=size, cfg=cfg)
            ours = measure(_prepare, str(folder), cfg.ray)
            peer = measure(_polars, str(folder), cfg.ray.num_cpus) if with_polars else None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        found.append(_row("raysys prepare", size, ours, peer, before))
        if peer is not None:
            found.append(_row("polars", size, peer, None, None))
            if peer.rows != ours.rows:
                raise RaysysError(f"polars kept {peer.rows} rows of {size}, raysys {ours.rows}")
        before = ours
        log.info("bench prepare rows=%d seconds=%.1f", size, ours.seconds)
    return found


def _row(
    engine: str, size: int, got: Measured, peer: Measured | None, before: Measured | None
) -> dict[str, Any]:
    return {
        "engine": engine,
        "rows": size,
        "seconds": round(got.seconds, 2),
        "seconds_with_ray": round(got.total_s, 2),
        "rows_per_s": round(size / got.seconds),
        "cpu_s": round(got.cpu_s, 1),
        "peak_pss_mb": got.peak_bytes >> 20,
        "rate_of_peer": peer and round(peer.seconds / got.seconds, 3),
        "rate_of_peer_with_ray": peer and round(peer.seconds / got.total_s, 3),
        "cpu_of_peer": peer and round(got.cpu_s / max(peer.cpu_s, 1e-9), 2),
        "memory_of_last_size": before and round(got.peak_bytes / before.peak_bytes, 2),
    }


def write_log(folder: Path, *, n_rows: int, cfg: PrepareBenchConfig) -> None:
    """Write a log with string ids, skewed users and items and a few repeats."""
    folder.mkdir(parents=True)
    users = pa.array([f"user-{n:08d}" for n in range(cfg.n_users)])
    items = pa.array([f"item-{n:07d}" for n in range(cfg.n_items)])
    share = np.cumsum((np.arange(cfg.n_items) + 10.0) ** -0.8)
    share /= share[-1]
    for number, start in enumerate(range(0, n_rows, _FILE_ROWS)):
        size = min(_FILE_ROWS, n_rows - start)
        rng = np.random.default_rng([cfg.seed, number])
        user = (cfg.n_users * rng.random(size) ** 1.5).astype(np.int64)
        table = pa.table(
            {
                "user_id": users.take(pa.array(user)),
                "item_id": items.take(pa.array(np.searchsorted(share, rng.random(size)))),
                "rating": rng.integers(1, 6, size).astype(np.float32),
                "timestamp": _START + rng.integers(0, _SPAN_S, size),
            }
        )
        pq.write_table(table, folder / f"part-{number:05d}.parquet")


def measure(work: Callable[..., None], *args: Any) -> Measured:
    """Run `work(connection, *args)` in a new process and watch it and its children.

    Raises:
        RaysysError: the process failed.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(there, *args))
    samples: list[tuple[float, int, float]] = []
    done = threading.Event()
    process.start()
    there.close()
    assert process.pid is not None
    watch = threading.Thread(target=_watch, args=(process.pid, samples, done), daemon=True)
    watch.start()
    try:
        first, begin, end, kept = here.recv()
    except EOFError:
        raise RaysysError(f"{work.__name__} failed, its process wrote why on stderr") from None
    finally:
        done.set()
        watch.join()
        process.join()
    before = [cpu for at, _, cpu in samples if at <= begin] or [0.0]
    during = [cpu for at, _, cpu in samples if at <= end + _EVERY_S] or [0.0]
    peak = max((pss for _, pss, _ in samples), default=0)
    return Measured(end - begin, end - first, during[-1] - before[-1], peak, kept)


def _watch(pid: int, samples: list[tuple[float, int, float]], done: threading.Event) -> None:
    """Sample (time, sum of PSS, CPU seconds) of a process tree; ended processes keep their CPU."""
    ticks = os.sysconf("SC_CLK_TCK")
    cpu: dict[int, float] = {}
    while not done.wait(_EVERY_S):
        total = 0
        for member in _tree(pid):
            try:
                rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
                fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended
                continue
            total += next(
                (int(x.split()[1]) << 10 for x in rollup.splitlines() if x.startswith("Pss:")), 0
            )
            cpu[member] = (int(fields[11]) + int(fields[12])) / ticks
        samples.append((time.perf_counter(), total, sum(cpu.values())))


def _tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for member in found:
        for task in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def _prepare(out: Any, folder: str, ray: RayConfig) -> None:
    """Run our stage on a private cluster."""
    import raysys.commands.prepare as stage  # not before the clock
    from raysys.cluster.connect import connected

    first = time.perf_counter()
    ray = dataclasses.replace(ray, address="local")
    with connected(ray):
        begin = time.perf_counter()
        config = PrepareConfig(run=f"{folder}/run", source=f"{folder}/log", ray=ray)
        kept = stage.prepare(config).extra["interactions"]["rows"]
        end = time.perf_counter()
    out.send((first, begin, end, kept))


def _polars(out: Any, folder: str, threads: int | None) -> None:
    """Do the same work with polars."""
    if threads:
        os.environ["POLARS_MAX_THREADS"] = str(threads)
    import polars as pl

    begin = time.perf_counter()
    target = Path(folder) / "polars"
    target.mkdir()
    good = pl.col("user_id").is_not_null() & pl.col("item_id").is_not_null()
    good &= pl.col("rating").is_finite() & pl.col("timestamp").is_between(0, 4_102_444_800)
    frame = (
        pl.scan_parquet(f"{folder}/log/*.parquet")
        .filter(good & (pl.col("user_id") != "") & (pl.col("item_id") != ""))
        .sort("user_id", "timestamp", "item_id", "rating")
        .unique(["user_id", "item_id"], keep="first", maintain_order=True)
        .collect()
    )
    frame.write_parquet(target / "interactions.parquet", compression="zstd", compression_level=1)
    val, test = (int(frame["timestamp"].quantile(q, "lower") or 0) for q in (0.8, 0.9))
    items = (
        frame.group_by("item_id")
        .agg(first_seen=pl.col("timestamp").min(), n_fit=(pl.col("timestamp") < val).sum())
        .sort("first_seen", "item_id")
        .with_row_index("item_num")
    )
    users = frame.select(pl.col("user_id").unique(maintain_order=True)).with_row_index("user_num")
    window = (pl.col("timestamp") >= val).cast(pl.UInt8) + (pl.col("timestamp") >= test)
    lists = [pl.col(name) for name in ("item_num", "level", "timestamp", "window")]
    profiles = (
        frame.join(items.select("item_id", "item_num"), on="item_id", maintain_order="left")
        .join(users, on="user_id", maintain_order="left")
        .with_columns(window=window, level=(pl.col("rating") - 1).cast(pl.UInt8))
        .group_by("user_num", maintain_order=True)
        .agg(lists)
    )
    profiles.write_parquet(target / "shard.parquet", compression="zstd", compression_level=1)
    items.write_parquet(target / "items.parquet")
    users.write_parquet(target / "users.parquet")
    end = time.perf_counter()
    out.send((begin, begin, end, len(frame)))
