"""prepare: raw logs -> `interactions` (clean, deduplicated) -> `profiles` (numbered, split).

Both are made of independent tasks on files (`raysys.prepare.tasks`), so memory is bounded by the
size of a piece, and the files do not depend on the number of workers or the order of the rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable, Collection, Sequence

import pyarrow as pa
from pyarrow import fs as pafs

from raysys.cluster.connect import connected
from raysys.cluster.tasks import distribute
from raysys.commands.prepare_profiles import write_profiles
from raysys.config import identity, require_run
from raysys.data.interactions import Interactions, InteractionsFacts, quarantine_name
from raysys.data.profiles import ProfilesFacts
from raysys.errors import BuildError, DataError
from raysys.log.accounting import (
    add_tallies,
    add_up,
    column_uses,
    line_counts,
    log_account,
    unfit_defaults,
)
from raysys.log.formats.contract import SourceFile
from raysys.log.sniff import hint
from raysys.log.sources import fingerprint
from raysys.prepare.append import (
    BASE,
    Base,
    add_facts,
    check_settings,
    earlier_part,
    find_base,
    has_catalogue,
    joined_traits,
)
from raysys.prepare.clean import N_BUCKETS, LogTraits
from raysys.prepare.config import PrepareConfig
from raysys.prepare.item_file import open_items, read_items
from raysys.prepare.opened_log import TIMELESS, Log, open_log, read_plan
from raysys.prepare.tasks import (
    MergeResult,
    MergeTask,
    PieceResult,
    merge_buckets,
    read_piece,
)
from raysys.store.builds import Build, StageResult, Workspace
from raysys.store.drafts import Draft
from raysys.store.erasures import Erasures
from raysys.store.leases import APPEND
from raysys.store.storage import join, open_filesystem
from raysys.tracking import tracked_stage

log = logging.getLogger(__name__)

PART_ROWS = 1 << 19
_LOG_KEYS = (
    "columns",
    "format",
    "dedupe",
    "min_rating",
    "max_rating",
    "events",
    "ignore_events",
    "max_bad_share",
)


@tracked_stage("prepare")
def prepare(
    cfg: PrepareConfig,
    *,
    only: Collection[str] | None = None,
    cuts: Callable[[Build], tuple[float, float]] | None = None,
) -> StageResult:
    """Write the `interactions` and `profiles` builds of a log.

    Args:
        cfg: the settings.
        only: URIs of the files of the source that are read; None: all.
        cuts: gives `val_cut` and `test_cut` for the interactions; None: those of the settings.

    Raises:
        DataError: the source cannot be used. ConfigError: a column or setting does not fit it.
    """
    require_run(cfg)
    has_folds = cfg.folds is not None
    if has_folds and cfg.source:
        log.warning("setting ignored key=source value=%s reason=folds_are_read", cfg.source)
    opened = open_log(cfg) if only is None else open_log(cfg).of_files(only)
    items, item_files = _items(cfg)
    ws = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    settings = {key: value for key, value in identity(cfg).items() if key in _LOG_KEYS}
    settings["folds"] = has_folds
    marks = fingerprint(opened.files)
    with contextlib.ExitStack() as session:
        base = None
        if cfg.mode == "append":  # one at a time, else the rows of one of two appends are lost
            session.enter_context(ws.held(APPEND))
            base = find_base(ws, source=marks)
            if items is None and base.profiles is not None and has_catalogue(base.profiles):
                log.warning("items that are new have no title and no attributes without items=")
            check_settings(base.interactions, settings)
            settings |= {"appended": marks, BASE: base.interactions.ref()}
        erasures = Erasures.of(ws.storage)  # not before the lease, which forget holds
        if erasures is not None:
            settings["erased"] = erasures.identity

        def write_rows(draft: Draft) -> InteractionsFacts:
            session.enter_context(connected(cfg.ray))
            facts = _write_interactions(cfg, opened, draft, base=base, erasures=erasures)
            now = Erasures.of(ws.storage)
            if now is not None and (erasures is None or now.identity != erasures.identity):
                raise BuildError("users were forgotten while the log was read: run prepare again")
            return facts

        interactions = ws.build(
            "interactions", config=settings, source=marks, write=write_rows, force=cfg.force
        )
        if cuts is not None:
            val_cut, test_cut = cuts(interactions)
            cfg = dataclasses.replace(cfg, val_cut=val_cut, test_cut=test_cut)
        settings = {key: v for key, v in identity(cfg).items() if key not in _LOG_KEYS}
        earlier = base.profiles if base is not None else None
        if earlier is not None:
            settings[BASE] = earlier.ref()

        def write_shards(draft: Draft) -> ProfilesFacts:
            session.enter_context(connected(cfg.ray))
            opened_rows = Interactions.open(interactions)
            return write_profiles(cfg, opened_rows, items, draft, earlier=earlier)

        profiles = ws.build(
            "profiles",
            config=settings,
            inputs=[interactions],
            source=fingerprint(item_files),
            write=write_shards,
            force=cfg.force,
        )
    log_account(InteractionsFacts.of(interactions))
    return StageResult(
        build_ids={"interactions": interactions.build_id, "profiles": profiles.build_id},
        extra={"interactions": interactions.record(), "profiles": profiles.record()},
    )


def _items(cfg: PrepareConfig) -> tuple[pa.Table | None, list[SourceFile]]:
    """Return the table of items, None without one, and the files that it was read from."""
    if not cfg.items:
        return None, []
    catalogue = open_items(cfg.items, cfg.items_format, cfg.items_columns)
    items = read_items(
        catalogue,
        cfg.items_format,
        cfg.items_columns,
        log_column=cfg.columns.item,
        max_bad_share=cfg.max_bad_share,
    )
    return items, catalogue.files


def _write_interactions(
    cfg: PrepareConfig,
    opened: Log,
    draft: Draft,
    *,
    base: Base | None,
    erasures: Erasures | None,
) -> InteractionsFacts:
    """Clean, shuffle and merge the log; return the build's facts."""
    shuffle = join(draft.url, ".shuffle")
    earlier = None if base is None else Interactions.open(base.interactions)
    opened, read = _read(cfg, opened, draft, shuffle, erasures)
    _check_read(cfg, read, opened)
    rated_before = earlier is not None and earlier.facts.has_ratings
    traits = LogTraits(
        has_ratings=_ratings_count(read, rated_before=rated_before),
        has_events=any(piece.n_events for piece in read),
        has_time=any(piece.n_timed for piece in read),
        has_folds="fold" in opened.mapped.columns,
    )
    if cfg.split == "temporal" and not traits.has_time:
        raise DataError(
            f"split=temporal needs a time, all are null in {opened.files[0].uri}; {TIMELESS}"
        )
    tasks = bucket_ranges(sum(p.n_rows - p.n_ignored - sum(p.reasons.values()) for p in read))
    if earlier is not None:
        traits = joined_traits(earlier.facts, traits, opened.mapped.columns)
        tasks = _with_earlier(earlier, read, draft)
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
    return _interaction_facts(cfg, read, merged, traits, opened, earlier=earlier)


