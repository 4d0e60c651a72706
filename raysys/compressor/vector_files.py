"""Embeddings of the user's own: `.npy` or Parquet files, read in batches.

A source is one `.npy` matrix, or Parquet with `item_id`, `embedding` (a list or fixed-size list of
numbers) and perhaps `title`: a file, or a directory, glob or URI of files, whose rows follow one
another in the order of the files' names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.data.arrays import Floats, row_blocks
from raysys.data.attributes import titles_of
from raysys.data.values import given_ids
from raysys.errors import DataError
from raysys.log.formats.contract import SourceFile
from raysys.log.sources import first_line, list_files, unreadable
from raysys.store.storage import open_filesystem

_BATCH_BYTES = 1 << 24  # of float32 rows
_BUFFER_BYTES = 1 << 22  # read at once of a Parquet column


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some rows of a source.

    Attributes:
        file: where they are from.
        first_row: number of the first one in the file, from 0.
        vectors: [M, D].
        names: their item ids.
        titles: their titles, None where there are none.
    """

    file: SourceFile
    first_row: int
    vectors: Floats
    names: list[str]
    titles: list[str | None]


@dataclasses.dataclass(frozen=True)
class VectorSource:
    """An opened source: N rows of D numbers, and what reads them."""

    shape: tuple[int, int]
    batches: Callable[[], Iterator[Batch]]


def embedding_files(source: str) -> list[SourceFile]:
    """Return the files of a source; one file of any ending but .npy is taken for Parquet.

    Raises:
        DataError: there are none, or files of other formats.
    """
    path = Path(source).expanduser()
    if path.is_file():
        kind = "npy" if path.suffix == ".npy" else "parquet"
        return [SourceFile(path.name, str(path), path.stat().st_size, kind)]
    files = list_files(source)
    if files[0].format != "parquet":
        raise DataError(f"source={source} holds {files[0].format}: expected one .npy or Parquet")
    return files


