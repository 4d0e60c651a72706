"""The evaluate job at size: time and peak memory as users grow, and its metrics against a peer.

    raysys bench suite=evaluate run=runs/bench [sizes=[10000,100000] n_items=50000]

Every size is evaluated in a process of its own, in one process without a cluster: audit, count,
rank the whole catalogue for every user with an autoencoder of the default size, rate, 1000
replicates, per-user file. The model is untrained and items are drawn by popularity alone: neither
changes the work. The second part times the metrics on lists that are given: ours are all metrics of
a report (several hundred sums per user), the peer's (ir-measures, by trec_eval's C code) are four.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from raysys.autoencoder.config import LATENT, Conv4RecConfig
from raysys.autoencoder.files import AutoencoderFacts, write_model
from raysys.autoencoder.model import Conv4Rec
from raysys.bench.prepare import Measured, measure
from raysys.bench.suites import STARS, BenchConfig
from raysys.config import require, require_run
from raysys.data.cells import Cells
from raysys.data.profiles import ProfilesFacts, shard_name, write_tables
from raysys.data.schema import Window
from raysys.errors import RaysysError
from raysys.evaluation.bootstrap import user_keys
from raysys.evaluation.evaluator import Evaluator
from raysys.evaluation.metric_table import MetricLayout
from raysys.store.builds import Workspace
from raysys.store.drafts import Draft

log = logging.getLogger(__name__)

_SHARD_USERS = 8192
_CUTS = {"val": 800, "test": 900}
_END = 1000
_BLOCK = 256
_AGREE = 1e-9


@dataclasses.dataclass
class EvaluateBenchConfig(BenchConfig):
    """Settings of the evaluate suite.

    Attributes:
        sizes: users, each evaluated.
        n_items: items ranked for each.
        rows_per_user: mean length of a history.
        latent: size of the model's latent.
        baselines: evaluated beside it.
        replicates: bootstrap replicates.
        metric_users: users of the comparison with the peer.
    """

    sizes: list[int] = dataclasses.field(default_factory=lambda: [10_000, 100_000])
    n_items: int = 50_000
    rows_per_user: int = 20
    latent: int = LATENT
    baselines: list[str] = dataclasses.field(default_factory=lambda: ["popularity", "bias"])
    replicates: int = 1000
    metric_users: int = 20_000

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that make no log."""
        require(bool(self.sizes), "sizes", self.sizes, "at least one number of users")
        require(min(self.sizes, default=1) >= 10, "sizes", self.sizes, "10 users or more")
        require(self.n_items >= 200, "n_items", self.n_items, "200 or more")
        fits = 1 <= self.rows_per_user <= self.n_items / 8
        require(fits, "rows_per_user", self.rows_per_user, "1 to n_items / 8")
        require(self.metric_users >= 10, "metric_users", self.metric_users, "10 or more")


def rows(cfg: EvaluateBenchConfig) -> list[dict[str, Any]]:
    """Measure every size, then the metrics against the peer."""
    require_run(cfg)
    found: list[dict[str, Any]] = []
    before: Measured | None = None
    for n_users in cfg.sizes:
        folder = Path(cfg.run) / "bench-evaluate" / str(n_users)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _write_run(Workspace(str(folder)), cfg, n_users)
            got = measure(_evaluate, str(folder), cfg)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if got.rows != n_users:
            raise RaysysError(f"{got.rows} of {n_users} users were evaluated")
        found.append(_row(got, cfg, before))
        before = got
        log.info("bench evaluate users=%d seconds=%.1f", n_users, got.seconds)
    return found + _metric_rows(cfg)


def _row(got: Measured, cfg: EvaluateBenchConfig, before: Measured | None) -> dict[str, Any]:
    return {
        "engine": "raysys evaluate",
        "users": got.rows,
        "items": cfg.n_items,
        "seconds": round(got.seconds, 1),
        "cpu_s": round(got.cpu_s, 1),
        "users_per_cpu_s": round(got.rows / max(got.cpu_s, 1e-9)),
        "peak_pss_mb": got.peak_bytes >> 20,
        "memory_of_last_size": before and round(got.peak_bytes / before.peak_bytes, 3),
        "load": round(os.getloadavg()[0], 1),
    }


