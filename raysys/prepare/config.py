"""Settings of prepare."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from raysys import fields
from raysys.config import JobConfig, local, require
from raysys.data.schema import SPLITS
from raysys.log.columns import ColumnsConfig, ItemsColumnsConfig
from raysys.log.formats.config import FormatConfig

log = logging.getLogger(__name__)


@dataclasses.dataclass
class PrepareConfig(JobConfig):
    """Settings of prepare.

    Attributes:
        source: the log: file, directory, glob or URI of Parquet, CSV, TSV or JSON lines;
            `raysys look` shows how it reads.
        mode: full, or append: the log adds to the run's current interactions, whose logs are not
            read again; item numbers already given stay. Fixed val_cut and test_cut in seconds
            keep the windows where they are, quantiles move them.
        items: file with item_id, title and any attributes of the items.
        columns: names of the columns in the log.
        format: how the log's files are read, where their names and first line do not say.
        items_columns, items_format: the same for `items`.
        split: what the windows separate: temporal (before and after two cuts), users or ratings.
        folds: published folds of that split in place of our own: the log with a `fold` column
            (train, val, test, or train, val_in, val_out, test_in, test_out).
        val_cut, test_cut: where the val and test windows begin: a quantile of time, or UTC
            seconds if 1 or more (split=temporal).
        val_share, test_share: shares of users or ratings held out (split=users, ratings).
        min_user_rows: drop users with fewer rows in the fit window, but not none; null is 1, or 5
            rows in all for split=users.
        max_user_rows: drop users with more rows (bots), counted in the same way.
        min_item_rows: drop items with fewer rows in the fit window, but not none.
        core_rounds: how often min_user_rows and min_item_rows are applied in turn, at most; it ends
            early where nothing is dropped any more (k-core).
        dedupe: which of several rows of one (user, item, kind) stays: first or last in time; count
            is first with a column `count` of how many there were.
        events: accepted events; rows of others are quarantined; null accepts all.
        ignore_events: rows of these events are left out and counted as filtered.
        min_rating, max_rating: ratings outside are quarantined.
        liked_levels: levels that count as liked; null takes value >= min + 0.75 (max - min).
        negative_events: events that do not count as liked.
        max_bad_share: quarantined share of rows that stops the job.
    """

    GONE = {"target_share": "a fifth of a held-out user's items are targets (split=users)"}

    source: str = local("")
    mode: str = local("full")
    items: str | None = local(None)
    columns: ColumnsConfig = dataclasses.field(default_factory=ColumnsConfig)
    format: FormatConfig = dataclasses.field(default_factory=FormatConfig)
    items_columns: ItemsColumnsConfig = dataclasses.field(default_factory=ItemsColumnsConfig)
    items_format: FormatConfig = dataclasses.field(default_factory=FormatConfig)
    split: str = "temporal"
    folds: str | None = local(None)
    val_cut: float = 0.8
    test_cut: float = 0.9
    val_share: float = 0.1
    test_share: float = 0.1
    min_user_rows: int | None = None
    max_user_rows: int | None = None
    min_item_rows: int = 1
    core_rounds: int = 1
    dedupe: str = "first"
    events: list[str] | None = None
    ignore_events: list[str] = dataclasses.field(default_factory=list)
    min_rating: float | None = None
    max_rating: float | None = None
    liked_levels: list[str] | None = None
    negative_events: list[str] = dataclasses.field(default_factory=list)
    max_bad_share: float = 0.01

    @classmethod
    def from_old(cls, tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """Return the keys of today: what `split=given protocol=X` said, `split=X` says."""
        today = {name: value for name, value in tree.items() if name != "protocol"}
        protocol = tree.get("protocol")
        if fields.is_null(protocol):
            return today
        if tree.get("split") == "given":
            log.warning("split=given %sprotocol=%s is split=%s now", prefix, protocol, protocol)
            return today | {"split": protocol}
        log.warning(
            "key %sprotocol is gone, its value is ignored: it counted with split=given only", prefix
        )
        return today

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range and settings that conflict."""
        splits = f"{'|'.join(SPLITS)}, with folds= too"
        require(self.split in SPLITS, "split", self.split, splits)
        require(self.folds != "", "folds", self.folds, "a file with a fold column")
        require(self.val_cut > 0, "val_cut", self.val_cut, "> 0")
        same_kind = (self.val_cut < 1) == (self.test_cut < 1)
        ordered = not same_kind or self.val_cut < self.test_cut
        require(ordered, "test_cut", self.test_cut, f"later than val_cut={self.val_cut}")
        for key in ("val_share", "test_share"):
            require(0 < getattr(self, key) < 1, key, getattr(self, key), "between 0 and 1")
        held = self.val_share + self.test_share
        require(held < 1, "val_share + test_share", held, "< 1")
        for key in ("min_user_rows", "max_user_rows", "min_item_rows", "core_rounds"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, value, ">= 1")
        accepted = ("first", "last", "count")
        require(self.dedupe in accepted, "dedupe", self.dedupe, "|".join(accepted))
        require(self.mode in ("full", "append"), "mode", self.mode, "full|append")
        append_folds = self.mode == "append" and self.folds is not None
        require(not append_folds, "mode", self.mode, "full, with folds=")
        both = sorted(set(self.events or ()) & set(self.ignore_events))
        require(not both, "ignore_events", both, "events that are not in events= too")
        given_time = self.items_format.time
        require(given_time is None, "items_format.time", given_time, "null: items have no times")
        require(0 <= self.max_bad_share <= 1, "max_bad_share", self.max_bad_share, "0..1")
