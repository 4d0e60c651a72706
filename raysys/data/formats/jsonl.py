"""JSON lines: one object a line, any type anywhere.

A window of whole lines is parsed by Arrow with the types that its first lines have. Where that
does not give a row for each line exactly as written (mixed types, a broken line, an object in a
column, a key twice), the window is read again line by line with the json module.
"""

from __future__ import annotations

import dataclasses
import decimal
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pyarrow import json as pajson

from raysys.data.formats.contract import (
    BLOCK_BYTES,
    BadLine,
    Chunk,
    Column,
    Piece,
    Tally,
    first_rows,
    joined,
)
from raysys.data.formats.text import (
    NOT_UTF8,
    Bytes,
    count_lines,
    head,
    is_utf8,
    open_window,
    shown,
    text_pieces,
)
from raysys.data.sources import SourceFile

_HEAD_LINES = 1000
_HINT_LINES, _HINT_BYTES = 20, 1 << 16
_EXACT = float(1 << 53)  # integers above are not exact as floats


@dataclasses.dataclass(frozen=True)
class JsonLinesReader:
    """Reads JSON lines; `encoding` as in `Window`."""

    encoding: str | None = None

    open_ended: ClassVar[bool] = True

    def columns(self, file: SourceFile) -> list[Column]:
        """Return the keys of the first lines; more may follow further down (`late`)."""
        names: dict[str, None] = {}
        for line in head(file, self.encoding).split(b"\n", _HEAD_LINES)[:_HEAD_LINES]:
            record = _parse(line, {})
            names |= dict.fromkeys(record if isinstance(record, dict) else ())
        return [Column(name) for name in names]

    def late(self, file: SourceFile, names: Sequence[str]) -> set[str]:
        """Return which of `names` stand as a key anywhere in the file."""
        forms = {
            name: re.compile(
                b"|".join(
                    re.escape(json.dumps(name, ensure_ascii=ascii_only).encode()) + rb"\s*:"
                    for ascii_only in (True, False)
                )
            )
            for name in names
        }
        found: set[str] = set()
        with open_window(file, self.encoding) as window:
            while len(found) < len(forms) and (len(window.data) or not window.last):
                whole = window.whole_lines()
                block = window.data[:whole].tobytes()
                found |= {name for name, form in forms.items() if form.search(block)}
                window.advance(whole)
        return found

    def pieces(self, file: SourceFile) -> list[Piece]:
        """Return the whole file."""
        return text_pieces(file)

    def first_rows(self, file: SourceFile, n_rows: int) -> pa.Table:
        """Return the first rows."""
        return first_rows(self._parts(file, None), n_rows)

    def chunks(self, piece: Piece, columns: Sequence[str] | None) -> Iterator[Chunk]:
        """Yield many lines at a time."""
        yield from joined(self._parts(piece.file, columns))

    def _parts(self, file: SourceFile, columns: Sequence[str] | None) -> Iterator[Chunk]:
        n_lines = row = 0
        with open_window(file, self.encoding) as window:
            while len(window.data) or not window.last:
                data = window.data[: window.whole_lines()]
                size = count_lines(data)
                table = None if columns is None else _read_fast(data, size, columns)
                if table is None:
                    part = _read_lines(data, columns)
                    assert part.lines is not None
                else:
                    tally = Tally(lines=size, rows=size)
                    part = Chunk(table, 0, [], np.arange(1, size + 1), tally=tally)
                part.first_row = row
                part.lines = part.lines + n_lines if part.lines is not None else None
                part.malformed = [
                    dataclasses.replace(bad, line=bad.line + n_lines) for bad in part.malformed
                ]
                n_lines += size
                row += len(part.table)
                window.advance(len(data))
                yield part


def _read_fast(data: Bytes, n_lines: int, columns: Sequence[str]) -> pa.Table | None:
    """Return what Arrow reads in whole lines, or None where that may not be exact."""
    block = data.tobytes()
    kinds = _kinds(block, columns)
    if kinds is None or not n_lines:
        return None
    table = _arrow_table(block, kinds)
    if table is None and pa.int64() in kinds.types:  # a fraction further down
        table = _arrow_table(block, _with_fractions(kinds))
    if table is None or len(table) != n_lines:
        return None
    return table if all(_is_exact(column) for column in table.columns) else None


def _arrow_table(block: bytes, kinds: pa.Schema) -> pa.Table | None:
    reading = pajson.ReadOptions(block_size=max(len(block) + 1, BLOCK_BYTES), use_threads=False)
    parsing = pajson.ParseOptions(explicit_schema=kinds, unexpected_field_behavior="ignore")
    try:
        table = pajson.read_json(pa.BufferReader(block), reading, parsing)
        if not block.isascii():
            table.validate(full=True)  # Arrow takes any bytes for text
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    return table


