"""The feed of one replica: it takes events, and follows what all others take.

An event is in the journal before it is acknowledged, and in this replica's memory at once. Others
read the journal every fraction of a second. What a replica has missed, because it has just started
or did not run for a while, it reads from the Parquet files too.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import random
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.errors import RaysysError, told
from raysys.events.fold import SETTLED_S, Erasure, day_of, erasures, files_of, fold, is_due
from raysys.events.journal import Journal
from raysys.events.recent import Recent
from raysys.events.records import EVENTS, IMPRESSIONS, Event, events_in, lines_of
from raysys.events.tail import Tail
from raysys.store.storage import Storage

log = logging.getLogger(__name__)

_DAY_S = 86_400
_LOOK_S, _FAR_LOOK_S = 0.2, 0.4  # between looks at a folder, and at an object store
_ERASED_S = 2.0  # between looks for erasures
_FOLD_S = 60.0
_EXPIRE_S = 60.0
_FORGOTTEN_S = 300.0  # without a look; then it begins anew
_JOIN_S = 2.0
_PART_ROWS = 10_000


@dataclasses.dataclass(frozen=True)
class FeedOptions:
    """How a feed goes.

    Attributes:
        ttl_s: seconds for which an event counts in lists, unless an index holds it.
        most: events that a replica holds in memory.
        event_time: the clock is the newest event's time, as where a log is played again; else it
            is the machine's.
    """

    ttl_s: float = 30.0 * _DAY_S
    most: int = 500_000
    event_time: bool = False


class Feed:
    """Takes events and knows the newest ones of every user. Calls are thread-safe.

    Args:
        storage: of the run.
        options: how it goes.
        begin: UTC seconds of the clock before any event, where it is that of events.
    """

    def __init__(
        self, storage: Storage, options: FeedOptions | None = None, *, begin: int = 0
    ) -> None:
        self._storage, self._options = storage, options or FeedOptions()
        self.recent = Recent(ttl_s=self._options.ttl_s, most=self._options.most)
        self._journal = Journal(storage, EVENTS)
        self._shown = Journal(storage, IMPRESSIONS)
        self._tail = Tail(storage, EVENTS, own=self._journal.name)
        self._begin = begin
        self._erased: set[str] = set()  # orders that were obeyed
        self._files: set[str] = set()  # Parquet files that were read
        self._looked: float | None = None  # when the journal was read last, by the monotonic clock
        self._failing = False
        self._draw = random.Random()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Read what there is, and go on reading in threads of its own, until `stop`."""
        try:
            self.look()
        except (RaysysError, OSError) as error:  # lists are answered without it
            self._say(error)
        for name, run in (("raysys-events", self._run), ("raysys-fold", self._run_folds)):
            thread = threading.Thread(target=run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Write what waits, and stop reading; a fold that runs goes on to its end."""
        self._stopped.set()
        self._journal.close()
        self._shown.close()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def now(self) -> float:
        """UTC seconds of the feed's clock."""
        newest = max(self.recent.newest, self._begin)
        return float(newest) if self._options.event_time else time.time()

    def is_past(self, event: Event) -> bool:
        """Tell whether an event is too old to count in lists."""
        return event.timestamp < self.now() - self._options.ttl_s

    def accept(self, events: Sequence[Event]) -> Future[None]:
        """Write events down; once the future is done they are safe and count here.

        Raises:
            FullError: too much waits to be written.
        """
        lines = lines_of(event._asdict() for event in events)
        done: Future[None] = Future()

        def written(journal: Future[None]) -> None:
            error = journal.exception()
            if error is not None:
                done.set_exception(error)
                return
            self._take(events)
            done.set_result(None)

        self._journal.append(lines).add_done_callback(written)
        return done

    def show(self, impressions: Iterable[Mapping[str, Any]]) -> None:
        """Write impressions down, soon.

        Raises:
            FullError: too much waits to be written.
        """
        self._shown.append(lines_of(impressions))

    def of(self, user_id: str) -> Sequence[Event]:
        """Return the events of a user that count now."""
        return self.recent.of(user_id, self.now())

    def erase(self, user_id: str) -> Erasure:
        """Forget what a user did; every replica does so within seconds, the files in minutes.

        Raises:
            BuildError: the order cannot be written.
        """
        order = Erasure(user_id, now_ms())
        order.order(self._storage)
        self._obey(order)
        return order

    def look(self) -> None:
        """Read what others have written since the last look.

        Raises:
            BuildError: the storage cannot be read.
        """
        now = time.monotonic()
        since = math.inf if self._looked is None else now - self._looked
        if math.inf > since > _FORGOTTEN_S:  # orders to forget may have come and gone
            self.recent.clear()
            self._tail = Tail(self._storage, EVENTS)  # from now on with what is written here
            self._files.clear()
        whole = self._tail.poll(lambda lines: self._take(events_in(lines)))
        if since > SETTLED_S / 2 or not whole:  # before the files: what is folded now is in both
            self._obey_all()
            self._read_files()
        self._looked = now

    # -- internals -------------------------------------------------------------------------

    def _take(self, events: Iterable[Event]) -> None:
        if self._options.event_time:  # time passes with them
            events = sorted(events, key=lambda event: event.timestamp)
            self.recent.add(events, max(self.now(), events[-1].timestamp if events else 0))
            return
        self.recent.add(events, self.now())

    def _read_files(self) -> None:
        """Take the events of Parquet files that are new, those that may still count."""
        since = "" if self._options.event_time else day_of(self.now() - self._options.ttl_s)
        for name in files_of(self._storage, EVENTS, since=since):
            if name in self._files:
                continue
            content = self._storage.read(name)
            try:
                if content is not None:
                    self._read_file(content)
            except (pa.ArrowException, OSError) as error:  # its bytes are here: they are damaged
                log.warning("events are not read path=%s: %s", name, told(error))
            self._files.add(name)

    def _read_file(self, content: bytes) -> None:
        file = pq.ParquetFile(io.BytesIO(content))
        for part in file.iter_batches(_PART_ROWS, columns=list(Event._fields)):
            oldest = int(self.now() - self._options.ttl_s)
            part = part.filter(pc.greater_equal(part["timestamp"], oldest))
            columns = [part[field].to_pylist() for field in Event._fields]
            self._take([Event(*row) for row in zip(*columns, strict=True)])

    def _obey_all(self) -> None:
        for order in erasures(self._storage):
            self._obey(order)

    def _obey(self, order: Erasure) -> None:
        if order.name not in self._erased:
            self._erased.add(order.name)
            self.recent.erase(order.user_id, order.at_ms)

    def _run(self) -> None:
        every_s = _LOOK_S if self._storage.is_local else _FAR_LOOK_S
        erased = expired = time.monotonic()
        while not self._stopped.wait(every_s):
            try:
                self.look()
                now = time.monotonic()
                if now - erased > _ERASED_S:
                    erased = now
                    self._obey_all()
                if now - expired > _EXPIRE_S:
                    expired = now
                    self.recent.expire(self.now())
            except Exception as error:  # the storage may be back at the next look
                self._say(error)
            else:
                self._failing = False

    def _run_folds(self) -> None:
        while not self._stopped.wait(_FOLD_S * self._draw.uniform(0.5, 1.5)):
            try:
                if not is_due(self._storage):
                    continue
                done = fold(self._storage)
            except Exception as error:
                self._say(error)
                continue
            for table, rows in done.items():
                if rows.added or rows.erased:
                    log.info(
                        "events folded table=%s added=%d repeated=%d erased=%d",
                        *(table, rows.added, rows.repeated, rows.erased),
                    )

    def _say(self, error: Exception) -> None:
        if not isinstance(error, (RaysysError, OSError)):
            log.exception("following events failed")
        elif not self._failing:
            log.warning("events are not followed: %s", told(error))
        self._failing = True


def now_ms() -> int:
    """Return the machine's time in UTC milliseconds."""
    return time.time_ns() // 1_000_000
