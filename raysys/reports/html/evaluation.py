"""The page of an evaluation, `<run>/reports/<name>.html`, made from its record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysys.reports.html import charts, slices
from raysys.reports.html.content import Block, Cell, Figure, Folded, Note, Page, Section, Table
from raysys.reports.html.foot import settings
from raysys.reports.html.pages import command, guarded
from raysys.reports.html.quality import calibration_section, confusion_section, coverage_section
from raysys.reports.html.text import count, ends, number, signed, span, with_interval
from raysys.reports.html.verdicts import LOWER, ORDER, WORDS, gains, verdict
from raysys.reports.page import LEAD

RANKED = (LEAD, "recall@20", "recall@50", "recall@20^0.3", "ndcg@100", "hit@10")
RATED = ("rmse", "mae", "nll", "ece")
_SETTINGS = (
    "report_id",
    "period",
    "via",
    "rescore",
    "ranking",
    "protocol",
    "split",
    "seed",
    "replicates",
)

Record = Mapping[str, Any]


def page_of(record: Record, *, run: str, name: str) -> Page:
    """Return the page of an evaluation.

    Args:
        record: what `evaluate` writes as JSON.
        run: name of the run.
        name: of the report.
    """
    found = verdict(record)
    return Page(
        kicker=f"Evaluation, {record['period']} period",
        title=f"{run}: {name}",
        verdict=f"{found.text}.",
        tone=found.tone,
        key_figures=key_figures(record),
        sections=sections_of(record),
        missing=missing(record, run),
        foot=[guarded("Settings and builds", lambda: _foot(record))],
    )


def key_figures(record: Record) -> dict[str, tuple[str, str]]:
    """Return the few figures that stand at the top."""
    metrics = own(record)["metrics"]
    found: dict[str, tuple[str, str]] = {}
    for metric in (LEAD, "recall@20", "ndcg@100", "rmse"):
        if metric in metrics:
            low, high = ends(metrics[metric])
            found[metric] = (number(metrics[metric]["mean"]), span(low, high, sign=False))
    evaluated = record.get("evaluated") or {}
    found["users evaluated"] = (
        count(evaluated.get("rows")),
        f"{count(evaluated.get('targets'))} held-out interactions",
    )
    return found


def sections_of(record: Record) -> list[Section]:
    """Return the sections of an evaluation, each of which may lack its data."""
    makers = {
        "Against the baselines": lambda: against(record),
        "Where the recall comes from": lambda: slices.section(record),
        "By time": lambda: slices.by_time(record),
        "Coverage": lambda: coverage_section(record),
        "Ratings": lambda: ratings(record),
        "Calibration": lambda: calibration_section(record),
        "Rating confusion": lambda: confusion_section(record),
    }
    return [guarded(title, make) for title, make in makers.items()]


def missing(record: Record, run: str) -> dict[str, str]:
    """Return {what an evaluation lacks: the command that would bring it}."""
    found = {}
    again = command(f"evaluate period={record['period']} via={record['via']}", run)
    if not record.get("differences"):
        found["Baselines beside the model"] = again
    elif not record.get("replicates"):
        found["Intervals"] = f"{again} replicates=1000"
    if "calibration" not in own(record) and "nll" in own(record)["metrics"]:
        found["Calibration and rating confusion"] = again
    return found


def own(record: Record) -> dict[str, Any]:
    """Return the entry of what was evaluated."""
    entry: dict[str, Any] = record["methods"][record["via"]]
    return entry


def metric_table(record: Record, metrics: Sequence[str], caption: str) -> Table | None:
    """Return a table of all methods, the best of each column marked; None: nobody has one."""
    methods = {name: entry["metrics"] for name, entry in record["methods"].items()}
    columns = [m for m in metrics if any(m in found for found in methods.values())]
    if not columns:
        return None
    best = {}
    for metric in columns:
        values = {n: (f.get(metric) or {}).get("mean") for n, f in methods.items()}
        present = {name: value for name, value in values.items() if value is not None}
        if present:
            pick = min if metric in LOWER else max
            best[metric] = pick(present, key=lambda each: present[each])
    rows = [
        [name, *(Cell(with_interval(f.get(m)), strong=best.get(m) == name) for m in columns)]
        for name, f in methods.items()
        if any(m in f for m in columns)
    ]
    return Table(caption, ["", *columns], rows)


def against(record: Record) -> Section:
    """Return the table of metrics and the paired differences."""
    title = "Against the baselines"
    blocks: list[Block] = []
    table = metric_table(
        record, RANKED, "Metrics of every method, ± half the 95 % interval; the best in bold"
    )
    if table is not None:
        blocks.append(table)
    ranked = [(m, found) for m, found in gains(record) if m not in RATED]
    if ranked:
        blocks.insert(0, _differences(record, ranked, "Paired differences to every baseline"))
    if not blocks:
        return Section(title, ())
    lead = ""
    if ranked:
        metric = ranked[0][0]
        lead = f"{metric} is {WORDS[metric]}."
        if metric == LEAD:
            lead += " Over simulated sites it picked the online winner most often."
    reasons = record.get("baselines_left_out") or {}
    blocks += [Note(f"Left out: {name}, {reason}.") for name, reason in sorted(reasons.items())]
    return Section(title, blocks, lead=lead)


def _differences(record: Record, ranked: Sequence[tuple[str, Any]], title: str) -> Figure:
    panels, rows = [], []
    for metric, found in ranked:
        lines = [charts.Interval(name, *gain) for name, gain in found.items()]
        worst = min(found, key=lambda each: found[each][0])
        panels.append(
            charts.intervals(
                f"difference-{ORDER.index(metric)}",
                metric,
                lines,
                "better than the baseline by",
                f"{metric}: gain of the model over {len(found)} baselines, smallest over {worst} "
                f"with {signed(found[worst][0])}.",
            )
        )
        rows += [
            [metric, name, signed(mean), span(low, high)]
            for name, (mean, low, high) in found.items()
        ]
    table = Table(
        "Gain of the model over each baseline",
        ["metric", "baseline", "gain", "95 % interval"],
        rows,
        left=(0, 1),
    )
    note = (
        "The same users for both sides. Right of the line the model is better; a bar is the 95 % "
        "interval of one difference."
    )
    return Figure(title, panels, table, note=note)


def ratings(record: Record) -> Section:
    """Return how well ratings are predicted."""
    title = "Ratings"
    table = metric_table(record, RATED, "Lower is better everywhere; the best in bold")
    if table is None:
        return Section(title, ())
    blocks: list[Block] = []
    rated = [(m, found) for m, found in gains(record) if m in RATED]
    if rated:
        blocks.append(_differences(record, rated, "Paired differences to every rating baseline"))
    return Section(title, [*blocks, table])


def _foot(record: Record) -> Section:
    shown: dict[str, Any] = {name: record.get(name) for name in _SETTINGS if name in record}
    ids = [[kind, build] for kind, build in (record.get("build_ids") or {}).items()]
    ids += [
        [f"baselines: {name}", build] for name, build in (record.get("baseline_ids") or {}).items()
    ]
    counts = {**(record.get("evaluated") or {}), **(record.get("dropped") or {})}
    facts = [[name.replace("_", " "), count(n)] for name, n in counts.items()]
    return Section(
        "Settings and builds",
        [
            Folded("Settings", [settings("Settings of the evaluation", shown)]),
            Folded("Who was evaluated, what was left out", [
                Table("Counts of users and targets", ["", "n"], facts)]),
            Folded("Builds", [Table("What was evaluated", ["kind", "build"], ids, left=(0, 1))]),
        ],
    )  # fmt: skip
