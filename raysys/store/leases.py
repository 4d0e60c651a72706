"""Leases: one job at a time does a piece of work, on any storage that lists what was written.

Neither a shared folder nor the object stores that `pyarrow.fs` opens have a conditional write in
common, so a lease is Lamport's bakery on plain files (Source: Lamport, "A New Solution of
Dijkstra's Concurrent Programming Problem", 1974). Below `locks/<name>/`:

    choosing-<token>.json       a job is taking a number
    000000003-<token>.json      its ticket; the lowest number that is alive holds the lease
    beat-<token>                written again and again while the job lives

    write choosing -> list, number = highest + 1 -> write ticket -> remove choosing
    -> wait until two listings in a row show nobody who is choosing or has a lower number

Two listings, because one that runs while another job swaps its two files may miss both. A job of
this host is dead when its process is gone; one of another host when its beat has stood still for
`DEAD_S` by the waiting job's own clock. A job that was only asleep for so long may wake up beside
its successor: `Lease.confirm` tells it before it publishes, and what it writes lies in a place of
its own, so that no build is mixed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysys.errors import BuildError
from raysys.store.storage import Storage
from raysys.store.temporary import runs, started

log = logging.getLogger(__name__)

BEAT_S = 3.0
DEAD_S = 30.0
LOCKS = "locks"
REFRESH = "refresh/job"  # held by a refresh; no folder above those of work in `refresh/work`
APPEND = "interactions/append"  # held by whoever adds to what the run's interactions hold
_POLL_S = 0.3
_SAY_EVERY_S = 30.0


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that holds or waits for a lease, or writes a draft.

    Attributes:
        name: how messages call it.
        host: boot and process namespace of its host, in which `pid` means something.
        pid: its number there.
        started: when it started, in clock ticks since boot; numbers are used again.
    """

    name: str
    host: str
    pid: int
    started: int

    @classmethod
    def here(cls) -> Owner:
        """Describe this process."""
        pid = os.getpid()
        name = f"{socket.gethostname()} pid {pid}"
        return cls(name=name, host=_host(), pid=pid, started=started(pid) or 0)

    @classmethod
    def read(cls, storage: Storage, name: str) -> Owner | None:
        """Return the owner that file `name` describes; None where that is not to be had."""
        try:
            record = storage.read_json(name)
            return None if record is None else cls(**record)
        except (BuildError, TypeError):  # removed while it is read, or damaged
            return None

    def is_here(self) -> bool:
        """Tell whether the process runs, or ran, where this one can look at it."""
        return self.host == _host()

    def is_gone(self) -> bool:
        """Tell whether the process surely ended: it ran on this host and is no more."""
        return self.is_here() and not runs(self.pid, self.started)

    def text(self) -> str:
        """Return the fields as JSON."""
        return json.dumps(dataclasses.asdict(self)) + "\n"


@dataclasses.dataclass(frozen=True, order=True)
class _Ticket:
    """One file below a lock; `number` 0 is a job that is choosing."""

    number: int
    token: str
    path: str = dataclasses.field(compare=False)
    beat: int = dataclasses.field(compare=False)


