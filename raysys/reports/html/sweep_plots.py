"""The figures of a sweep's page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raysys.reports.html import charts
from raysys.reports.html.content import Figure, Mark, Table
from raysys.reports.html.text import count, number, percent, signed, span, value

Record = Mapping[str, Any]
STATES = ("complete", "reused", "pruned", "failed", "running")
# Colour, marker and what a trial of this state is called in a legend.
_MARKS = {
    "complete": (0, "o", "finished"),
    "reused": (2, "D", "measured by an earlier sweep"),
    "pruned": (4, "v", "stopped early"),
    "failed": (1, "X", "failed"),
}
_MAX_AXES = 8
MAX_ROWS = 1000  # trials that tables hold; the record has all
_MAX_LINES = 150  # trials, of the best, that are drawn as lines


def trial(record: Record, wanted: int | None) -> Record | None:
    """Return the trial of a number, or None."""
    trials = record.get("trials") or []
    return next((t for t in trials if t.get("number") == wanted), None)


def written(found: float | None) -> str:
    """Return an objective's value, whatever its size."""
    if found is not None and abs(found) >= 10:
        return f"{found:,.1f}"
    return number(found)


def history(record: Record, objective: Record, place: int) -> Figure | None:
    """Return an objective trial by trial, and the best so far."""
    name, sign = objective["name"], 1 if objective["direction"] == "max" else -1
    values = {
        t["number"]: t["objectives"][name]
        for t in record.get("trials") or []
        if name in (t.get("objectives") or {})
    }
    if not values:
        return None
    counted = {n: v for n, v in values.items() if (trial(record, n) or {}).get("state") != "pruned"}
    best = list(itertools.accumulate(counted.values(), max if sign > 0 else min))
    steps = _steps(list(zip(counted, best, strict=True)), last=max(values))
    series = [charts.Series(steps, None, marker="")]
    legend = [Mark("best so far", None)]
    floor = min(values.values()) if sign > 0 else max(values.values())
    for state, (colour, marker, words) in _MARKS.items():
        of_state = [t["number"] for t in record["trials"] if t.get("state") == state]
        points = [(float(n), values.get(n, floor)) for n in of_state]
        if points:
            series.append(charts.Series(points, colour, "", marker=marker))
            legend.append(Mark(words, colour, marker, ""))
    lines = {values[0]: "the defaults"} if 0 in values else {}
    axes = charts.Axes("trial", name, horizontals=lines)
    title = f"{name} of every trial"
    text = (
        f"{title}, {len(values)} trials, {objective['direction']}imised; from "
        f"{written(values[min(values)])} to {written(steps[-1][1] if steps else None)} at best."
    )
    panel = charts.points(f"history-{place}", title, series, axes, text, wide=True, height=260)
    reached = dict(steps)
    rows = [
        [str(t["number"]), str(t.get("state")), written(values.get(t["number"])),
         written(reached.get(float(t["number"])))]
        for t in record["trials"][:MAX_ROWS]
    ]  # fmt: skip
    table = Table(title, ["trial", "state", name, "best so far"], rows, left=(0, 1))
    note = "A failed trial stands at the worst value." if "failed" in _states(record) else ""
    return Figure(title, [panel], table, legend=legend, note=note)


def importance(record: Record) -> Figure | None:
    """Return the share of the objective's variance that each key explains."""
    found = {k: float(v) for k, v in (record.get("importance") or {}).items()}
    if not found:
        return None
    ordered = dict(sorted(found.items(), key=lambda entry: -entry[1]))
    title = f"Importance for {record['objectives'][0]['name']}"
    first, share = next(iter(ordered.items()))
    text = f"{title}: {first} explains most, {percent(share)}."
    panel = charts.bars("importance", title, ordered, "share of the variance", text)
    rows = [[key, percent(v)] for key, v in ordered.items()]
    return Figure(title, [panel], Table(title, ["key", "share"], rows))


def coordinates(record: Record) -> Figure | None:
    """Return parallel coordinates: keys, then objectives; a line a trial."""
    every = [t for t in record.get("trials") or [] if t.get("objectives")]
    trials = _foremost(record, every)
    names = [objective["name"] for objective in record["objectives"]]
    keys = list(record.get("space") or {})[: _MAX_AXES - len(names)]
    if len(trials) < 2 or not keys:
        return None
    defaults = record.get("defaults") or {}
    columns: dict[str, list[Any]] = {
        key: [(t.get("values") or {}).get(key, None if t["number"] else defaults.get(key))
              for t in trials]
        for key in keys
    }  # fmt: skip
    columns |= {name: [t["objectives"].get(name) for t in trials] for name in names}
    logs = {
        key for key in keys
        if isinstance(record["space"][key], Mapping) and record["space"][key].get("log")
    }  # fmt: skip
    scaled = {name: _scaled(found, log=name in logs) for name, found in columns.items()}
    lines = []
    for at, t in enumerate(trials):
        colour = _colour(record, t["number"])
        lines.append(([places[at] for places, _ in scaled.values()], colour))
    title = "Settings and objectives of every trial"
    text = f"{title}: {len(trials)} trials over {', '.join(columns)}; the best one is emphasised."
    ends = [ends for _, ends in scaled.values()]
    panel = charts.parallel("coordinates", title, list(columns), lines, ends, text)
    rows = [
        [str(t["number"]), *(_shown(found[at]) for found in columns.values())]
        for at, t in enumerate(trials)
    ]
    legend = _legend(record, trials, marked=True)
    table = Table(title, ["trial", *columns], rows)
    note = f"A line that dips below an axis does not set its key.{_left_out(every, trials)}"
    return Figure(title, [panel], table, legend=legend, note=note)


