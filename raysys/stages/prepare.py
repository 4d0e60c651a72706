"""prepare: raw logs -> `interactions` (clean, deduplicated) -> `profiles` (numbered, split).

Both are made of independent tasks on files (`raysys.data.parts`), so memory is bounded by the size
of a piece, and the files do not depend on the number of workers or the order of the rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.builds import Build, Draft, StageResult, Workspace
from raysys.config import identity, require_run
from raysys.data.catalogue import catalogue_sizes, join_attributes, merge_levels, number_items
from raysys.data.cutoffs import cutoffs_of_folds, resolve_cutoffs
from raysys.data.interactions import N_BUCKETS, LogTraits, resolve_columns
from raysys.data.items import list_item_files, read_items
from raysys.data.levels import build_levels
from raysys.data.parts import (
    MergeResult,
    MergeTask,
    PieceResult,
    ShardTask,
    count_part,
    merge_buckets,
    read_piece,
    write_shard,
)
from raysys.data.profiles import SHARD_PREFIX
from raysys.data.readers import check_same_columns, split_into_pieces
from raysys.data.schema import Window, period_windows
from raysys.data.settings import PrepareConfig
from raysys.data.sources import SourceFile, fingerprint, list_files
from raysys.data.splits import SplitPlan
from raysys.errors import DataError
from raysys.stages.cluster import connected
from raysys.stages.distribute import distribute
from raysys.storage import open_filesystem

log = logging.getLogger(__name__)

PART_ROWS = 1 << 19
_LOG_KEYS = ("columns", "dedupe", "min_rating", "max_rating", "max_bad_share")
_TIMELESS = "split=users, split=ratings or split=given do without time"


def prepare(cfg: PrepareConfig) -> StageResult:
    """Write the `interactions` and `profiles` builds of a log.

    Raises:
        DataError: the source cannot be used. ConfigError: a column or setting does not fit it.
    """
    require_run(cfg)
    given = cfg.split == "given"
    if given and cfg.source:
        log.warning(
            "setting ignored key=source value=%s reason=split=given_reads_folds", cfg.source
        )
    files = list_files((cfg.folds if given else cfg.source) or "")
    names = check_same_columns(files).names
    columns = resolve_columns(cfg.columns, names, source=files[0].uri, folds=given)
    if cfg.evaluation_protocol == "temporal" and "timestamp" not in columns:
        raise DataError(
            f"split=temporal needs a time, {files[0].uri} has no column "
            f"{cfg.columns.timestamp or 'timestamp'!r} among {', '.join(names)}; {_TIMELESS}"
        )
    item_files = list_item_files(cfg.items) if cfg.items else []
    items = read_items(item_files, column=cfg.columns.item) if item_files else None
    ws = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    settings = {key: value for key, value in identity(cfg).items() if key in _LOG_KEYS}
    with contextlib.ExitStack() as cluster:
        got = ws.begin(
            "interactions",
            config=settings | {"folds": given},
            source=fingerprint(files),
            force=cfg.force,
        )
        if isinstance(got, Draft):
            cluster.enter_context(connected(cfg.ray))
            with ws.writing(got):
                facts = _write_interactions(cfg, files, columns, got)
                got = got.commit(facts)
        interactions = got
        settings = {key: v for key, v in identity(cfg).items() if key not in _LOG_KEYS}
        got = ws.begin(
            "profiles",
            config=settings,
            inputs=[interactions],
            source=fingerprint(item_files),
            force=cfg.force,
        )
        if isinstance(got, Draft):
            cluster.enter_context(connected(cfg.ray))
            with ws.writing(got):
                got = got.commit(_write_profiles(cfg, interactions, items, got))
    return StageResult(
        build_ids={"interactions": interactions.build_id, "profiles": got.build_id},
        extra={"interactions": interactions.facts, "profiles": got.facts},
    )


def _write_interactions(
    cfg: PrepareConfig, files: Sequence[SourceFile], columns: dict[str, str], draft: Draft
) -> dict[str, Any]:
    """Clean, shuffle and merge the log; return the build's facts."""
    pieces = split_into_pieces(files)
    log.info("prepare source files=%d pieces=%d columns=%s", len(files), len(pieces), columns)
    shuffle = f"{draft.url}/.shuffle"
    read = distribute(
        functools.partial(
            read_piece,
            columns=columns,
            rating_range=(cfg.min_rating, cfg.max_rating),
            folder=draft.url,
            shuffle=shuffle,
        ),
        list(enumerate(pieces)),
        stage="prepare read",
        rows=lambda done: done.n_rows,
    )
    _check_read(cfg, read, files)
    traits = LogTraits(
        has_ratings=any(piece.n_rated for piece in read),
        has_events=any(piece.n_events for piece in read),
        has_time=any(piece.n_timed for piece in read),
        has_folds="fold" in columns,
    )
    if cfg.evaluation_protocol == "temporal" and not traits.has_time:
        raise DataError(f"split=temporal needs a time, all are null in {files[0].uri}; {_TIMELESS}")
    n_good = sum(piece.n_rows - sum(piece.reasons.values()) for piece in read)
    merged = distribute(
        functools.partial(
            merge_buckets,
            pieces=read,
            shuffle=shuffle,
            folder=draft.url,
            traits=traits,
            keep=cfg.dedupe,
        ),
        bucket_ranges(n_good),
        stage="prepare merge",
        rows=lambda done: done.n_rows,
    )
    filesystem, path = open_filesystem(shuffle)
    filesystem.delete_dir(path)
    return _interaction_facts(cfg, read, merged, traits, files)


