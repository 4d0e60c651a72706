"""Log files: what a `source=` names.

A source is a file, a directory, a glob or a URI of Parquet, CSV, TSV or JSON lines, plain or
compressed (.gz, .zst, .bz2).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import itertools
from collections.abc import Sequence

from pyarrow import fs as pafs

from raysys.errors import BuildError, DataError
from raysys.storage import open_filesystem

_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_COMPRESSED = (".gz", ".zst", ".bz2")
_ACCEPTED = ".parquet, .csv, .tsv or .jsonl, plain or with .gz, .zst, .bz2"
_WILDCARDS = "*?["


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        name: how messages and the quarantine call it: its path below the source.
        uri: what `open_filesystem` opens.
        size_bytes: its size.
        format: parquet, csv, tsv or jsonl.
    """

    name: str
    uri: str
    size_bytes: int
    format: str


def list_files(source: str) -> list[SourceFile]:
    """Return the files that a source names, sorted by name.

    Hidden files and those that begin with an underscore are skipped in directories and globs.

    Raises:
        DataError: there are none, a name ends in no known format, or formats are mixed.
    """
    if not source:
        raise DataError("source= is empty: name a file, directory, glob or URI of the log")
    try:
        filesystem, path = open_filesystem(source)
        infos = _infos(filesystem, path)
    except (BuildError, OSError) as error:
        raise DataError(f"source={source} cannot be listed: {first_line(error)}") from error
    if infos is None:
        raise DataError(f"source={source} does not exist")
    prefix = "" if "://" not in source else source.split("://", 1)[0] + "://"
    base = path.rstrip("/") if len(infos) != 1 or infos[0].path != path else path.rsplit("/", 1)[0]
    base = _before_wildcard(base)
    files = [
        SourceFile(
            name=info.path.removeprefix(base).lstrip("/"),
            uri=prefix + info.path,
            size_bytes=info.size or 0,
            format=_format(info.path, source),
        )
        for info in sorted(infos, key=lambda info: info.path)
    ]
    if not files:
        raise DataError(f"source={source} holds no files")
    first = files[0]
    other = next((file for file in files if file.format != first.format), None)
    if other is not None:
        raise DataError(
            f"source={source} mixes formats: {first.name} is {first.format}, "
            f"{other.name} is {other.format}; use a glob that names the files of the log"
        )
    return files


def fingerprint(files: Sequence[SourceFile]) -> list[str]:
    """Return what identifies the content of a source, whatever its files are called.

    Local files count by the SHA-256 of their bytes; those on object stores by name, size and
    modification time.
    """
    marks = []
    for file in files:
        filesystem, path = open_filesystem(file.uri)
        if isinstance(filesystem, pafs.LocalFileSystem):
            with open(path, "rb") as stream:
                marks.append(hashlib.file_digest(stream, "sha256").hexdigest())
        else:
            info = filesystem.get_file_info(path)
            marks.append(f"{file.uri} {info.size} {info.mtime_ns}")
    return sorted(marks)


def unreadable(file: SourceFile, error: BaseException) -> DataError:
    """Return the error that says why a file cannot be read, in one line."""
    return DataError(f"{file.uri} cannot be read as {file.format}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _infos(filesystem: pafs.FileSystem, path: str) -> list[pafs.FileInfo] | None:
    """Return the visible files at, below or matching `path`; None when there is nothing."""
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.File:
        return [info]
    pattern = None
    if info.type == pafs.FileType.NotFound:
        if not any(mark in path for mark in _WILDCARDS):
            return None
        pattern, path = path, _before_wildcard(path)
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    found = []
    for info in filesystem.get_file_info(selector):
        parts = info.path.removeprefix(path).strip("/").split("/")
        hidden = any(part.startswith((".", "_")) for part in parts)
        if info.type == pafs.FileType.File and not hidden and _matches(info.path, pattern):
            found.append(info)
    return found


def _before_wildcard(path: str) -> str:
    parts = path.split("/")
    plain = itertools.takewhile(lambda part: not any(m in part for m in _WILDCARDS), parts)
    return "/".join(plain)


def _matches(path: str, pattern: str | None) -> bool:
    if pattern is None:
        return True
    same_depth = "**" in pattern or path.count("/") == pattern.count("/")
    return same_depth and fnmatch.fnmatchcase(path, pattern)


def _format(path: str, source: str) -> str:
    name = path.rsplit("/", 1)[-1].lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    for ending, kind in _FORMATS.items():
        if name.endswith(ending):
            return kind
    raise DataError(f"{path} (source={source}) has no known format: expected {_ACCEPTED}")
