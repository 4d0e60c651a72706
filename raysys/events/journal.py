"""The journal: what is acknowledged is on disk, or in the object store, before it is.

Each process appends to segments of its own, JSON lines. All that is waiting is written at once, so
many small requests share one fsync, or one object. On a folder a segment is locked while its
process may write it: whoever gets the lock knows that it is complete, also after a kill. In an
object store each write is a segment of its own, complete from the start.

    journal/events/1790000000123-5f2c9a01-000007.jsonl    its start (UTC ms), process, number
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import re
import secrets
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from raysys.errors import BuildError, told
from raysys.events.records import Table
from raysys.store.storage import FileMark, Storage, sync_folder

log = logging.getLogger(__name__)

_SEGMENT_S = 10.0  # after which a process goes on with another segment
_SEGMENT_BYTES = 32 << 20
_WAITING_BYTES = 64 << 20  # that may wait to be written
_GROUP_S = 0.05  # between writes to an object store, which take as long for one line as for many

_SEGMENT = re.compile(r"\d{13}-[0-9a-f]{8}-\d{6}\.jsonl")

_Waiting = tuple[bytes, "Future[None]"]


class FullError(BuildError):
    """More waits to be written than may wait; what was given is not among it."""


class Journal:
    """Writes records of one table. Calls are thread-safe.

    Args:
        storage: of the run.
        table: what the records are.

    Attributes:
        name: of this process's segments.
    """

    def __init__(self, storage: Storage, table: Table) -> None:
        self.name = secrets.token_hex(4)
        self._storage, self._folder = storage, table.journal
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._bytes = 0
        self._adding = threading.Lock()
        self._thread: threading.Thread | None = None
        self._number = 0
        self._open: _Segment | None = None

    def append(self, lines: bytes) -> Future[None]:
        """Write JSON lines; the future is done once they outlive this process and the machine.

        It fails with what the storage says; the lines may then be there all the same.

        Raises:
            FullError: too much waits already.
        """
        done: Future[None] = Future()
        with self._adding:
            if self._bytes > _WAITING_BYTES:
                raise FullError(f"{self._bytes} bytes wait to be written to {self._folder}")
            self._bytes += len(lines)
            self._waiting.put((lines, done))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="raysys-journal")
                self._thread.daemon = True
                self._thread.start()
        return done

    def close(self) -> None:
        """Write what waits, and end the segment."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()

    # -- internals -------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            group, last = self._next()
            if group:
                self._write(group)
            if self._open is not None and (last or self._open.is_old()):
                self._end()
            if last:
                return

    def _next(self) -> tuple[list[_Waiting], bool]:
        """Wait for something to write; return all there is, and whether it is the last."""
        group: list[_Waiting] = []
        with suppress(queue.Empty):
            entry = self._waiting.get(timeout=_SEGMENT_S)
            while True:
                if entry is None:
                    return group, True
                group.append(entry)
                entry = self._waiting.get_nowait()
        return group, False

    def _write(self, group: list[_Waiting]) -> None:
        data = b"".join(lines for lines, _ in group)
        try:
            if self._storage.is_local:
                if self._open is None:
                    self._open = _Segment(self._new_path())
                self._open.append(data)
            else:
                self._storage.write_atomic(self._new_name(), data)
        except Exception as error:
            log.warning("journal not written folder=%s: %s", self._folder, told(error))
            self._end()  # it may end in half a line
            for _, done in group:
                done.set_exception(error)
        else:
            for _, done in group:
                done.set_result(None)
        finally:
            with self._adding:
                self._bytes -= len(data)
        if not self._storage.is_local:
            time.sleep(_GROUP_S)

    def _end(self) -> None:
        segment, self._open = self._open, None
        if segment is not None:
            with suppress(OSError):  # what it holds is on disk, or was not acknowledged
                segment.close()

    def _new_name(self) -> str:
        self._number += 1
        start = time.time_ns() // 1_000_000
        return f"{self._folder}/{start:013d}-{self.name}-{self._number:06d}.jsonl"

    def _new_path(self) -> Path:
        return Path(self._storage.root, self._new_name())


class _Segment:
    """One file that this process alone writes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        self._since, self._bytes = time.monotonic(), 0
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if not os.fstat(self._file).st_nlink:  # folded as empty, this process slept so long
                raise FileNotFoundError(f"{path} went before it was written")
            sync_folder(path.parent)
        except OSError:
            os.close(self._file)
            raise

    def append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fsync(self._file)
        self._bytes += len(data)

    def is_old(self) -> bool:
        """Tell whether what comes next belongs into another segment."""
        return self._bytes > _SEGMENT_BYTES or time.monotonic() - self._since > _SEGMENT_S

    def close(self) -> None:
        os.close(self._file)


def segments(storage: Storage, table: Table) -> dict[str, FileMark]:
    """Return {name: mark} of the segments of a table, oldest first; other files are none."""
    marks = storage.files(table.journal)
    return {name: mark for name, mark in marks.items() if _SEGMENT.fullmatch(name)}


def start_of(name: str) -> int:
    """Return when a segment began, in UTC milliseconds."""
    return int(name.rpartition("/")[2].split("-")[0])


def is_complete(storage: Storage, name: str) -> bool:
    """Tell whether nobody writes a segment any more, `name` a path in the run."""
    if not storage.is_local:
        return True
    try:
        file = os.open(Path(storage.root, name), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def whole_lines(data: bytes) -> bytes:
    """Return data up to its last line feed: the rest is half a line."""
    return data[: data.rfind(b"\n") + 1]
