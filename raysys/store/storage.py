"""Where a run lies: a local folder, or a prefix on any object store that `pyarrow.fs` opens.

Paths are relative to the run. The differences between the two kinds of storage end here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import pyarrow as pa
from pyarrow import fs as pafs

from raysys.errors import BuildError, CorruptBuildError
from raysys.store.temporary import prefix

T = TypeVar("T")

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_MKDIR_TRIES = 10
_PAUSES_S = (0.2, 0.5, 1.0, 2.0)
_DELAYED = "allow_delayed_open"  # of Arrow: small files are one request, not an upload of parts


class FileMark(NamedTuple):
    """What tells that a file is still the one that was looked at."""

    size_bytes: int
    mtime_ns: int


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return (file system, path on it) of a local path or URI.

    Raises:
        BuildError: the URI cannot be opened by `pyarrow.fs`.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    if uri.startswith("s3://") and _DELAYED not in uri:
        uri += f"{'&' if '?' in uri else '?'}{_DELAYED}=true"
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise BuildError(f"cannot open {uri}: {error}") from error
    return filesystem, path.rstrip("/")


def join(url: str, name: str) -> str:
    """Return the path or URI of `name` below a path or URI, which may end in `?options`."""
    place, mark, options = url.partition("?") if "://" in url else (url, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


class Storage:
    """The files of one run.

    Args:
        run: local path or URI.
        cache_dir: where files from object stores are kept; default `~/.cache/raysys`.

    Attributes:
        cache: the folder of this host for files of this run.
    """

    def __init__(self, run: str, *, cache_dir: str | None = None) -> None:
        self.run = run
        self.filesystem, self.root = open_filesystem(run)
        self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        self._cache = Path(cache_dir).expanduser() if cache_dir else _default_cache()
        name = hashlib.sha256(self.root.encode()).hexdigest()[:16]
        self.cache = self._cache / f"run-{name}"

    def url(self, name: str) -> str:
        """Return the local path or URI of a file or folder, for workers on any node."""
        return join(self.root if self.is_local else self.run, name)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object in file `name`, or None where there is no such file.

        Raises:
            BuildError: it cannot be read; CorruptBuildError: it holds no JSON object.
        """
        content = self.read(name)
        if content is None:
            return None
        try:
            record = json.loads(content)
        except ValueError as error:
            raise CorruptBuildError(f"{self.run}/{name} is not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise CorruptBuildError(f"{self.run}/{name} is not a JSON object")
        return record

    def read(self, name: str) -> bytes | None:
        """Return the content of file `name`, or None where there is no such file.

        Raises:
            BuildError: it cannot be read.
        """
        try:
            content = _again(lambda: self._read(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, pa.ArrowInvalid) as error:
            raise BuildError(f"cannot read {self.run}/{name}: {error}") from error
        return content

    def _read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(f"{self.root}/{name}") as stream:
            content: bytes = stream.read()
        return content

    def write_atomic(self, name: str, content: str | bytes) -> None:
        """Replace file `name` in one step: readers see the old content or the new one."""
        path = f"{self.root}/{name}"
        data = content.encode() if isinstance(content, str) else content
        if not self.is_local:
            # An interrupted stream would leave what it holds, which may be nothing.
            with tempfile.NamedTemporaryFile(prefix=prefix("file")) as file:
                file.write(data)
                file.flush()
                _copy(file.name, pafs.LocalFileSystem(), path, self.filesystem)
            return
        partial = Path(path)
        partial = partial.with_name(f".{partial.name}.{secrets.token_hex(4)}")  # logs skip such
        with _opened_anew(partial) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(partial.parent)

    def now(self) -> float:
        """Return seconds since 1970 by the clock that dates the files of this storage.

        Raises:
            OSError: it cannot be written.
        """
        name = f".now.{secrets.token_hex(4)}"
        self.write_atomic(name, b"")
        info = self.filesystem.get_file_info(f"{self.root}/{name}")
        self.remove(name)
        return (info.mtime_ns or time.time_ns()) / 1e9

    def exists(self, name: str) -> bool:
        """Tell whether there is a file `name`."""
        info = self.filesystem.get_file_info(f"{self.root}/{name}")
        return bool(info.type == pafs.FileType.File)

    def is_there(self) -> bool:
        """Tell whether there is such a run at all."""
        return bool(self.filesystem.get_file_info(self.root).type == pafs.FileType.Directory)

    def has_folder(self, name: str) -> bool:
        """Tell whether there is a folder `name`."""
        info = self.filesystem.get_file_info(f"{self.root}/{name}")
        return bool(info.type == pafs.FileType.Directory)

    def rename(self, source: str, target: str) -> None:
        """Move a folder of a local run in one step; `target` must not hold anything."""
        final = Path(self.root) / target
        final.parent.mkdir(parents=True, exist_ok=True)
        (Path(self.root) / source).rename(final)
        sync_folder(final.parent)

    def remove(self, name: str) -> None:
        """Delete file `name`; nothing happens where it is gone."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.root}/{name}")

    def prune(self, folder: str) -> None:
        """Remove local folders that are empty, from `folder` up to the run."""
        if self.is_local:
            parts = folder.split("/")
            with suppress(OSError):  # it holds something
                for end in range(len(parts), 0, -1):
                    os.rmdir(Path(self.root, *parts[:end]))

    def files(self, folder: str) -> dict[str, FileMark]:
        """Return {path relative to `folder`: size and time} of all files below it, sorted."""
        root = f"{self.root}/{folder}"
        if self.is_local:
            marks = dict(_local_files(Path(root)))
        else:
            selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
            marks = {
                info.path.removeprefix(root).lstrip("/"): FileMark(info.size, info.mtime_ns or 0)
                for info in self.filesystem.get_file_info(selector)
                if info.type == pafs.FileType.File
            }
        return dict(sorted(marks.items()))

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in `folder`, sorted."""
        selector = pafs.FileSelector(f"{self.root}/{folder}", allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(i.base_name for i in infos if i.type == pafs.FileType.Directory)

    def sha256(self, name: str) -> str:
        """Return the hash of file `name` as hex digits."""
        return _again(lambda: self._sha256(name))

    def _sha256(self, name: str) -> str:
        sha = hashlib.sha256()
        with self.filesystem.open_input_stream(f"{self.root}/{name}") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                sha.update(chunk)
        return sha.hexdigest()

    def upload(self, source: Path, folder: str) -> None:
        """Copy every file below the local folder `source` to `folder`."""
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            target = f"{self.root}/{folder}/{path.relative_to(source)}"
            _copy(str(path), pafs.LocalFileSystem(), target, self.filesystem)

    def fetch(self, name: str, *, cache_key: str, anew: bool = False) -> Path:
        """Return where file `name` lies locally; from object stores it is fetched once.

        Args:
            name: path of the file.
            cache_key: path in the cache; must change with the file's content.
            anew: fetch it although it is in the cache.

        Raises:
            CorruptBuildError: the object store does not hold the file. BuildError: it cannot be
            read, or the cache not be written.
        """
        if self.is_local:
            return Path(self.root) / name
        target = self.cache / cache_key
        if anew or not target.exists():
            partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
            local, source = pafs.LocalFileSystem(), f"{self.root}/{name}"
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                _again(lambda: _copy(source, self.filesystem, str(partial), local))
                partial.replace(target)
            except OSError as error:
                partial.unlink(missing_ok=True)
                if isinstance(error, FileNotFoundError):
                    raise CorruptBuildError(f"{self.run}/{name} is missing") from error
                raise BuildError(
                    f"cannot fetch {self.run}/{name} to {self._cache} (cache_dir=): {error}"
                ) from error
        return target

    def remembers(self, name: str, record: dict[str, Any]) -> bool:
        """Tell whether `remember` was called on this host with this record."""
        try:
            known: dict[str, Any] = json.loads(self._memory(name).read_text())
        except (OSError, ValueError):
            return False
        return known == record

    def remember(self, name: str, record: dict[str, Any]) -> None:
        """Keep a record of `name` on this host, in the cache; without one it is made again."""
        path = self._memory(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record))
        except OSError as error:
            log.debug("not remembered path=%s error=%s", path, error)

    def _memory(self, name: str) -> Path:
        key = hashlib.sha256(f"{self.root}/{name}".encode()).hexdigest()[:16]
        return self._cache / "verified" / f"{key}.json"

    def delete(self, folder: str) -> None:
        """Delete `folder` on a best effort; a failure is logged."""
        try:
            if self.is_local:
                shutil.rmtree(f"{self.root}/{folder}")
            elif self.filesystem.get_file_info(f"{self.root}/{folder}").type:
                self.filesystem.delete_dir(f"{self.root}/{folder}")
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("clean-up failed folder=%s error=%s", folder, error)


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a local file as hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Let the names in a local folder outlive the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _default_cache() -> Path:
    try:
        return Path.home() / ".cache" / "raysys"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f".raysys-cache-{os.getuid()}"  # gc leaves it


def _local_files(folder: Path) -> Iterator[tuple[str, FileMark]]:
    """Yield the files below a folder; those that go meanwhile are left out."""
    todo = [folder]
    while todo:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(Path(entry.path))
                    continue
                with suppress(FileNotFoundError):
                    stat = entry.stat()
                    name = os.path.relpath(entry.path, folder)
                    yield name, FileMark(stat.st_size, stat.st_mtime_ns)


def _opened_anew(path: Path) -> BinaryIO:
    """Open a new file; its folder is made, again where another job removes it as empty."""
    for _ in range(_MKDIR_TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return path.open("xb")
    return path.open("xb")


def _again(read: Callable[[], T]) -> T:
    """Read from an object store, again where that fails.

    Arrow asks again where the store answers 503, but not where that comes in place of a file: the
    text of the error does not fit where it puts the content.
    """
    for pause_s in _PAUSES_S:
        try:
            return read()
        except OSError as error:
            if "AWS Error" not in str(error) or isinstance(error, FileNotFoundError):
                raise
            log.debug("asked again in=%.1f s: %s", pause_s, error)
            time.sleep(pause_s)
    return read()


def _copy(source: str, from_fs: pafs.FileSystem, target: str, to_fs: pafs.FileSystem) -> None:
    pafs.copy_files(source, target, source_filesystem=from_fs, destination_filesystem=to_fs)
