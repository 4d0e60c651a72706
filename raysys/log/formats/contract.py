"""What a reader of one format promises, whatever the format.

    file --columns--> what stands in it
    file --pieces---> what one task reads --chunks--> rows, and what could not be read

Pieces depend on the files alone, never on the number of workers. No row vanishes: what a reader
cannot read is a `BadLine`, and a text file's lines add up (`Tally`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

CHUNK_ROWS = 1 << 20
BLOCK_BYTES = 1 << 21  # fits the cache
_CHUNK_LINES = 1 << 18
COMPRESSED = (".gz", ".zst", ".bz2")


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        name: how messages and the quarantine call it: its path below the source.
        uri: what `open_filesystem` opens.
        size_bytes: its size.
        format: one of `FORMATS`, or `UNKNOWN`.
        constants: columns that its folders name, (name, value or None).
    """

    name: str
    uri: str
    size_bytes: int
    format: str
    constants: tuple[tuple[str, str | None], ...] = ()


def plain_name(path: str) -> str:
    """Return a file's name in lower case without the ending of its compression."""
    name = path.rsplit("/", 1)[-1].lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a file; `kind` is None where a type stands with every value (JSON)."""

    name: str
    kind: pa.DataType | None = None


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


@dataclasses.dataclass(frozen=True)
class BadLine:
    """A line that holds no row: its number in the file from 1, why, and its text."""

    line: int
    reason: str
    text: str


@dataclasses.dataclass
class Tally:
    """Lines of text by what became of them.

    Attributes:
        lines: all, counted by line ends alone.
        header, blank: column names; nothing but blanks.
        rows: lines on which a row begins.
        inside: further lines of a row, inside a quoted value.
        unreadable: `BadLine`s.
    """

    lines: int = 0
    header: int = 0
    blank: int = 0
    rows: int = 0
    inside: int = 0
    unreadable: int = 0

    def add(self, other: Tally) -> None:
        """Add the counts of `other`."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def left_over(self) -> int:
        """Return how many lines nothing accounts for."""
        return self.lines - self.header - self.blank - self.rows - self.inside - self.unreadable


@dataclasses.dataclass(frozen=True)
class LineNumbers:
    """On which line each row begins, from 1: worked out only for the rows that are asked for.

    Attributes:
        runs: numbers of successive rows, a range where rows and lines go together.
    """

    runs: tuple[range | NDArray[np.int64], ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the lines of some rows."""
        if not len(rows):
            return np.zeros(0, np.int64)
        numbers: NDArray[np.int64] = np.concatenate([np.asarray(run) for run in self.runs])[rows]
        return numbers


@dataclasses.dataclass
class Chunk:
    """Some rows of a piece.

    Attributes:
        table: the columns that were asked for and found.
        first_row: number of the first row in the file, from 0.
        malformed: what could not be read before or among the rows.
        lines: where the rows stand; None for Parquet.
        odd: {column: mask [M] of values that are neither text nor a number}, JSON only.
        tally: what became of the lines read for this chunk; None for Parquet.
    """

    table: pa.Table
    first_row: int
    malformed: list[BadLine]
    lines: LineNumbers | None = None
    odd: dict[str, NDArray[np.bool_]] = dataclasses.field(default_factory=dict)
    tally: Tally | None = None


class Reader(Protocol):
    """Reads the files of one format. Readers are values: tasks get a copy.

    Attributes:
        open_ended: rows may hold columns that `columns` does not name.
    """

    open_ended: ClassVar[bool]

    def columns(self, file: SourceFile) -> list[Column]:
        """Return the columns of a file in order; those of JSON lines as far as its start shows."""

    def late(self, file: SourceFile, names: Sequence[str]) -> set[str]:
        """Return which of `names`, absent from `columns`, the file holds further down."""

    def pieces(self, file: SourceFile) -> list[Piece]:
        """Return the pieces of a file, in order."""

    def first_rows(self, file: SourceFile, n_rows: int) -> pa.Table:
        """Return the first rows of a file with all columns as they are, for a person to look at."""

    def chunks(self, piece: Piece, columns: Sequence[str] | None) -> Iterator[Chunk]:
        """Yield the rows of a piece.

        Args:
            piece: of `pieces`.
            columns: those to read, where the file has them; None reads all, and then JSON keeps
                its types.
        """


def first_rows(parts: Iterator[Chunk], n_rows: int) -> pa.Table:
    """Return the first rows of the first chunk that has some."""
    table = pa.table({})
    for part in parts:
        table = part.table.slice(0, n_rows)
        if len(table):
            break
    return table


def joined(parts: Iterator[Chunk]) -> Iterator[Chunk]:
    """Yield the chunks of one text file, joined to about `_CHUNK_LINES` lines of the same types.

    Raises:
        AssertionError: lines are left over.
    """
    waiting: list[Chunk] = []
    total, size = Tally(), 0
    for part in parts:
        assert part.tally is not None
        total.add(part.tally)
        if waiting and part.table.schema != waiting[0].table.schema:
            yield _join(waiting)
            waiting, size = [], 0
        size += part.tally.lines
        waiting.append(part)
        if size >= _CHUNK_LINES:
            yield _join(waiting)
            waiting, size = [], 0
    assert not total.left_over, total
    if waiting:
        yield _join(waiting)


def _join(parts: Sequence[Chunk]) -> Chunk:
    tally = Tally()
    for part in parts:
        assert part.tally is not None
        tally.add(part.tally)
    table = pa.concat_tables([part.table for part in parts])
    names = {name for part in parts for name in part.odd}
    odd = {
        name: np.concatenate([p.odd.get(name, np.zeros(len(p.table), bool)) for p in parts])
        for name in names
    }
    lines = LineNumbers(tuple(run for part in parts if part.lines for run in part.lines.runs))
    malformed = [bad for part in parts for bad in part.malformed]
    return Chunk(table, parts[0].first_row, malformed, lines, odd, tally)
