"""What one shell asks of a sweep that another one runs: files that the sweep looks for.

    <folder>/asked/<milliseconds>-<token>.json    {"what": "pause"} | "stop" | {"add", "trials": N}

A pause or a stop is meant for the sweep that runs when it is asked; trials that were added count
for good.
"""

from __future__ import annotations

import json
import secrets
import time

from raysys.errors import BuildError
from raysys.store.storage import Storage

PAUSE, STOP, ADD = "pause", "stop", "add"


class Requests:
    """The requests to a sweep.

    Args:
        storage: of the run.
        folder: of the sweep.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage = storage
        self._folder = f"{folder}/asked"
        self._read: dict[str, dict[str, object]] = {}
        self._before: set[str] = set()

    def begin(self) -> None:
        """Take it that pauses and stops that stand there are answered."""
        self._look()
        self._before = set(self._read)

    def ask(self, what: str, *, trials: int = 0) -> None:
        """Write a request.

        Raises:
            BuildError: the run cannot be written.
        """
        name = f"{time.time_ns() // 1_000_000:015d}-{secrets.token_hex(4)}.json"
        record = {"what": what} | ({"trials": trials} if what == ADD else {})
        try:
            self._storage.write_atomic(f"{self._folder}/{name}", json.dumps(record) + "\n")
        except OSError as error:
            raise BuildError(f"cannot write {self._storage.root}: {error}") from error

    def asked(self) -> str | None:
        """Return whether a pause or a stop is asked for since `begin`: a stop counts more."""
        self._look()
        new = {record["what"] for name, record in self._read.items() if name not in self._before}
        return STOP if STOP in new else PAUSE if PAUSE in new else None

    def added(self) -> int:
        """Return how many trials were added to the sweep, ever."""
        self._look()
        counts = [record.get("trials", 0) for record in self._read.values()]
        return sum(count for count in counts if isinstance(count, int))

    def _look(self) -> None:
        for name in sorted(self._storage.files(self._folder)):
            if name not in self._read and name.endswith(".json"):
                self._read[name] = self._storage.read_json(f"{self._folder}/{name}") or {"what": ""}