def _evaluate(out: Any, folder: str, cfg: EvaluateBenchConfig) -> None:
    """Run our stage in this process."""
    first = time.perf_counter()
    from raysys.cluster import tasks
    from raysys.commands.evaluate import EvaluateConfig, evaluate

    tasks.IN_PROCESS_ROWS = 1 << 62
    begin = time.perf_counter()
    config = EvaluateConfig(run=folder, baselines=cfg.baselines, replicates=cfg.replicates)
    evaluated = evaluate(config).extra["evaluated"]["rows"]
    out.send((first, begin, time.perf_counter(), evaluated))


def _write_run(workspace: Workspace, cfg: EvaluateBenchConfig, n_users: int) -> None:
    """Write simulated profiles and an untrained model of them."""
    profiles = workspace.build(
        "profiles",
        config={"users": n_users, "seed": cfg.seed},
        write=lambda draft: _write_profiles(draft, cfg, n_users),
        force=True,
    )
    workspace.build(
        "autoencoder",
        config={"latent": cfg.latent},
        inputs=[profiles],
        write=lambda draft: _write_model(draft, cfg, np.load(profiles.path("counts.npy"))),
        force=True,
    )


def _write_profiles(draft: Draft, cfg: EvaluateBenchConfig, n_users: int) -> ProfilesFacts:
    """Write simulated profiles, shard by shard, and the counts [N, R] of fitted cells."""
    counts = np.zeros((cfg.n_items, STARS.n_levels), dtype=np.int64)
    n_fit = np.zeros(cfg.n_items, dtype=np.int64)
    sizes = np.zeros(len(Window), dtype=np.int64)
    for number, start in enumerate(range(0, n_users, _SHARD_USERS)):
        cells = _cells(cfg, start, min(start + _SHARD_USERS, n_users))
        pq.write_table(cells.to_table(), draft.path(shard_name(number)))
        fitted = cells.in_windows([Window.FIT, Window.VAL])
        np.add.at(counts, (fitted.item_num, fitted.level), 1)
        fit = cells.in_windows([Window.FIT])
        n_fit += np.bincount(fit.item_num, minlength=cfg.n_items)
        sizes += np.bincount(cells.window, minlength=len(Window))
    items = {
        "item_num": pa.array(np.arange(cfg.n_items, dtype=np.int32)),
        "item_id": [f"i{n:07d}" for n in range(cfg.n_items)],
        "title": pa.nulls(cfg.n_items, pa.string()),
        "first_seen": np.zeros(cfg.n_items, dtype=np.int64),
        "n_fit": n_fit,
    }
    user_ids = pa.chunked_array([[f"u{n:08d}" for n in range(n_users)]])
    write_tables(draft, items=pa.table(items), user_ids=user_ids, levels=STARS)
    np.save(draft.path("counts.npy"), counts)
    return ProfilesFacts(
        split="temporal",
        n_users=n_users,
        n_items=cfg.n_items,
        catalogue=dict.fromkeys(("val", "test", "all"), cfg.n_items),
        cutoffs=_CUTS,
        has_time=True,
        n_cells={window.name: int(sizes[window]) for window in Window},
    )


def _write_model(
    draft: Draft, cfg: EvaluateBenchConfig, counts: NDArray[np.int64]
) -> AutoencoderFacts:
    settings = Conv4RecConfig(latent=cfg.latent)
    sizes = torch.from_numpy(counts)
    model = Conv4Rec(settings, n_items=cfg.n_items, levels=STARS, counts=sizes, seed=cfg.seed)
    write_model(draft, model)
    return AutoencoderFacts(
        n_items=cfg.n_items,
        n_levels=STARS.n_levels,
        period="test",
        fitted_windows=(Window.FIT, Window.VAL),
        fitted_until=_CUTS["test"],
    )