class Lease:
    """A lease that is held, or waited for.

    Args:
        storage: of the run.
        name: what it is a lease of, a path such as `codes/0123456789abcdef`.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self.token = secrets.token_hex(4)
        self._storage = storage
        self._name = name
        self._folder = f"{LOCKS}/{name}"
        self._choosing = f"{self._folder}/choosing-{self.token}.json"
        self._pulse = f"{self._folder}/beat-{self.token}"
        self._path = self._choosing
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._stopped = threading.Event()
        self._beats: dict[str, tuple[int, float]] = {}  # path -> (beat, when it was first seen)

    def confirm(self) -> None:
        """Check that nobody took over.

        Raises:
            BuildError: another job did, as this one had stopped beating.
        """
        if not self._storage.exists(self._path):
            raise BuildError(
                f"another job took over {self._name} while this one did not answer for "
                f"{DEAD_S:.0f} s: run the job again, it finds what the other one wrote"
            )

    def acquire(self, *, wait: bool = True) -> bool:
        """Wait for the lease, saying for whom; return whether it is held now.

        Without `wait` it is left to a job that lives, which takes `DEAD_S` to see of another host.
        """
        self._take_number()
        self._thread.start()
        clear = 0
        said, began = 0.0, time.monotonic()
        while clear < 2:
            ahead = self._ahead()
            clear = 0 if ahead else clear + 1
            if not ahead:
                continue
            owner = Owner.read(self._storage, ahead[0].path)
            if not wait and (
                (owner is not None and owner.is_here()) or time.monotonic() - began > 2 * DEAD_S
            ):
                return False
            if wait and time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                log.info("waiting for=%s owner=%s", self._name, owner.name if owner else "unknown")
            sleep(_POLL_S)
            if not self._storage.exists(self._path):  # this process was asleep for too long
                self._take_number()
        return True

    def release(self) -> None:
        """Give the lease back."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=DEAD_S)
        try:
            for path in (self._choosing, self._path, self._pulse):
                self._storage.remove(path)
            self._storage.prune(self._folder)
        except OSError as error:  # others find that the beat stands still
            log.warning("lease not given back name=%s error=%s", self._name, error)

    def _take_number(self) -> None:
        """Write a ticket with a number above all that there are."""
        owner = Owner.here().text()
        while True:
            self._storage.write_atomic(self._choosing, owner)
            number = 1 + max((ticket.number for ticket in self._tickets()), default=0)
            self._path = f"{self._folder}/{number:09d}-{self.token}.json"
            self._storage.write_atomic(self._path, owner)
            if self._storage.exists(self._choosing):
                break
            self._storage.remove(self._path)  # taken for dead meanwhile: the number may be too low
        self._storage.remove(self._choosing)

    def _tickets(self) -> list[_Ticket]:
        """Return all tickets but this job's own."""
        tickets = []
        files = self._storage.files(self._folder)
        for name, info in files.items():
            number, _, token = name.removesuffix(".json").partition("-")
            if name.endswith(".json") and token != self.token:
                digits = 0 if number == "choosing" else int(number)
                beat = files.get(f"beat-{token}", info).mtime_ns
                tickets.append(_Ticket(digits, token, f"{self._folder}/{name}", beat))
        return tickets

    def _ahead(self) -> list[_Ticket]:
        """Return the tickets of living jobs that come first; those of dead ones are removed."""
        number = int(self._path.rsplit("/", 1)[1].split("-", 1)[0])
        mine = _Ticket(number, self.token, "", 0)
        ahead = []
        for ticket in sorted(ticket for ticket in self._tickets() if ticket < mine):
            owner = Owner.read(self._storage, ticket.path)
            if self._is_dead(ticket, owner):
                name = owner.name if owner else "unknown"
                log.warning("lease of a dead job removed name=%s owner=%s", self._name, name)
                for path in (ticket.path, f"{self._folder}/beat-{ticket.token}"):
                    self._storage.remove(path)
            else:
                ahead.append(ticket)
        return ahead

    def _is_dead(self, ticket: _Ticket, owner: Owner | None) -> bool:
        """Tell whether a ticket's job is dead; one that says nothing has its beat alone."""
        if owner is not None and owner.is_here():
            return owner.is_gone()
        now = time.monotonic()
        beat, since = self._beats.get(ticket.path, (None, now))
        if beat != ticket.beat:
            self._beats[ticket.path] = (ticket.beat, now)
            return False
        return now - since > DEAD_S

    def _beat(self) -> None:
        """Write the beat again and again until the lease is released."""
        while not self._stopped.wait(BEAT_S):
            try:
                self._storage.write_atomic(self._pulse, b"")
            except (BuildError, OSError) as error:  # the next beat may pass
                log.debug("heart-beat failed path=%s error=%s", self._path, error)


@contextmanager
def leased(storage: Storage, name: str) -> Iterator[Lease]:
    """Hold the lease `name` of a run during the block.

    Raises:
        BuildError: the storage cannot be written.
    """
    lease = Lease(storage, name)
    try:
        lease.acquire()
        yield lease
    finally:
        lease.release()


@contextmanager
def leased_if_free(storage: Storage, name: str) -> Iterator[Lease | None]:
    """Hold the lease `name` during the block; None where another job that lives has it.

    Raises:
        BuildError: the storage cannot be written.
    """
    lease = Lease(storage, name)
    try:
        yield lease if lease.acquire(wait=False) else None
    finally:
        lease.release()


def holder(storage: Storage, name: str) -> Owner | None:
    """Return who holds a lease, or waits for it first; None: nobody who is alive.

    A process of another host is alive if its beat goes on, which takes a few seconds to see.
    """
    lease = Lease(storage, name)
    before = {ticket.path: ticket.beat for ticket in lease._tickets() if ticket.number}
    owners = {path: Owner.read(storage, path) for path in sorted(before)}
    far = [path for path, owner in owners.items() if owner is not None and not owner.is_here()]
    deadline = time.monotonic() + 3 * BEAT_S
    beating: set[str] = set()
    while far and not beating and time.monotonic() < deadline:
        sleep(_POLL_S)
        now = {ticket.path: ticket.beat for ticket in lease._tickets()}
        beating = {path for path in far if now.get(path, before[path]) != before[path]}
    for path, owner in owners.items():
        if owner is not None and (path in beating if path in far else not owner.is_gone()):
            return owner
    return None


def sleep(seconds: float) -> None:
    """Wait; a function of its own so that tests decide what happens meanwhile."""
    time.sleep(seconds)


def _host() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
