"""The page of a run, `<run>/reports/run.html`: what all its stages left, joined.

sources.py reads the run -> record -> data.py, evaluation.py, serving.py, training.py -> page
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysys.reports.html import data, evaluation, refreshes, serving, training
from raysys.reports.html.content import EVEN, Block, Cell, Folded, Note, Page, Section, Table
from raysys.reports.html.foot import settings, versions
from raysys.reports.html.pages import UNREADABLE, command, guarded
from raysys.reports.html.text import count, percent, size
from raysys.reports.html.verdicts import Verdict, verdict

Record = Mapping[str, Any]
_FIRST = ("evaluate-test-model", "evaluate-test-index", "evaluate-test-codes")


def page_of(record: Record, *, run: str) -> Page:
    """Return the page of a run.

    Args:
        record: of `sources.gather`.
        run: path or URI of the run, for the commands that the page names.
    """
    shown = shown_evaluation(record)
    try:
        found = verdict(shown) if shown else _nothing(record)
    except UNREADABLE:
        found = Verdict("The evaluation of this run cannot be read", EVEN, None)
    sections = [guarded("Data", lambda: data.section(record))]
    sections += evaluation.sections_of(shown) if shown else []
    sections += [
        guarded("Search", lambda: serving.section(record)),
        guarded("Training", lambda: training.section(record)),
        guarded("Ledger", lambda: training.ledger(record)),
        guarded("Refreshes", lambda: refreshes.section(record)),
        guarded("Other reports", lambda: _others(record)),
        _problems(record),
    ]
    return Page(
        kicker="Run",
        title=str(record["run"]),
        verdict=f"{found.text}.",
        tone=found.tone,
        key_figures=_key_figures(record, shown),
        sections=sections,
        missing=_missing(record, shown, run),
        foot=[
            guarded("Settings", lambda: _settings(record)),
            guarded("Builds and versions", lambda: _builds(record)),
        ],
    )


def shown_evaluation(record: Record) -> dict[str, Any] | None:
    """Return the evaluation that the page shows: of the model on the test period, if there is."""
    found = record.get("evaluations") or {}
    names = [*(name for name in _FIRST if name in found), *sorted(found)]
    return next((found[name] for name in names), None)


def _nothing(record: Record) -> Verdict:
    held = [kind for kind in record["builds"] if kind != "interactions"]
    text = f"Not evaluated yet; the run holds {', '.join(held)}" if held else "Nothing is built yet"
    return Verdict(text, EVEN, None)


def _key_figures(record: Record, shown: Record | None) -> dict[str, tuple[str, str]]:
    facts = {kind: build.get("facts") or {} for kind, build in record["builds"].items()}
    split, index = facts.get("profiles") or {}, facts.get("index") or {}
    found: dict[str, tuple[str, str]] = {}
    if shown:
        try:
            found |= dict(list(evaluation.key_figures(shown).items())[:2])
        except UNREADABLE:
            found = {}
    if split:
        cells = sum((split.get("n_cells") or {}).values())
        found["users"] = (count(split.get("n_users")), f"{count(cells)} interactions")
        found["items"] = (
            count(split.get("n_items")),
            f"{count(split.get('n_described_items'))} described",
        )
    if index:
        similar = ((index.get("recall") or {}).get("similar") or {}).get("100")
        told = f"finds {percent(similar)} of the best 100" if similar is not None else ""
        found["an item in the index"] = (size(index.get("bytes_per_item")), told)
    return found


def _missing(record: Record, shown: Record | None, run: str) -> dict[str, str]:
    builds, evaluations = record["builds"], record.get("evaluations") or {}
    found = {}
    steps = (
        ("profiles", "Data, splits", "prepare source=LOG"),
        ("autoencoder", "A model", "train"),
        ("index", "An index", "index"),
    )
    own_vectors = "embeddings" in builds and "autoencoder" not in builds
    for kind, what, words in steps[2:] if own_vectors else steps:
        if kind not in builds:
            found[what] = command(words, run)
    if "autoencoder" in builds or not builds:
        if shown is None:
            found["An evaluation"] = command("evaluate", run)
        elif "evaluate-test-index" not in evaluations and "index" in builds:
            found["What the index loses"] = command("evaluate via=index", run)
        if "codes" in builds and "evaluate-test-codes" not in evaluations:
            found["What the codes alone lose"] = command("evaluate via=codes", run)
        if not record.get("backtests"):
            found["The same settings over time"] = command("backtest windows=4", run)
        if not record.get("sweeps"):
            found["Other settings"] = command("tune", run)
    if shown:
        found |= evaluation.missing(shown, run)
    return found


def _others(record: Record) -> Section:
    blocks: list[Block] = []
    current = (record["builds"].get("autoencoder") or {}).get("build_id")
    rows: list[list[Cell | str]] = []
    for name, found in (record.get("evaluations") or {}).items():
        of = (found.get("build_ids") or {}).get("autoencoder")
        rows.append([_link(name, found), _said(found), "" if of == current else f"of model {of}"])
    for name, found in (record.get("backtests") or {}).items():
        windows = len(found.get("backtest") or [])
        rows.append([_link(name, found), f"{windows} windows of the past", ""])
    for name, found in (record.get("comparisons") or {}).items():
        rows.append([_link(name, found), f"{found.get('via')} against {found.get('against')}", ""])
    for name, found in (record.get("experiments") or {}).items():
        rows.append([_link(name, found), str(found.get("verdict") or ""), ""])
    if rows:
        blocks.append(Table("Reports of this run", ["report", "says", ""], rows, left=(0, 1, 2)))
    sweeps: list[list[Cell | str]] = []
    for sweep, found in (record.get("sweeps") or {}).items():
        objectives = ", ".join(o.get("name", "") for o in found.get("objectives") or [])
        name = found.get("name") or sweep
        sweeps.append([
            Cell(str(name), href=found.get("page") or ""), str(found.get("state")),
            count(found.get("trials")), objectives, str(found.get("verdict") or ""),
        ])  # fmt: skip
    if sweeps:
        head = ["sweep", "state", "trials", "objectives", "says"]
        blocks.append(Table("Sweeps of this run", head, sweeps, left=(0, 1, 3, 4)))
    return Section("Other reports", blocks)


def _link(name: str, found: Record) -> Cell:
    return Cell(name, href=found.get("page") or "")


def _said(found: Record) -> str:
    try:
        return verdict(found).text
    except UNREADABLE:
        return "cannot be read"


def _problems(record: Record) -> Section:
    notes = [
        Note(f"{part} cannot be read: {said}")
        for part, said in (record.get("problems") or {}).items()
    ]
    return Section("Damaged or missing parts", notes)


def _settings(record: Record) -> Section:
    folded = [
        Folded(f"Settings of {kind}", [settings(kind, build["config"])])
        for kind, build in record["builds"].items()
        if build.get("config")
    ]
    return Section("Settings", folded)


def _date(created: Any) -> str:
    """Return the minute of an ISO time."""
    return str(created or "")[:16].replace("T", " ")


def _builds(record: Record) -> Section:
    rows: list[list[Cell | str]] = []
    for kind, build in record["builds"].items():
        notes = build.get("notes") or {}
        made_from = ", ".join(f"{k} {i}" for k, i in (build.get("inputs") or {}).items())
        rows.append([
            kind, str(build.get("build_id")), made_from or "the log",
            _date(notes.get("created")),
            size(build.get("bytes")), str(notes.get("git_revision") or "")[:12],
        ])  # fmt: skip
    head = ["kind", "build", "made from", "created", "size", "revision"]
    table = Table("Builds and their lineage", head, rows, left=(0, 1, 2, 3, 5))
    found = {
        kind: (build.get("notes") or {}).get("versions") or {}
        for kind, build in record["builds"].items()
    }
    return Section(
        "Builds and versions",
        [table, Folded("Versions", [versions({k: v for k, v in found.items() if v})])],
    )
