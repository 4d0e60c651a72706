"""The page of an evaluation: its tables as Markdown, a plot by days, and who leads by how much.

<run>/reports/<name>.md                     the page
<run>/reports/<name>/<report_id>/*.svg      metrics by days after the cut, by the last visit
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysys.evaluation.comparison import compare_users, read_users
from raysys.evaluation.evaluator import Evaluator
from raysys.evaluation.fit_baselines import ITEM_ITEM, RANKERS, RATERS
from raysys.evaluation.metric_table import DAY_METRICS
from raysys.evaluation.ranked_users import bucket_names
from raysys.reports import tables
from raysys.reports.plots import Line, Panel, draw

TITLES = {
    "days_after": "Targets by days after the cut",
    "days_away": "Users by days from their last event to the cut",
}
LEAD = "recall@20^0.2"  # agrees best with online success (docs/decisions/016)
_COMPARED = dict.fromkeys(RANKERS, (LEAD, *DAY_METRICS)) | dict.fromkeys(RATERS, ("rmse", "nll"))
_COLOURS = 7

Report = Mapping[str, Any]
Differences = dict[str, dict[str, dict[str, float | None]]]


def differences(
    folder: Path, via: str, methods: Sequence[str], *, seed: int, replicates: int
) -> Differences:
    """Return {baseline: {metric: the model minus it, with its 95 % interval}}, users in pairs.

    Args:
        folder: of the users' sums, a Parquet file a method.
        via: the model's name among them.
        methods: of the evaluation; rankers are compared on `LEAD` and `DAY_METRICS`, raters on
            rmse and nll.
        seed: of the bootstrap over users.
        replicates: of the bootstrap.
    """
    own = read_users(folder / f"{via}.parquet")
    found: Differences = {}
    for method in (name for name in methods if name in _COMPARED):
        other = read_users(folder / f"{method}.parquet")
        compared = _COMPARED[method]
        pairs, _ = compare_users(own, other, seed=seed, replicates=replicates, metrics=compared)
        found[method] = {
            name: {"mean": d.difference, "ci_low": d.ci_low, "ci_high": d.ci_high}
            for name, d in pairs.items()
        }
    return found


def leads(found: Differences) -> list[str]:
    """Say of every metric in which an item-item model leads by how much it does."""
    lines = []
    for metric in DAY_METRICS:
        behind = {
            name: found[name][metric]
            for name in ITEM_ITEM
            if (found.get(name, {}).get(metric, {}).get("mean") or 0.0) < 0
        }
        if behind:
            name = min(behind, key=lambda method: behind[method]["mean"] or 0.0)
            lines.append(f"{name} leads the model in {metric} by {_lead(behind[name])}")
    return lines


def _lead(difference: Mapping[str, float | None]) -> str:
    low, high = difference["ci_low"], difference["ci_high"]
    text = f"{-(difference['mean'] or 0.0):.4f}"
    return text if low is None or high is None else f"{text} ({-high:+.4f}..{-low:+.4f})"


def buckets(own: Evaluator) -> dict[str, dict[str, int]]:
    """Return {slice: {bucket: users}} of an evaluation by days."""
    names = bucket_names(own.layout.horizons)
    return {kind: {n: own.count(f"rows|{kind}={n}") for n in names} for kind in TITLES if names}


def by_days(record: Report, kind: str, *, every: bool) -> list[list[str]]:
    """Return the cells of a table of one kind of days: a line a metric and method.

    Args:
        record: the report.
        kind: days_after or days_away.
        every: all methods; False: the model, and in each bucket the best baseline.
    """
    users = {name: n for name, n in record["horizons"][kind].items() if n}
    rows = [["", "", *users], ["", "users", *map(str, users.values())]]
    for metric in DAY_METRICS:
        values = {
            method: [_mean(entry["slices"], f"{metric}|{kind}={name}") for name in users]
            for method, entry in record["methods"].items()
        }
        values = {m: found for m, found in values.items() if any(v is not None for v in found)}
        own = values.pop(record["via"], [])
        rows.append([metric, record["via"], *map(_cell, own)])
        if every:
            rows += [["", method, *map(_cell, found)] for method, found in values.items()]
        elif values:
            rows.append(["", "best baseline", *map(_best, _named(values))])
    return rows


def _named(values: Mapping[str, Sequence[float | None]]) -> list[dict[str, float]]:
    """Return {method: value} of every bucket."""
    n_buckets = len(next(iter(values.values())))
    return [
        {m: v for m, found in values.items() if (v := found[at]) is not None}
        for at in range(n_buckets)
    ]


def _best(values: Mapping[str, float]) -> str:
    name = max(values, key=lambda method: values[method], default=None)
    return "-" if name is None else f"{values[name]:.4f} {name}"


def lines(record: Report) -> list[str]:
    """Return what the log says below the table of metrics."""
    text = leads(record["differences"])
    for kind in record["horizons"]:
        rows = by_days(record, kind, every=False)
        text += [TITLES[kind].lower() + ":", *tables.aligned(rows, left=(0, 1))]
    return text


def page(record: Report, title: str) -> str:
    """Return the report as a Markdown page."""
    methods = {method: entry["metrics"] for method, entry in record["methods"].items()}
    evaluated = ", ".join(f"{n} {name}" for name, n in record["evaluated"].items())
    parts = [f"# {title}", f"Period {record['period']}, via {record['via']}: {evaluated}."]
    parts += ["\n".join(tables.markdown(tables.cells(methods)))]
    parts += [f"{line}." for line in leads(record["differences"])]
    for kind in record["horizons"]:
        parts += [f"## {TITLES[kind]}", f"![{TITLES[kind]}]({_plot(record, title, kind)})"]
        parts += ["\n".join(tables.markdown(by_days(record, kind, every=True)))]
    return "\n\n".join(parts) + "\n"


def draw_days(record: Report, folder: Path) -> None:
    """Draw the metrics of all methods over the days, one file a kind, where there are two places.

    A bucket stands at its end; the last, open one at twice its beginning.
    """
    for kind, users in record["horizons"].items():
        names = [name for name, n in users.items() if n]
        if len(names) > 1:
            draw(
                [_panel(record, kind, metric, names) for metric in DAY_METRICS],
                folder / f"{kind}.svg",
            )


def _panel(record: Report, kind: str, metric: str, names: Sequence[str]) -> Panel:
    lines = []
    for number, (method, entry) in enumerate(record["methods"].items()):
        values = [_mean(entry["slices"], f"{metric}|{kind}={name}") for name in names]
        points = [(_end(n), v) for n, v in zip(names, values, strict=True) if v is not None]
        if points:
            style = "-" if number < _COLOURS else "--"
            lines.append(Line(method, points, number % _COLOURS, style))
    return Panel(metric, "days", metric.partition("|")[0], lines, log="x")


def _end(bucket: str) -> float:
    if bucket.endswith("+"):
        return 2 * float(bucket[:-1])
    return float(bucket.partition("-")[2])


def _plot(record: Report, title: str, kind: str) -> str:
    return f"{title}/{record['report_id']}/{kind}.svg"


def _mean(slices: Report, name: str) -> float | None:
    value: float | None = slices.get(name, {}).get("mean")
    return value


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
