"""Index builds: what is written, and how it is opened again, memory-mapped.

shard-00000/   ivf: codes, biases and item_nums of a run of rows, in cell order, so that a cell
is one run on disk, and which rows spilled into which cells; also a graph with equal items, whose
cells are its entries; flat and other graphs read those of the codes and embeddings builds
rows.npy starts.npy            where every item and every cell lies, where rows lie in cells
router.hnsw mean.npy axes.npy  ivf and graph
unreached.npy                  ivf and graph: rows that the router compares directly
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raysys.compressor.codes import Codes
from raysys.data.arrays import Floats
from raysys.errors import BuildError
from raysys.index.index import Index
from raysys.index.kernels import Spills
from raysys.index.layout import Layout
from raysys.index.lists import RoutingSpace, Tasks, run_here
from raysys.index.router import Router
from raysys.index.shards import Shards, shard_bounds
from raysys.store.builds import Build
from raysys.store.drafts import Draft
from raysys.store.storage import join, open_filesystem


def save_index(
    index: Index, draft: Draft, *, n_shards: int = 1, tasks: Tasks = run_here
) -> dict[str, Any]:
    """Write what `open_index` needs beside the other builds, and return the facts it needs.

    Args:
        index: a whole index.
        draft: the build that is being made.
        n_shards: runs of rows (ivf only), each of its own files.
        tasks: writes the shards, here or on Ray.
    """
    facts: dict[str, Any] = {
        "kind": index.kind,
        "similarity": index.similarity,
        "packing": index.codes.packing,
        "n_items": index.n_items,
        "dim": index.dim,
        "n_bias": index.n_bias,
        "n_cells": index.n_cells,
        "n_routed": index.n_routed,
        "n_unreached": 0 if index.router is None else len(index.router.unreached),
        "settings": {str(k): v for k, v in index.settings.items()},
        "shard_rows": [0, index.n_items],
    }
    extra = index.n_bias * 4.0
    if index.in_cells:
        bounds = facts["shard_rows"] = shard_bounds(index, n_shards)
        runs = [(s, bounds[s], bounds[s + 1]) for s in range(n_shards)]
        tasks(write_shard, runs, (draft.url, index.codes, index.bias, index.layout))
        for name in ("rows", "starts"):
            np.save(draft.path(f"{name}.npy"), getattr(index.layout, name))
        per_cell = index.layout.starts.nbytes + 8 * len(index.layout.spills.rows)
        extra += 8 + per_cell / index.n_items
    if index.router is not None and index.space is not None:
        np.save(draft.path("mean.npy"), index.space.mean)
        if index.space.axes is not None:
            np.save(draft.path("axes.npy"), index.space.axes)
        facts["norm"] = index.space.norm
        np.save(draft.path("unreached.npy"), index.router.unreached)
        path = draft.path("router.hnsw")
        index.router.save(path)
        extra += path.stat().st_size / index.n_items
    shared = index.codes.bytes_per_item_with(index.dictionary.floats) - index.codes.bytes_per_item
    facts["bytes_per_item"] = round(index.codes.bytes_per_item + extra, 2)
    facts["bytes_per_item_with_dictionary"] = round(facts["bytes_per_item"] + shared, 2)
    return facts


def write_shard(
    number: int, start: int, stop: int, url: str, codes: Codes, bias: Floats, layout: Layout
) -> None:
    """Write rows [start, stop) as one shard's files below `url` (one task)."""
    rows = slice(start, stop)
    held = layout.taken(start, stop)
    spills = {f"spill_{name}": part for name, part in held.spills._asdict().items()}
    arrays = {**codes.take(rows).arrays(), "bias": bias[rows], "items": held.items, **spills}
    filesystem, folder = open_filesystem(join(url, _folder(number)))
    filesystem.create_dir(folder, recursive=True)
    for name, array in arrays.items():
        with filesystem.open_output_stream(f"{folder}/{name}.npy") as stream:
            np.save(stream, np.ascontiguousarray(array))


