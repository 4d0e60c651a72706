"""Update: upsert and delete items between builds; every search that is opened then sees it.

    raysys update run=R upsert=new.parquet delete=[42,77]
    raysys update run=R refresh=true

`upsert` has `item_id`, and `vector` (a list per row, in the space of the indexed vectors) or
`embedding` (content): where items come with content embeddings, a ridge map fitted on the warm ones
turns content into vectors. `title` and attributes are kept. Changes add up until the next index of
own vectors, or the next training, takes them in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.compressor.embeddings import Embeddings
from raysys.compressor.files import Coded
from raysys.config import JobConfig, require_run
from raysys.data.arrays import Floats
from raysys.data.attributes import storable, titles_of
from raysys.data.cells import AHEAD_S
from raysys.data.profiles import Profiles
from raysys.data.values import given_ids
from raysys.errors import BuildError, ConfigError, DataError
from raysys.scoring.rankings import CONSUME_BIAS
from raysys.search.changes import EDIT, KIND, Changes, ChangesFacts, current_changes
from raysys.search.cold_start import ColdMap
from raysys.search.served import Served
from raysys.store.builds import Build, StageResult, Workspace
from raysys.store.drafts import Draft
from raysys.timing.counters import Counters
from raysys.timing.files import Timed

log = logging.getLogger(__name__)

_MANY_ROWS = 10_000
_OWN_COLUMNS = ("item_id", "item_num", "vector", "embedding")


@dataclasses.dataclass
class UpdateConfig(JobConfig):
    """Settings of the update job.

    Attributes:
        upsert: Parquet file of items that came or changed; empty: none.
        delete: ids of items that are not returned any more.
        refresh: count the current profiles anew, so that lists follow what happened since the
            training.
    """

    upsert: str = ""
    refresh: bool = False
    delete: list[str] = dataclasses.field(default_factory=list)


def update(cfg: UpdateConfig) -> StageResult:
    """Add changes to those there are and make them current.

    Raises:
        DataError: the file cannot be used; UnknownItemError: an id to delete is not there.
    """
    require_run(cfg)
    if not cfg.upsert and not cfg.delete and not cfg.refresh:
        raise ConfigError("update needs upsert=FILE, delete=[ids], refresh=true, or some of them")
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    with workspace.held(EDIT):
        return _update(cfg, workspace)


def _update(cfg: UpdateConfig, workspace: Workspace) -> StageResult:
    coded = _changed_set(workspace)
    embeddings = Embeddings.open(coded.embeddings)
    before = current_changes(workspace, coded.embeddings)
    items = embeddings.items()
    known = {item_id: num for num, item_id in enumerate(items["item_id"].to_pylist())}
    cold: ColdMap | None = None
    if before is not None:
        before.verify()  # what is damaged must not go on in a build that is whole
    changes = (
        Changes.open(before)
        if before is not None
        else Changes.none(embeddings.facts.dim, embeddings.facts.n_bias)
    )
    if cfg.delete:
        changes = changes.delete(cfg.delete, known)
    if cfg.upsert:
        own = coded.autoencoder is None
        changes, cold = _upserted(cfg, embeddings, items, changes, own=own)
    n_counted = counted = build = None
    if cfg.refresh:
        counted, stood = workspace.current("profiles"), changes.timed
        changes, n_counted = _refreshed(Profiles.open(counted), coded, changes, known)
        if not (cfg.upsert or cfg.delete or cfg.force) and _equal(stood, changes.timed):
            build = before
    if build is None:
        build = _commit(workspace, coded.embeddings, before, changes, cfg, cold, counted)
    if len(changes.items) > _MANY_ROWS:
        log.warning("changes hold %d rows, every query compares all of them", len(changes.items))
    facts = ChangesFacts.of(build)
    extra: dict[str, Any] = {"n_upserted": facts.n_upserted, "n_deleted": facts.n_deleted}
    if n_counted is not None:
        extra |= {"n_counted": n_counted, "counted_until": facts.counted_until}
    if facts.cold_recall is not None:
        extra |= {"cold_recall@10": facts.cold_recall, "cold_held_out": facts.cold_held_out}
    return StageResult(build_ids={KIND: build.build_id}, extra=extra)


def _changed_set(workspace: Workspace) -> Coded:
    """Return what changes are made for: what the current index serves, else the current codes.

    After a rollback these are not the newest codes.
    """
    newest = Coded.current(workspace)
    if not workspace.has("index"):
        return newest
    try:
        return Served.open(workspace, verify=False).coded
    except BuildError:  # of builds that are gone: nothing is served
        return newest


def _refreshed(
    profiles: Profiles, coded: Coded, changes: Changes, known: dict[str, int]
) -> tuple[Changes, int]:
    """Return the changes with counters of the current profiles, and the cells since the training.

    All cells are counted anew, so that late ones are not missed and none counts twice. Items that
    the model does not know are not counted, nor are times more than a day ahead.

    Raises:
        ConfigError: the model has no counters.
    """
    timed = Timed.of_build(coded.autoencoder) if coded.autoencoder is not None else None
    if timed is None:
        raise ConfigError(
            "refresh=true: this model has no counters; they come with a training on a log with "
            "time and split=temporal, where validation prefers lists that follow it"
        )
    ids = profiles.items["item_id"].to_pylist()
    numbers = np.array([known.get(item_id, -1) for item_id in ids], dtype=np.int64)
    since = timed.counters.time
    none: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    counters = Counters.of(none, none, n_items=timed.counters.n_items, time=since)
    n_counted = n_unknown = n_ahead = 0
    latest = time.time() + AHEAD_S
    for cells in profiles.iter_shards():
        mine, ahead = numbers[cells.item_num], cells.timestamp > latest
        kept = (mine >= 0) & ~ahead
        counters = counters.added(mine[kept], cells.timestamp[kept])
        new = cells.timestamp >= since
        n_counted += int((kept & new).sum())
        n_unknown += int((new & (mine < 0)).sum())
        n_ahead += int(ahead.sum())
    if n_ahead:
        log.warning("refresh=true: %d cells lie more than a day ahead, not counted", n_ahead)
    log.info("counted new=%d of_unknown_items=%d until=%d", n_counted, n_unknown, counters.time)
    return dataclasses.replace(changes, timed=timed.with_counters(counters)), n_counted


def _equal(stood: Timed | None, now: Timed | None) -> bool:
    """Tell whether a refresh changed nothing."""
    if stood is None or now is None or stood.top != now.top or stood.form != now.form:
        return False
    same = np.array_equal(stood.counters.values, now.counters.values)
    return same and stood.counters.time == now.counters.time


def _commit(
    workspace: Workspace,
    embeddings: Build,
    before: Build | None,
    changes: Changes,
    cfg: UpdateConfig,
    cold: ColdMap | None,
    counted: Build | None,
) -> Build:
    content = hashlib.sha256(Path(cfg.upsert).expanduser().read_bytes() if cfg.upsert else b"")
    source = [before.content_id if before is not None else None, content.hexdigest()]
    settings: dict[str, Any] = {"delete": sorted(cfg.delete)}
    if counted is not None:
        settings["counted"] = counted.content_id

    def write(draft: Draft) -> ChangesFacts:
        facts = changes.save(draft)
        if cold is None:
            return facts
        return dataclasses.replace(facts, cold_recall=cold.recall, cold_held_out=cold.n_held_out)

    return workspace.build(
        KIND,
        config=settings,
        inputs=[embeddings],
        source=source,
        write=write,
        force=cfg.force,
    )


def _upserted(
    cfg: UpdateConfig, embeddings: Embeddings, items: pa.Table, changes: Changes, *, own: bool
) -> tuple[Changes, ColdMap | None]:
    """Return the changes with the rows of the upsert file, and the map that they needed."""
    if not Path(cfg.upsert).expanduser().is_file():
        raise DataError(f"upsert={cfg.upsert!r} does not exist")
    try:
        table = pq.read_table(Path(cfg.upsert).expanduser())
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"upsert={cfg.upsert!r} is not a Parquet file: {error}") from error
    columns = set(table.column_names)
    if "item_id" not in columns or not columns & {"vector", "embedding"}:
        raise DataError(
            f"upsert={cfg.upsert!r} needs item_id and vector or embedding, it has {sorted(columns)}"
        )
    ids = given_ids(table["item_id"], f"upsert={cfg.upsert!r}")
    if len(set(ids)) < len(ids):
        raise DataError(f"upsert={cfg.upsert!r} holds an item_id twice")
    facts = embeddings.facts
    if "vector" in columns or own:
        column = "vector" if "vector" in columns else "embedding"
        vectors = matrix_of(table[column], cfg.upsert)
        bias = np.zeros((len(ids), facts.n_bias), dtype=np.float32)
        if not own:  # as an item in the middle: 0 would be the first of all
            bias[:, CONSUME_BIAS] = np.median(embeddings.bias[:, CONSUME_BIAS])
        cold = None
    else:
        content = matrix_of(table["embedding"], cfg.upsert)
        cold = _cold_map(embeddings, items, cfg.seed)
        vectors, bias = cold.predict(content)
    if vectors.shape[1] != facts.dim:
        raise DataError(
            f"upsert={cfg.upsert!r} has vectors of {vectors.shape[1]} numbers, the index "
            f"{facts.dim}"
        )
    zero = np.flatnonzero(~vectors.any(axis=1))
    if len(zero) and facts.similarity == "cosine":
        raise DataError(f"upsert={cfg.upsert!r}: the vector of item {ids[zero[0]]!r} is zero")
    kept = [name for name in table.column_names if name not in _OWN_COLUMNS]
    rows = {"item_id": pa.array(ids, pa.string())} | {n: storable(table[n]) for n in kept}
    no_title = pa.nulls(len(ids), pa.string())
    rows["title"] = titles_of(table["title"]) if "title" in rows else no_title
    return changes.upsert(pa.table(rows), vectors, bias), cold


def _cold_map(embeddings: Embeddings, items: pa.Table, seed: int) -> ColdMap:
    """Return the map from content to vectors and biases, fitted on the warm items."""
    if "embedding" not in items.column_names:
        raise DataError(
            "upsert has content embeddings, but the catalogue has none to fit the map on: "
            "prepare items= with an embedding column"
        )
    warm = np.flatnonzero(items["embedding"].is_valid().to_numpy())
    known = matrix_of(items["embedding"].take(pa.array(warm)), "items")
    return ColdMap.fit(known, embeddings.vectors[warm], embeddings.bias[warm], seed=seed)


def matrix_of(column: pa.ChunkedArray, name: str) -> Floats:
    """Return a column of lists of one length as a matrix of finite float32.

    Raises:
        DataError: lengths differ, or a value is missing or not finite.
    """
    lists = column.combine_chunks()
    if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)):
        if not pa.types.is_fixed_size_list(lists.type):
            raise DataError(f"{name}: a vector column must hold lists, it holds {lists.type}")
        lists = lists.cast(pa.list_(lists.type.value_type))
    widths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
    if len(widths) != 1 or lists.null_count:
        raise DataError(f"{name}: every vector needs the same length, found {widths.tolist()}")
    flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if not np.isfinite(flat).all():
        row = int(np.flatnonzero(~np.isfinite(flat))[0] // widths[0])
        raise DataError(f"{name}: the vector of row {row} holds a value that is not finite")
    return np.ascontiguousarray(flat.reshape(len(lists), -1))
