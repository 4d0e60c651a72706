"""The user's own embeddings -> an `embeddings` build that the compressor can work on."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.builds import Build, Workspace
from raysys.errors import DataError

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20


def import_vectors(
    workspace: Workspace,
    *,
    source: str,
    ids: str | None,
    force: bool,
    similarity: str = "cosine",
) -> Build:
    """Write vectors as an `embeddings` build, or reuse it.

    Args:
        workspace: the run.
        source: `.npy` matrix [N, D], or Parquet with `item_id` and `embedding` (a list per row).
        ids: for `.npy`: a text file with one id a line, or Parquet with `item_id` (and `title`);
            without it the row numbers are the ids.
        force: write it anew even if it exists.
        similarity: `cosine` or `inner_product`: whether the norm of a vector counts.

    Raises:
        DataError: a file cannot be read, sizes differ, or a row is zero or not finite.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"source={source!r} does not exist")
    settings = {"source": "own vectors"}
    if similarity != "cosine":
        settings["similarity"] = similarity
    prints = [_fingerprint(Path(name).expanduser()) for name in (source, ids) if name]
    got = workspace.begin("embeddings", config=settings, source=prints, force=force)
    if isinstance(got, Build):
        return got
    with workspace.writing(got):
        vectors, items = _read_parquet(path) if path.suffix != ".npy" else _read_npy(path, ids)
        _check(vectors, items, source)
        np.save(got.path("vectors.npy"), vectors)
        np.save(got.path("bias.npy"), np.zeros((len(vectors), 0), dtype=np.float32))
        pq.write_table(items, got.path("items.parquet"))
        facts = {"n_items": len(vectors), "dim": vectors.shape[1], "n_bias": 0}
        return got.commit(facts | {"similarity": similarity})


def _read_npy(path: Path, ids: str | None) -> tuple[NDArray[np.float32], pa.Table]:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a .npy matrix: {error}") from error
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or len(vectors) == 0:
        raise DataError(f"{path} must hold a matrix [N, D], it is {vectors.dtype} {vectors.shape}")
    names = [str(row) for row in range(len(vectors))]
    titles: list[str | None] = [None] * len(vectors)
    if ids is not None:
        names, titles = _read_ids(Path(ids).expanduser())
    if len(names) != len(vectors):
        raise DataError(f"ids={ids!r} names {len(names)} items, {path} has {len(vectors)} rows")
    return np.ascontiguousarray(vectors, dtype=np.float32), _items(names, titles)


def _read_ids(path: Path) -> tuple[list[str], list[str | None]]:
    try:
        if path.suffix != ".parquet":
            names = path.read_text().splitlines()
            return names, [None] * len(names)
        table = pq.read_table(path)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise DataError(f"ids={str(path)!r} cannot be read: {error}") from error
    if "item_id" not in table.column_names:
        raise DataError(f"{path} has no column item_id, it has {table.column_names}")
    names = [str(value) for value in table["item_id"].to_pylist()]
    titles = table["title"].to_pylist() if "title" in table.column_names else [None] * len(names)
    return names, titles


def _read_parquet(path: Path) -> tuple[NDArray[np.float32], pa.Table]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from error
    for column in ("item_id", "embedding"):
        if column not in table.column_names:
            raise DataError(f"{path} has no column {column}, it has {table.column_names}")
    names, titles = _read_ids(path)
    lists = table["embedding"].combine_chunks()
    widths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
    if len(widths) != 1 or lists.null_count:
        raise DataError(f"{path}: every embedding needs the same length, found {widths.tolist()}")
    flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(len(names), -1), _items(names, titles)


def _items(names: list[str], titles: list[str | None]) -> pa.Table:
    return pa.table(
        {
            "item_num": pa.array(range(len(names)), pa.int32()),
            "item_id": pa.array(names, pa.string()),
            "title": pa.array(titles, pa.string()),
        }
    )


def _check(vectors: NDArray[np.float32], items: pa.Table, source: str) -> None:
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        name = items["item_id"][int(bad[0])].as_py()
        raise DataError(f"{source} row {bad[0]} (item {name!r}) is zero or not finite")
    counts = items["item_id"].value_counts()
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise DataError(f"item_id {twice[0]['values'].as_py()!r} stands twice in {source}")


def _fingerprint(path: Path) -> str:
    sha = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                sha.update(chunk)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return sha.hexdigest()