def open_npy(
    file: SourceFile, ids: tuple[Sequence[str], Sequence[str | None]] | None = None
) -> VectorSource:
    """Open a matrix; `ids` are the items' ids and titles, default: row numbers and none.

    Raises:
        DataError: the file holds no matrix of numbers, or not as many rows as there are ids.
    """
    try:
        matrix = np.load(file.uri, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{file.uri} is not a .npy matrix: {first_line(error)}") from error
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or matrix.size == 0:
        found = f"{matrix.dtype} {matrix.shape}"
        raise DataError(f"{file.uri} must hold a matrix [N, D], it is {found}")
    if ids is not None and len(ids[0]) != len(matrix):
        raise DataError(f"ids= names {len(ids[0])} items, {file.uri} has {len(matrix)} rows")

    def batches() -> Iterator[Batch]:
        for start, rows in row_blocks(matrix, _batch_rows(matrix.shape[1])):
            vectors = np.ascontiguousarray(rows, dtype=np.float32)
            end = start + len(rows)
            names = list(ids[0][start:end]) if ids else [str(row) for row in range(start, end)]
            titles: list[str | None] = [None] * len(rows)
            if ids:
                titles = list(ids[1][start:end])
            yield Batch(file, start, vectors, names, titles)

    return VectorSource(matrix.shape, batches)


def open_parquet(files: Sequence[SourceFile]) -> VectorSource:
    """Open Parquet files: check their columns, count their rows, find the length of a row.

    Raises:
        DataError: a column is missing or holds no lists, or there are no rows.
    """
    n_rows, dim = 0, 0
    for file in files:
        with _parquet(file) as parquet:
            schema = parquet.schema_arrow
            for column in ("item_id", "embedding"):
                if column not in schema.names:
                    raise DataError(f"{file.uri} has no column {column}, it has {schema.names}")
            kind = schema.field("embedding").type
            if not hasattr(kind, "value_field"):
                raise DataError(f"{file.uri}: embedding must hold lists of numbers, not {kind}")
            if not dim and parquet.metadata.num_rows:
                dim = _first_length(file, parquet)
            n_rows += parquet.metadata.num_rows
    if n_rows == 0:
        raise DataError(f"{files[0].uri} holds no rows, nor does any other file of the source")
    return VectorSource((n_rows, dim), lambda: (b for file in files for b in _batches(file, dim)))


def read_ids(path: Path) -> tuple[list[str], list[str | None]]:
    """Return item ids and titles: of a text file with one id a line, or of Parquet.

    Raises:
        DataError: the file cannot be read, or has no column `item_id`.
    """
    try:
        if path.suffix != ".parquet":
            names = path.read_text().splitlines()
            return names, [None] * len(names)
        table = pq.read_table(path)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise DataError(f"ids={str(path)!r} cannot be read: {first_line(error)}") from error
    if "item_id" not in table.column_names:
        raise DataError(f"{path} has no column item_id, it has {table.column_names}")
    return _names_and_titles(table, str(path))


def check_rows(batch: Batch) -> None:
    """Raise DataError naming the first row that is zero or not finite."""
    norms = np.linalg.norm(batch.vectors, axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        row, name = batch.first_row + int(bad[0]), batch.names[int(bad[0])]
        raise DataError(f"{batch.file.uri} row {row} (item {name!r}) is zero or not finite")


def _batch_rows(dim: int) -> int:
    return max(1, _BATCH_BYTES // (4 * dim))


@contextmanager
def _parquet(file: SourceFile) -> Iterator[pq.ParquetFile]:
    """Open a file so that columns are read piece by piece, whatever the size of a row group."""
    filesystem, path = open_filesystem(file.uri)
    try:
        with (
            filesystem.open_input_file(path) as stream,
            pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False) as parquet,
        ):
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def _first_length(file: SourceFile, parquet: pq.ParquetFile) -> int:
    first = next(parquet.iter_batches(1, columns=["embedding"]))
    length = pc.list_value_length(first["embedding"])[0].as_py()
    if not length:
        raise DataError(f"{file.uri} row 0 has an empty embedding")
    return int(length)


def _batches(file: SourceFile, dim: int) -> Iterator[Batch]:
    with _parquet(file) as parquet:
        titled = "title" in parquet.schema_arrow.names
        columns = ["item_id", "embedding", *(["title"] if titled else [])]
        start = 0
        for batch in parquet.iter_batches(_batch_rows(dim), columns=columns):
            names, titles = _names_and_titles(batch, file.uri, start)
            vectors = _matrix(file, start, batch["embedding"], names, dim)
            yield Batch(file, start, vectors, names, titles)
            start += batch.num_rows


def _matrix(
    file: SourceFile, start: int, lists: pa.Array, names: Sequence[str], dim: int
) -> Floats:
    """Return lists as a matrix [M, D].

    Raises:
        DataError: naming the first row of another length; missing numbers become NaN.
    """
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    other = np.flatnonzero(lengths != dim)
    if len(other):
        row = int(other[0])
        raise DataError(
            f"{file.uri} row {start + row} (item {names[row]!r}) has {lengths[row]} numbers: every "
            f"embedding needs the same length, the first one has {dim}"
        )
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    try:
        return np.asarray(flat, dtype=np.float32).reshape(len(lists), dim)
    except (TypeError, ValueError) as error:
        raise DataError(f"{file.uri}: embedding must hold numbers: {first_line(error)}") from error


def _names_and_titles(
    rows: pa.Table | pa.RecordBatch, where: str, first_row: int = 0
) -> tuple[list[str], list[str | None]]:
    """Return ids and titles.

    Raises:
        DataError: a row has no id; `where` names the file.
    """
    names = given_ids(rows.column("item_id"), where, first_row)
    if "title" not in rows.schema.names:
        return names, [None] * len(names)
    return names, titles_of(rows.column("title")).to_pylist()
