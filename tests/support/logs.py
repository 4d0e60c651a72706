"""A small planted log, and what reads it back through the same functions as `prepare`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.config import load
from raysys.log.accounting import unfit_defaults
from raysys.log.formats.contract import Tally
from raysys.prepare.config import PrepareConfig
from raysys.prepare.opened_log import open_log, read_plan
from raysys.prepare.tasks import odd_values

START = 1_500_000_000


class Row(NamedTuple):
    user: int
    item: int
    rating: int
    time: int


def planted(n_rows: int = 2400) -> list[Row]:
    """Return rows of 60 users and 30 items that keep to items of their own parity."""
    rng = np.random.default_rng(7)
    users = rng.integers(1, 61, n_rows)
    items = 2 * rng.integers(1, 16, n_rows) - users % 2
    ratings = rng.integers(1, 6, n_rows)
    columns = (users, items, ratings, START + 3600 * np.arange(n_rows))
    return [Row(*map(int, row)) for row in zip(*columns, strict=True)]


ROWS = planted()


def write_lines(path: Path, lines, *, encoding: str = "utf-8", end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    return path


def json_line(row: Row, **more) -> str:
    return json.dumps({"user_id": row.user, "item_id": row.item, "timestamp": row.time, **more})


def table(rows=None, **over) -> pa.Table:
    rows = ROWS if rows is None else rows
    columns = {
        "user_id": [row.user for row in rows],
        "item_id": [row.item for row in rows],
        "rating": [float(row.rating) for row in rows],
        "timestamp": [row.time for row in rows],
    } | over
    return pa.table({name: values for name, values in columns.items() if values is not None})


@dataclasses.dataclass
class Found:
    """What reading made of a log: good rows as (user, item, rating, time, event), and the rest."""

    rows: list[tuple]
    reasons: Counter
    places: list[tuple[str, int | None, int | None]]
    left_out: dict[str, str]
    tally: Tally

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return sorted(row[:2] for row in self.rows)

    def of(self, column: int) -> Counter:
        return Counter(row[column] for row in self.rows)


def prepare_here(monkeypatch) -> None:
    """Let `prepare` run its tasks in this process, without a cluster."""
    for name in ("prepare", "prepare_profiles"):
        stage = importlib.import_module(f"raysys.commands.{name}")
        monkeypatch.setattr(stage, "distribute", lambda f, tasks, **_: [f(task) for task in tasks])
    stage = importlib.import_module("raysys.commands.prepare")
    monkeypatch.setattr(stage, "connected", contextlib.nullcontext)


def read_log(source, *settings: str) -> Found:
    """Read a log as `prepare source=... key=value ...` would."""
    cfg = load(PrepareConfig, [f"source={source}", "split=users", *settings])
    return read(cfg)


def read(cfg: PrepareConfig) -> Found:
    log = open_log(cfg)
    while True:
        plan = read_plan(cfg, log)
        found = Found([], Counter(), [], log.mapped.left_out, Tally())
        odd: Counter = Counter()
        n_rows = 0
        for piece in log.source.pieces():
            for chunk, done in plan.cleaned(piece):
                found.rows += list(zip(*(_values(column) for column in done.rows.columns[:5])))
                found.reasons.update(done.bad["reason"].to_pylist())
                place = done.bad.select(["file", "line", "row"]).to_pylist()
                found.places += [(p["file"], p["line"], p["row"]) for p in place]
                found.tally.add(chunk.tally or Tally())
                odd.update(odd_values(chunk, plan.columns))
                n_rows += len(chunk.table) + len(chunk.malformed)
        assert found.tally.left_over == 0
        assert len(found.rows) + sum(found.reasons.values()) == n_rows
        unfit = unfit_defaults(log.mapped, odd, n_rows, share=cfg.max_bad_share)
        if not unfit:
            return found
        log = log.without(unfit)


def _values(column: pa.ChunkedArray) -> list:
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, pa.string())
    return column.to_pylist()


PAIRS = sorted((str(row.user), str(row.item)) for row in ROWS)
RATINGS = Counter(float(row.rating) for row in ROWS)
TIMES = Counter(row.time for row in ROWS)
