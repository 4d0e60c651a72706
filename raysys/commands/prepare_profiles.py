"""`interactions` -> `profiles`: split, number and shard, the second half of prepare."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysys.cluster.tasks import distribute
from raysys.data.interactions import Interactions, InteractionsFacts
from raysys.data.profiles import LEVELS, Core, Profiles, ProfilesFacts, shard_name, write_tables
from raysys.data.schema import Window, period_windows
from raysys.errors import DataError
from raysys.prepare.append import earlier_items
from raysys.prepare.catalogue import (
    PartStatistics,
    catalogue_sizes,
    join_attributes,
    merge_items,
    merge_levels,
    number_items,
    rare_items,
)
from raysys.prepare.config import PrepareConfig
from raysys.prepare.cutoffs import cutoffs_of_folds, resolve_cutoffs
from raysys.prepare.levels import build_levels, with_liked
from raysys.prepare.opened_log import TIMELESS
from raysys.prepare.splits import SplitPlan
from raysys.prepare.tasks import UserShardTask, count_part, write_user_shard
from raysys.store.builds import Build, Workspace
from raysys.store.drafts import Draft

log = logging.getLogger(__name__)


def write_profiles(
    cfg: PrepareConfig,
    interactions: Interactions,
    attributes: pa.Table | None,
    draft: Draft,
    *,
    earlier: Build | None,
) -> ProfilesFacts:
    """Split, number and shard the interactions; return the build's facts."""
    facts = interactions.facts
    uris = interactions.part_urls
    plan = _plan(cfg, uris, facts)
    core = _count(cfg, uris, plan, has_time=facts.has_time)
    counted = core.parts
    levels = build_levels(
        merge_levels([part.levels for part in counted]),
        liked_levels=cfg.liked_levels,
        negative_events=cfg.negative_events,
    )
    earlier_ids = None
    if earlier is not None:
        earlier_ids, described_before = earlier_items(earlier)
        attributes = described_before if attributes is None else attributes
    items = number_items(core.items, excluded=core.rare, earlier=earlier_ids)
    catalogue = catalogue_sizes(items)
    present = pc.if_else(items["dropped"], None, items["item_id"]).combine_chunks()
    first_user = 0
    tasks = []
    for number, (uri, part) in enumerate(zip(uris, counted, strict=True)):
        tasks.append(UserShardTask(uri, shard_name(number), first_user))
        first_user += len(part.users)
    shards = distribute(
        functools.partial(
            write_user_shard,
            plan=plan,
            item_ids=present,
            excluded=core.excluded,
            levels=levels,
            n_fit_items=catalogue["val"],
            folder=draft.url,
        ),
        tasks,
        stage="prepare shards",
        rows=lambda done: done.n_cells,
    )
    table, described = join_attributes(items, attributes)
    _check_described(described, items, attributes)
    user_ids = pa.chunked_array([part.users for part in counted], pa.string())
    write_tables(draft, items=table, user_ids=user_ids, levels=levels)
    windows = [sum(shard.windows[w] for shard in shards) for w in range(len(Window))]
    filtered = {
        "dropped_users": sum(part.n_dropped for part in counted),
        "rare_items": sum(shard.n_rare for shard in shards),
        "level_unknown_to_fit": sum(shard.n_unknown_level for shard in shards),
    }
    _check_windows(cfg, windows)
    assert facts.rows == sum(windows) + sum(filtered.values()), (windows, filtered)
    return ProfilesFacts(
        split=plan.split,
        folds=plan.given,
        n_users=first_user,
        n_items=len(items),
        catalogue=catalogue,
        cutoffs=None
        if plan.cutoffs is None
        else dict(zip(("val", "test"), plan.cutoffs, strict=True)),
        has_time=facts.has_time,
        n_cells={window.name: windows[window] for window in Window},
        filtered={reason: count for reason, count in filtered.items() if count},
        core=Core(core.rounds, core.settled),
        n_described_items=described,
        levels=levels.names,
    )


