"""The plot of the codes suite: recall@10 against bytes per item, ours and the peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raysys.errors import ConfigError
from raysys.reports.plots import Line, Panel, draw

_PEERS = ("faiss OPQ", "faiss RaBitQ", "faiss PCA+SQ8", "faiss PQ")


def write_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw one line per family of engines to a PNG and write the rows to a .json beside it.

    Raises:
        ConfigError: the path does not end with .png, or cannot be written.
    """
    if path.suffix != ".png":
        raise ConfigError(
            f"plot={str(path)!r} is not accepted: expected a path that ends with .png"
        )
    panel = codes_panel(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw([panel], path)
        path.with_suffix(".json").write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigError(f"plot={str(path)!r} cannot be written: {error}") from error


def codes_panel(rows: list[dict[str, Any]]) -> Panel:
    """Return the panel of one data set: a line per family of engines, the peers' dashed."""
    lines = [
        Line(family, points, _colour(family), "-" if family.startswith("raysys") else "--")
        for family, points in families(rows).items()
    ]
    return Panel(
        title=f"{rows[0]['data']}: {rows[0]['n_items']:,} x {rows[0]['dim']}",
        x="bytes per item, without the shared dictionary",
        y="recall@10",
        lines=lines,
    )


def families(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Return {family: [(bytes, recall@10)]}, by bytes; sizes are no part of a family's name."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        point = (float(row["bytes_per_item"]), float(row["recall@10"]))
        found.setdefault(_family(str(row["engine"])), []).append(point)
    return {family: sorted(set(points)) for family, points in found.items()}


def _colour(family: str) -> int:
    """Return the number of a family's colour, the same in every plot."""
    if family.startswith("raysys"):
        return len(_PEERS) + 1 if "cut" in family else 0
    return _PEERS.index(family) + 1


def _family(engine: str) -> str:
    if engine.startswith("raysys"):
        return engine
    return next(
        peer for peer in _PEERS if peer.removeprefix("faiss ").removeprefix("PCA+") in engine
    )
