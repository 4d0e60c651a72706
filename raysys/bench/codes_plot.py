"""The plot of the codes suite: recall@10 against bytes per item, ours and the peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raysys.errors import ConfigError


def write_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw one line per family of engines to a PNG and write the rows to a .json beside it.

    Raises:
        ConfigError: the path does not end with .png, or cannot be written.
    """
    if path.suffix != ".png":
        raise ConfigError(
            f"plot={str(path)!r} is not accepted: expected a path that ends with .png"
        )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for family, points in families(rows).items():
        style = "-" if family.startswith("raysys") else "--"
        axes.plot(*zip(*points, strict=True), style, marker="o", label=family)
    axes.set_xlabel("bytes per item, without the shared dictionary")
    axes.set_ylabel("recall@10")
    axes.set_title(f"{rows[0]['data']}: {rows[0]['n_items']:,} x {rows[0]['dim']}")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        path.with_suffix(".json").write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigError(f"plot={str(path)!r} cannot be written: {error}") from error


def families(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Return {family: [(bytes, recall@10)]}, by bytes; sizes are no part of a family's name."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        point = (float(row["bytes_per_item"]), float(row["recall@10"]))
        found.setdefault(_family(str(row["engine"])), []).append(point)
    return {family: sorted(set(points)) for family, points in found.items()}


def _family(engine: str) -> str:
    if engine.startswith("raysys"):
        return engine
    for name in ("OPQ", "RaBitQ", "SQ8", "PQ"):
        if name in engine:
            return f"faiss {'PCA+' if name == 'SQ8' and 'PCA' in engine else ''}{name}"
    return engine
