"""Adding logs to a run: which builds the new ones go on from, and how their facts add up.

interactions (earlier) + new logs  -> interactions, as if all logs had been read at once
profiles (earlier): its item order -> the first item numbers of the new profiles
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Container
from typing import Any

import pyarrow as pa

from raysys.data.interactions import InteractionsFacts
from raysys.data.profiles import read_items
from raysys.errors import ConfigError, DataError
from raysys.log.accounting import with_earlier
from raysys.prepare.catalogue import OWN_COLUMNS
from raysys.prepare.clean import N_BUCKETS, LogTraits
from raysys.store.builds import Build, Workspace

BASE = "appended_to"
_SAME = ("dedupe", "min_rating", "max_rating", "events", "ignore_events")


@dataclasses.dataclass(frozen=True)
class Base:
    """The earlier builds that an append goes on from.

    Attributes:
        interactions: all rows so far.
        profiles: gave the item numbers so far; None where there is none.
    """

    interactions: Build
    profiles: Build | None


def find_base(ws: Workspace, *, source: list[str]) -> Base:
    """Return what to append to: the current builds, or their bases if they hold the source already.

    So that running the same append again finds its own finished build.

    Args:
        ws: the run.
        source: fingerprint of the new logs.

    Raises:
        BuildError: the run holds no interactions yet.
    """
    interactions = ws.current("interactions")
    profiles = ws.current("profiles") if ws.has("profiles") else None
    last = interactions.manifest.config.get("appended")
    if last == source:
        done, interactions = interactions, _base_of(ws, interactions)
        if profiles is not None and profiles.made_from(done):
            profiles = _base_of(ws, profiles) if BASE in profiles.manifest.config else None
    return Base(interactions, profiles)


def _base_of(ws: Workspace, build: Build) -> Build:
    ref = build.manifest.config[BASE]
    found = ws.open(build.kind, ref["build_id"])
    if found.content_id != ref["content_id"]:
        raise DataError(
            f"{build.kind} {build.build_id} was appended to content {ref['content_id']}, but "
            f"{found.build_id} has {found.content_id}: run prepare mode=full on all logs"
        )
    return found


def check_settings(base: Build, settings: dict[str, Any]) -> None:
    """Raise ConfigError where the log is cleaned by other rules than the earlier logs."""
    for key in _SAME:
        before = base.manifest.config.get(key)
        if before != settings[key]:
            raise ConfigError(
                f"mode=append with {key}={settings[key]!r}, but the run's interactions were made "
                f"with {before!r}: take the same, or mode=full on all logs"
            )


def joined_traits(base: InteractionsFacts, traits: LogTraits, columns: Container[str]) -> LogTraits:
    """Return what the earlier logs and a new one hold together.

    Kinds of events may begin in the middle of a log. What a whole log has may be null throughout a
    new part of it: nobody has rated for a week.

    Args:
        base: facts of the earlier logs.
        traits: of the new one.
        columns: that the new one has, by our names.

    Raises:
        DataError: the new log holds other things than the earlier ones.
    """
    optional = {"has_ratings": "rating", "has_events": "event", "has_time": "", "has_folds": ""}
    for name, column in optional.items():
        before, now = bool(getattr(base, name)), bool(getattr(traits, name))
        begins = now > before and name != "has_events"
        if begins or (before > now and column not in columns):
            what = name.removeprefix("has_")
            raise DataError(
                f"mode=append: the new log has {'' if now else 'no '}{what}, the earlier ones "
                f"have {'some' if before else 'none'}: run prepare mode=full on all logs"
            )
    return dataclasses.replace(
        traits,
        has_ratings=traits.has_ratings or base.has_ratings,
        has_events=traits.has_events or base.has_events,
    )


def earlier_part(uris: list[str], *, first: int) -> str:
    """Return the part of an earlier build that holds bucket `first`; it had no more parts than now.

    Args:
        uris: its parts in order, a power of two of them.
        first: a user bucket.
    """
    return uris[first * len(uris) // N_BUCKETS]


def add_facts(base: InteractionsFacts, new: InteractionsFacts) -> InteractionsFacts:
    """Return the counts of all logs together.

    Args:
        base: facts of the earlier interactions.
        new: of the merge: `rows`, `n_users` and `time_range` are of all logs, the rest of the new.
    """
    quarantined = Counter(base.quarantined) + Counter(new.quarantined)
    units = Counter(base.timestamp_units) + Counter(new.timestamp_units)
    columns, lines = with_earlier(new, base)
    return dataclasses.replace(
        new,
        rows_in=base.rows_in + new.rows_in,
        duplicates=base.duplicates + new.duplicates,
        filtered=base.filtered + new.filtered,
        erased=base.erased + new.erased,
        quarantined=dict(sorted(quarantined.items())),
        timestamp_units=dict(sorted(units.items())),
        columns=columns,
        left_out=base.left_out | new.left_out,
        lines=lines,
    )


def earlier_items(profiles: Build) -> tuple[pa.Array, pa.Table]:
    """Return the item ids in item_num order and the table of titles and attributes."""
    table = read_items(profiles).combine_chunks()
    own = [name for name in OWN_COLUMNS if name not in ("item_id", "title")]
    ids = table["item_id"].chunk(0) if len(table) else pa.array([], pa.string())
    return ids, table.drop_columns(own)


def has_catalogue(profiles: Build) -> bool:
    """Tell whether a file of items was read for earlier profiles."""
    _, table = earlier_items(profiles)
    titles = table["title"]
    return len(table.column_names) > 2 or titles.null_count < len(titles)
