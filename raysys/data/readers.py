"""Log files: what columns they have, and their rows piece by piece.

A piece is a part of one file that one task reads; pieces depend on the files alone, never on the
number of workers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
from pyarrow import json as pajson

from raysys.data.sources import SourceFile, unreadable
from raysys.errors import DataError
from raysys.storage import open_filesystem

CHUNK_ROWS = 1 << 20
_BLOCK_BYTES = 1 << 24
_HEAD_LINES = 1000


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one task reads: row groups of a Parquet file, or a whole text file.

    Attributes:
        file: the file.
        row_groups: Parquet row groups; None for text.
        first_row: number of the piece's first row in the file, from 0.
    """

    file: SourceFile
    row_groups: tuple[int, ...] | None = None
    first_row: int = 0


@dataclasses.dataclass
class Chunk:
    """Some rows of a piece.

    Attributes:
        table: the columns asked for, as the file types them.
        first_row: number of the first row in the file, from 0.
        malformed: text lines before or inside the chunk that have the wrong number of fields,
            as (row number from 0, text).
    """

    table: pa.Table
    first_row: int
    malformed: list[tuple[int, str]]


def check_same_columns(files: Sequence[SourceFile]) -> pa.Schema:
    """Return the schema that all files share, types reduced to their kinds.

    Raises:
        DataError: naming the first file whose columns or kinds of columns differ.
    """
    schema = schema_of(files[0])
    expected = {field.name: _kind(field.type) for field in schema}
    for file in files[1:]:
        found = {field.name: _kind(field.type) for field in schema_of(file)}
        if found.keys() != expected.keys():
            raise DataError(
                f"files of one source must have the same columns: {files[0].name} has "
                f"{', '.join(expected)}, but {file.name} has {', '.join(found)}"
            )
        for name, kind in found.items():
            if "null" not in (kind, expected[name]) and kind != expected[name]:
                raise DataError(
                    f"files of one source must have the same columns: {name} is "
                    f"{expected[name]} in {files[0].name}, but {kind} in {file.name}"
                )
    return schema


def schema_of(file: SourceFile) -> pa.Schema:
    """Return the columns of a file; text columns other than JSON's are all strings.

    Raises:
        DataError: the file is empty or cannot be read.
    """
    if file.size_bytes == 0:
        raise DataError(f"{file.uri} is empty")
    try:
        if file.format == "parquet":
            filesystem, path = open_filesystem(file.uri)
            with filesystem.open_input_file(path) as stream:
                return pq.read_schema(stream)
        if file.format == "jsonl":
            return _jsonl_schema(file)
        parsing = _separator(file)
        parsing.invalid_row_handler = lambda row: "skip"
        with _open_text(file) as stream, _open_csv(file, stream, parsing) as reader:
            names = reader.schema.names
        return pa.schema([(name, pa.string()) for name in names])
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(file, error) from error


def split_into_pieces(files: Sequence[SourceFile]) -> list[Piece]:
    """Return the pieces of all files, about `CHUNK_ROWS` rows each where the format allows."""
    pieces = []
    for file in files:
        if file.format != "parquet":
            pieces.append(Piece(file))
            continue
        filesystem, path = open_filesystem(file.uri)
        with filesystem.open_input_file(path) as stream:
            footer = pq.read_metadata(stream)
        first_row = rows = 0
        groups: list[int] = []
        for group in range(footer.num_row_groups):
            groups.append(group)
            rows += footer.row_group(group).num_rows
            if rows >= CHUNK_ROWS or group == footer.num_row_groups - 1:
                pieces.append(Piece(file, tuple(groups), first_row))
                first_row, rows, groups = first_row + rows, 0, []
    return pieces


def read_chunks(piece: Piece, columns: Sequence[str]) -> Iterator[Chunk]:
    """Yield the rows of a piece, at most `CHUNK_ROWS` at a time.

    Raises:
        DataError: the file cannot be read.
    """
    file = piece.file
    try:
        if file.format == "parquet":
            yield from _read_parquet(piece, columns)
        elif file.format == "jsonl":
            yield from _read_jsonl(file, columns)
        else:
            yield from _read_csv(file, columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError, EOFError) as error:
        raise unreadable(file, error) from error


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "float"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or "string_view" in str(kind):
        return "string"
    return "time" if pa.types.is_temporal(kind) else str(kind)


