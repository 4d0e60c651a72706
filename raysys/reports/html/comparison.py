"""The page of a comparison, `<run>/reports/compare-*.html`, made from its record alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from raysys.evaluation.headlines import HEADLINES
from raysys.reports.html import charts
from raysys.reports.html.content import BAD, EVEN, GOOD, Block, Figure, Folded, Page, Section, Table
from raysys.reports.html.foot import settings
from raysys.reports.html.pages import guarded, name_of_run
from raysys.reports.html.text import count, number, percent, signed, span
from raysys.reports.html.verdicts import LOWER, ORDER
from raysys.reports.page import LEAD

_RANKED = (LEAD, "recall@20", "recall@50", "recall@20^0.3", "ndcg@100", "hit@10")
_RATED = ("rmse", "mae", "nll")
_SETTINGS = ("period", "protocol", "ranking", "rescore", "seed", "replicates")
_BETAS, _CUTS = re.compile(r"recall@20\^([\d.]+)"), re.compile(r"recall@(\d+)")

Record = Mapping[str, Any]


def page_of(record: Record) -> Page:
    """Return the page of a comparison."""
    one, other = sides(record)
    text, tone = _verdict(record["comparison"], one, other)
    return Page(
        kicker=f"Comparison, {record['period']} period",
        title=f"{one} against {other}",
        verdict=f"{text[:1].upper()}{text[1:]}.",
        tone=tone,
        key_figures=_key_figures(record),
        sections=[
            guarded("Differences", lambda: _differences(record["comparison"], one, other)),
            guarded("By list length and popularity", lambda: _curves(record["comparison"], one)),
        ],
        foot=[guarded("Settings and builds", lambda: _foot(record))],
    )


def sides(record: Record) -> tuple[str, str]:
    """Return the names of what is compared: the paths, with their runs where these differ."""
    one, other = record["via"], record["against"]
    if record["other"] == record["run"]:
        return one, other
    names = (name_of_run(record["run"]), name_of_run(record["other"]))
    return f"{one} of {names[0]}", f"{other} of {names[1]}"


def _verdict(found: Record, one: str, other: str) -> tuple[str, str]:
    metric = next((name for name in ORDER if name in found), None)
    if metric is None:
        return "The two have no metric in common that this page knows", EVEN
    entry = found[metric]
    difference, low, high = entry["difference"], entry["ci_low"], entry["ci_high"]
    by = f"{signed(difference)} ({span(low, high)})"
    better = difference < 0 if metric in LOWER else difference > 0
    if low is None:
        return f"{one} minus {other} in {metric}: {signed(difference)}, without an interval", EVEN
    if low <= 0 <= high:
        return f"{one} and {other} do not differ beyond noise in {metric}: {by}", EVEN
    word = "better" if better else "worse"
    return f"{one} is {word} than {other} in {metric}: {by}", GOOD if better else BAD


def _key_figures(record: Record) -> dict[str, tuple[str, str]]:
    found = record["comparison"]
    metric = next((name for name in ORDER if name in found), None)
    shown = {"common users": (count(record["common_users"]), "the same on both sides")}
    if metric is None:
        return shown
    one, other = sides(record)
    entry = found[metric]
    return {
        f"{metric}, {one}": (number(entry["mean"]), ""),
        f"{metric}, {other}": (number(entry["other"]), ""),
        "better for": (percent(entry["better"]), f"of users; worse for {percent(entry['worse'])}"),
    } | shown


def _differences(found: Record, one: str, other: str) -> Section:
    blocks: list[Block] = []
    groups = {"Ranking": _RANKED, "Ratings, lower is better": _RATED}
    for place, (title, names) in enumerate(groups.items()):
        metrics = [name for name in names if name in found]
        if metrics:
            blocks.append(_forest(found, metrics, title, f"difference-{place}", one, other))
    listed = [LEAD, *HEADLINES]
    rows = [_row(name, found[name]) for name in listed if name in found]
    blocks.append(Table(f"{one} minus {other}, users in pairs", _head(one, other), rows))
    every = [_row(name, entry) for name, entry in found.items()]
    blocks.append(Folded("All metrics", [Table("All metrics", _head(one, other), every)]))
    return Section("Differences", blocks)


def _forest(
    found: Record, metrics: Sequence[str], title: str, key: str, one: str, other: str
) -> Figure:
    rows = [
        charts.Interval(
            name, found[name]["difference"], found[name]["ci_low"], found[name]["ci_high"]
        )
        for name in metrics
    ]
    text = f"{title}: difference of {len(rows)} metrics, {one} minus {other}, with intervals."
    panel = charts.intervals(key, title, rows, f"{one} minus {other}", text)
    table = Table(title, _head(one, other), [_row(name, found[name]) for name in metrics])
    return Figure(
        title,
        [panel],
        table,
        note="A bar is the 95 % interval of one difference.",
    )


def _head(one: str, other: str) -> list[str]:
    return ["", one, other, "difference", "95 % interval", "users better", "users worse"]


def _row(name: str, entry: Record) -> list[str]:
    return [
        name,
        number(entry["mean"]),
        number(entry["other"]),
        signed(entry["difference"]),
        span(entry["ci_low"], entry["ci_high"]),
        percent(entry["better"]),
        percent(entry["worse"]),
    ]


def _curves(found: Record, one: str) -> Section:
    """Return the difference in recall by the penalty of popularity and by the length of lists."""
    figures = []
    for key, pattern, title, x in (
        ("by-beta", _BETAS, "Difference in recall@20^beta", "beta: the penalty of popular items"),
        ("by-cut", _CUTS, "Difference in recall@k", "k: items of a list"),
    ):  # fmt: skip
        places = {float(m[1]): name for name in found if (m := pattern.fullmatch(name))}
        if len(places) < 3:
            continue
        names = [places[x_] for x_ in sorted(places)]
        entries = [found[name] for name in names]
        line = list(zip(sorted(places), [e["difference"] for e in entries], strict=True))
        band = [(e["ci_low"], e["ci_high"]) for e in entries if e["ci_low"] is not None]
        series = charts.Series(line, band=band if len(band) == len(line) else ())
        axes = charts.Axes(x, "difference", horizontals={0.0: ""})
        text = f"{title}: {one} minus the other over {len(line)} places, with 95 % intervals."
        panel = charts.points(key, title, [series], axes, text)
        rows = [
            [name, signed(e["difference"]), span(e["ci_low"], e["ci_high"])]
            for name, e in zip(names, entries, strict=True)
        ]
        table = Table(title, ["", "difference", "95 % interval"], rows)
        figures.append(Figure(title, [panel], table))
    return Section("By list length and popularity", figures)


def _foot(record: Record) -> Section:
    shown = {name: record.get(name) for name in _SETTINGS}
    one, other = sides(record)
    rows = [
        [side, kind, build]
        for side, key in ((one, "build_ids"), (other, "other_build_ids"))
        for kind, build in (record.get(key) or {}).items()
    ]
    return Section(
        "Settings and builds",
        [
            Folded("Settings", [settings("Settings of the comparison", shown)]),
            Folded("Builds", [Table("Builds", ["side", "kind", "build"], rows, left=(0, 1, 2))]),
        ],
    )
