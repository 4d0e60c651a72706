"""Bytes of text files: decompressed, as UTF-8, a window of whole lines at a time."""

from __future__ import annotations

import abc
import codecs
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.errors import DataError
from raysys.log.formats.contract import (
    BLOCK_BYTES,
    Chunk,
    Piece,
    SourceFile,
    first_rows,
    joined,
)
from raysys.store.storage import open_filesystem

Bytes = NDArray[np.uint8]
NOT_UTF8 = "not UTF-8 text"

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LONGEST_LINE = 1 << 28
_LF = ord("\n")


def _keep_invalid(error: UnicodeError) -> tuple[str, int]:
    """Put a lone surrogate where bytes cannot be decoded: it becomes a byte that is not UTF-8."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error("raysys.keep_invalid", _keep_invalid)


class TextReader(abc.ABC):
    """What readers of text share: a file is one piece, its chunks are joined from small parts."""

    @abc.abstractmethod
    def parts(self, file: SourceFile, columns: Sequence[str] | None) -> Iterator[Chunk]:
        """Yield the rows of a file a window at a time; arguments as in `Reader.chunks`."""

    def pieces(self, file: SourceFile) -> list[Piece]:
        """Return the whole file."""
        return [Piece(file)]

    def first_rows(self, file: SourceFile, n_rows: int) -> pa.Table:
        """Return the first rows."""
        return first_rows(self.parts(file, None), n_rows)

    def chunks(self, piece: Piece, columns: Sequence[str] | None) -> Iterator[Chunk]:
        """Yield many lines at a time."""
        yield from joined(self.parts(piece.file, columns))


class Window:
    r"""The bytes of a text file in view, as UTF-8 without a byte-order mark.

    A byte-order mark decides the encoding, else `encoding`, else UTF-8. Bytes that the encoding
    does not know come out as bytes that are not UTF-8. Where the file's lines end in a lone `\r`,
    they end in `\n` here.

    Args:
        file: the file.
        stream: its bytes.
        encoding: of the file; None is UTF-8.
        size: bytes to read at a time.

    Attributes:
        data: [L] bytes in view; they change with `advance`.
        last: the file ends with them.
    """

    def __init__(
        self, file: SourceFile, stream: pa.NativeFile, encoding: str | None, size: int
    ) -> None:
        self._file, self._stream, self._size = file, stream, size
        self._buffer = np.empty(0, np.uint8)
        self._decoder: codecs.IncrementalDecoder | None = None
        self.data = self._buffer
        self.last = False
        start = stream.read(size)
        mark, found = next(((m, e) for m, e in _MARKS if start.startswith(m)), (b"", encoding))
        if found is not None and codecs.lookup(found).name != "utf-8":
            self._decoder = codecs.getincrementaldecoder(found)("raysys.keep_invalid")
        content = self._decode(start[len(mark) :], final=not start)
        self._classic = b"\r" in content[:-1] and b"\n" not in content
        self._put(content, 0)

    def advance(self, consumed: int) -> None:
        """Drop the first `consumed` bytes in view and read more behind the others.

        Raises:
            DataError: a line is longer than 256 MiB.
        """
        rest = len(self.data) - consumed
        if rest > _LONGEST_LINE:
            raise DataError(f"{self._file.uri} has a line of more than {_LONGEST_LINE >> 20} MiB")
        if self._decoder is not None or self._classic:
            content = self._stream.read(self._size)
            self.last = not content
            self._put(self._decode(content, final=self.last), consumed)
            return
        self._make_room(rest + self._size, consumed)
        n_read = self._stream.readinto(memoryview(self._buffer.data)[rest : rest + self._size])
        self.data, self.last = self._buffer[: rest + n_read], not n_read

    def skip(self, n_bytes: int) -> None:
        """Drop the next `n_bytes` bytes of the file."""
        while len(self.data) < n_bytes and not self.last:
            self.advance(0)
        self.advance(n_bytes)

    def whole_lines(self) -> int:
        """Return how many bytes in view belong to lines that end in view."""
        if self.last:
            return len(self.data)
        for stop in range(len(self.data), 0, -4096):
            ends = np.flatnonzero(self.data[max(stop - 4096, 0) : stop] == _LF)
            if len(ends):
                return int(max(stop - 4096, 0) + ends[-1] + 1)
        return 0

    def _decode(self, content: bytes, *, final: bool) -> bytes:
        if self._decoder is None:
            return content
        return self._decoder.decode(content, final=final).encode("utf-8", "surrogateescape")

    def _put(self, content: bytes, consumed: int) -> None:
        if self._classic:
            content = content.replace(b"\r", b"\n")
        rest = len(self.data) - consumed
        self._make_room(rest + len(content), consumed)
        self._buffer[rest : rest + len(content)] = np.frombuffer(content, np.uint8)
        self.data = self._buffer[: rest + len(content)]

    def _make_room(self, size: int, consumed: int) -> None:
        """Move what was not consumed to the start of a buffer of at least `size` bytes."""
        rest = self.data[consumed:]
        if len(self._buffer) < size:
            self._buffer = np.empty(size + self._size, np.uint8)
        self._buffer[: len(rest)] = rest.copy()


@contextmanager
def open_window(
    file: SourceFile, encoding: str | None, *, size: int | None = None
) -> Iterator[Window]:
    """Open a text file, decompressed by its ending."""
    filesystem, path = open_filesystem(file.uri)
    with filesystem.open_input_stream(path) as stream:
        yield Window(file, stream, encoding, size or BLOCK_BYTES)


def count_lines(data: Bytes) -> int:
    """Return how many lines bytes [L] hold; one that lacks its line end counts."""
    n_ends = int(np.count_nonzero(data == _LF))
    return n_ends + int(len(data) > 0 and data[-1] != _LF)


def head(file: SourceFile, encoding: str | None, *, size: int = 1 << 20) -> bytes:
    """Return the whole lines among the first bytes of a file, or its first `size` bytes."""
    with open_window(file, encoding, size=size) as window:
        window.advance(0)  # tells whether the file ends here
        return window.data[: window.whole_lines() or len(window.data)].tobytes()


def shown(line: bytes, *, limit: int = 2000) -> str:
    """Return a line as text for messages and the quarantine, cut at `limit` characters."""
    return line[: 4 * limit].decode("utf-8", "replace").rstrip("\r\n")[:limit]


def is_utf8(text: bytes | str) -> bool:
    """Tell whether bytes are UTF-8, or text can be written as UTF-8."""
    try:
        text.encode() if isinstance(text, str) else text.decode()
    except UnicodeError:
        return False
    return True