def front(record: Record, name_of: Callable[[int], str]) -> Figure | None:
    """Return the first two objectives against each other, and the front."""
    one, two = record["objectives"][:2]
    x, y = two["name"], one["name"]
    places = {
        t["number"]: (float(t["objectives"][x]), float(t["objectives"][y]))
        for t in record.get("trials") or []
        if x in (t.get("objectives") or {}) and y in t["objectives"] and t.get("state") != "pruned"
    }
    if not places:
        return None
    on = sorted((n for n in record.get("front") or [] if n in places), key=lambda n: places[n])
    rest = [place for n, place in places.items() if n not in on and n]
    labels = [name_of(n).removeprefix("trial ") for n in on]
    series = [charts.Series(rest, 2, "", marker="o")] if rest else []
    series.append(charts.Series([places[n] for n in on], 0, "--", marker="D", labels=labels))
    if 0 in places and 0 not in on:
        series.append(charts.Series([places[0]], 1, "", labels=["the defaults"]))
    title = f"{y} against {x}"
    text = f"{title}: {len(places)} trials, {len(on)} of them on the front: {', '.join(labels)}."
    axes = charts.Axes(f"{x}, {two['direction']}imised", f"{y}, {one['direction']}imised")
    panel = charts.points("front", title, series, axes, text, wide=True, height=300)
    names = [objective["name"] for objective in record["objectives"]]
    rows = [
        [name_of(n), *(written((trial(record, n) or {})["objectives"].get(k)) for k in names)]
        for n in on
    ]
    legend = [
        Mark("on the front, with the trial's number", 0, "D", "--"),
        Mark("other trials", 2, "o", ""),
        Mark("the defaults", 1, "s", ""),
    ]
    return Figure(title, [panel], Table("On the front", ["trial", *names], rows), legend=legend)


def hypervolume(record: Record) -> Figure | None:
    """Return the hypervolume after each trial, beside that of random search."""
    found = record.get("hypervolume")
    if not found:
        return None
    names = {"found": "this sweep", "random": "random search"}
    lines = {key: [float(v) for v in found.get(key) or []] for key in names}
    lines = {key: line for key, line in lines.items() if line}
    if not lines:
        return None
    series = [
        charts.Series(list(enumerate(line)), place, "--" if place else "-", marker="")
        for place, line in enumerate(lines.values())
    ]
    title = "Hypervolume of the front"
    last = ", ".join(f"{names[key]} {line[-1]:.4g}" for key, line in lines.items())
    axes = charts.Axes("trial", "hypervolume", zero=True)
    panel = charts.points("hypervolume", title, series, axes, f"{title} after all trials: {last}.")
    longest = max(map(len, lines.values()))
    rows = [
        [str(n), *(f"{line[n]:.4g}" if n < len(line) else "–" for line in lines.values())]
        for n in range(min(longest, MAX_ROWS))
    ]
    table = Table(title, ["after trial", *(names[key] for key in lines)], rows)
    legend = [
        Mark(names[key], place, "", "-" if not place else "--") for place, key in enumerate(lines)
    ]
    return Figure(title, [panel], table, legend=legend)


def finalists(found: Record, name_of: Callable[[int], str]) -> Figure:
    """Return the differences of all pairs of finalists with their simultaneous intervals."""
    rows, cells = [], []
    for entry in found["comparisons"]:
        first, second = (
            name_of(entry[side]).replace("trial ", "").replace("the ", "")
            for side in ("first", "second")
        )
        ends = entry["ci_low"], entry["ci_high"]
        sure = not ends[0] <= 0 <= ends[1]
        name = f"{first} minus {second}"
        rows.append(charts.Interval(name, entry["difference"], *ends, 0 if sure else None))
        cells.append([name, signed(entry["difference"]), span(*ends), f"{entry['p_value']:.2g}"])
    title = f"Differences in {found['metric']}"
    n_sure = sum(row.colour == 0 for row in rows)
    text = f"{title}: {len(rows)} pairs of finalists, {n_sure} of them beyond noise."
    panel = charts.intervals("finalists", title, rows, found["metric"], text)
    legend = [Mark("beyond noise", 0, "o"), Mark("within noise", None, "o")]
    table = Table(title, ["trials", "difference", "95 %, simultaneous", "p, adjusted"], cells)
    return Figure(title, [panel], table, legend=legend)


