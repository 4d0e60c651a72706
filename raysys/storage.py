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
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from raysys.errors import BuildError, CorruptBuildError

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return (file system, path on it) of a local path or URI.

    Raises:
        BuildError: the URI cannot be opened by `pyarrow.fs`.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise BuildError(f"cannot open {uri}: {error}") from error
    return filesystem, path.rstrip("/")


class Storage:
    """The files of one run.

    Args:
        run: local path or URI.
        cache_dir: where files from object stores are kept; default `~/.cache/raysys`.
    """

    def __init__(self, run: str, *, cache_dir: str | None = None) -> None:
        self.run = run
        self.filesystem, self.root = open_filesystem(run)
        self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        self._cache = Path(cache_dir or Path.home() / ".cache" / "raysys").expanduser()

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
            with self.filesystem.open_input_stream(f"{self.root}/{name}") as stream:
                content: bytes = stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, pa.ArrowInvalid) as error:
            raise BuildError(f"cannot read {self.run}/{name}: {error}") from error
        return content

    def write_atomic(self, name: str, content: str | bytes) -> None:
        """Replace file `name` in one step: readers see the old content or the new one."""
        path = f"{self.root}/{name}"
        data = content.encode() if isinstance(content, str) else content
        if not self.is_local:
            with self.filesystem.open_output_stream(path) as out:
                out.write(data)
            return
        partial = Path(f"{path}.{secrets.token_hex(4)}")
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def table_of_files(self, folder: str) -> dict[str, dict[str, Any]]:
        """Return {path relative to `folder`: {"sha256", "bytes"}}, sorted by path."""
        selector = pafs.FileSelector(f"{self.root}/{folder}", recursive=True, allow_not_found=True)
        files = {}
        for info in self.filesystem.get_file_info(selector):
            if info.type == pafs.FileType.File:
                name = os.path.relpath(info.path, f"{self.root}/{folder}")
                files[name] = {"sha256": self._hash(info.path), "bytes": info.size}
        return dict(sorted(files.items()))

    def upload(self, source: Path, folder: str) -> None:
        """Copy every file below the local folder `source` to `folder`."""
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            target = f"{self.root}/{folder}/{path.relative_to(source)}"
            _copy(str(path), pafs.LocalFileSystem(), target, self.filesystem)

    def fetch(self, name: str, *, cache_key: str) -> Path:
        """Return where file `name` lies locally; from object stores it is fetched once.

        Args:
            name: path of the file.
            cache_key: path in the cache; must change with the file's content.

        Raises:
            CorruptBuildError: the object store does not hold the file.
        """
        if self.is_local:
            return Path(self.root) / name
        target = self._cache / cache_key
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
            source = f"{self.root}/{name}"
            try:
                _copy(source, self.filesystem, str(partial), pafs.LocalFileSystem())
            except FileNotFoundError as error:
                raise CorruptBuildError(f"{self.run}/{name} is missing") from error
            partial.replace(target)
        return target

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

    def move_into_place(self, source: str, target: str) -> None:
        """Rename the local folder `source` to `target`, which may exist already."""
        old = None
        final = Path(self.root) / target
        if final.exists():
            old = final.with_name(f".old-{final.name}.{secrets.token_hex(4)}")
            final.rename(old)
        (Path(self.root) / source).rename(final)
        handle = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def _hash(self, path: str) -> str:
        sha = hashlib.sha256()
        with self.filesystem.open_input_stream(path) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                sha.update(chunk)
        return sha.hexdigest()


def _copy(source: str, from_fs: pafs.FileSystem, target: str, to_fs: pafs.FileSystem) -> None:
    pafs.copy_files(source, target, source_filesystem=from_fs, destination_filesystem=to_fs)
