"""JSON lines: one object a line, any type anywhere.

A window of whole lines is parsed by Arrow with the types that its first lines have. Where that
does not give a row for each line exactly as written (mixed types, a broken line, an object in a
column, a key twice), the window is read again line by line with the json module.
"""

from __future__ import annotations

import dataclasses
import decimal
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pyarrow import json as pajson

from raysys.data.values import spelled
from raysys.log.formats.contract import (
    BLOCK_BYTES,
    BadLine,
    Chunk,
    Column,
    LineNumbers,
    SourceFile,
    Tally,
)
from raysys.log.formats.text import (
    NOT_UTF8,
    Bytes,
    TextReader,
    count_lines,
    head,
    is_utf8,
    open_window,
    shown,
)

_HEAD_LINES = 1000
_HINT_LINES, _HINT_BYTES = 20, 1 << 16
_EXACT = float(1 << 53)  # integers above are not exact as floats


@dataclasses.dataclass(frozen=True)
class JsonLinesReader(TextReader):
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

    def parts(self, file: SourceFile, columns: Sequence[str] | None) -> Iterator[Chunk]:
        """Yield the lines of a window at a time."""
        n_lines = row = 0
        kinds: pa.Schema | None = None
        with open_window(file, self.encoding) as window:
            while len(window.data) or not window.last:
                data = window.data[: window.whole_lines()]
                size = count_lines(data)
                table = None if columns is None else _read_fast(data, size, columns, kinds)
                if table is None:
                    part = _read_lines(data, n_lines + 1, columns)
                else:
                    kinds = table.schema
                    lines = LineNumbers((range(n_lines + 1, n_lines + 1 + size),))
                    part = Chunk(table, 0, [], lines, tally=Tally(lines=size, rows=size))
                part.first_row = row
                n_lines += size
                row += len(part.table)
                window.advance(len(data))
                yield part


def _read_fast(
    data: Bytes, n_lines: int, columns: Sequence[str], before: pa.Schema | None
) -> pa.Table | None:
    """Return what Arrow reads in whole lines, or None where that may not be exact.

    Args:
        data: bytes.
        n_lines: their lines.
        columns: those to read.
        before: types that did for the lines before, tried first.
    """
    tried = [before] if before is not None else []
    for kinds in itertools.chain(tried, _kinds(data, columns, n_lines)):
        table = _arrow_table(data, kinds)
        if table is not None:
            exact = len(table) == n_lines and all(_is_exact(column) for column in table.columns)
            return table if exact else None
    return None


def _arrow_table(data: Bytes, kinds: pa.Schema) -> pa.Table | None:
    reading = pajson.ReadOptions(block_size=max(len(data) + 1, BLOCK_BYTES), use_threads=False)
    parsing = pajson.ParseOptions(explicit_schema=kinds, unexpected_field_behavior="ignore")
    try:
        table = pajson.read_json(pa.BufferReader(pa.py_buffer(data)), reading, parsing)
        if len(data) and data.max() > 127:
            table.validate(full=True)  # Arrow takes any bytes for text
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    return table


def _kinds(data: Bytes, columns: Sequence[str], n_lines: int) -> Iterator[pa.Schema]:
    """Yield types to try, by the first lines; none where a column has several kinds of values."""
    seen: dict[str, set[type]] = {name: set() for name in columns}
    start = data[:_HINT_BYTES].tobytes()
    for line in start[: start.rfind(b"\n") + 1 or None].splitlines()[:_HINT_LINES]:
        record = _parse(line, {})
        if not isinstance(record, dict):
            return
        for name, types in seen.items():
            types.add(type(record.get(name)))
    kinds = {}
    for name, types in seen.items():
        types.discard(type(None))
        if not types <= {int, float} and not types <= {str}:
            return
        whole, real = pa.int64(), pa.float64()
        kinds[name] = pa.string() if types <= {str} else whole if types == {int} else real
    if not n_lines:
        return
    yield pa.schema(kinds.items())
    if pa.int64() in kinds.values():  # a fraction may follow further down
        yield pa.schema((n, pa.float64() if k == pa.int64() else k) for n, k in kinds.items())


def _is_exact(column: pa.ChunkedArray) -> bool:
    """Tell whether floats stand for the numbers that were written."""
    if not pa.types.is_floating(column.type):
        return True
    values = column.drop_null().to_numpy() if column.null_count else column.to_numpy()
    return not len(values) or bool(values.max() < _EXACT and values.min() > -_EXACT)  # no NaN


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


def _read_lines(data: Bytes, first: int, columns: Sequence[str] | None) -> Chunk:
    """Return the objects of whole lines, of which the first is numbered `first`."""
    lines = data.tobytes().split(b"\n")
    if not lines[-1]:
        lines.pop()
    records: list[dict[str, Any]] = []
    places: list[int] = []
    malformed: list[BadLine] = []
    n_blank = 0
    for number, line in enumerate(lines, start=first):
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
    numbers = LineNumbers((np.array(places, np.int64),))
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


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Tell whether a type holds an object without keys, which Parquet cannot."""
    if pa.types.is_struct(kind) and not kind.num_fields:
        return True
    return any(_has_empty_struct(kind.field(k).type) for k in range(kind.num_fields))
