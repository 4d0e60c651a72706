"""Reading the journal of all processes while it grows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raysys.errors import BuildError
from raysys.events.journal import segments, whole_lines
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
        self._storage, self._table, self._own = storage, table, own
        self._read: dict[str, int] = {}  # bytes, by name

    def poll(self, take: Callable[[bytes], None]) -> bool:
        """Have the lines that are new taken, those of each segment together.

        What cannot be read, or taken, is tried again the next time; all else is taken.

        Returns:
            Whether all were there; False: one was folded before it was read.

        Raises:
            BuildError, OSError: something cannot be read.
        """
        marks = segments(self._storage, self._table)
        whole, failure = True, None
        for name, mark in marks.items():
            start = self._read.get(name, 0)
            if mark.size_bytes <= start or (self._own and f"-{self._own}-" in name):
                continue
            try:
                data = self._from(name, start)
                if data is None:
                    whole = False
                    continue
                lines = whole_lines(data)
                take(lines)
            except (BuildError, OSError) as error:
                failure = error
            else:
                self._read[name] = start + len(lines)
        self._read = {name: size for name, size in self._read.items() if name in marks}
        if failure is not None:
            raise failure
        return whole

    def _from(self, name: str, start: int) -> bytes | None:
        """Return a segment from a byte on; None where it is gone."""
        path = f"{self._table.journal}/{name}"
        if not self._storage.is_local:
            content = self._storage.read(path)
            return None if content is None else content[start:]
        try:
            with open(Path(self._storage.root, path), "rb") as file:
                file.seek(start)
                return file.read()
        except FileNotFoundError:
            return None
