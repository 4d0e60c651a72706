"""CSV, TSV and other delimited text: every value is text, every line is accounted for.

Whole lines are parsed by Arrow. Where its rows are not exactly the lines (blank or malformed lines,
values over several lines, stray quotes), or a value holds a quote, they are read again by `scan`,
which is exact; both agree on all other lines.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv as pacsv

from raysys.errors import ConfigError, DataError
from raysys.log.formats.contract import (
    BadLine,
    Chunk,
    Column,
    LineNumbers,
    SourceFile,
    Tally,
    plain_name,
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

_ONE_BLOCK = 1 << 30  # bytes, more than a window holds
TYPED_ENDINGS = (".inter", ".user", ".item", ".kg", ".link", ".net")  # headers are `name:type`


@dataclasses.dataclass(frozen=True)
class DelimitedReader(TextReader):
    """Reads delimited text.

    Attributes:
        separator: one or more characters.
        quote, escape: one character, or "" for none.
        header: the first line that is not blank names the columns.
        names: the columns' names, instead of the header's; without both they are 1, 2, ...
        encoding: None is UTF-8, or what a byte-order mark says.
    """

    separator: str = ","
    quote: str = '"'
    escape: str = ""
    header: bool = True
    names: tuple[str, ...] | None = None
    encoding: str | None = None

    open_ended: ClassVar[bool] = False

    def columns(self, file: SourceFile) -> list[Column]:
        """Return the columns of the header.

        Raises:
            DataError: there is no line.
        """
        return [Column(name, pa.string()) for name in self._header(file)[0]]

    def late(self, file: SourceFile, names: Sequence[str]) -> set[str]:
        """Return nothing: the header names all columns."""
        return set()

    def parts(self, file: SourceFile, columns: Sequence[str] | None) -> Iterator[Chunk]:
        """Yield the lines of a window at a time; empty values are null."""
        names, n_lines, n_bytes, n_blank = self._header(file)
        wanted = names if columns is None else [name for name in names if name in columns]
        wanted = wanted or names[:1]  # rows count even where nothing of them is wanted
        position = Tally(lines=n_lines, header=n_lines - n_blank, blank=n_blank)
        yield Chunk(_empty(wanted), 0, [], LineNumbers(), tally=position)
        row = 0
        with open_window(file, self.encoding) as window:
            window.skip(n_bytes)
            while len(window.data) or not window.last:
                data = window.data[: window.whole_lines()]
                part, consumed = self._read(data, n_lines + 1, window.last, names, wanted)
                assert part.tally is not None
                part.first_row = row
                n_lines += part.tally.lines
                row += len(part.table)
                window.advance(consumed)
                yield part

    def _header(self, file: SourceFile) -> tuple[list[str], int, int, int]:
        """Return the columns' names and the lines, bytes and blank lines before the first row."""
        start = head(file, self.encoding)
        text = start.lstrip(b"\r\n \t" if "\t" not in self.separator else b"\r\n ")
        cut = start.rfind(b"\n", 0, len(start) - len(text)) + 1
        if not text:
            raise DataError(f"{file.uri} is empty")
        n_blank = start[:cut].count(b"\n")
        names, n_lines, n_bytes = self._first_row(file, start[cut:])
        if self.names is not None and self.header and len(self.names) != len(names):
            raise ConfigError(
                f"columns.names={list(self.names)} has {len(self.names)} names, the header of "
                f"{file.uri} has {len(names)}: {', '.join(names)}"
            )
        if not self.header:
            given = self.names or [str(number + 1) for number in range(len(names))]
            return list(given), n_blank, cut, n_blank
        return list(self.names or names), n_blank + n_lines, cut + n_bytes, n_blank

    def _first_row(self, file: SourceFile, start: bytes) -> tuple[list[str], int, int]:
        """Return the values of the first row and how many lines and bytes it has."""
        text = start.decode("utf-8", "replace")
        if not self.header:  # only its length counts
            text = text.split("\n", 1)[0]
        n_lines = 1
        if len(self.separator) > 1:
            line = text.split("\n", 1)[0].rstrip("\r")
            values = [value.strip(self.quote or None) for value in line.split(self.separator)]
        else:
            reader = csv.reader(io.StringIO(text, newline=""), **self._dialect())  # type: ignore[arg-type]
            try:
                values = next(reader)
            except csv.Error as error:
                raise DataError(f"the header of {file.uri} cannot be read: {error}") from error
            n_lines = reader.line_num
        if plain_name(file.name).endswith(TYPED_ENDINGS):
            values = [value.split(":", 1)[0] for value in values]
        n_bytes = 0
        for _ in range(n_lines):
            n_bytes = start.find(b"\n", n_bytes) + 1 or len(start)
        return values, n_lines, n_bytes

    def _dialect(self) -> dict[str, str | int | None]:
        return {
            "delimiter": self.separator,
            "quotechar": self.quote or None,
            "quoting": csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            "escapechar": self.escape or None,
        }

    def _read(
        self, data: Bytes, line: int, last: bool, names: list[str], wanted: list[str]
    ) -> tuple[Chunk, int]:
        """Return the rows of whole lines, the first numbered `line`, and the bytes they take."""
        n_lines = count_lines(data)
        table = self._parse(data, n_lines, names, wanted)
        if table is None:
            return self._scan(data, line, last, names, wanted)
        lines = LineNumbers((range(line, line + n_lines),))
        return Chunk(table, 0, [], lines, tally=Tally(lines=n_lines, rows=n_lines)), len(data)

    def _parse(
        self, data: Bytes, n_lines: int, names: list[str], wanted: list[str]
    ) -> pa.Table | None:
        """Return what Arrow reads in whole lines, or None where that may not be exact."""
        separator = self.separator.encode()
        block = data.tobytes()  # whose searches are faster than NumPy's
        if len(separator) > 1 or self.escape or len(names) < 2 or not n_lines:
            return None
        if b"\r" in block and _lone_return(data):
            return None
        quoted = bool(self.quote) and self.quote.encode() in block
        options = self._options(len(names), tuple(names.index(name) for name in wanted), quoted)
        options["convert_options"].check_utf8 = bool(data.max() > 127)  # a fifth of the time
        try:
            table = pacsv.read_csv(pa.BufferReader(block), **options)
        except pa.ArrowInvalid:  # not UTF-8, or no row at all: `scan` finds where
            return None
        if table.num_rows != n_lines or (quoted and _holds(table, self.quote.encode())):
            return None
        return table.rename_columns(wanted)

    @functools.lru_cache(maxsize=8)  # noqa: B019, readers are few and small
    def _options(self, n_fields: int, wanted: tuple[int, ...], quoted: bool) -> dict[str, Any]:
        """Return Arrow's options; making them anew for every window takes time."""
        columns = [str(number) for number in wanted]
        return {
            "read_options": pacsv.ReadOptions(
                block_size=_ONE_BLOCK,
                use_threads=False,
                column_names=[str(number) for number in range(n_fields)],
            ),
            "parse_options": pacsv.ParseOptions(
                delimiter=self.separator,
                quote_char=self.quote if quoted else False,
                newlines_in_values=False,
                invalid_row_handler=lambda _: "skip",
            ),
            "convert_options": pacsv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                include_columns=columns,
                strings_can_be_null=True,
                null_values=[""],
            ),
        }

    def _scan(
        self, data: Bytes, line: int, last: bool, names: list[str], wanted: list[str]
    ) -> tuple[Chunk, int]:
        """Return the rows of lines, the first numbered `line`, and what is none of them."""
        from raysys.log.formats import scan  # numba takes half a second to import

        size = count_lines(data)
        slots = np.full(len(names), -1, np.int64)
        slots[[names.index(name) for name in wanted]] = np.arange(len(wanted))
        marks = np.array([_byte(self.quote), _byte(self.escape)])
        begin, end = np.zeros((2, len(wanted), size), np.int64)
        form = np.zeros((len(wanted), size), np.uint8)
        rows, bad = np.zeros((size, 3), np.int64), np.zeros((size, 4), np.int64)
        separator = np.frombuffer(self.separator.encode(), np.uint8)
        consumed, n_lines, n_rows, n_bad, n_blank, n_inside = scan.scan_rows(
            data, last, separator, marks, slots, begin, end, form, rows, bad
        )
        rows = rows[:n_rows]
        arrays = [
            _gather(data, begin[slot, :n_rows], end[slot, :n_rows], form[slot, :n_rows], marks)
            for slot in range(len(wanted))
        ]
        reasons = ["wrong number of fields", "a quote that does not close"]
        malformed = [
            BadLine(line + int(number), reasons[reason], shown(data[first:stop].tobytes()))
            for number, first, stop, reason in bad[:n_bad]
        ]
        invalid = _invalid(arrays, n_rows)
        tally = Tally(
            lines=n_lines,
            blank=n_blank,
            rows=n_rows - int(invalid.sum()),
            inside=n_inside,
            unreadable=n_bad + int(invalid.sum()),
        )
        if invalid.any():
            for number, first, stop in rows[invalid]:
                text = shown(data[first:stop].tobytes())
                malformed.append(BadLine(line + int(number), NOT_UTF8, text))
            malformed.sort(key=lambda bad: bad.line)
            arrays = [array.filter(pa.array(~invalid)) for array in arrays]
        table = pa.Table.from_arrays([array.cast(pa.string()) for array in arrays], names=wanted)
        lines = LineNumbers((rows[~invalid, 0] + line,))
        return Chunk(table, 0, malformed, lines, tally=tally), consumed


