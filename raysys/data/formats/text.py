"""Bytes of text files: decompressed, as UTF-8, in blocks."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raysys.data.formats.contract import BLOCK_BYTES, Piece
from raysys.data.sources import SourceFile
from raysys.errors import DataError
from raysys.storage import open_filesystem

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LONGEST_LINE = 1 << 28


def _keep_invalid(error: UnicodeError) -> tuple[str, int]:
    """Put a lone surrogate where bytes cannot be decoded: it becomes a byte that is not UTF-8."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error("raysys.keep_invalid", _keep_invalid)


def text_pieces(file: SourceFile) -> list[Piece]:
    """Return the one piece of a text file."""
    return [Piece(file)]


def blocks(
    file: SourceFile, encoding: str | None, *, size: int = BLOCK_BYTES
) -> Iterator[tuple[bytes, bool]]:
    r"""Yield (bytes, whether they are the last) of a file as UTF-8 without a byte-order mark.

    A byte-order mark decides the encoding, else `encoding`, else UTF-8. Bytes that the encoding
    does not know come out as bytes that are not UTF-8. Files whose lines end in a lone `\r` get
    `\n`.
    """
    filesystem, path = open_filesystem(file.uri)
    with filesystem.open_input_stream(path) as stream:  # decompresses by the ending
        data = stream.read(size)
        mark, found = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b"", encoding))
        data = data[len(mark) :]
        decoder = None
        if found is not None and codecs.lookup(found).name != "utf-8":
            decoder = codecs.getincrementaldecoder(found)("raysys.keep_invalid")
        mac: bool | None = None
        while True:
            following = stream.read(size)
            if decoder is not None:
                text = decoder.decode(data, final=not following)
                data = text.encode("utf-8", "surrogateescape")
            if mac is None:
                mac = b"\r" in data and b"\n" not in data and bool(data.rstrip(b"\r").count(b"\r"))
            if mac:
                data = data.replace(b"\r", b"\n")
            yield data, not following
            if not following:
                return
            data = following


def whole_lines(file: SourceFile, encoding: str | None) -> Iterator[bytes]:
    """Yield blocks that end with a line; only the last may lack its line end.

    Raises:
        DataError: a line is longer than 256 MiB.
    """
    rest = b""
    for data, last in blocks(file, encoding):
        block = rest + data if rest else data
        cut = len(block) if last else block.rfind(b"\n") + 1
        rest = block[cut:]
        check_line(file, rest)
        if cut:
            yield block[:cut] if rest else block


def check_line(file: SourceFile, line: bytes) -> None:
    """Raise DataError where a line that has not ended yet is too long to hold."""
    if len(line) > _LONGEST_LINE:
        raise DataError(f"{file.uri} has a line of more than {_LONGEST_LINE >> 20} MiB")


def count_lines(data: NDArray[np.uint8]) -> int:
    """Return how many lines bytes [L] hold; one that lacks its line end counts."""
    n_ends = int(np.count_nonzero(data == ord("\n")))
    return n_ends + int(len(data) > 0 and data[-1] != ord("\n"))


def head(file: SourceFile, encoding: str | None, *, size: int = 1 << 20) -> bytes:
    """Return the whole lines among the first bytes of a file, or its first `size` bytes."""
    data, last = next(blocks(file, encoding, size=size))
    cut = len(data) if last else data.rfind(b"\n") + 1
    return data[: cut or len(data)]


def shown(line: bytes, *, limit: int = 2000) -> str:
    """Return a line as text for messages and the quarantine, cut at `limit` characters."""
    return line[: 4 * limit].decode("utf-8", "replace").rstrip("\r\n")[:limit]
