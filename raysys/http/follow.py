"""Following a run: a newer index, or newer changes, are served without a restart.

A look compares what is current with what is served. What is newer is opened beside it, its hashes
are checked, and a few canary queries are asked of both. Then the holder exchanges one for the
other; requests that run end with the search that they began with. What cannot be opened, or answers
nothing where the old one did, is refused and named while the old one goes on; it is tried again
after growing pauses. For that time both are mapped: private memory doubles, mapped files do not
count twice where they are the same.
"""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from raysys.errors import BuildError, RaysysError, SearchError, told
from raysys.http.service import Holder
from raysys.http.wire import Followed
from raysys.search.changes import KIND
from raysys.search.query import Hit, RecommendQuery
from raysys.search.search import Search
from raysys.search.served import Served
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)

_NICE = 10
CANARIES = 16  # profiles of one item
_LISTED = 20
_LONGEST_PAUSE = 64  # looks without a try at what was refused


class Following:
    """Looks for newer builds of a run and lets a holder serve them.

    Args:
        holder: of what is served.
        workspace: the run.
        verify: check hashes of what is opened.
        every_s: seconds between looks; replicas take them at different moments.
    """

    def __init__(
        self, holder: Holder, workspace: Workspace, *, verify: bool = True, every_s: float
    ) -> None:
        self._holder, self._workspace, self._verify = holder, workspace, verify
        self._every_s = every_s
        self._draw = random.Random()  # what others draw in this process stays theirs
        self._aside = ThreadPoolExecutor(
            1, thread_name_prefix="raysys-follow", initializer=_stand_back
        )
        self._done: object = None  # the set that was looked at to the end
        self._refused: object = None  # the set that was refused
        self._pause = self._left_out = 0  # looks without another try at it
        self._state = Followed(
            every_s=every_s, swaps=0, served_since=int(time.time()), refused=None
        )

    def state(self) -> Followed:
        """Return what happened so far."""
        return self._state

    def start(self) -> None:
        """Look from time to time in a thread of its own, until the process ends."""
        threading.Thread(target=self._run, name="raysys-looks", daemon=True).start()

    def look(self, *, anew: bool = False) -> bool:
        """Take one look; return whether something else is served now.

        `anew` tries again at once what was refused before. Looks follow one another in a thread
        that stands back where a processor is short, so that answers go on as before.
        """
        return self._aside.submit(self._look, anew=anew).result()

    # -- internals -------------------------------------------------------------------------

    def _look(self, *, anew: bool) -> bool:
        if anew:
            self._refused = self._done = None
        current: object = None
        try:
            current = self._current()
            if current == self._done:
                self._pause = 0
                self._told(None)
                return False
            if current != self._refused:
                self._pause = 0
            if current == self._refused and self._left_out < self._pause:
                self._left_out += 1
                return False
            exchanged = self._exchange()
        except Exception as error:
            if not isinstance(error, (RaysysError, OSError)):  # a fault of ours, or no memory
                log.exception("following failed")
            self._refused, self._left_out = current, 0
            self._pause = min(2 * self._pause + 1, _LONGEST_PAUSE)
            self._told(told(error))
            return False
        self._done, self._refused, self._pause = current, None, 0
        self._told(None)
        return exchanged

    def _run(self) -> None:
        while True:
            time.sleep(self._every_s * self._draw.uniform(0.5, 1.5))
            self.look()

    def _current(self) -> object:
        """Return what tells one current set from another: two small files and their manifests."""
        index = self._workspace.current("index")
        changes = self._workspace.current(KIND) if self._workspace.has(KIND) else None
        histories = self._holder().served.histories
        if histories is not None:
            histories = self._workspace.open(histories.kind, histories.build_id)
        return [build.state() for build in (index, changes, histories) if build is not None]

    def _exchange(self) -> bool:
        """Serve the current set if it is another one; return whether it was."""
        started = time.perf_counter()
        served = Served.open(self._workspace, verify=False)
        before = self._holder()
        if served.refs == before.served.refs:
            before.atoms.read_names()
            return False
        if self._verify:
            served.verify(known=before.served)
        search = Search(served, opened=before.opened if before.opened.is_of(served) else None)
        overlap = canaries(before, search)
        search.warm_as(before)
        self._holder.exchange(search)
        if self._workspace.use is not None:
            self._workspace.use.only(build.place for build in served.builds)
        self._state = self._state.model_copy(
            update={"swaps": self._state.swaps + 1, "served_since": int(time.time())}
        )
        log.info(
            "service exchanged index=%s changes=%s overlap=%.2f seconds=%.1f",
            *(search.build_id, search.build_ids.get(KIND, "none"), overlap),
            time.perf_counter() - started,
        )
        return True

    def _told(self, reason: str | None) -> None:
        """Keep why nothing newer is served, and log it when it changes."""
        if reason != self._state.refused:
            self._state = self._state.model_copy(update={"refused": reason})
            if reason is not None:
                log.warning("service stays with index=%s: %s", self._holder().build_id, reason)


def _stand_back() -> None:
    """Let this thread alone run when others do not."""
    with suppress(AttributeError, OSError):  # Linux has a priority for each thread
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def canaries(before: Search, after: Search) -> float:
    """Return the mean share of lists of `before` that `after` gives too, 20 items each.

    The profiles are single items, at equal distances through the catalogue that comes.

    Raises:
        BuildError: a list has no item, or a score that is not finite.
    """
    numbers = np.unique(np.linspace(0, len(after.items) - 1, CANARIES).astype(np.int64))
    ids = [after.items.item_ids[int(num)] for num in numbers]
    of_all = {"k": _LISTED, "exclude_seen": False}
    queries = [
        RecommendQuery.model_validate({"profile": [{"item_id": item_id}], **of_all})
        for item_id in ids
    ]
    shares = []
    for item_id, old, new in zip(
        ids, _lists_of(before, queries), _lists_of(after, queries), strict=True
    ):
        if new is None:
            continue
        if not new or not all(hit.score is not None and math.isfinite(hit.score) for hit in new):
            text = f"index {after.build_id} has no usable list for a profile of {item_id!r}"
            raise BuildError(text)
        known, found = ({hit.item_id for hit in hits or ()} for hits in (old, new))
        shares.append(len(known & found) / max(len(known), 1))
    return float(np.mean(shares)) if shares else 1.0


def _lists_of(search: Search, queries: list[RecommendQuery]) -> list[list[Hit] | None]:
    """Return a list for each query, or None where the search knows no item of the profile."""
    lists: list[list[Hit] | None] = []
    for answer in search.recommend_all(queries):  # at once: that takes least from requests
        if isinstance(answer, RaysysError) and not isinstance(answer, SearchError):
            raise answer
        lists.append(None if isinstance(answer, RaysysError) else answer.items)
    return lists