def _empty(names: Sequence[str]) -> pa.Table:
    return pa.schema([(name, pa.string()) for name in names]).empty_table()


def _byte(mark: str) -> int:
    return mark.encode()[0] if mark else -1


def _lone_return(data: Bytes) -> bool:
    """Tell whether a return stands elsewhere than before a line feed."""
    returns = data == ord("\r")
    ends = returns[:-1] & (data[1:] == ord("\n"))
    return int(np.count_nonzero(returns)) != int(np.count_nonzero(ends))


def _holds(table: pa.Table, quote: bytes) -> bool:
    """Tell whether a value holds the quote."""
    for column in table.columns:
        for chunk in column.chunks:
            buffer = chunk.buffers()[2]
            if buffer is not None and quote in buffer.to_pybytes():
                return True
    return False


def _gather(
    data: Bytes,
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    form: Bytes,
    marks: NDArray[np.int64],
) -> pa.Array:
    """Return the values of one column as bytes, null where they are empty."""
    from raysys.log.formats import scan

    offsets = np.zeros(len(begin) + 1, np.int32)
    out = np.zeros(int((end - begin).sum()), np.uint8)
    scan.gather_values(data, begin, end, form, marks, out, offsets)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(out[: offsets[-1]])]
    values = pa.Array.from_buffers(pa.binary(), len(begin), buffers)
    empty = np.diff(offsets) == 0
    if not empty.any():
        return values
    present = pa.py_buffer(np.packbits(~empty, bitorder="little"))
    return pa.Array.from_buffers(pa.binary(), len(begin), [present, *buffers[1:]])


def _invalid(arrays: Sequence[pa.Array], n_rows: int) -> NDArray[np.bool_]:
    """Return which rows hold bytes that are not UTF-8."""
    invalid = np.zeros(n_rows, dtype=bool)
    for array in arrays:
        try:
            array.cast(pa.string())
        except pa.ArrowInvalid:
            invalid |= [value is not None and not is_utf8(value) for value in array.to_pylist()]
    return invalid
