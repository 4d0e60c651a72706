#!/usr/bin/env python
"""Render the figures: `benchmarks/README.md`, its plots, and blocks of README and docs/scale.md.

Run: python benchmarks/render.py            writes them from `benchmarks/results/*.json`
     python benchmarks/render.py --check    says which of them are not what the data make
"""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import scale
from benchmarks.charts import charts
from benchmarks.sections import OURS, SECTIONS, Section, markdown, tables_of
from raysys.bench.records import Machine, Record
from raysys.errors import ConfigError, DataError, RaysysError
from raysys.reports.plots import Panel, draw, drawn_from, fingerprint

ROOT = Path(__file__).resolve().parents[1]
PLOT = "codes"  # of the README
START, END = "<!-- figures -->", "<!-- /figures -->"
_UNKNOWN = "not recorded"
_INTRO = """# Benchmarks

What was measured, with machine, date and setting. This page and its plots are made by
`python benchmarks/render.py` of the records in [results](results); nothing here is typed by hand.
`raysys bench suite=X save=benchmarks/results` writes a new record, and `make benchmarks` renders
the page again. Figures of different machines cannot be compared: a peer stands in the same table
because it was measured in the same run.
"""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A line of the README's table: two rows of one record.

    Attributes:
        what: is measured; formatted with the record's setting and our row, as `text` is.
        suite: whose records are asked, the newest first.
        match: values that both rows have.
        ours: values of our row.
        peer: values of the peer's row.
        name: of the peer.
        text: cell of a row, formatted with its values; names with `@` are written `recall_at_20`.
    """

    what: str
    suite: str
    match: dict[str, Any]
    ours: dict[str, Any]
    peer: dict[str, Any]
    name: str
    text: str

    def cells(self, records: Sequence[Record]) -> list[str]:
        """Return the line's cells.

        Raises:
            DataError: no record holds both rows.
        """
        for record in records:
            ours, peer = (
                [row for row in record.rows if (self.match | own).items() <= row.items()]
                for own in (self.ours, self.peer)
            )
            if record.suite == self.suite and ours and peer:
                return [
                    _filled(self.what, record.setting | ours[0]),
                    _filled(self.text, ours[0]),
                    f"{_filled(self.text, peer[0])} ({self.name})",
                    record.date,
                ]
        raise DataError(f"no record of suite {self.suite} holds {self.what!r}: {self.match}")


def _filled(text: str, values: dict[str, Any]) -> str:
    return text.format(**{key.replace("@", "_at_"): value for key, value in values.items()})


def read(folder: Path) -> list[Record]:
    """Return all records of a folder, the newest first.

    Raises:
        DataError: a file is no record, or there is none.
    """
    records = [Record.read(path) for path in sorted(folder.glob("*.json"))]
    if not records:
        raise DataError(f"{folder} holds no records: expected files of `raysys bench save=`")
    return sorted(records, key=lambda record: record.date, reverse=True)


def page(records: Sequence[Record]) -> str:
    """Return the text of `benchmarks/README.md`."""
    known = {section.suite for section in SECTIONS}
    others = dict.fromkeys(r.suite for r in records if r.suite not in known)
    sections = [*SECTIONS, *(Section(suite, suite, f"`{suite}`") for suite in others)]
    drawn = charts(records)
    parts = [_INTRO]
    for section in sections:
        own = [record for record in records if record.suite == section.suite]
        if own:
            parts.append(_section(section, own, has_plot=section.suite in drawn))
    return "\n".join(parts)


def _section(section: Section, records: Sequence[Record], *, has_plot: bool) -> str:
    lines = [f"## {section.title}", "", _wrapped(section.text), ""]
    if has_plot:
        lines += [f"![{section.plot}](plots/{section.suite}.svg)", ""]
    for record in records:
        origin = f"**{record.date}**, {_machine(record.machine)}. {_origin(record)}"
        lines += [_wrapped(origin), ""]
        setting = [f"{key}={_value(value)}" for key, value in record.setting.items()]
        lines += [f"Setting: `{' '.join(setting)}`", ""] if setting else []
        lines += [_wrapped(" ".join(record.remarks)), ""] if record.remarks else []
        for cells in tables_of(record):
            lines += [*markdown(cells), ""]
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _machine(machine: Machine) -> str:
    """Return a machine in a few words."""
    parts = [machine.processor or f"processor {_UNKNOWN}"]
    parts += [f"{machine.cores} cores"] if machine.cores else []
    parts += [f"{machine.memory_gib:g} GiB"] if machine.memory_gib else []
    parts += [machine.gpu] if machine.gpu else []
    parts += [f"load {machine.load:g}"] if machine.load is not None else []
    return ", ".join(parts)


def _origin(record: Record) -> str:
    """Return by which commit and versions it was measured, and where the figures stood."""
    dirty = " with changes" if record.dirty else ""
    commit = f"Commit {record.commit[:9]}{dirty}" if record.commit else f"Commit {_UNKNOWN}"
    versions = ", ".join(f"{name} {text}" for name, text in (record.versions or {}).items())
    source = "" if record.source == "raysys bench" else f"; from the {record.source}"
    return f"{commit}{f'; {versions}' if versions else ''}{source}."


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def block(records: Sequence[Record]) -> str:
    """Return what stands between the markers of the README."""
    head = ["[all figures](benchmarks/README.md)", "raysys", "beside it", "measured"]
    table = markdown([head, *(figure.cells(records) for figure in FIGURES)])
    plot = next(section for section in SECTIONS if section.suite == PLOT)
    return "\n".join([*table, "", f"![{plot.plot}](benchmarks/plots/{PLOT}.svg)"])


def with_block(text: str, figures: str, name: str = "README.md") -> str:
    """Return a page with new figures between the markers.

    Raises:
        DataError: it has no place for them, or more than one.
    """
    places = [text.count(mark) for mark in (START, END)]
    if places != [1, 1] or text.index(START) > text.index(END):
        raise DataError(f"{name} has no block of figures: expected {START!r}, then {END!r}, once")
    before, rest = text.split(START)
    return f"{before}{START}\n{figures}\n{END}{rest.split(END)[1]}"


def texts(root: Path, records: Sequence[Record]) -> dict[Path, str]:
    """Return the text that each page should hold."""
    readme, scale_page = root / "README.md", root / "docs" / "scale.md"
    found = {
        root / "benchmarks" / "README.md": page(records),
        readme: with_block(readme.read_text(), block(records)),
    }
    if scale_page.exists():
        figures = scale.block(records)
        found[scale_page] = with_block(scale_page.read_text(), figures, "docs/scale.md")
    return found


def plots(root: Path, records: Sequence[Record]) -> dict[Path, list[Panel]]:
    """Return what each plot should show."""
    folder = root / "benchmarks" / "plots"
    return {folder / f"{suite}.svg": panels for suite, panels in charts(records).items()}


def render(root: Path) -> None:
    """Write pages and plots."""
    records = read(root / "benchmarks" / "results")
    for path, text in texts(root, records).items():
        path.write_text(text)
    for path, panels in plots(root, records).items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or drawn_from(path) != fingerprint(panels):
            draw(panels, path)
    for path in _strays(root, records):
        path.unlink()


def differences(root: Path) -> list[str]:
    """Return the pages and plots, relative to `root`, that are not what the data make."""
    records = read(root / "benchmarks" / "results")
    wrong = [
        path
        for path, text in texts(root, records).items()
        if not path.exists() or path.read_text() != text
    ]
    wrong += [
        path
        for path, panels in plots(root, records).items()
        if not path.exists() or drawn_from(path) != fingerprint(panels)
    ]
    return [str(path.relative_to(root)) for path in [*wrong, *_strays(root, records)]]


def _strays(root: Path, records: Sequence[Record]) -> list[Path]:
    """Return the plots that nothing asks for."""
    return sorted({*(root / "benchmarks" / "plots").glob("*")} - {*plots(root, records)})


def main(words: Sequence[str], root: Path = ROOT) -> int:
    """Render, or check; return the exit status."""
    try:
        if not words:
            render(root)
            return 0
        if [*words] != ["--check"]:
            raise ConfigError(f"{' '.join(words)!r} is not accepted: expected --check, or nothing")
        wrong = differences(root)
    except RaysysError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for name in wrong:
        sys.stderr.write(f"{name} is not what the records make: run python benchmarks/render.py\n")
    return 1 if wrong else 0


FIGURES = (
    Figure(
        what="top 10 of {n_items:,} dense vectors found by codes of {bytes_per_item} bytes",
        suite="codes",
        match={"data": "debian-minilm", "bytes_per_item": 64},
        ours={"engine": "raysys packed4"},
        peer={"engine": "faiss OPQ64"},
        name="faiss OPQ",
        text="{recall_at_10:.1%}",
    ),
    Figure(
        what="median query among {n_items:,} items, one thread; size of the index",
        suite="retrieval",
        match={"n_items": 1_000_000},
        ours={"engine": "raysys ivf"},
        peer={"engine": "hnswlib float32"},
        name="hnswlib",
        text="{p50_cpu_ms:.3f} ms; {bytes_per_item:,.0f} bytes per item",
    ),
    Figure(
        what="training with {n_items:,} items, one thread",
        suite="train",
        match={},
        ours={"engine": "sparse, cosine (default)"},
        peer={"engine": "textbook"},
        name="one-hot tensors",
        text="{profiles_per_s:,.0f} profiles/s; {peak_mb:,.0f} MB",
    ),
    Figure(
        what="a log of {rows:,} rows to profiles",
        suite="prepare",
        match={"rows": 30_000_000},
        ours={"engine": "raysys prepare"},
        peer={"engine": "polars"},
        name="polars",
        text="{seconds:.1f} s; {peak_pss_mb:,.0f} MB",
    ),
    Figure(
        what="recall@20 on ml-1m, users held out",
        suite="folds",
        match={"data": "ml-1m", "split": "users (S)", "metric": "recall@20"},
        ours={"method": OURS},
        peer={"method": "EASE"},
        name="EASE",
        text="{value:.3f}",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
