"""Parquet: typed columns, read by row groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.log.formats.contract import CHUNK_ROWS, Chunk, Column, Piece, SourceFile
from raysys.store.storage import open_filesystem


@dataclasses.dataclass(frozen=True)
class ParquetReader:
    """Reads Parquet; every file has its own types."""

    open_ended: ClassVar[bool] = False

    def columns(self, file: SourceFile) -> list[Column]:
        """Return the columns of the footer."""
        filesystem, path = open_filesystem(file.uri)
        with filesystem.open_input_file(path) as stream:
            return [Column(field.name, field.type) for field in pq.read_schema(stream)]

    def late(self, file: SourceFile, names: Sequence[str]) -> set[str]:
        """Return nothing: the footer names all columns."""
        return set()

    def pieces(self, file: SourceFile) -> list[Piece]:
        """Return groups of row groups of about `CHUNK_ROWS` rows."""
        filesystem, path = open_filesystem(file.uri)
        with filesystem.open_input_file(path) as stream:
            footer = pq.read_metadata(stream)
        pieces = []
        first_row = rows = 0
        groups: list[int] = []
        for group in range(footer.num_row_groups):
            groups.append(group)
            rows += footer.row_group(group).num_rows
            if rows >= CHUNK_ROWS or group == footer.num_row_groups - 1:
                pieces.append(Piece(file, tuple(groups), first_row))
                first_row, rows, groups = first_row + rows, 0, []
        return pieces

    def first_rows(self, file: SourceFile, n_rows: int) -> pa.Table:
        """Return the first rows."""
        filesystem, path = open_filesystem(file.uri)
        with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as parquet:
            batch = next(parquet.iter_batches(n_rows), None)
            return pa.Table.from_batches([] if batch is None else [batch], parquet.schema_arrow)

    def chunks(self, piece: Piece, columns: Sequence[str] | None) -> Iterator[Chunk]:
        """Yield at most `CHUNK_ROWS` rows at a time; text columns come dictionary-encoded."""
        filesystem, path = open_filesystem(piece.file.uri)
        row = piece.first_row
        with filesystem.open_input_file(path) as stream:
            footer = pq.read_metadata(stream)
            names = footer.schema.to_arrow_schema().names
            wanted = [name for name in names if columns is None or name in columns] or names[:1]
            encoded = [] if columns is None else wanted
            with pq.ParquetFile(stream, metadata=footer, read_dictionary=encoded) as parquet:
                batches = parquet.iter_batches(
                    CHUNK_ROWS,
                    row_groups=list(piece.row_groups or ()),
                    columns=None if columns is None else wanted,
                )
                for batch in batches:
                    yield Chunk(pa.Table.from_batches([batch]), row, [])
                    row += batch.num_rows
