"""The new logs of a refresh: which files are new, and the run's log with them.

A file is taken once. It is known by its content (events by the name of the folded file, which an
erasure rewrites), and the ledger says what became of it: the run's interactions hold it, or it was
set aside with the refresh that took it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.commands.events import FoldConfig
from raysys.commands.events import fold as fold_events
from raysys.commands.prepare import prepare
from raysys.config import JobConfig
from raysys.data.interactions import Interactions, InteractionsFacts
from raysys.errors import ConfigError
from raysys.events.fold import files_of
from raysys.events.records import EVENTS
from raysys.log.columns import ColumnsConfig, ItemsColumnsConfig
from raysys.log.formats.config import FormatConfig
from raysys.log.formats.contract import SourceFile
from raysys.log.sources import fingerprint, list_files
from raysys.prepare.config import PrepareConfig
from raysys.reports.refreshes import NOTHING_NEW, WAITING, Decision, held
from raysys.store.builds import Build, Workspace
from raysys.store.storage import open_filesystem

log = logging.getLogger(__name__)

Cuts = Callable[[Build], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class NewLogs:
    """Files that a refresh takes.

    Attributes:
        source: of the log; None where it has no new file.
        files: {URI: fingerprint} of its new files.
        events: {URI: name} of the new folded files of events.
        aside: files of both that earlier refreshes set aside.
        settings: `columns` and `format` of the log.
    """

    source: str | None
    files: Mapping[str, str]
    events: Mapping[str, str]
    aside: int
    settings: Mapping[str, Any]

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return bool(self.files or self.events)


def find(
    workspace: Workspace,
    decisions: Sequence[Decision],
    *,
    source: str | None,
    events: bool,
    retry: bool,
) -> NewLogs:
    """Return the files that no refresh took, nor an append by hand.

    Args:
        workspace: the run.
        decisions: of its ledger.
        source: file, directory, glob or URI of logs; None: none.
        events: take what services of the run wrote down, as far as it is folded.
        retry: take files again that were set aside.

    Raises:
        DataError: the source does not exist or holds no files.
    """
    interactions = workspace.current("interactions")
    inside = held(decisions, interactions.build_id)
    known = {mark for decision in inside for mark in decision.marks}
    known |= set(interactions.manifest.config.get("appended", ()))
    decided = [each for each in decisions if each.decision != WAITING and each.stands]
    marks = {mark for decision in decided for mark in decision.marks}
    repeats = {
        m for decision in decided if decision.decision == NOTHING_NEW for m in decision.marks
    }
    left = set() if retry else marks - known
    files = _marked(source) if source else {}
    names = _folded(workspace) if events else {}
    last = next((d.log_settings for d in reversed(decisions) if d.log_settings), None)
    keys = ("columns", "format")
    fresh = {uri: mark for uri, mark in files.items() if mark not in known | left}
    return NewLogs(
        source=source if fresh else None,
        files=fresh,
        events={uri: name for uri, name in names.items() if name not in known | left},
        aside=sum(mark in left - repeats for mark in (*files.values(), *names.values())),
        settings=last or {key: interactions.manifest.config[key] for key in keys},
    )


def fold(cfg: JobConfig) -> None:
    """Put what services of the run wrote down into files."""
    fold_events(FoldConfig(run=cfg.run, cache_dir=cfg.cache_dir))


def _folded(workspace: Workspace) -> dict[str, str]:
    """Return {URI: name in the run} of the folded files of events."""
    if not files_of(workspace.storage, EVENTS):
        return {}
    found = list_files(workspace.storage.url(EVENTS.name), "parquet")
    return {file.uri: f"{EVENTS.name}/{file.name}" for file in found}


def _marked(source: str) -> dict[str, str]:
    files: list[SourceFile] = list_files(source, any_ending=True)
    return {file.uri: fingerprint([file])[0] for file in files}


def append(
    cfg: JobConfig, workspace: Workspace, new: NewLogs, *, items: str | None, cuts: Cuts
) -> dict[str, int]:
    """Add new logs to the interactions, which become current where the work is done.

    Args:
        cfg: of the job.
        workspace: the run, as seen from that place.
        new: the files; events go first.
        items: file of items; None: titles and attributes stay.
        cuts: windows of the last profiles, see `prepare`.

    Returns:
        Rows: `before`, `after`, `new`, `repeated`, `quarantined`.

    Raises:
        DataError, ConfigError: a log cannot be read.
    """
    before = InteractionsFacts.of(workspace.current("interactions"))
    event_settings = {"columns": ColumnsConfig(), "format": FormatConfig()}
    events = {"source": workspace.storage.url(EVENTS.name), **event_settings}
    given = {
        "columns": ColumnsConfig(**new.settings["columns"]),
        "format": FormatConfig(**new.settings["format"]),
    }
    steps = [(events, new.events)] if new.events else []
    steps += [({"source": new.source, **given}, new.files)] if new.files else []
    for number, (settings, files) in enumerate(steps, start=1):
        last = number == len(steps)
        asked = _settings(cfg, workspace, items=items, **settings)
        prepare(asked, only=files.keys(), cuts=cuts if last else None)
    after = InteractionsFacts.of(workspace.current("interactions"))
    return {
        "before": before.rows,
        "after": after.rows,
        "new": after.rows - before.rows,
        "repeated": after.duplicates - before.duplicates,
        "quarantined": sum(after.quarantined.values()) - sum(before.quarantined.values()),
    }


def _settings(
    cfg: JobConfig, workspace: Workspace, *, items: str | None, **given: Any
) -> PrepareConfig:
    """Return the settings of an append: those that the run's log was prepared with."""
    rows = workspace.current("interactions").manifest.config
    split = workspace.current("profiles").manifest.config
    if rows.get("folds") or split["split"] != "temporal":
        kind = "folds=" if rows.get("folds") else f"split={split['split']}"
        raise ConfigError(
            f"refresh judges models by what came later, but {cfg.run} was prepared with {kind}: "
            "prepare it with split=temporal"
        )
    known = {field.name for field in dataclasses.fields(PrepareConfig)}
    before = {k: v for k, v in {**rows, **split}.items() if k in known and k not in given}
    before.pop("folds", None)
    before["items_columns"] = ItemsColumnsConfig(**split["items_columns"])
    before["items_format"] = FormatConfig(**split["items_format"])
    place = {"run": cfg.run, "cache_dir": cfg.cache_dir, "ray": cfg.ray}
    return PrepareConfig(**{**before, **place, "mode": "append", "items": items, **given})


def users_between(interactions: Build, start: int, stop: int) -> int:
    """Return how many users have rows in [start, stop), UTC seconds."""
    total = 0
    for url in Interactions.open(interactions).part_urls:  # parts hold whole users
        filesystem, path = open_filesystem(url)
        rows = pq.read_table(path, filesystem=filesystem, columns=["user_id", "timestamp"])
        time = rows["timestamp"]
        inside = pc.and_(pc.greater_equal(time, start), pc.less(time, stop))
        total += pc.count_distinct(rows["user_id"].filter(inside)).as_py()
    return total


def times_since(interactions: Build, start: int) -> NDArray[np.int64]:
    """Return the times of rows from `start` on, UTC seconds, in any order."""
    found = [np.zeros(0, dtype=np.int64)]
    for url in Interactions.open(interactions).part_urls:
        filesystem, path = open_filesystem(url)
        time = pq.read_table(path, filesystem=filesystem, columns=["timestamp"])["timestamp"]
        values = time.to_numpy()
        found.append(values[values >= start])
    return np.concatenate(found)