def open_index(index: Build, chain: Mapping[str, Build]) -> Index | Shards:
    """Open an index build, all of its shards; arrays stay on disk until they are touched.

    Args:
        index: the build.
        chain: {kind: Build} with the codes, compressor and embeddings it was made from.

    Raises:
        BuildError: a build it needs is missing from the chain.
    """
    shared = _open_router(index)
    parts: list[Index] = []
    for number in range(len(_bounds(index)) - 1):
        parts.append(_open_part(index, chain, number, shared))
        shared["dictionary"] = parts[0].dictionary  # rounded once
    return parts[0] if len(parts) == 1 else Shards(parts)


def open_shard(index: Build, chain: Mapping[str, Build], number: int) -> Index:
    """Open one shard of an index build; no other shard's files are fetched or read.

    Raises:
        BuildError: there is no such shard, or a build it needs is missing from the chain.
    """
    return _open_part(index, chain, number, _open_router(index))


def _open_part(
    index: Build, chain: Mapping[str, Build], number: int, shared: dict[str, Any]
) -> Index:
    missing = {"codes", "compressor", "embeddings"} - set(chain)
    if missing:
        raise BuildError(f"index {index.build_id} needs builds of {sorted(missing)}")
    facts, bounds = index.facts, _bounds(index)
    if not 0 <= number < len(bounds) - 1:
        raise BuildError(f"index {index.build_id} has shards 0 to {len(bounds) - 2}, not {number}")
    parts: dict[str, Any] = {"n_items": facts["n_items"], "first_row": bounds[number]}
    if "starts.npy" in index.files():
        folder = _folder(number)
        codes = Codes.open(index, folder=folder)
        names = [f"{folder}bias", f"{folder}items", "rows", "starts"]
        bias, items, rows, starts = (
            np.load(index.path(f"{name}.npy"), mmap_mode="r") for name in names
        )
        names = [f"{folder}spill_{name}" for name in Spills._fields]
        spills = (np.load(index.path(f"{name}.npy"), mmap_mode="r") for name in names)
        parts["layout"] = Layout(items, rows, starts, Spills(*spills))
    else:
        codes = Codes.open(chain["codes"])
        bias = np.load(chain["embeddings"].path("bias.npy"), mmap_mode="r")
    if "dictionary" not in shared:
        parts["dictionary"] = load_dictionary(codes, chain, facts["dim"])
    return Index(
        kind=facts["kind"],
        similarity=facts["similarity"],
        codes=codes,
        bias=bias,
        settings={int(k): v for k, v in facts["settings"].items()},
        **parts,
        **shared,
    )


def _open_router(index: Build) -> dict[str, Any]:
    """Return the router and its space, as arguments of an index; none for flat."""
    facts = index.facts
    if facts["kind"] == "flat":
        return {}
    if "n_routed" not in facts:
        raise BuildError(f"index {index.build_id} is of an earlier raysys: run index again")
    axes = np.load(index.path("axes.npy")) if "axes.npy" in index.files() else None
    mean = np.load(index.path("mean.npy"))
    space = RoutingSpace(facts["similarity"], mean, facts["norm"], axes)
    router = Router.open(
        index.path("router.hnsw"),
        dim=space.dim,
        n_rows=facts["n_routed"],
        unreached=np.load(index.path("unreached.npy")),
    )
    return {"space": space, "router": router}


def load_dictionary(codes: Codes, chain: Mapping[str, Build], dim: int) -> Floats:
    """Return the dictionary [S, D], memory-mapped; [0, D] for dense8 codes, which use none."""
    if codes.packing == "dense8":
        return np.zeros((0, dim), dtype=np.float32)
    return np.asarray(np.load(chain["compressor"].path("dictionary.npy"), mmap_mode="r"))


def _bounds(index: Build) -> list[int]:
    rows: list[int] = index.facts.get("shard_rows") or [0, index.facts["n_items"]]
    return rows


def _folder(number: int) -> str:
    return f"shard-{number:05d}/"
