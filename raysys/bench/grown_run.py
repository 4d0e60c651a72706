"""A run whose catalogue is grown from a real one, with all that a service opens.

Codes grow by the rule of `bench/scale.py`: a later item takes the 8 strongest atoms of a real item
a and the others of a real item b, here one of a like scale, and is no longer than a in the consume
block. Its vectors are what its code decodes to, its prior, counters and levels those of a. So
candidates and exact scores belong together, and users are real ones. Beyond the real users, their
histories come again under other ids.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.autoencoder.files import AutoencoderFacts
from raysys.bench.scale import grown_rows, mixed_codes
from raysys.commands.index import IndexConfig, index
from raysys.compressor.codes import Codes
from raysys.compressor.embeddings import Embeddings, EmbeddingsFacts, write_embeddings
from raysys.compressor.files import Coded, Compressor
from raysys.data.arrays import CHUNK_ROWS, Floats, new_file
from raysys.data.profiles import Profiles, ProfilesFacts, shard_name, write_tables
from raysys.scoring.files import FOLDER, LEVELS, open_weights
from raysys.store.builds import Build, Workspace
from raysys.store.drafts import Draft
from raysys.timing.counters import Counters
from raysys.timing.files import Timed

log = logging.getLogger(__name__)

_SHARD_USERS = 100_000
_KEPT = ("level_in", "level_out", "level_bias", "residual", "loadings", "variance", "prior")


def grow_run(
    source: str, run: str, *, n_items: int, n_users: int, seed: int, ray: Any
) -> Workspace:
    """Make the run `run` of `n_items` items and `n_users` users, if it is not there yet.

    Args:
        source: a run with an index of a model.
        run: to be made.
        n_items: rows of the catalogue.
        n_users: stored users.
        seed: of the draws.
        ray: how the index job reaches Ray.
    """
    workspace = Workspace(run)
    if workspace.has("index"):
        return workspace
    real = Coded.current(Workspace(source))
    assert real.autoencoder is not None, "a model is evaluated"
    assert real.profiles is not None, "a model has profiles"
    codes = Codes.open(real.codes)
    rows, others = grown_rows(codes.n_items, n_items, seed=seed)
    grown = mixed_codes(codes, rows, _of_like_scale(codes, rows, others))
    dictionary = Compressor.open(real.compressor).dictionary_of(codes)
    width = open_weights(real.autoencoder).rows["rows"].shape[1]
    grown = _as_long(grown, codes.decode(dictionary)[:, :width], rows, dictionary)
    vectors = _decoded(grown, dictionary, Path(run) / "grown-vectors.npy")
    items = _items(real.profiles, rows)

    def built(kind: str, write: Any, inputs: list[Build]) -> Build:
        log.info("grown kind=%s n_items=%d", kind, n_items)
        return workspace.build(kind, config={"n_items": n_items}, inputs=inputs, write=write)

    profiles = built("profiles", lambda d: _profiles(d, real.profiles, items, n_users), [])
    model = built("autoencoder", lambda d: _model(d, real.autoencoder, rows, vectors), [profiles])
    embeddings = built(
        "embeddings", lambda d: _embeddings(d, real, rows, vectors, items), [model, profiles]
    )
    compressor = built(
        "compressor", lambda d: Compressor.open(real.compressor).copy_to(d), [embeddings]
    )

    def coded(draft: Draft) -> Any:
        grown.save(draft)
        return grown.facts(dictionary, similarity="inner_product")

    built("codes", coded, [compressor, embeddings])
    index(IndexConfig(run=run, ray=ray, target_recall=None))
    return workspace


def _of_like_scale(
    codes: Codes, rows: NDArray[np.int64], others: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return for each of `others` an item whose scale is near that of the item in `rows`.

    Entries count in units of a row's scale: those of any other item would make vectors of lengths
    that no real item has.
    """
    order = np.argsort(codes.scale, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    reach = max(1, len(order) // 100)
    near = np.clip(rank[rows] + others % (2 * reach + 1) - reach, 0, len(order) - 1)
    return np.where(rows == others, rows, order[near])


def _as_long(codes: Codes, real: Floats, rows: NDArray[np.int64], dictionary: Floats) -> Codes:
    """Return the codes with scales that make no consume vector longer than that of its `rows`."""
    wanted, width = np.linalg.norm(real, axis=1), real.shape[1]
    scale = np.array(codes.scale)
    for start in range(0, len(rows), CHUNK_ROWS):
        part = np.arange(start, min(start + CHUNK_ROWS, len(rows)))
        length = np.linalg.norm(codes.decode(dictionary, part)[:, :width], axis=1)
        scale[part] *= np.minimum(1, wanted[rows[part]] / np.maximum(length, 1e-30))
    return dataclasses.replace(codes, scale=scale)


def _decoded(codes: Codes, dictionary: Any, path: Path) -> NDArray[np.float16]:
    """Return the vectors that codes decode to, in a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width = codes.decode(dictionary, np.zeros(1, dtype=np.int64)).shape[1]
    out = new_file(path, (codes.n_items, width), np.float16)
    for start in range(0, codes.n_items, CHUNK_ROWS):
        part = np.arange(start, min(start + CHUNK_ROWS, codes.n_items))
        out[part] = codes.decode(dictionary, part)
    return out


def _items(profiles: Build, rows: NDArray[np.int64]) -> pa.Table:
    """Return the items: titles and attributes of the real ones, an id for each."""
    real = Profiles.open(profiles).items
    table = real.take(pa.array(np.minimum(rows, len(real) - 1)))
    numbers = np.arange(len(rows))
    ids = pa.array([f"item-{num}" for num in numbers], pa.string())
    table = table.set_column(table.column_names.index("item_id"), "item_id", ids)
    number = table.column_names.index("item_num")
    return table.set_column(number, "item_num", pa.array(numbers, pa.int32()))


def _profiles(draft: Draft, real: Build | None, items: pa.Table, n_users: int) -> ProfilesFacts:
    assert real is not None
    opened = Profiles.open(real)
    cells = opened.cells()
    known = cells.take(cells.item_num < len(items))
    n_cells = 0
    for number, start in enumerate(range(0, n_users, _SHARD_USERS)):
        here = np.arange(start, min(start + _SHARD_USERS, n_users))
        part = known.users(here % known.n_users)
        part = dataclasses.replace(part, user_num=here.astype(np.int32))
        pq.write_table(part.to_table(), draft.path(shard_name(number)))
        n_cells += part.n_cells
    ids = pa.chunked_array([[f"user-{num}" for num in range(n_users)]])
    write_tables(draft, items=items, user_ids=ids, levels=opened.levels)
    return dataclasses.replace(
        opened.facts,
        n_users=n_users,
        n_items=len(items),
        catalogue=dict.fromkeys(opened.facts.catalogue, len(items)),
        n_cells={"FIT": n_cells},
    )


def _model(
    draft: Draft, real: Build | None, rows: NDArray[np.int64], vectors: NDArray[np.float16]
) -> AutoencoderFacts:
    """Write the weights that a service reads, and nothing that a training would."""
    assert real is not None
    weights, facts = open_weights(real), AutoencoderFacts.of(real)
    width = weights.rows["rows"].shape[1]
    n_items = len(rows)
    unit = new_file(draft.path(f"{FOLDER}rows.npy"), (n_items, width), np.float16)
    scales = np.empty((2, n_items), dtype=np.float32)
    scales[0] = weights.rows["scales"][0][rows]
    for start in range(0, n_items, CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        block = np.asarray(vectors[part, :width], dtype=np.float32)
        scales[1, part] = np.linalg.norm(block, axis=1)
        unit[part] = block / np.maximum(scales[1, part, None], 1e-30)
    np.save(draft.path(f"{FOLDER}scales.npy"), scales)
    for name in _KEPT:
        if name in weights.rows:
            array = weights.rows[name]
            file = new_file(
                draft.path(f"{FOLDER}{name}.npy"), (n_items, *array.shape[1:]), array.dtype
            )
            for start in range(0, n_items, CHUNK_ROWS):
                file[start : start + CHUNK_ROWS] = array[rows[start : start + CHUNK_ROWS]]
    for name in (f"{FOLDER}tables.safetensors", LEVELS):
        draft.path(name).write_bytes(real.path(name).read_bytes())
    timed = Timed.of_build(real)
    if timed is not None:
        counters = timed.counters
        timed.with_counters(Counters(counters.values[:, rows], counters.time)).save(draft)
    return dataclasses.replace(facts, n_items=n_items)


def _embeddings(
    draft: Draft,
    real: Coded,
    rows: NDArray[np.int64],
    vectors: NDArray[np.float16],
    items: pa.Table,
) -> EmbeddingsFacts:
    opened = Embeddings.open(real.embeddings)
    draft.path("vectors.npy").hardlink_to(str(vectors.filename))  # type: ignore[attr-defined]
    return write_embeddings(
        draft,
        vectors=vectors,
        bias=np.asarray(opened.bias)[rows],
        items=items,
        similarity=opened.similarity,
        queries={name: np.asarray(queries) for name, queries in opened.queries.items()},
    )