def _cells(cfg: EvaluateBenchConfig, start: int, stop: int) -> Cells:
    """Draw the cells of users start .. stop: distinct items by a power law, one to three in test.

    A user's items are in a random order of time, so history and targets look alike.
    """
    rng = np.random.default_rng([cfg.seed, start])
    n_users = stop - start
    past = np.minimum(rng.geometric(1 / cfg.rows_per_user, n_users), cfg.n_items // 4)
    counts = past + rng.integers(1, 4, n_users)
    user = np.repeat(np.arange(n_users), counts)
    share = np.cumsum((np.arange(cfg.n_items - counts.max()) + 10.0) ** -0.8)
    item = np.searchsorted(share / share[-1], rng.random(len(user)))
    begins = np.cumsum(counts) - counts
    place = np.arange(len(user)) - np.repeat(begins, counts)
    order = np.lexsort((item, user))
    item[order] += np.arange(len(user)) - begins[user[order]]  # keeps a user's items apart
    time_ = np.where(
        place < np.repeat(past, counts),
        rng.integers(0, _CUTS["test"], len(user)),
        rng.integers(_CUTS["test"], _END, len(user)),
    )
    order = np.lexsort((item, time_, user))
    window = np.searchsorted([*_CUTS.values()], time_[order], side="right")
    return Cells(
        user_num=np.arange(start, stop, dtype=np.int32),
        offsets=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
        item_num=item[order].astype(np.int32),
        level=rng.integers(0, STARS.n_levels, len(user)).astype(np.uint8),
        timestamp=time_[order].astype(np.int64),
        window=window.astype(np.uint8),
    )


def _metric_rows(cfg: EvaluateBenchConfig) -> list[dict[str, Any]]:
    """Time the metrics of given lists, ours without and with intervals, and the peer's."""
    cells = _cells(cfg, 0, cfg.metric_users)
    targets = cells.in_windows([Window.TEST])
    history = cells.in_windows([Window.FIT, Window.VAL])
    rng = np.random.default_rng([cfg.seed, 1 << 40])
    first = targets.item_num[targets.offsets[:-1]].astype(np.int64)
    near = first[:, None] + rng.integers(-100, 100) + np.arange(100)[None, :]
    lists = (near % cfg.n_items).astype(np.int32)  # distinct, and some hold a target
    keys = user_keys(range(cfg.metric_users))

    def ours(replicates: int) -> dict[str, float]:
        counts = np.bincount(history.item_num, minlength=cfg.n_items)
        evaluator = Evaluator(
            MetricLayout(), item_counts=counts, replicates=replicates, seed=cfg.seed
        )
        for start in range(0, cfg.metric_users, _BLOCK):
            part = np.arange(start, min(start + _BLOCK, cfg.metric_users))
            evaluator.update_ranking(
                keys[part],
                history=history.users(part),
                targets=targets.users(part),
                lists=lists[part],
            )
        found = evaluator.result()
        return {name: float(value["mean"] or 0) for name, value in found.items()}

    plain_s, values = _timed(lambda: ours(0))
    full_s, _ = _timed(lambda: ours(cfg.replicates))
    result = [
        {"engine": "raysys metrics", "users": cfg.metric_users, "seconds": round(plain_s, 3)},
        {"engine": f"raysys metrics, {cfg.replicates} replicates", "users": cfg.metric_users}
        | {"seconds": round(full_s, 3)},
    ]
    peer = _peer(targets, lists)
    if peer is not None:
        peer_s, theirs = peer
        apart = max(abs(values[name] - value) for name, value in theirs.items())
        if apart > _AGREE:
            raise RaysysError(f"metrics differ from ir-measures' by {apart}: {theirs}, {values}")
        for row, seconds in zip(result, (plain_s, full_s), strict=True):
            row |= {"rate_of_peer": round(peer_s / seconds, 2), "largest_difference": apart}
        result.append(
            {"engine": "ir-measures", "users": cfg.metric_users, "seconds": round(peer_s, 3)}
        )
    return [row | {"load": round(os.getloadavg()[0], 1)} for row in result]


def _peer(targets: Cells, lists: NDArray[np.int32]) -> tuple[float, dict[str, float]] | None:
    """Return the peer's seconds, without making its input, and its figures; None if not there."""
    try:
        import ir_measures as peer
    except ImportError:
        return None
    wanted = {
        str(u): {str(i): 1 for i in targets.item_num[a:b].tolist()}
        for u, (a, b) in enumerate(zip(targets.offsets[:-1], targets.offsets[1:], strict=True))
    }
    shown = {
        str(u): {str(i): float(lists.shape[1] - place) for place, i in enumerate(row)}
        for u, row in enumerate(lists.tolist())
    }
    measures = {
        "ndcg@100": peer.nDCG @ 100,
        "ndcg@20": peer.nDCG @ 20,
        "hit@10": peer.Success @ 10,
        "recall@50": peer.R @ 50,
    }
    seconds, found = _timed(lambda: peer.calc_aggregate([*measures.values()], wanted, shown))
    return seconds, {name: float(found[measure]) for name, measure in measures.items()}


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result
