"""Reading the journal of all processes while it grows."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from raysys.events.journal import whole_lines
from raysys.events.records import Table
from raysys.store.storage import Storage


class Tail:
    """Gives what was written since it last looked.

    Args:
        storage: of the run.
        table: what is read.
        own: name of segments that are left out.
    """

    def __init__(self, storage: Storage, table: Table, *, own: str = "") -> None:
        self._storage, self._folder, self._own = storage, table.journal, own
        self._read: dict[str, int] = {}  # bytes, by name

    def poll(self) -> bytes:
        """Return the lines that are new, those of each segment together."""
        sizes = self._sizes()
        found = []
        for name, size in sorted(sizes.items()):
            start = self._read.get(name, 0)
            if size <= start or (self._own and f"-{self._own}-" in name):
                continue
            lines = whole_lines(self._from(name, start))
            self._read[name] = start + len(lines)
            found.append(lines)
        self._read = {name: size for name, size in self._read.items() if name in sizes}
        return b"".join(found)

    def _sizes(self) -> dict[str, int]:
        if not self._storage.is_local:
            marks = self._storage.files(self._folder)
            return {name: mark.size_bytes for name, mark in marks.items()}
        sizes = {}
        with suppress(FileNotFoundError), os.scandir(self._path()) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # folded meanwhile
                    sizes[entry.name] = entry.stat().st_size
        return sizes

    def _path(self) -> Path:
        return Path(self._storage.root, self._folder)

    def _from(self, name: str, start: int) -> bytes:
        if not self._storage.is_local:
            return (self._storage.read(f"{self._folder}/{name}") or b"")[start:]
        try:
            with open(self._path() / name, "rb") as file:
                file.seek(start)
                return file.read()
        except FileNotFoundError:
            return b""
