"""Sections of a run's page: codes and index, what they cost in recall and in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysys.evaluation.headlines import HEADLINES
from raysys.reports.html import charts
from raysys.reports.html.content import Block, Figure, Folded, Mark, Section, Table
from raysys.reports.html.foot import settings
from raysys.reports.html.text import count, ends, number, percent, signed, size, span, value
from raysys.reports.page import LEAD

Record = Mapping[str, Any]
_FLOAT = 4  # bytes
_QUERIES = ("From item to item", "Lists of users", "Lists of users with long profiles")
_PATHS = {"model": "the model itself", "codes": "codes", "index": "index"}


def section(record: Record) -> Section:
    """Return what the service holds of an item, and how surely the index finds the best."""
    builds = record["builds"]
    codes, index = (builds.get(kind) or {} for kind in ("codes", "index"))
    blocks: list[Block] = []
    facts = index.get("facts") or {}
    if facts.get("recall_table"):
        blocks.append(_recall_table(facts))
    weight = _weight(record)
    if weight is not None:
        blocks.append(weight)
    if record.get("loss"):
        blocks.append(_loss(record["loss"]))
    for name, build in (("Codes", codes), ("Index", index)):
        shown = {
            key: entry
            for key, entry in (build.get("facts") or {}).items()
            if not isinstance(entry, (list, dict))
        }
        if shown:
            blocks.append(Folded(f"{name}: all facts", [settings(name, shown)]))
    return Section("Search", blocks, lead=_lead(facts, codes.get("facts") or {}))


def _lead(index: Record, codes: Record) -> str:
    parts = []
    if codes.get("bytes_per_item") is not None:
        sparse = f"a code of {value(codes.get('n_active'))} of {value(codes.get('code_dim'))} atoms"
        kind = sparse if codes.get("n_active") else "a dense code"
        parts.append(f"An item takes {size(codes['bytes_per_item'])} as {kind}")
    if index.get("bytes_per_item") is not None:
        parts.append(f"{size(index['bytes_per_item'])} in the index ({value(index.get('kind'))})")
    return f"{', '.join(parts)}." if parts else ""


def _recall_table(facts: Record) -> Figure:
    """Return the recall of every effort tried, a panel a sort of query."""
    cuts: dict[str, None] = {}
    panels, rows = [], []
    target = facts.get("target_recall")
    lines = {} if target is None else {float(target): f"target {target:g}"}
    for place, group in enumerate(_groups(facts["recall_table"])):
        title = _QUERIES[min(place, len(_QUERIES) - 1)]
        least = [(float(row["effort"]), _least(row)) for row in group]
        for _, recalls in least:
            cuts |= dict.fromkeys(recalls)
        series = [
            charts.Series([(effort, found[k]) for effort, found in least if k in found], number_)
            for number_, k in enumerate(cuts)
        ]
        axes = charts.Axes("effort: lists that are searched", "recall", horizontals=lines)
        text = f"{title}: recall by effort for the best {', '.join(cuts)} items."
        panels.append(charts.points(f"index-recall-{place}", title, series, axes, text))
        rows += [
            [title, count(row["effort"]), *(number(found.get(k)) for k in cuts), f"{row['ms']:.3f}"]
            for row, (_, found) in zip(group, least, strict=True)
        ]
    title = "Recall of the index against an exact search"
    legend = [Mark(f"best {k}", place, charts.MARKERS[place]) for place, k in enumerate(cuts)]
    efforts = ", ".join(f"{n} for the best {k}" for k, n in (facts.get("efforts") or {}).items())
    head = ["queries", "effort", *(f"recall of {k}" for k in cuts), "ms a query"]
    note = f"The least of all rankings. Effort from item to item: {efforts}." if efforts else ""
    return Figure(title, panels, Table(title, head, rows), legend=legend, note=note)


def _groups(table: Sequence[Record]) -> list[list[Record]]:
    """Return the rows of each sort of query: efforts rise within one."""
    groups: list[list[Record]] = []
    for row in table:
        if not groups or row["effort"] <= groups[-1][-1]["effort"]:
            groups.append([])
        groups[-1].append(row)
    return groups


def _least(row: Record) -> dict[str, float]:
    """Return {k: recall of the best k}, the least of all rankings."""
    found: dict[str, float] = {}
    for recalls in (entry for entry in row.values() if isinstance(entry, Mapping)):
        for k, recall in recalls.items():
            found[k] = min(found.get(k, 1.0), float(recall))
    return found


def _weight(record: Record) -> Figure | None:
    """Return recall against bytes of an item, a point a path that was evaluated."""
    builds, metric, places = record["builds"], "recall@20", []
    dim = ((builds.get("embeddings") or {}).get("facts") or {}).get("dim")
    bytes_of = {
        "model": None if dim is None else _FLOAT * float(dim),
        **{
            via: ((builds.get(via) or {}).get("facts") or {}).get("bytes_per_item")
            for via in ("codes", "index")
        },
    }
    for via, words in _PATHS.items():
        found = (record.get("evaluations") or {}).get(f"evaluate-test-{via}") or {}
        metrics = ((found.get("methods") or {}).get(via) or {}).get("metrics") or {}
        for name in (LEAD, "recall@20"):
            if name in metrics:
                metric = name
                break
        mean, held = (metrics.get(metric) or {}).get("mean"), bytes_of[via]
        if mean is not None and held is not None:
            places.append((words, float(held), mean, ends(metrics[metric])))
    if len(places) < 2:
        return None
    series = [
        charts.Series([(held, mean)], number_, "", labels=[words])
        for number_, (words, held, mean, _) in enumerate(places)
    ]
    title = f"{metric} against bytes of an item"
    axes = charts.Axes("bytes of an item", metric, log="x", zero=True)
    said = "; ".join(f"{words} {number(mean)} in {size(held)}" for words, held, mean, _ in places)
    panel = charts.points("weight", title, series, axes, f"{title}: {said}.")
    rows = [
        [words, size(held), number(mean), span(*between, sign=False)]
        for words, held, mean, between in places
    ]
    note = "The model itself: one float32 a dimension."
    return Figure(title, [panel], Table(title, ["", "bytes", metric, "95 %"], rows), note=note)


def _loss(loss: Record) -> Figure:
    """Return the paired differences of what is served to the model."""
    rows, panels = [], []
    for place, (via, found) in enumerate(loss.items()):
        listed = [n for n in (LEAD, *HEADLINES) if n in found]
        ranked = [n for n in listed if n.startswith(("recall", "ndcg", "hit"))]
        lines = [charts.Interval(n, found[n]["mean"], *ends(found[n]), place) for n in ranked]
        text = f"{via} minus the model in {len(lines)} ranking metrics, users in pairs."
        panels.append(charts.intervals(f"loss-{via}", via, lines, f"{via} minus the model", text))
        for name in listed:
            entry = found[name]
            part = entry["mean"] / entry["of"] if entry.get("of") else None
            rows.append(
                [via, name, number(entry["of"]), signed(entry["mean"]), span(*ends(entry)),
                 percent(part, 2)]
            )  # fmt: skip
    head = ["", "metric", "model", "difference", "95 % interval", "of the model's"]
    table = Table("What is served minus the model", head, rows, left=(0, 1))
    note = "The same users on both sides; at the line nothing is lost."
    return Figure("What compression and search lose", panels, table, note=note)