def _colour(record: Record, number: int) -> int | None:
    """Return the colour of a trial: of the one in `best.yaml`, of the defaults, or grey."""
    if number == record.get("winner", record.get("best")):
        return 0
    return 1 if number == 0 else None


def _legend(record: Record, trials: Sequence[Record], *, marked: bool) -> list[Mark]:
    """Return what stands for the trials that are drawn.

    Args:
        record: of the sweep.
        trials: that are drawn.
        marked: lines have markers, and the best one is whole; else the defaults' is dashed always.
    """
    colours = {t["number"]: _colour(record, t["number"]) for t in trials}
    marks: list[Mark] = []
    for each, colour in colours.items():
        dashed = each == 0 and not (marked and colour == 0)
        style = "--" if dashed else "-"
        if colour == 0:
            name = "the best trial" if each else "the defaults, the best"
            marks.insert(0, Mark(name, 0, "o" if marked else "", style))
        elif colour == 1:
            marks.append(Mark("the defaults", 1, "s" if marked else "", style))
    return marks + ([Mark("other trials", None)] if None in colours.values() else [])


def curves(record: Record, name_of: Callable[[int], str]) -> Figure | None:
    """Return the learning curves of all trials."""
    every = [t for t in record.get("trials") or [] if len(t.get("history") or []) > 1]
    trials = _foremost(record, every)
    if not trials:
        return None
    series = []
    for t in trials:
        colour = _colour(record, t["number"])
        style = "--" if t["number"] == 0 else "-"
        points = [(float(epoch), float(v)) for epoch, v in t["history"] if v is not None]
        series.append(charts.Series(points, colour, style, marker=""))
    name = record.get("watched") or record.get("stop_on") or record["objectives"][0]["name"]
    title = f"{name} by epoch"
    text = f"{title}: {len(trials)} trials, the best one and the defaults emphasised."
    axes = charts.Axes("epoch", name)
    panel = charts.points("curves", title, series, axes, text, wide=True, height=260)
    rows = [
        [name_of(t["number"]), str(t.get("state")), count(t["history"][-1][0]),
         written(t["history"][0][1]), written(t["history"][-1][1])]
        for t in trials
    ]  # fmt: skip
    table = Table(title, ["trial", "state", "last epoch", "first", "last"], rows, left=(0, 1))
    note = _left_out(every, trials).strip()
    legend = _legend(record, trials, marked=False)
    return Figure(title, [panel], table, legend=legend, note=note)


def _foremost(record: Record, trials: Sequence[Record]) -> list[Record]:
    """Return the trials that are drawn as lines: the best, with the defaults."""
    lead = record["objectives"][0]
    sign = 1 if lead["direction"] == "max" else -1

    def rank(t: Record) -> tuple[bool, float]:
        found = (t.get("objectives") or {}).get(lead["name"])
        return t["number"] != 0, math.inf if found is None else -sign * found

    kept = {t["number"] for t in sorted(trials, key=rank)[:_MAX_LINES]}
    return [t for t in trials if t["number"] in kept]


def _left_out(every: Sequence[Record], drawn: Sequence[Record]) -> str:
    if len(drawn) == len(every):
        return ""
    return f" The best {len(drawn)} of {count(len(every))} trials are drawn."


def _states(record: Record) -> set[str]:
    return {str(t.get("state")) for t in record.get("trials") or []}


def _steps(points: Sequence[tuple[int, float]], *, last: int) -> list[tuple[float, float]]:
    """Return the corners of a staircase that goes on to the last trial."""
    corners: list[tuple[float, float]] = []
    for at, found in points:
        if corners:
            corners.append((float(at), corners[-1][1]))
        corners.append((float(at), found))
    return [*corners, (float(last), corners[-1][1])] if corners else []


def _scaled(found: Sequence[Any], *, log: bool) -> tuple[list[float | None], tuple[str, str]]:
    """Return places from 0 to 1, and what stands at the ends; words stand in their order."""
    present = [entry for entry in found if entry is not None]
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in present)
    if not present:
        return [None] * len(found), ("–", "–")
    if not numeric:
        names = sorted({value(entry) for entry in present})
        top = max(1, len(names) - 1)
        places = [None if entry is None else names.index(value(entry)) / top for entry in found]
        return places, (names[0], names[-1] if len(names) > 1 else "")
    change = math.log if log and min(present) > 0 else float
    low, high = change(min(present)), change(max(present))
    width = (high - low) or 1.0
    places = [None if entry is None else (change(entry) - low) / width for entry in found]
    return places, (_shown(min(present)), _shown(max(present)))


def _shown(found: Any) -> str:
    if found is None:
        return "–"
    return f"{found:.4g}" if isinstance(found, float) else value(found)