def relabelled(workspace: Workspace, profiles: Build, changed: Mapping[str, Any]) -> Build:
    """Return profiles whose levels are liked by other settings; no cell is read or changed.

    Args:
        workspace: the run.
        profiles: what is taken but for `RatingLevels.liked`.
        changed: `liked_levels`, `negative_events` or both.
    """
    before = profiles.manifest.config
    keys = {"liked_levels": None, "negative_events": ()}
    settings = {key: changed.get(key, before.get(key, usual)) for key, usual in keys.items()}

    def write(draft: Draft) -> ProfilesFacts:
        for name in profiles.files():
            shutil.copyfile(profiles.path(name), draft.path(name))
        opened = Profiles.open(profiles)
        with_liked(opened.levels, **settings).save(draft.path(LEVELS))
        return opened.facts

    inputs = [
        workspace.open(kind, ref["build_id"]) for kind, ref in profiles.manifest.inputs.items()
    ]
    config = {**before, **settings}
    source = {"relabelled": profiles.content_id}
    return workspace.build("profiles", config=config, inputs=inputs, source=source, write=write)


def _check_described(described: int, items: pa.Table, attributes: pa.Table | None) -> None:
    """Warn where the item file describes under half of the log's items: other ids, perhaps."""
    if attributes is None or 2 * described >= len(items):
        return
    ids, known = items["item_id"].combine_chunks(), attributes["item_id"].combine_chunks()
    log.warning(
        "items describe %d of the log's %d items; ids of the log that items= lacks: %s; "
        "ids of items= that the log lacks: %s",
        described,
        len(items),
        _examples(ids, known),
        _examples(known, ids),
    )


def _examples(ids: pa.Array, others: pa.Array) -> str:
    lacking = ids.filter(pc.invert(pc.is_in(ids, value_set=others)))[:3].to_pylist()
    return ", ".join(map(repr, lacking)) or "none"


@dataclasses.dataclass(frozen=True)
class _Core:
    """Counts of the users and items that stay.

    Attributes:
        parts: per part; their users count rows of items outside `excluded` only.
        items: of `merge_items`.
        excluded: items dropped before the last count; rare: those and what it dropped.
        rounds: counts taken; settled: another one would drop nothing.
    """

    parts: list[PartStatistics]
    items: pa.Table
    excluded: pa.Array
    rare: pa.Array
    rounds: int
    settled: bool


def _count(cfg: PrepareConfig, uris: Sequence[str], plan: SplitPlan, *, has_time: bool) -> _Core:
    """Count, drop rare items and count again, `core_rounds` times or until nothing changes."""
    excluded = pa.array([], pa.string())
    for number in range(1, cfg.core_rounds + 1):
        parts = distribute(
            functools.partial(count_part, plan=plan, has_time=has_time, excluded=excluded),
            uris,
            stage="prepare count",
            rows=lambda done: done.n_rows,
        )
        items = merge_items([part.items for part in parts])
        found = rare_items(items, min_item_rows=cfg.min_item_rows)
        rare = pc.unique(pa.concat_arrays([excluded, found])).sort()
        settled = len(rare) == len(excluded)
        if settled or number == cfg.core_rounds:
            return _Core(parts, items, excluded, rare, number, settled)
        excluded = rare
    raise AssertionError("core_rounds is at least 1")


def _plan(cfg: PrepareConfig, uris: Sequence[str], facts: InteractionsFacts) -> SplitPlan:
    split = cfg.split
    cutoffs = None
    if split == "temporal" and not facts.has_time:
        raise DataError(f"split=temporal needs a time, the log has none; {TIMELESS}")
    if split == "temporal" and cfg.folds is not None:
        cutoffs = cutoffs_of_folds(uris)
    elif split == "temporal":
        assert facts.time_range is not None, "a log with time has a range"
        cutoffs = resolve_cutoffs(
            uris,
            (cfg.val_cut, cfg.test_cut),
            time_range=facts.time_range,
            n_rows=facts.rows,
        )
    return SplitPlan(
        split=split,
        given=cfg.folds is not None,
        seed=cfg.seed,
        cutoffs=cutoffs,
        val_share=cfg.val_share,
        test_share=cfg.test_share,
        min_user_rows=cfg.min_user_rows or (5 if cfg.split == "users" else 1),
        max_user_rows=cfg.max_user_rows,
    )


def _check_windows(cfg: PrepareConfig, windows: Sequence[int]) -> None:
    """Raise where a window that an evaluation needs has no cells."""
    for period in ("val", "test"):
        needs = period_windows(cfg.split, period)
        for window in (*needs.fitted, *needs.history, *needs.targets):
            if not windows[window]:
                found = {w.name: windows[w] for w in Window}
                raise DataError(
                    f"split={cfg.split} leaves window {window.name} without rows ({found}): "
                    "the log is too small for this split, or the cuts and shares are"
                )