def _read(
    cfg: PrepareConfig, opened: Log, draft: Draft, shuffle: str, erasures: Erasures | None
) -> tuple[Log, list[PieceResult]]:
    """Read all pieces; again without the optional columns that turn out to hold other things."""
    pieces = opened.source.pieces()
    columns = opened.mapped.columns
    log.info(
        "prepare source files=%d pieces=%d columns=%s", len(opened.files), len(pieces), columns
    )
    plan = dataclasses.replace(read_plan(cfg, opened), erasures=erasures)
    read = distribute(
        functools.partial(read_piece, plan=plan, folder=draft.url, shuffle=shuffle),
        list(enumerate(pieces)),
        stage="prepare read",
        rows=lambda done: done.n_rows,
    )
    n_rows = sum(piece.n_rows for piece in read)
    odd = add_up(piece.odd for piece in read)
    unfit = unfit_defaults(opened.mapped, odd, n_rows, share=cfg.max_bad_share)
    if not unfit:
        return opened, read
    for name, reason in unfit.items():
        log.warning("prepare column left out name=%s reason=%s", columns[name], reason)
    filesystem, root = open_filesystem(draft.url)
    for info in filesystem.get_file_info(pafs.FileSelector(root)):
        if info.base_name.startswith(quarantine_name("piece-")):
            filesystem.delete_file(info.path)
    return _read(cfg, opened.without(unfit), draft, shuffle, erasures)


def _ratings_count(read: Sequence[PieceResult], *, rated_before: bool) -> bool:
    """Tell whether ratings are what rows say: one value throughout says less than events do."""
    ends = {end for piece in read for end in piece.rating_range or ()}
    has_events = any(piece.n_events for piece in read)
    return len(ends) > 1 or bool(ends and (rated_before or not has_events))


