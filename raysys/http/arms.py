"""Experiments: users are given to arms, each an index of its own, settings of its own, or both.

The arm of a user is a hash of the salt and the user_id, so that every replica, every service and
every day gives the same. Queries without a user_id belong to no arm.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from raysys.errors import RaysysError, told
from raysys.events.feed import Feed, now_ms
from raysys.http.wire import Scenario
from raysys.search.query import Answer, RecommendQuery

if TYPE_CHECKING:  # keeps the search out of this module
    from raysys.search.search import Search

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Arm:
    """What some users are answered with.

    Attributes:
        name: of the arm.
        share: of users, 0 to 1.
        search: what is served to them; None: what the service serves.
        settings: of their queries, whatever they say themselves.
    """

    name: str
    share: float
    search: Callable[[], Search] | None
    settings: Scenario


class Experiment:
    """Arms, and who is in which.

    Args:
        name: of the experiment.
        arms: of shares that add up to 1.
        salt: another one gives users to arms anew.
        feed: writes impressions down; None: none are.

    Attributes:
        name, arms: as given.
    """

    def __init__(
        self, name: str, arms: Sequence[Arm], *, salt: str, feed: Feed | None = None
    ) -> None:
        self.name, self.arms = name, tuple(arms)
        self._salt, self._feed = salt, feed
        self._ends = [*itertools.accumulate(arm.share for arm in arms)]
        self._failing = False

    def arm_of(self, user_id: str) -> Arm:
        """Return the arm of a user."""
        digest = hashlib.sha256(f"{self._salt}\0{user_id}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        return self.arms[min(bisect.bisect_right(self._ends, place), len(self.arms) - 1)]

    def show(self, shown: Iterable[tuple[Arm, RecommendQuery, Answer]]) -> None:
        """Write down that users were given lists, soon; a failure is logged and nothing waits."""
        if self._feed is None:
            return
        received_ms, now = now_ms(), int(self._feed.now())
        rows = [
            {
                "impression_id": uuid.uuid4().hex,
                "experiment": self.name,
                "arm": arm.name,
                "user_id": query.user_id,
                "timestamp": now,
                "item_ids": [hit.item_id for hit in answer.items],
                "ranking": answer.ranking,
                "build_id": answer.build_id,
                "weight": arm.share,
                "received_ms": received_ms,
            }
            for arm, query, answer in shown
        ]
        try:
            self._feed.show(rows)
            self._failing = False
        except RaysysError as error:
            if not self._failing:
                log.warning("impressions are not written: %s", told(error))
            self._failing = True
