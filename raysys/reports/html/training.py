"""Sections of a run's page: how the model was trained, and what all trainings took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysys.reports.html import charts
from raysys.reports.html.content import Block, Figure, Folded, Mark, Panel, Section, Table
from raysys.reports.html.text import count, number, seconds, size, value

Record = Mapping[str, Any]
_CURVES = {"recall@20": "recall@20", "ndcg@100": "ndcg@100", "nll": "nll of levels", "loss": "loss"}
_PHASES = ("fit, judged on validation", "refit on all before the test period")


def section(record: Record) -> Section:
    """Return learning curves, validation metrics and choices."""
    build = record["builds"].get("autoencoder")
    blocks: list[Block] = []
    if build is None:
        return Section("Training", blocks)
    facts = build.get("facts") or {}
    history = record.get("history") or []
    if history:
        blocks.append(_curves(history, facts))
    metrics = [[name, number(v)] for name, v in (facts.get("val_metrics") or {}).items()]
    if metrics:
        blocks.append(Table("On the validation targets, before the refit", ["", "value"], metrics))
    choices = [[name, value(v)] for name, v in (facts.get("choices") or {}).items()]
    if choices:
        blocks.append(
            Folded("Choices made from the data", [Table("Choices", ["", "value"], choices)])
        )
    epochs = facts.get("epochs") or {}
    said = ", ".join(f"epoch {n} by {metric}" for metric, n in sorted(epochs.items()))
    lead = f"{count(facts.get('n_parameters'))} parameters" + (f"; kept: {said}." if said else ".")
    return Section("Training", blocks, lead=lead)


def _curves(history: Sequence[Record], facts: Record) -> Figure:
    phases = sorted({int(entry.get("phase") or 0) for entry in history})
    panels: list[Panel] = []
    rows = []
    for metric, words in _CURVES.items():
        lines = {
            phase: [
                (float(entry["epoch"]), float(entry[metric]))
                for entry in history
                if int(entry.get("phase") or 0) == phase and entry.get(metric) is not None
            ]
            for phase in phases
        }
        lines = {phase: line for phase, line in lines.items() if line}
        if not lines:
            continue
        kept = (facts.get("epochs") or {}).get(metric)
        marks = {} if kept is None else {float(kept): f"epoch {kept}"}
        series = [charts.Series(line, phase % 7, marker="") for phase, line in lines.items()]
        axes = charts.Axes("epoch", words, verticals=marks)
        first = next(iter(lines.values()))
        text = f"{words} over {len(first)} epochs, from {first[0][1]:.4g} to {first[-1][1]:.4g}."
        key = f"curve-{len(panels)}"
        panels.append(charts.points(key, words, series, axes, text))
    columns = [name for name in _CURVES if any(name in entry for entry in history)]
    for entry in history:
        phase = int(entry.get("phase") or 0)
        rows.append([
            _PHASES[phase] if phase < len(_PHASES) else str(phase), count(entry.get("epoch")),
            *(number(entry.get(name)) for name in columns), seconds(entry.get("seconds")),
        ])  # fmt: skip
    table = Table("Epochs", ["", "epoch", *columns, "time"], rows)
    legend = [Mark(_PHASES[p] if p < len(_PHASES) else f"phase {p}", p % 7) for p in phases]
    note = "Metrics are of the validation targets; a dotted line marks the epoch that was kept."
    return Figure("Learning curves", panels, table, legend=legend, note=note)


def ledger(record: Record) -> Section:
    """Return what every training took, and all of them."""
    rows, total = [], {"seconds": 0.0, "worker_seconds": 0.0, "peak_bytes": 0.0}
    for kind, build in record["builds"].items():
        found = _training(build)
        if found is None:
            continue
        for name in total:
            if found.get(name) is not None:
                own, peak = float(found[name]), name == "peak_bytes"
                total[name] = max(total[name], own) if peak else total[name] + own
        rows.append([kind, *_taken(found), count(found.get("rows_per_s"))])
    if len(rows) > 1:
        rows.append(["all", *_taken(total), ""])
    blocks: list[Block] = []
    if rows:
        head = ["", "time", "worker time", "most memory of a worker", "rows a second"]
        blocks.append(Table("What training took", head, rows))
    steps = [
        [kind, step, seconds(taken)]
        for kind, build in record["builds"].items()
        for step, taken in ((build.get("notes") or {}).get("seconds") or {}).items()
    ]
    if steps:
        table = Table("Steps of the trainings", ["build", "step", "time"], steps, left=(0, 1))
        blocks.append(Folded("Steps of the trainings", [table]))
    return Section("Ledger", blocks)


def _training(build: Record) -> Record | None:
    """Return a build's account of its training, wherever it keeps it."""
    for place in ("facts", "notes"):
        found = (build.get(place) or {}).get("training")
        if isinstance(found, Mapping):
            return found
    return None


def _taken(found: Record) -> list[str]:
    return [
        seconds(found.get("seconds")),
        seconds(found.get("worker_seconds")),
        size(found.get("peak_bytes")),
    ]