def _open_text(file: SourceFile) -> pa.NativeFile:
    filesystem, path = open_filesystem(file.uri)
    return filesystem.open_input_stream(path)  # decompresses by the ending


def _separator(file: SourceFile) -> csv.ParseOptions:
    delimiter = "\t" if file.format == "tsv" else ","
    return csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)


def _open_csv(
    file: SourceFile,
    stream: pa.NativeFile,
    parsing: csv.ParseOptions,
    columns: Sequence[str] | None = None,
) -> csv.CSVStreamingReader:
    strings = None if columns is None else {name: pa.string() for name in columns}
    return csv.open_csv(
        stream,
        read_options=csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        parse_options=parsing,
        convert_options=csv.ConvertOptions(
            column_types=strings,
            include_columns=None if columns is None else list(columns),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


def _read_parquet(piece: Piece, columns: Sequence[str]) -> Iterator[Chunk]:
    filesystem, path = open_filesystem(piece.file.uri)
    row = piece.first_row
    with (
        filesystem.open_input_file(path) as stream,
        pq.ParquetFile(stream, read_dictionary=list(columns)) as parquet,  # text columns only
    ):
        batches = parquet.iter_batches(
            CHUNK_ROWS, row_groups=list(piece.row_groups or ()), columns=list(columns)
        )
        for batch in batches:
            yield Chunk(pa.Table.from_batches([batch]), row, [])
            row += batch.num_rows


def _read_csv(file: SourceFile, columns: Sequence[str]) -> Iterator[Chunk]:
    malformed: list[tuple[int, str]] = []

    def skip(line: csv.InvalidRow) -> str:
        malformed.append(((line.number or 2) - 2, line.text))  # lines count from 1, the header too
        return "skip"

    parsing = _separator(file)
    parsing.invalid_row_handler = skip
    row = 0
    with _open_text(file) as stream, _open_csv(file, stream, parsing, columns) as reader:
        for batch in reader:
            lost, malformed[:] = list(malformed), []
            yield Chunk(pa.Table.from_batches([batch]), row, lost)
            row += batch.num_rows + len(lost)
    if malformed:
        empty = pa.schema([(name, pa.string()) for name in columns]).empty_table()
        yield Chunk(empty, row, malformed)


def _read_jsonl(file: SourceFile, columns: Sequence[str]) -> Iterator[Chunk]:
    schema = _jsonl_schema(file)
    parsing = pajson.ParseOptions(
        explicit_schema=pa.schema([schema.field(name) for name in columns]),
        unexpected_field_behavior="ignore",
    )
    reading = pajson.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False)
    row = 0
    with _open_text(file) as stream:
        for batch in pajson.open_json(stream, read_options=reading, parse_options=parsing):
            yield Chunk(pa.Table.from_batches([batch]), row, [])
            row += batch.num_rows


def _jsonl_schema(file: SourceFile) -> pa.Schema:
    """Return the columns of the first lines; ids and times keep the type that JSON gives them."""
    kinds: dict[str, set[type]] = {}
    with _open_text(file) as stream:
        for number, line in enumerate(_head(stream)):
            try:
                record: Any = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file.uri} line {number + 1} is not JSON: {error}") from error
            if not isinstance(record, dict):
                raise DataError(f"{file.uri} line {number + 1} is not a JSON object")
            for name, value in record.items():
                kinds.setdefault(name, set()).add(type(value))
    if not kinds:
        raise DataError(f"{file.uri} is empty")
    return pa.schema([(name, _json_type(types)) for name, types in kinds.items()])


def _head(stream: pa.NativeFile) -> Iterator[bytes]:
    text = stream.read(1 << 20)
    lines = text.split(b"\n")
    whole = lines if len(text) < 1 << 20 else lines[:-1]
    yield from (line for line in whole[:_HEAD_LINES] if line.strip())


def _json_type(types: set[type]) -> pa.DataType:
    known = types - {type(None)}
    if known == {int}:
        return pa.int64()
    if known and known <= {int, float}:
        return pa.float64()
    return pa.string()
