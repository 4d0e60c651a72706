"""What users did lately, in memory, so that lists follow it at once."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from raysys.events.records import Event

_OF_USER = 500  # events of one user; older ones make way
_AT_ONCE = 1_000  # events or users that are looked at while answers wait


class Recent:
    """The newest events of each user, within bounds. Calls are thread-safe.

    Args:
        ttl_s: seconds after which an event no longer counts.
        most: events of all users; those who did nothing for longest make way.

    Attributes:
        n_events: that are held.
        n_dropped: that made way for others since the start.
        newest: UTC seconds of the newest event; 0 before any.
    """

    def __init__(self, *, ttl_s: float, most: int) -> None:
        self._ttl_s, self._most = ttl_s, most
        self._users: OrderedDict[str, dict[str, Event]] = OrderedDict()  # last active at the end
        self._erased: dict[str, int] = {}  # up to when, UTC milliseconds, by user
        self._lock = threading.Lock()
        self.n_events = self.n_dropped = self.newest = 0

    @property
    def n_users(self) -> int:
        """Users with events."""
        return len(self._users)

    def add(self, events: Iterable[Event], now: float) -> None:
        """Take events; those that are known by their user and id are left as they are.

        Args:
            events: in any order.
            now: UTC seconds; what is older than `ttl_s` by then is not taken.
        """
        waiting = iter(events)
        while part := list(itertools.islice(waiting, _AT_ONCE)):
            self._add(part, now)

    def _add(self, events: Iterable[Event], now: float) -> None:
        oldest = now - self._ttl_s
        with self._lock:
            for event in events:
                self.newest = max(self.newest, event.timestamp)
                gone = event.received_ms <= self._erased.get(event.user_id, -1)
                if gone or event.timestamp < oldest:
                    continue
                own = self._users.get(event.user_id)
                if own is None:
                    own = self._users[event.user_id] = {}
                elif event.event_id in own:
                    continue
                self._users.move_to_end(event.user_id)
                own[event.event_id] = event
                self.n_events += 1
                if len(own) > _OF_USER:
                    del own[min(own.values(), key=lambda e: e.timestamp).event_id]
                    self.n_events -= 1
                    self.n_dropped += 1
            while self.n_events > self._most:
                self.n_dropped += self._forget(next(iter(self._users)))

    def of(self, user_id: str, now: float) -> Sequence[Event]:
        """Return the events of a user that count at `now`, in UTC seconds."""
        if user_id not in self._users:
            return ()
        oldest = now - self._ttl_s
        with self._lock:
            own = self._users.get(user_id, {})
            return [event for event in own.values() if event.timestamp >= oldest]

    def expire(self, now: float) -> None:
        """Let go of users none of whose events count at `now` any more."""
        oldest = now - self._ttl_s
        users = [*self._users]
        for start in range(0, len(users), _AT_ONCE):  # answers wait for the lock
            with self._lock:
                for user_id in users[start : start + _AT_ONCE]:
                    own = self._users.get(user_id, {})
                    if own and all(event.timestamp < oldest for event in own.values()):
                        self._forget(user_id)

    def clear(self) -> None:
        """Forget everything but erasures."""
        with self._lock:
            self._users.clear()
            self.n_events = 0

    def erase(self, user_id: str, until_ms: int) -> None:
        """Forget what came of a user up to a time, in UTC milliseconds, and never take it again."""
        with self._lock:
            self._erased[user_id] = max(until_ms, self._erased.get(user_id, -1))
            own = self._users.get(user_id, {})
            kept = {key: event for key, event in own.items() if event.received_ms > until_ms}
            self.n_events -= len(own) - len(kept)
            if kept:
                self._users[user_id] = kept
            elif own:
                del self._users[user_id]

    def _forget(self, user_id: str) -> int:
        size = len(self._users.pop(user_id))
        self.n_events -= size
        return size
