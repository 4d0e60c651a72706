"""Uses: which builds a running process reads, or answers from, so that nobody removes them.

    <run>/uses/<token>.json    who, what for, and the builds; written again while the process lives

A process first writes down what it is about to open, then reads the manifest, then looks for the
mark of whoever is about to remove the build. One that removes first sets the mark, then reads what
is in use. So at least one of the two sees the other. Where the run cannot be written a process
goes on without, and says so once.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from raysys.errors import BuildError, CorruptBuildError, RaysysError, told
from raysys.store.leases import Owner
from raysys.store.storage import Storage

log = logging.getLogger(__name__)

USES = "uses"
SERVE = "serve"
BEAT_S = 10.0
DEAD_S = 120.0  # a process of another host that did not write for so long is taken for dead


@dataclasses.dataclass(frozen=True)
class Used:
    """What one process uses.

    Attributes:
        file: its name in the run.
        what: the command, such as `train`; `serve` of a service.
        owner: the process.
        builds: places, such as `index/0123456789abcdef`.
        lives: whether the process does.
        is_damaged: the file says nothing; a process that lives may have written it.
    """

    file: str
    what: str
    owner: Owner
    builds: tuple[str, ...]
    lives: bool
    is_damaged: bool = False


class Use:
    """What this process uses of a run; calls are thread-safe.

    Args:
        storage: of the run.
        what: the command.
    """

    def __init__(self, storage: Storage, what: str) -> None:
        self._storage, self._what = storage, what
        self._file = f"{USES}/{secrets.token_hex(4)}.json"
        self._places: dict[str, None] = {}
        self._changing = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._silent = False

    def add(self, *places: str) -> None:
        """Write down that builds are in use from now on."""
        with self._changing:
            if not self._places.keys() >= set(places):
                self._places |= dict.fromkeys(places)
                self._write()

    def only(self, places: Iterable[str]) -> None:
        """Write down that no others are in use any more."""
        with self._changing:
            self._places = dict.fromkeys(places)
            self._write()

    def close(self) -> None:
        """Use nothing any more."""
        self._stopped.set()
        if self._thread is None:
            return
        self._thread.join(timeout=DEAD_S)
        with self._changing, suppress(RaysysError, OSError):
            self._storage.remove(self._file)
            self._storage.prune(USES)

    # -- internals -------------------------------------------------------------------------

    def _write(self) -> None:
        record: dict[str, Any] = {"what": self._what, "builds": list(self._places)}
        record["owner"] = dataclasses.asdict(Owner.here())
        try:
            self._storage.write_atomic(self._file, json.dumps(record) + "\n")
        except (BuildError, OSError) as error:
            if not self._silent:
                log.log(  # a command that writes says so itself
                    logging.WARNING if self._what == SERVE else logging.DEBUG,
                    "run=%s cannot be written, so gc does not see that builds are in use here: %s",
                    self._storage.run,
                    told(error),
                )
            self._silent = True
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="raysys-uses", daemon=True)
            self._thread.start()

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_S):
            with self._changing:
                if not self._stopped.is_set():
                    self._write()


class _Scope:
    """The uses of one command, by run."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.uses: dict[str, Use] = {}


_scope: ContextVar[_Scope | None] = ContextVar("uses", default=None)


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Write down which builds the block opens, through every `Workspace` that it makes."""
    scope = _Scope(what)
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)
        for use in scope.uses.values():
            use.close()


def announcing(storage: Storage) -> Use | None:
    """Return the use of a run by the block that is `announced`; None outside of one."""
    scope = _scope.get()
    if scope is None:
        return None
    return scope.uses.setdefault(storage.run, Use(storage, scope.what))


def uses(storage: Storage) -> list[Used]:
    """Return what processes use, those that died without a word too.

    Raises:
        BuildError: a file is there and cannot be read: no one may be taken for idle then.
    """
    files = {n: mark for n, mark in storage.files(USES).items() if not n.startswith(".")}
    now = storage.now() if files else 0.0
    found = []
    for name, mark in files.items():
        file, beats = f"{USES}/{name}", now - mark.mtime_ns / 1e9 < DEAD_S
        try:
            record = storage.read_json(file)
            if record is None:  # gone meanwhile
                continue
            owner = Owner(**record["owner"])
            places = tuple(map(str, record["builds"]))
        except (CorruptBuildError, KeyError, TypeError):
            unknown = Owner("unknown", host="", pid=0, started=0)
            found.append(Used(file, "damaged", unknown, (), beats, is_damaged=True))
            continue
        lives = not owner.is_gone() if owner.is_here() else beats
        found.append(Used(file, str(record.get("what")), owner, places, lives))
    return found