def bucket_ranges(n_rows: int) -> list[MergeTask]:
    """Return which user buckets form each part: a power of two of parts of about `PART_ROWS`."""
    parts = 1
    while parts < N_BUCKETS and parts * PART_ROWS < n_rows:
        parts *= 2
    width = N_BUCKETS // parts
    return [MergeTask(k, k * width, (k + 1) * width) for k in range(parts)]


def _check_read(
    cfg: PrepareConfig, read: Sequence[PieceResult], files: Sequence[SourceFile]
) -> None:
    n_rows = sum(piece.n_rows for piece in read)
    if not n_rows:
        raise DataError(f"{files[0].uri} holds no rows")
    reasons = _add_up(piece.reasons for piece in read)
    _check_bad(cfg, reasons, n_rows, next((p.example for p in read if p.example), ""))
    units = _add_up(piece.units for piece in read)
    log.info("prepare timestamps units=%s", units or "none")
    if len(units) > 1:
        log.warning("timestamps of several units were read, row by row: %s", units)


def _check_bad(cfg: PrepareConfig, reasons: dict[str, int], n_rows: int, example: str) -> None:
    n_bad = sum(reasons.values())
    if n_bad:
        log.warning("quarantined rows=%d of %d reasons=%s", n_bad, n_rows, reasons)
    if n_bad > cfg.max_bad_share * n_rows:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise DataError(
            f"{n_bad} of {n_rows} rows break a rule ({n_bad / n_rows:.2%}, "
            f"max_bad_share={cfg.max_bad_share}): {counts}; {example}"
        )
    if n_bad == n_rows:
        raise DataError(f"all {n_rows} rows break a rule: {reasons}")


def _interaction_facts(
    cfg: PrepareConfig,
    read: Sequence[PieceResult],
    merged: Sequence[MergeResult],
    traits: LogTraits,
    files: Sequence[SourceFile],
) -> dict[str, Any]:
    reasons = _add_up(piece.reasons for piece in read)
    untimed = sum(part.n_untimed for part in merged)
    n_rows = sum(piece.n_rows for piece in read)
    if untimed:
        reasons["missing timestamp"] = untimed
        _check_bad(cfg, reasons, n_rows, "")
    n_users = sum(part.n_users for part in merged)
    if n_users < 2:
        raise DataError(f"{files[0].uri} is the log of {n_users} user: at least 2 are needed")
    ranges = [part.time_range for part in merged if part.time_range]
    counts: dict[str, Any] = {
        "rows_in": n_rows,
        "rows": sum(part.n_rows for part in merged),
        "duplicates": sum(part.n_duplicates for part in merged),
        "quarantined": reasons,
        "filtered": 0,
    }
    left = n_rows - sum(part.n_rows + part.n_duplicates for part in merged)
    assert left == sum(reasons.values()), counts
    return counts | {
        "n_users": n_users,
        **dataclasses.asdict(traits),
        "time_range": [min(r[0] for r in ranges), max(r[1] for r in ranges)] if ranges else None,
        "timestamp_units": _add_up(piece.units for piece in read),
    }


