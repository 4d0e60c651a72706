"""Log files: what a `source=` names.

A source is a file, a directory, a glob or a URI of Parquet, CSV, TSV or JSON lines, plain or
compressed (.gz, .zst, .bz2). Folders `key=value` below it are columns (`event=view/0.parquet`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import logging
import re
from collections.abc import Sequence
from urllib.parse import quote, unquote

from pyarrow import fs as pafs

from raysys.errors import BuildError, DataError
from raysys.log.formats.config import FORMATS
from raysys.log.formats.contract import COMPRESSED, SourceFile, plain_name
from raysys.store.storage import open_filesystem

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
_ENDINGS = {ending: name for name, form in FORMATS.items() for ending in form.endings}
_FIRST = [form.endings[0] for form in FORMATS.values()]
ENDINGS = f"{', '.join(_FIRST[:-1])} or {_FIRST[-1]}, plain or with {', '.join(COMPRESSED)}"
_WILDCARDS = "*?["
_OPTIONS = re.compile(r"\?(\w+=[^&]*)(&\w+=[^&]*)*$")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def list_files(
    source: str, kind: str | None = None, *, any_ending: bool = False
) -> list[SourceFile]:
    """Return the files that a source names, sorted by name.

    Hidden files and those that begin with an underscore are skipped in directories and globs.

    Args:
        source: file, directory, glob or URI.
        kind: the files' format; None goes by their names.
        any_ending: files whose ending says nothing are of format `UNKNOWN`.

    Raises:
        DataError: there are none, a name ends in no known format, or formats are mixed.
    """
    if not source:
        raise DataError("source= is empty: name a file, directory, glob or URI of the log")
    start, options = _quoted(source)
    try:
        filesystem, path = open_filesystem(start + options)
        base, infos = _infos(filesystem, path)
    except (BuildError, OSError) as error:
        raise DataError(f"source={source} cannot be listed: {first_line(error)}") from error
    if infos is None:
        raise DataError(f"source={source} does not exist")
    files = []
    for info in sorted(infos, key=lambda info: info.path):
        name = info.path.removeprefix(base).lstrip("/")
        file_format = kind or _format(info.path)
        if file_format == UNKNOWN and not any_ending:
            raise DataError(
                f"{info.path} (source={source}) has no known format: expected {ENDINGS}"
            )
        uri = _uri(start, info.path) + options
        files.append(SourceFile(name, uri, info.size or 0, file_format, _constants(name)))
    if not files:
        raise DataError(f"source={source} holds no files")
    empty = [file for file in files if not file.size_bytes and file.format != "parquet"]
    if 0 < len(empty) < len(files):  # parts that a cluster wrote without rows
        log.info("empty files left out n=%d first=%s", len(empty), empty[0].name)
        files = [file for file in files if file not in empty]
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
    modification time. Columns that folders name are content.
    """
    marks = []
    for file in files:
        filesystem, path = open_filesystem(file.uri)
        if isinstance(filesystem, pafs.LocalFileSystem):
            with open(path, "rb") as stream:
                mark = hashlib.file_digest(stream, "sha256").hexdigest()
            marks.append(" ".join([mark, *(f"{key}={value}" for key, value in file.constants)]))
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


def _quoted(source: str) -> tuple[str, str]:
    """Return a source in a form that `open_filesystem` takes, and its options (`?region=...`).

    Paths on this machine are plain; in other URIs everything is escaped that may be, for keys hold
    blanks, `#` and wildcards. `%20` in a URI is a blank.
    """
    if "://" not in source:
        return source, ""
    options = _OPTIONS.search(source)
    end = options.start() if options else len(source)
    scheme, path = source[:end].split("://", 1)
    if scheme == "file":
        return "/" + unquote(path).removeprefix("localhost").lstrip("/"), ""
    return f"{scheme}://{quote(unquote(path), safe='/@:')}", source[end:]


def _uri(start: str, path: str) -> str:
    """Return what opens `path` of the file system that `start` is on."""
    if "://" not in start:
        return path
    scheme = start.split("://", 1)[0]
    return f"{scheme}://{quote(path, safe='/')}"


def _infos(filesystem: pafs.FileSystem, path: str) -> tuple[str, list[pafs.FileInfo] | None]:
    """Return where names begin, and the visible files at, below or matching `path`, if any."""
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.File:
        return path.rsplit("/", 1)[0], [info]
    pattern = None
    if info.type == pafs.FileType.NotFound:
        if not any(mark in path for mark in _WILDCARDS):
            return path, None
        pattern, path = path, _before_wildcard(path)
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    found = []
    for info in filesystem.get_file_info(selector):
        parts = info.path.removeprefix(path).strip("/").split("/")
        hidden = any(part.startswith((".", "_")) for part in parts)
        if info.type == pafs.FileType.File and not hidden and _matches(info.path, pattern):
            found.append(info)
    return path, found


def _before_wildcard(path: str) -> str:
    parts = path.split("/")
    plain = itertools.takewhile(lambda part: not any(m in part for m in _WILDCARDS), parts)
    return "/".join(plain)


def _matches(path: str, pattern: str | None) -> bool:
    if pattern is None:
        return True
    same_depth = "**" in pattern or path.count("/") == pattern.count("/")
    return same_depth and fnmatch.fnmatchcase(path, pattern)


def _constants(name: str) -> tuple[tuple[str, str | None], ...]:
    """Return the columns of the folders in a name, as Hive and Spark write them."""
    pairs = (folder.partition("=") for folder in name.split("/")[:-1])
    return tuple(
        (unquote(key), None if value == _HIVE_NULL else unquote(value))
        for key, equals, value in pairs
        if equals and key
    )


def _format(path: str) -> str:
    name = plain_name(path)
    return next((kind for ending, kind in _ENDINGS.items() if name.endswith(ending)), UNKNOWN)
