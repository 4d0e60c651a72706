"""The page of a sweep, `<run>/sweeps/<id>/report.html`, made from `sweep.json` alone.

sweep_plots.py draws: history, importance, parallel coordinates, front, finalists, curves
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysys.errors import BuildError
from raysys.reports.html import pages, sweep_plots
from raysys.reports.html.content import (
    BAD,
    EVEN,
    GOOD,
    Block,
    Cell,
    Folded,
    Note,
    Page,
    Section,
    Table,
)
from raysys.reports.html.foot import settings
from raysys.reports.html.pages import guarded
from raysys.reports.html.text import (
    count,
    moment,
    number,
    percent,
    seconds,
    signed,
    size,
    span,
    value,
)
from raysys.store.builds import Workspace

Record = Mapping[str, Any]
_ERROR_LETTERS = 300
_FEW = 30  # trials that are shown unasked
_DEFAULTS = "the defaults"


def publish(workspace: Workspace, sweep_id: str) -> str:
    """Write the page of a sweep from its record; return the page's path or URI.

    Args:
        workspace: of the run.
        sweep_id: name of the sweep's folder.

    Raises:
        BuildError: there is no such sweep, or its record is damaged.
    """
    folder = f"sweeps/{sweep_id}"
    record = workspace.storage.read_json(f"{folder}/sweep.json")
    if record is None:
        raise BuildError(f"{workspace.run} holds no sweep {sweep_id}: raysys tune makes one")
    page = page_of(record, run=pages.name_of_run(workspace.run))
    return pages.publish(workspace, f"{folder}/report.html", page)


def page_of(record: Record, *, run: str) -> Page:
    """Return the page of a sweep.

    Args:
        record: of `sweep.json`.
        run: name of the run.
    """
    text, tone = _verdict(record)
    makers = {
        "Finalists": lambda: _finalists(record),
        "History": lambda: _history(record),
        "Front": lambda: _front(record),
        "What matters": lambda: _matters(record),
        "Learning curves": lambda: _curves(record),
        "Trials": lambda: _trials(record),
        "Cost": lambda: _cost(record),
    }
    return Page(
        kicker=f"Sweep, {record.get('state')}",
        title=f"{run}: {record.get('name') or record.get('sweep_id')}",
        verdict=f"{text[:1].upper()}{text[1:]}.",
        tone=tone,
        key_figures=_key_figures(record),
        sections=[guarded(title, make) for title, make in makers.items()],
        foot=[guarded("Settings and space", lambda: _foot(record))],
    )


def best_of(record: Record) -> int | None:
    """Return the trial that `best.yaml` holds, or so far the best one."""
    found: int | None = record.get("winner", record.get("best"))
    return found


def name_of(trial: int) -> str:
    """Return what a trial is called: trial 0 are the defaults."""
    return f"trial {trial}" if trial else _DEFAULTS


def _verdict(record: Record) -> tuple[str, str]:
    finalists = record.get("finalists")
    if finalists and finalists.get("verdict"):
        winners = [
            c for c in finalists.get("comparisons") or []
            if 0 in (c["first"], c["second"]) and not c["ci_low"] <= 0 <= c["ci_high"]
        ]  # fmt: skip
        text = str(finalists["verdict"]).rstrip(".")
        named = [c for c in winners if (c["first"], c["second"]) == (best_of(record), 0)]
        if named and "(" not in text and name_of(named[0]["first"]) in text:
            gap = signed(named[0]["difference"])
            between = span(named[0]["ci_low"], named[0]["ci_high"])
            text += f" in {finalists['metric']}: {gap} ({between})"
        return text, GOOD if best_of(record) else EVEN
    trial = sweep_plots.trial(record, best_of(record))
    if trial is None:
        return "no trial has finished", BAD if record.get("trials") else EVEN
    lead = record["objectives"][0]["name"]
    found = (trial.get("objectives") or {}).get(lead)
    defaults = ((sweep_plots.trial(record, 0) or {}).get("objectives") or {}).get(lead)
    have = "has" if trial["number"] else "have"
    text = f"{name_of(trial['number'])} {have} the best {lead} so far: {number(found)}"
    if defaults is not None and found is not None and trial["number"]:
        text += f", {signed(found - defaults)} to the defaults"
    return f"{text}; not repeated over seeds, so noise is not ruled out", EVEN


def _key_figures(record: Record) -> dict[str, tuple[str, str]]:
    trials = record.get("trials") or []
    states = {state: sum(t.get("state") == state for t in trials) for state in sweep_plots.STATES}
    told = ", ".join(f"{n} {state}" for state, n in states.items() if n)
    found = {"trials": (count(len(trials)), told)}
    best = sweep_plots.trial(record, best_of(record))
    if best is not None:
        for objective in record["objectives"][:2]:
            name = objective["name"]
            shown = sweep_plots.written((best.get("objectives") or {}).get(name))
            found[f"{name}, {name_of(best['number'])}"] = (shown, f"{objective['direction']}imised")
    totals = record.get("totals") or {}
    found["time"] = (
        seconds(totals.get("seconds")),
        f"{percent(totals.get('overhead_share'))} of the trials is no training",
    )
    found["worker time"] = (
        seconds(totals.get("worker_seconds")),
        f"at most {size(totals.get('peak_bytes'))} a worker",
    )
    return found


def _finalists(record: Record) -> Section:
    found = record.get("finalists")
    if not found:
        return Section("Finalists", ())
    metric = found["metric"]
    rows: list[Sequence[Cell | str]] = [
        [
            name_of(entry["number"]),
            *(number(v) for v in entry["by_seed"]),
            Cell(number(entry["mean"]), strong=entry["number"] == best_of(record)),
        ]
        for entry in found["settings"]
    ]
    seeds = [f"seed {seed}" for seed in found["seeds"]]
    return Section(
        "Finalists",
        [
            sweep_plots.finalists(found, name_of),
            Table(f"{metric} by seed", ["", *seeds, "mean"], rows),
        ],
        lead=(
            f"The best settings were trained again with {len(found['seeds'])} seeds and compared "
            f"on {count(found['users'])} users. The intervals hold for all pairs at once."
        ),
    )


def _history(record: Record) -> Section:
    figures = [
        sweep_plots.history(record, objective, place)
        for place, objective in enumerate(record["objectives"])
    ]
    return Section("History", [figure for figure in figures if figure is not None])


def _front(record: Record) -> Section:
    if len(record["objectives"]) < 2:
        return Section("Front", ())
    blocks: list[Block] = [
        figure
        for figure in (sweep_plots.front(record, name_of), sweep_plots.hypervolume(record))
        if figure is not None
    ]
    lead = "On the front nothing is better in one objective without being worse in another."
    return Section("Front", blocks, lead=lead)


def _matters(record: Record) -> Section:
    figures = (sweep_plots.importance(record), sweep_plots.coordinates(record))
    return Section("What matters", [figure for figure in figures if figure is not None])


def _curves(record: Record) -> Section:
    figure = sweep_plots.curves(record, name_of)
    return Section("Learning curves", [] if figure is None else [figure])


def _trials(record: Record) -> Section:
    trials = record.get("trials") or []
    if not trials:
        return Section("Trials", ())
    keys = list(dict.fromkeys(key for t in trials for key in t.get("values") or {}))
    names = [objective["name"] for objective in record["objectives"]]
    columns = ["trial", "state", *keys, *names, "epochs", "time", "worker time", "memory", "rows/s"]
    rows: list[Sequence[Cell | str]] = []
    for trial in trials[: sweep_plots.MAX_ROWS]:
        values, found = trial.get("values") or {}, trial.get("objectives") or {}
        is_best = trial["number"] == best_of(record)
        rows.append([
            "0, defaults" if trial["number"] == 0 else str(trial["number"]),
            str(trial.get("state")),
            *(value(values[key]) if key in values else "–" for key in keys),
            *(Cell(sweep_plots.written(found.get(n)), strong=is_best) for n in names),
            count(trial.get("epochs")), seconds(trial.get("seconds")),
            seconds(trial.get("worker_seconds")), size(trial.get("peak_bytes")),
            count(trial.get("rows_per_s")),
        ])  # fmt: skip
    table = Table("Every trial; the best in bold", columns, rows, left=(0, 1))
    blocks: list[Block] = [table] if len(rows) <= _FEW else [Folded("All trials", [table])]
    errors = [
        [str(trial["number"]), str(trial["error"])[:_ERROR_LETTERS]]
        for trial in trials[: sweep_plots.MAX_ROWS]
        if trial.get("error")
    ]
    if len(trials) > len(rows):
        blocks.append(Note(f"The first {count(len(rows))} trials; sweep.json holds all."))
    if errors:
        blocks.append(Table("Why trials failed", ["trial", "error"], errors, left=(0, 1)))
    return Section("Trials", blocks)


def _cost(record: Record) -> Section:
    totals, budget = record.get("totals") or {}, record.get("budget") or {}
    rows = [
        ["time of the sweep", seconds(totals.get("seconds"))],
        ["of that trials", seconds(totals.get("trial_seconds"))],
        ["of that finalists", seconds(totals.get("finalist_seconds"))],
        ["training of the trials", seconds(totals.get("training_seconds"))],
        ["share of the trials that is no training", percent(totals.get("overhead_share"))],
        ["worker time of all trainings", seconds(totals.get("worker_seconds"))],
        ["most memory of a worker", size(totals.get("peak_bytes"))],
    ]
    limits = [
        ["trials", "no limit" if budget.get("trials") is None else count(budget["trials"])],
        *(
            [name, "no limit" if budget.get(key) is None else seconds(budget[key])]
            for key, name in (("seconds", "time"), ("worker_seconds", "worker time"))
        ),
    ]
    return Section(
        "Cost", [Table("What it took", ["", ""], rows), Table("Budget", ["", "at most"], limits)]
    )


def _foot(record: Record) -> Section:
    about = {
        "sweep": record.get("sweep_id"),
        "sampler": record.get("sampler"),
        "seed": record.get("seed"),
        "early stopping on": record.get("stop_on"),
        "profiles": record.get("profiles_id"),
        "code": record.get("code_version"),
        "started": moment(record.get("started")),
        "updated": moment(record.get("updated")),
    }
    space = [[key, value(entry)] for key, entry in (record.get("space") or {}).items()]
    return Section(
        "Settings and space",
        [
            Table("The sweep", ["", ""], [[k, value(v)] for k, v in about.items()], left=(0, 1)),
            Folded("Space", [Table("What was searched", ["key", "values"], space, left=(0, 1))]),
            Folded("Settings", [settings("What all trials share", record.get("settings") or {})]),
        ],
    )
