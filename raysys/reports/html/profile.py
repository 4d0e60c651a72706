"""What the profiles of a run are, counted shard by shard: times, windows, levels, lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.data.profiles import ProfilesFacts, shard_names
from raysys.data.schema import Window
from raysys.store.builds import Build
from raysys.store.storage import open_filesystem

_BINS = 60
_LEVELS = 256  # a byte
_MAX_CELLS = 50_000_000  # that are read for a page; of larger logs the first shards speak
_LONGEST = 1 << 20  # profiles of more interactions count as this long
_QUANTILES = (0.1, 0.5, 0.9, 0.99, 1.0)


def profile_of(build: Build) -> dict[str, Any]:
    """Return counts of a `profiles` build.

    Returns:
        `edges` [B + 1] UTC seconds and `counts` {window: [B]} (both empty without times), `levels`
        {window: [R]}, `lengths` {quantile: interactions of a user}, `shards` read and `of` all.

    Raises:
        BuildError: a file cannot be opened.
    """
    facts = ProfilesFacts.of(build)
    names = shard_names(build)
    per_shard = max(1, sum(facts.n_cells.values()) // max(1, len(names)))
    read = names[: max(1, _MAX_CELLS // per_shard)]
    edges = _edges(build, read) if facts.has_time else np.zeros(0)
    n_windows = len(Window)
    counts = np.zeros((n_windows, _BINS), dtype=np.int64)
    levels = np.zeros((n_windows, _LEVELS), dtype=np.int64)
    lengths = np.zeros(0, dtype=np.int64)
    for batch in _batches(build, read, ["timestamp", "level", "window"]):
        window = _values(batch["window"])
        levels += _joint(window, _values(batch["level"]), levels.shape)
        if len(edges):
            places = np.searchsorted(edges, _values(batch["timestamp"]), side="right") - 1
            counts += _joint(window, np.clip(places, 0, _BINS - 1), counts.shape)
        sizes = np.minimum(pc.list_value_length(batch["window"]).to_numpy(False), _LONGEST)
        lengths = _added(lengths, np.bincount(sizes))
    held = [w for w in Window if levels[w].any()]
    n_levels = len(facts.levels) or int(np.flatnonzero(levels.sum(axis=0)).max(initial=-1)) + 1
    return {
        "edges": edges.tolist(),
        "counts": {w.name: counts[w].tolist() for w in held} if len(edges) else {},
        "levels": {w.name: levels[w, :n_levels].tolist() for w in held},
        "lengths": _quantiles(lengths),
        "shards": len(read),
        "of": len(names),
    }


def _batches(build: Build, names: list[str], columns: list[str]) -> Any:
    """Yield the batches of shards, read where they lie."""
    for name in names:
        filesystem, path = open_filesystem(build.url(name))
        with filesystem.open_input_file(path) as file:
            yield from pq.ParquetFile(file).iter_batches(columns=columns)


def _edges(build: Build, names: list[str]) -> NDArray[np.float64]:
    """Return the edges of bins over all times; none where there are no times."""
    low, high = [], []
    for batch in _batches(build, names, ["timestamp"]):
        values = _values(batch["timestamp"])
        if len(values):
            low.append(int(values.min()))
            high.append(int(values.max()))
    if not low:
        return np.zeros(0)
    return np.linspace(min(low), max(high) + 1, _BINS + 1)


def _values(lists: pa.Array) -> NDArray[np.int64]:
    return np.asarray(pc.list_flatten(lists).to_numpy(False)).astype(np.int64)


def _joint(one: NDArray[np.int64], two: NDArray[np.int64], shape: Any) -> NDArray[np.int64]:
    """Count pairs of numbers."""
    found: NDArray[np.int64] = np.bincount(one * shape[1] + two, minlength=shape[0] * shape[1])
    return found.reshape(shape)


def _added(one: NDArray[np.int64], two: NDArray[np.int64]) -> NDArray[np.int64]:
    longer, shorter = (one, two) if len(one) >= len(two) else (two, one)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total


def _quantiles(lengths: NDArray[np.int64]) -> dict[str, int]:
    """Return the lengths below which these shares of the users lie."""
    total = lengths.sum()
    if not total:
        return {}
    ranks = np.cumsum(lengths)
    return {f"{q:g}": int(np.searchsorted(ranks, q * total)) for q in _QUANTILES}