def _with_fractions(kinds: pa.Schema) -> pa.Schema:
    whole, real = pa.int64(), pa.float64()
    return pa.schema([(f.name, real if f.type == whole else f.type) for f in kinds])


def _kinds(block: bytes, columns: Sequence[str]) -> pa.Schema | None:
    """Return a type for each column by the first lines; None where one has several."""
    seen: dict[str, set[type]] = {name: set() for name in columns}
    start = block[:_HINT_BYTES]
    for line in start[: start.rfind(b"\n") + 1 or None].splitlines()[:_HINT_LINES]:
        record = _parse(line, {})
        if not isinstance(record, dict):
            return None
        for name, types in seen.items():
            types.add(type(record.get(name)))
    fields = []
    for name, types in seen.items():
        types.discard(type(None))
        if types <= {str}:
            fields.append((name, pa.string()))
        elif types <= {int, float}:
            fields.append((name, pa.int64() if types == {int} else pa.float64()))
        else:
            return None
    return pa.schema(fields)


def _is_exact(column: pa.ChunkedArray) -> bool:
    """Tell whether floats stand for the numbers that were written."""
    if not pa.types.is_floating(column.type):
        return True
    values = column.drop_null().to_numpy() if column.null_count else column.to_numpy()
    return bool(np.all(np.abs(values) < _EXACT))  # NaN is not


class _Number(str):
    """A number as it was written."""

    __slots__ = ()


_EXACTLY: dict[str, Any] = {"parse_float": _Number, "parse_int": _Number}


def _parse(line: bytes, how: dict[str, Any]) -> Any:
    """Return the value of a line, or the error."""
    try:
        return json.loads(line.decode(), **how)
    except (ValueError, RecursionError) as error:
        return error


def _read_lines(data: Bytes, columns: Sequence[str] | None) -> Chunk:
    """Return the objects of whole lines, lines counted from 1."""
    lines = data.tobytes().split(b"\n")
    if not lines[-1]:
        lines.pop()
    records: list[dict[str, Any]] = []
    places: list[int] = []
    malformed: list[BadLine] = []
    n_blank = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            n_blank += 1
            continue
        record = _parse(line, _EXACTLY if columns is not None else {})
        reason = _fault(record, line)
        if reason:
            malformed.append(BadLine(number, reason, shown(line)))
        else:
            records.append(record)
            places.append(number)
    tally = Tally(lines=len(lines), blank=n_blank, rows=len(records), unreadable=len(malformed))
    numbers = np.array(places, np.int64)
    if columns is None:
        return Chunk(_natural_table(records), 0, malformed, numbers, tally=tally)
    arrays, odd = [], {}
    for name in columns:
        values = [record.get(name) for record in records]
        texts = [_text(value) for value in values]
        wrong = np.array([value is not None and _text(value) is None for value in values], bool)
        if wrong.any():
            odd[name] = wrong
        arrays.append(pa.array(texts, pa.string()))
    table = pa.Table.from_arrays(arrays, names=list(columns))
    return Chunk(table, 0, malformed, numbers, odd, tally)


def _fault(record: Any, line: bytes) -> str:
    """Return why a line holds no row, or nothing."""
    if isinstance(record, UnicodeDecodeError):
        return NOT_UTF8
    if isinstance(record, Exception):
        return "not JSON"
    if not isinstance(record, dict):
        return "not a JSON object"
    if b"\\u" in line and not is_utf8(json.dumps(record, ensure_ascii=False)):
        return NOT_UTF8  # half a surrogate pair
    return ""


def _text(value: Any) -> str | None:
    """Return text and numbers as text, whole numbers without fraction; None for anything else."""
    if type(value) is str:
        return value
    if not isinstance(value, _Number):
        return None
    if value.lstrip("-").isdigit():
        return str(value)
    number = decimal.Decimal(value)
    if number == number.to_integral_value() and abs(number) < _EXACT:
        return str(int(number))
    return format(number, "f") if abs(number.adjusted()) < 40 else str(value)


def _natural_table(records: list[dict[str, Any]]) -> pa.Table:
    """Return all keys as columns of their own types; those of several types become text."""
    names = dict.fromkeys(name for record in records for name in record)
    return pa.table({name: _natural([record.get(name) for record in records]) for name in names})


def _natural(values: list[Any]) -> pa.Array:
    try:
        array = pa.array(values)
        if not _has_empty_struct(array.type):
            return array
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        pass
    return pa.array([spelled(value) for value in values], pa.string())


def spelled(value: Any) -> str | None:
    """Return a value as text: whole numbers without fraction, objects and lists as JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Tell whether a type holds an object without keys, which Parquet cannot."""
    if pa.types.is_struct(kind) and not kind.num_fields:
        return True
    return any(_has_empty_struct(kind.field(k).type) for k in range(kind.num_fields))