def _write_profiles(
    cfg: PrepareConfig, interactions: Build, attributes: pa.Table | None, draft: Draft
) -> dict[str, Any]:
    """Split, number and shard the interactions; return the build's facts."""
    facts = interactions.facts
    folder = f"{cfg.run.rstrip('/')}/interactions/{interactions.build_id}"
    _, path = open_filesystem(folder)
    base = path if "://" not in folder else folder
    uris = [f"{base}/{name}" for name in interactions.files(".parquet", prefix="part-")]
    plan = _plan(cfg, uris, facts)
    counted = distribute(
        functools.partial(count_part, plan=plan, has_time=facts["has_time"]),
        uris,
        stage="prepare count",
        rows=lambda done: done.n_rows,
    )
    levels = build_levels(
        merge_levels([part.levels for part in counted]),
        liked_levels=cfg.liked_levels,
        negative_events=cfg.negative_events,
    )
    items = number_items([part.items for part in counted], min_item_rows=cfg.min_item_rows)
    catalogue = catalogue_sizes(items)
    first_user = 0
    tasks = []
    for number, (uri, part) in enumerate(zip(uris, counted, strict=True)):
        tasks.append(ShardTask(uri, f"{SHARD_PREFIX}{number:05d}.parquet", first_user))
        first_user += len(part.users)
    written = distribute(
        functools.partial(
            write_shard,
            plan=plan,
            item_ids=items["item_id"].combine_chunks(),
            levels=levels,
            n_fit_items=catalogue["val"],
            folder=draft.url,
        ),
        tasks,
        stage="prepare shards",
        rows=lambda done: done.n_cells,
    )
    table, described = join_attributes(items, attributes)
    pq.write_table(table, draft.path("items.parquet"))
    user_ids = pa.chunked_array([part.users for part in counted], pa.string())
    user_num = pa.array(range(first_user), pa.int32())
    pq.write_table(
        pa.table({"user_num": user_num, "user_id": user_ids}), draft.path("users.parquet")
    )
    levels.save(draft.path("levels.json"))
    windows = [sum(shard.windows[w] for shard in written) for w in range(len(Window))]
    filtered = {
        "dropped_users": sum(part.n_dropped for part in counted),
        "rare_items": sum(shard.n_rare for shard in written),
        "level_unknown_to_fit": sum(shard.n_unknown_level for shard in written),
    }
    _check_windows(cfg, windows)
    assert facts["rows"] == sum(windows) + sum(filtered.values()), (windows, filtered)
    return {
        "split": cfg.split,
        "protocol": plan.protocol,
        "n_users": first_user,
        "n_items": len(items),
        "catalogue": catalogue,
        "cutoffs": None
        if plan.cutoffs is None
        else dict(zip(("val", "test"), plan.cutoffs, strict=True)),
        "has_time": facts["has_time"],
        "n_cells": {window.name: windows[window] for window in Window},
        "filtered": {reason: count for reason, count in filtered.items() if count},
        "n_described_items": described,
        "levels": list(levels.names),
    }


def _plan(cfg: PrepareConfig, uris: Sequence[str], facts: dict[str, Any]) -> SplitPlan:
    protocol = cfg.evaluation_protocol
    cutoffs = None
    if protocol == "temporal" and not facts["has_time"]:
        raise DataError(f"split=temporal needs a time, the log has none; {_TIMELESS}")
    if protocol == "temporal" and cfg.split == "given":
        cutoffs = cutoffs_of_folds(uris)
    elif protocol == "temporal":
        cutoffs = resolve_cutoffs(
            uris,
            (cfg.val_cut, cfg.test_cut),
            time_range=tuple(facts["time_range"]),
            n_rows=facts["rows"],
        )
    return SplitPlan(
        protocol=protocol,
        given=cfg.split == "given",
        seed=cfg.seed,
        cutoffs=cutoffs,
        val_share=cfg.val_share,
        test_share=cfg.test_share,
        target_share=cfg.target_share,
        min_user_rows=cfg.min_user_rows or (5 if cfg.split == "users" else 1),
        max_user_rows=cfg.max_user_rows,
    )


def _check_windows(cfg: PrepareConfig, windows: Sequence[int]) -> None:
    """Raise where a window that an evaluation needs has no cells."""
    for period in ("val", "test"):
        needs = period_windows(cfg.evaluation_protocol, period)
        for window in (*needs.fitted, *needs.history, *needs.targets):
            if not windows[window]:
                found = {w.name: windows[w] for w in Window}
                raise DataError(
                    f"split={cfg.split} leaves window {window.name} without rows ({found}): "
                    "the log is too small for this split, or the cuts and shares are"
                )


def _add_up(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items()))
