"""The user's own embeddings -> an `embeddings` build that the compressor can work on.

Rows go from the source to the build's matrix in batches; only ids and titles stay in memory.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.compressor.embeddings import EmbeddingsFacts, new_vectors, write_embeddings
from raysys.compressor.vector_files import (
    VectorSource,
    check_rows,
    embedding_files,
    open_npy,
    open_parquet,
    read_ids,
)
from raysys.data.arrays import release
from raysys.errors import DataError
from raysys.log.sources import fingerprint
from raysys.store.builds import Build, Workspace
from raysys.store.drafts import Draft

log = logging.getLogger(__name__)


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
        source: as `compressor.vector_files` describes it.
        ids: for `.npy`: a text file with one id a line, or Parquet with `item_id` (and `title`);
            without it the row numbers are the ids.
        force: write it anew even if it exists.
        similarity: `cosine` or `inner_product`: whether the norm of a vector counts.

    Raises:
        DataError: a file cannot be read, sizes differ, or a row is zero or not finite.
    """
    files = embedding_files(source)
    if ids and not Path(ids).expanduser().is_file():
        raise DataError(f"ids={ids!r} does not exist")
    settings = {"source": "own vectors"}
    if similarity != "cosine":
        settings["similarity"] = similarity
    try:
        prints = fingerprint(files) + (fingerprint(embedding_files(ids)) if ids else [])
    except OSError as error:
        raise DataError(f"source={source} cannot be read: {error}") from error

    def write(draft: Draft) -> EmbeddingsFacts:
        if files[0].format == "npy":
            opened = open_npy(files[0], read_ids(Path(ids).expanduser()) if ids else None)
        else:
            opened = open_parquet(files)
            if ids:
                log.warning("setting ignored key=ids value=%s reason=Parquet_has_item_id", ids)
        return _write(draft, opened, source, similarity)

    return workspace.build("embeddings", config=settings, source=prints, write=write, force=force)


def _write(draft: Draft, opened: VectorSource, source: str, similarity: str) -> EmbeddingsFacts:
    """Write vectors, biases and items; return the facts."""
    n_items, dim = opened.shape
    out = new_vectors(draft, n_items, dim)
    names, titles = [], []
    start = 0
    for batch in opened.batches():
        check_rows(batch)
        out[start : start + len(batch.vectors)] = batch.vectors
        release(out)
        start += len(batch.vectors)
        names.append(pa.array(batch.names, pa.string()))
        titles.append(pa.array(batch.titles, pa.string()))
    assert start == n_items, (start, n_items)
    item_ids, item_titles = (pa.chunked_array(a) for a in (names, titles))
    _check_unique(item_ids, source)
    numbers = pa.array(np.arange(n_items, dtype=np.int32))
    items = {"item_num": numbers, "item_id": item_ids, "title": item_titles}
    log.info("vectors read n_items=%d dim=%d", n_items, dim)
    no_bias = np.zeros((n_items, 0), dtype=np.float32)
    return write_embeddings(
        draft, vectors=out, bias=no_bias, items=pa.table(items), similarity=similarity
    )


def _check_unique(item_ids: pa.ChunkedArray, source: str) -> None:
    counts = item_ids.value_counts()
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise DataError(f"item_id {twice[0]['values'].as_py()!r} stands twice in {source}")