def _with_earlier(
    earlier: Interactions, read: Sequence[PieceResult], draft: Draft
) -> list[MergeTask]:
    """Return merge tasks with the earlier parts and take the earlier quarantine over."""
    n_new = sum(piece.n_rows - piece.n_ignored - sum(piece.reasons.values()) for piece in read)
    urls = earlier.part_urls
    tasks = bucket_ranges(n_new + earlier.facts.rows + earlier.facts.duplicates)
    for which, path in earlier.quarantine.items():
        shutil.copyfile(path, draft.path(quarantine_name(f"earlier-{which}")))
    return [
        dataclasses.replace(task, earlier=earlier_part(urls, first=task.first)) for task in tasks
    ]


def bucket_ranges(n_rows: int) -> list[MergeTask]:
    """Return which user buckets form each part: a power of two of parts of about `PART_ROWS`."""
    parts = 1
    while parts < N_BUCKETS and parts * PART_ROWS < n_rows:
        parts *= 2
    width = N_BUCKETS // parts
    return [MergeTask(k, k * width, (k + 1) * width) for k in range(parts)]


def _check_read(cfg: PrepareConfig, read: Sequence[PieceResult], opened: Log) -> None:
    n_rows = sum(piece.n_rows for piece in read)
    if not n_rows:
        raise DataError(f"{opened.files[0].uri} holds no rows")
    reasons = add_up(piece.reasons for piece in read)
    _check_bad(cfg, opened, reasons, n_rows, next((p.example for p in read if p.example), ""))
    units = add_up(piece.units for piece in read)
    log.info("prepare timestamps units=%s", units or "none")
    if len(units) > 1:
        log.warning("timestamps of several units were read, row by row: %s", units)
    if (cfg.events is not None or cfg.ignore_events) and "event" not in opened.mapped.columns:
        log.warning("settings ignored keys=events,ignore_events reason=the_log_has_no_events")


def _check_bad(
    cfg: PrepareConfig, opened: Log, reasons: dict[str, int], n_rows: int, example: str
) -> None:
    n_bad = sum(reasons.values())
    if n_bad:
        log.warning("quarantined rows=%d of %d reasons=%s", n_bad, n_rows, reasons)
    if n_bad > cfg.max_bad_share * n_rows:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise DataError(
            f"{n_bad} of {n_rows} rows break a rule ({n_bad / n_rows:.2%}, "
            f"max_bad_share={cfg.max_bad_share}): {counts}; {example}"
            + hint(opened.files[0], cfg.format, cfg.columns)
        )
    if n_bad == n_rows:
        raise DataError(f"all {n_rows} rows break a rule: {reasons}")


def _interaction_facts(
    cfg: PrepareConfig,
    read: Sequence[PieceResult],
    merged: Sequence[MergeResult],
    traits: LogTraits,
    opened: Log,
    *,
    earlier: Interactions | None,
) -> InteractionsFacts:
    reasons = add_up(piece.reasons for piece in read)
    untimed = sum(part.n_untimed for part in merged)
    n_rows = sum(piece.n_rows for piece in read)
    if untimed:
        reasons["missing timestamp"] = reasons.get("missing timestamp", 0) + untimed
        _check_bad(cfg, opened, reasons, n_rows, "")
    n_users = sum(part.n_users for part in merged)
    if n_users < 2:
        raise DataError(
            f"{opened.files[0].uri} is the log of {n_users} user: at least 2 are needed"
        )
    ranges = [part.time_range for part in merged if part.time_range]
    facts = InteractionsFacts(
        rows_in=n_rows,
        rows=sum(part.n_rows for part in merged),
        duplicates=sum(part.n_duplicates for part in merged),
        filtered=sum(piece.n_ignored for piece in read),
        erased=sum(piece.n_erased for piece in read),
        quarantined=reasons,
        n_users=n_users,
        **dataclasses.asdict(traits),
        time_range=(min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None,
        timestamp_units=add_up(piece.units for piece in read),
        columns=column_uses(opened.mapped, add_up(piece.present for piece in read), n_rows=n_rows),
        left_out=opened.mapped.left_out,
        lines=line_counts(add_tallies(piece.tally for piece in read)),
    )
    before = earlier.facts.rows if earlier else 0
    left = n_rows + before - facts.rows - facts.duplicates
    assert left == sum(reasons.values()) + facts.filtered, facts
    return add_facts(earlier.facts, facts) if earlier else facts
