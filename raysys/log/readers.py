"""Readers, and what is the same for all formats: whole sources, folders' columns, errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from raysys.errors import ConfigError, DataError
from raysys.log.columns import Repeated
from raysys.log.formats.config import FORMATS, FormatConfig
from raysys.log.formats.contract import Chunk, Column, Piece, Reader, SourceFile
from raysys.log.sources import unreadable

_READ_ERRORS = (pa.ArrowException, OSError, UnicodeError, EOFError)


def make_reader(kind: str, settings: FormatConfig, names: Sequence[str] | None = None) -> Reader:
    """Return the reader of a format.

    Args:
        kind: one of `FORMATS`.
        settings: how to read.
        names: the columns' names, instead of the header's.

    Raises:
        ConfigError: a setting means nothing in this format.
    """
    form = FORMATS[kind]
    given = dataclasses.asdict(settings) | {"names": names}
    for key, value in given.items():
        if value is not None and key not in (*form.takes, "kind", "time"):
            prefix = "columns" if key == "names" else "format"
            raise ConfigError(f"{prefix}.{key}={value!r} means nothing for files of {kind}")
    return form.make(dataclasses.replace(settings, kind=kind), names)


@dataclasses.dataclass(frozen=True)
class Source:
    """Files of one format and what reads them.

    Attributes:
        files: at least one.
        reader: of their format.
    """

    files: list[SourceFile]
    reader: Reader

    def columns(self, late: Sequence[str] = ()) -> dict[str, str]:
        """Return {column: why it cannot be read, or ""} over all files and their folders.

        Args:
            late: names to look for in whole files where their starts do not have them.

        Raises:
            DataError: a file is empty or cannot be read.
        """
        seen: dict[str, str] = {}
        for file in self.files:
            found = file_columns(self.reader, file)
            for column in found:
                fault = ""
                if column.kind is not None and pa.types.is_nested(column.kind):
                    fault = f"is of type {column.kind} in {file.name}"
                seen[column.name] = seen.get(column.name) or _twice(found, file, column) or fault
            seen |= {name: "" for name, _ in file.constants if name not in seen}
        for file in self.files:
            missing = [name for name in late if name not in seen]
            seen |= dict.fromkeys(sorted(self.reader.late(file, missing)) if missing else (), "")
        return seen

    def lacking(self, names: Sequence[str]) -> tuple[SourceFile, str] | None:
        """Return the first file without one of the columns, and that column.

        A file that may hold any column (JSON lines) lacks none.
        """
        for file in self.files if len(self.files) > 1 and not self.reader.open_ended else ():
            own = {column.name for column in file_columns(self.reader, file)}
            own |= {name for name, _ in file.constants}
            missing = next((name for name in names if name not in own), None)
            if missing is not None:
                return file, missing
        return None

    def repeated(self) -> str:
        """Return which column stands several times in a file, in words, or ""."""
        found = (
            f"{column.name!r} {fault}"
            for file in self.files
            for columns in [file_columns(self.reader, file)]
            for column in columns
            if (fault := _twice(columns, file, column))
        )
        return next(found, "")

    def pieces(self) -> list[Piece]:
        """Return the pieces of all files, in order."""
        return [piece for file in self.files for piece in self.reader.pieces(file)]


def _twice(columns: Sequence[Column], file: SourceFile, column: Column) -> str:
    count = sum(other.name == column.name for other in columns)
    fault = f"stands {count} times in {file.name} (type {column.kind or 'by value'})"
    return Repeated(fault) if count > 1 else ""


def file_columns(reader: Reader, file: SourceFile) -> list[Column]:
    """Return the columns of one file.

    Raises:
        DataError: it is empty or cannot be read.
    """
    if file.size_bytes == 0:
        raise DataError(f"{file.uri} is empty")
    try:
        return reader.columns(file)
    except _READ_ERRORS as error:
        raise unreadable(file, error) from error


def read_chunks(
    reader: Reader, piece: Piece, columns: Sequence[str] | None = None
) -> Iterator[Chunk]:
    """Yield the rows of a piece with the columns that its folders name.

    Args:
        reader: of the piece's format.
        piece: part of a file.
        columns: those to read, where the file has them; None reads all as they are.

    Raises:
        DataError: the file cannot be read.
    """
    constants = {n: v for n, v in piece.file.constants if columns is None or n in columns}
    if constants:
        own = {column.name for column in file_columns(reader, piece.file)}
        constants = {name: value for name, value in constants.items() if name not in own}
    inside = None if columns is None else [name for name in columns if name not in constants]
    try:
        for chunk in reader.chunks(piece, inside):
            for name, value in constants.items():
                codes = pa.array(np.zeros(len(chunk.table), np.int32))
                column = pa.DictionaryArray.from_arrays(codes, pa.array([value], pa.string()))
                chunk.table = chunk.table.append_column(name, column)
            yield chunk
    except _READ_ERRORS as error:
        raise unreadable(piece.file, error) from error
