"""A log as `prepare` and `look` open it: its files, its reader, which columns mean what."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from raysys.errors import ConfigError, DataError
from raysys.log.columns import Mapped, map_columns, our_name
from raysys.log.formats.config import FORMATS, FormatConfig
from raysys.log.formats.contract import SourceFile
from raysys.log.readers import Source, make_reader
from raysys.log.sniff import N, hint
from raysys.log.sources import ENDINGS, UNKNOWN, list_files
from raysys.prepare.clean import EventRules
from raysys.prepare.config import PrepareConfig
from raysys.prepare.tasks import ReadPlan

TIMELESS = "split=users, split=ratings and folds= of these do without time"


@dataclasses.dataclass(frozen=True)
class Log:
    """An opened log.

    Attributes:
        source: its files and their reader.
        mapped: its columns.
    """

    source: Source
    mapped: Mapped

    @property
    def files(self) -> list[SourceFile]:
        """Return the files of the log."""
        return self.source.files

    def without(self, reasons: Mapping[str, str]) -> Log:
        """Return the log without some columns, by our name with the reason."""
        return Log(self.source, self.mapped.without(reasons))

    def of_files(self, uris: Collection[str]) -> Log:
        """Return the log of some of its files alone."""
        files = [file for file in self.files if file.uri in uris]
        return Log(dataclasses.replace(self.source, files=files), self.mapped)


def open_source(
    where: str,
    settings: FormatConfig,
    columns: N,
    *,
    prefix: str = "",
) -> Source:
    """Return the files of a source and their reader.

    Args:
        where: file, directory, glob or URI.
        settings: how to read them.
        columns: whose `names` name the columns.
        prefix: `items_` for the catalogue, in messages.

    Raises:
        DataError: there are no files, or nothing says their format; the message proposes one.
        ConfigError: a setting means nothing in their format.
    """
    files = list_files(where, settings.kind, any_ending=True)
    if files[0].format == UNKNOWN:
        raise DataError(
            f"{files[0].uri} has no known format: expected {ENDINGS}, or "
            f"{prefix}format.kind={'|'.join(FORMATS)}"
            + hint(files[0], settings, columns, prefix=prefix)
        )
    return Source(files, make_reader(files[0].format, settings, columns.names))


def open_log(cfg: PrepareConfig) -> Log:
    """Return the log of `source=`, or of `folds=` where it is set.

    Raises:
        DataError: it cannot be read. ConfigError: a column is not there.
    """
    given = cfg.folds is not None
    source = open_source((cfg.folds if given else cfg.source) or "", cfg.format, cfg.columns)
    temporal = cfg.split == "temporal"
    needed = ["user", "item", *(["timestamp"] if temporal else [])]
    asked = [getattr(cfg.columns, role) or our_name(role) for role in needed]
    asked += ["fold"] if given else []
    asked += [name for name in dataclasses.asdict(cfg.columns).values() if isinstance(name, str)]
    seen = source.columns(late=[name for name in asked if name])
    uri = source.files[0].uri
    maybe = {"rating", "timestamp", "event"} - set(asked) if source.reader.open_ended else ()
    try:
        mapped = map_columns(cfg.columns, seen, source=uri, folds=given, maybe=maybe)
    except ConfigError as error:
        raise ConfigError(str(error) + hint(source.files[0], cfg.format, cfg.columns)) from error
    lacking = source.lacking([mapped.columns["user_id"], mapped.columns["item_id"]])
    if lacking is not None:
        file, name = lacking
        raise DataError(
            f"{file.uri} has no column {name!r}, the other files of the source do: give it the "
            "same header, or name the files that belong together by a glob"
        )
    if temporal and "timestamp" not in mapped.columns:
        name = cfg.columns.timestamp or "timestamp"
        why = f": it {seen[name] or 'is switched off'}" if name in seen else ""
        raise DataError(
            f"split=temporal needs a time, {uri} has no column "
            f"{name!r} among {', '.join(seen)}{why}; {TIMELESS}"
            + hint(source.files[0], cfg.format, cfg.columns)
        )
    return Log(source, mapped)


def read_plan(cfg: PrepareConfig, log: Log) -> ReadPlan:
    """Return how the rows of a log are read and judged."""
    accepted = None if cfg.events is None else tuple(cfg.events)
    return ReadPlan(
        reader=log.source.reader,
        columns=log.mapped.columns,
        rating_range=(cfg.min_rating, cfg.max_rating),
        events=EventRules(accepted, tuple(cfg.ignore_events)),
        time_form=cfg.format.time,
    )
