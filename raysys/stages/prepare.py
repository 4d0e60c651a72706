"""prepare: raw logs -> `interactions` (clean, deduplicated) -> `profiles` (numbered, split).

Both are made of independent tasks on files (`raysys.data.parts`), so memory is bounded by the size
of a piece, and the files do not depend on the number of workers or the order of the rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from typing import Any

from raysys.builds import Build, StageResult, Workspace
from raysys.config import identity, require_run
from raysys.data.append import (
    BASE,
    Base,
    add_facts,
    check_settings,
    check_traits,
    earlier_part,
    find_base,
)
from raysys.data.interactions import N_BUCKETS, EventRules, LogTraits, resolve_columns
from raysys.data.items import list_item_files, read_items
from raysys.data.parts import (
    MergeResult,
    MergeTask,
    PieceResult,
    merge_buckets,
    read_piece,
)
from raysys.data.readers import check_same_columns, split_into_pieces
from raysys.data.settings import PrepareConfig
from raysys.data.sources import SourceFile, fingerprint, list_files
from raysys.drafts import Draft
from raysys.errors import DataError
from raysys.leases import leased
from raysys.stages.cluster import connected
from raysys.stages.distribute import distribute
from raysys.stages.profiles import PARTS, TIMELESS, write_profiles
from raysys.storage import open_filesystem

log = logging.getLogger(__name__)

PART_ROWS = 1 << 19
_LOG_KEYS = (
    "columns",
    "dedupe",
    "min_rating",
    "max_rating",
    "events",
    "ignore_events",
    "max_bad_share",
)


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
            f"{cfg.columns.timestamp or 'timestamp'!r} among {', '.join(names)}; {TIMELESS}"
        )
    item_files = list_item_files(cfg.items) if cfg.items else []
    items = read_items(item_files, column=cfg.columns.item) if item_files else None
    ws = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    settings = {key: value for key, value in identity(cfg).items() if key in _LOG_KEYS}
    settings["folds"] = given
    marks = fingerprint(files)
    with contextlib.ExitStack() as session:
        base = None
        if cfg.mode == "append":  # one at a time, else the rows of one of two appends are lost
            session.enter_context(leased(ws.storage, "interactions/append"))
            base = find_base(ws, source=marks)
            check_settings(base.interactions, settings)
            settings |= {"appended": marks, BASE: base.interactions.ref()}

        def write_rows(draft: Draft) -> dict[str, Any]:
            session.enter_context(connected(cfg.ray))
            return _write_interactions(cfg, files, columns, draft, base=base)

        interactions = ws.build(
            "interactions", config=settings, source=marks, write=write_rows, force=cfg.force
        )
        settings = {key: v for key, v in identity(cfg).items() if key not in _LOG_KEYS}
        earlier = base.profiles if base is not None else None
        if earlier is not None:
            settings[BASE] = earlier.ref()

        def write_shards(draft: Draft) -> dict[str, Any]:
            session.enter_context(connected(cfg.ray))
            return write_profiles(cfg, interactions, items, draft, earlier=earlier)

        profiles = ws.build(
            "profiles",
            config=settings,
            inputs=[interactions],
            source=fingerprint(item_files),
            write=write_shards,
            force=cfg.force,
        )
    return StageResult(
        build_ids={"interactions": interactions.build_id, "profiles": profiles.build_id},
        extra={"interactions": interactions.facts, "profiles": profiles.facts},
    )


def _write_interactions(
    cfg: PrepareConfig,
    files: Sequence[SourceFile],
    columns: dict[str, str],
    draft: Draft,
    *,
    base: Base | None,
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
            events=EventRules(
                None if cfg.events is None else tuple(cfg.events), tuple(cfg.ignore_events)
            ),
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
        raise DataError(f"split=temporal needs a time, all are null in {files[0].uri}; {TIMELESS}")
    tasks = bucket_ranges(sum(p.n_rows - p.n_ignored - sum(p.reasons.values()) for p in read))
    if base is not None:
        check_traits(base.interactions, traits)
        tasks = _with_earlier(cfg, base.interactions, read, draft)
    merged = distribute(
        functools.partial(
            merge_buckets,
            pieces=read,
            shuffle=shuffle,
            folder=draft.url,
            traits=traits,
            keep=cfg.dedupe,
        ),
        tasks,
        stage="prepare merge",
        rows=lambda done: done.n_rows,
    )
    filesystem, path = open_filesystem(shuffle)
    filesystem.delete_dir(path)
    return _interaction_facts(cfg, read, merged, traits, files, base=base)


def _with_earlier(
    cfg: PrepareConfig, base: Build, read: Sequence[PieceResult], draft: Draft
) -> list[MergeTask]:
    """Return merge tasks with the earlier parts and take the earlier quarantine over."""
    n_new = sum(piece.n_rows - piece.n_ignored - sum(piece.reasons.values()) for piece in read)
    uris = base.urls(".parquet", prefix=PARTS)
    earlier_good = base.facts["rows"] + base.facts["duplicates"]
    tasks = bucket_ranges(n_new + earlier_good)
    for name in base.files(prefix="quarantine-"):
        target = name.replace("quarantine-", "quarantine-earlier-", 1)
        shutil.copyfile(base.path(name), draft.path(target))
    return [
        dataclasses.replace(task, earlier=earlier_part(uris, first=task.first)) for task in tasks
    ]


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
    *,
    base: Base | None,
) -> dict[str, Any]:
    reasons = _add_up(piece.reasons for piece in read)
    untimed = sum(part.n_untimed for part in merged)
    n_rows = sum(piece.n_rows for piece in read)
    if untimed:
        reasons["missing timestamp"] = reasons.get("missing timestamp", 0) + untimed
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
        "filtered": sum(piece.n_ignored for piece in read),
    }
    earlier_rows = base.interactions.facts["rows"] if base else 0
    left = n_rows + earlier_rows - sum(part.n_rows + part.n_duplicates for part in merged)
    assert left == sum(reasons.values()) + counts["filtered"], counts
    facts = counts | {
        "n_users": n_users,
        **dataclasses.asdict(traits),
        "time_range": [min(r[0] for r in ranges), max(r[1] for r in ranges)] if ranges else None,
        "timestamp_units": _add_up(piece.units for piece in read),
    }
    return add_facts(base.interactions.facts, facts) if base else facts


def _add_up(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items()))
