"""The readable table of an evaluation: methods below each other, metrics beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raysys.evaluation.evaluator import Metrics

HEADLINES = (
    "recall@20",
    "recall@50",
    "recall@20^0",
    "recall@20^0.3",
    "recall@20^0.5",
    "ndcg@100",
    "hit@10",
    "coverage@20",
    "gini@20",
    "novelty@20",
    "rmse",
    "mae",
    "nll",
    "ece",
)


def headline(found: Metrics) -> Metrics:
    """Return the metrics that stand in the table."""
    return {name: found[name] for name in HEADLINES if name in found}


def table(methods: Mapping[str, Metrics]) -> list[str]:
    """Lay out the methods' headline metrics, one line each, as mean ± half the 95 % interval."""
    columns = [name for name in HEADLINES if any(name in found for found in methods.values())]
    rows = [["", *columns]]
    for method, found in methods.items():
        rows.append([method, *(_cell(found, name) for name in columns)])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad the cells of a table, the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]


def _cell(found: Metrics, name: str) -> str:
    entry = found.get(name, {})
    mean, low, high = entry.get("mean"), entry.get("ci_low"), entry.get("ci_high")
    if mean is None:
        return "-"
    return f"{mean:.4f}" + ("" if low is None or high is None else f" ±{(high - low) / 2:.4f}")
