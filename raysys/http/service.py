"""What the routes of one replica share: the search of now, how they answer, what they count."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter

from raysys.errors import DataError, RaysysError, SearchError, UnknownItemError
from raysys.events.feed import Feed
from raysys.http.arms import Arm, Experiment
from raysys.http.keys import KeyRing
from raysys.http.limits import RefusedError
from raysys.http.logs import Logs
from raysys.http.metrics import Metrics
from raysys.http.wire import Followed, Scenario
from raysys.scoring.rankings import MAX_GAMMA, Ranking
from raysys.search.query import Answer, RecommendQuery, UnknownUserError

if TYPE_CHECKING:  # keeps the search out of this module
    from raysys.search.search import Search

A = TypeVar("A")

_THREADS = 16  # answers that are not short, at once
_SHORT = 100  # items of a list or a profile whose answer takes about a millisecond


@dataclasses.dataclass(frozen=True)
class ServiceOptions:
    """How a service answers.

    Attributes:
        k_limit: longest list that is answered; the size of the catalogue where that is more.
        gamma_limit: largest weight of a ranking.
        request_ids: answers carry `X-Request-ID`; False under Serve, which puts it there.
        scenarios: presets by name.
        keys: who may ask; None: everybody, but nobody for what administrates.
        logs: of requests; None: none.
        max_ongoing: requests that are worked on at once; None: no limit.
        timeout_s: for an answer; None: no limit.
        experiment: that users take part in; None: there is none.
    """

    k_limit: int = 1_000
    gamma_limit: float = MAX_GAMMA
    request_ids: bool = True
    scenarios: Mapping[str, Scenario] = dataclasses.field(default_factory=dict)
    keys: KeyRing | None = None
    logs: Logs | None = None
    max_ongoing: int | None = None
    timeout_s: float | None = None
    experiment: Experiment | None = None


class Holder:
    """The search that is served; another may take its place while requests run.

    A request asks once, so it is answered by one search from start to end.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._exchange = threading.Lock()

    def __call__(self) -> Search:
        """Return what is served now."""
        return self._search

    def exchange(self, search: Search) -> Search:
        """Serve another search; return the one before, which running requests may still use."""
        with self._exchange:  # else two at once may both return the same search
            before, self._search = self._search, search
        return before


class Counts:
    """Requests by outcome, safe to add to from several threads."""

    def __init__(self) -> None:
        self._counter: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, outcome: str) -> None:
        """Count one request."""
        with self._lock:
            self._counter[outcome] += 1

    def snapshot(self) -> dict[str, int]:
        """Return {outcome: requests}."""
        with self._lock:
            return dict(sorted(self._counter.items()))


class Service:
    """One replica.

    Args:
        current: what is served; every request asks once.
        options: how it answers.
        following: how it follows its run; None: it does not.
        name: of the replica.
        feed: takes events; None: none are taken.

    Attributes:
        current, options, following, name, feed: as given.
        counts, metrics: of requests.
    """

    def __init__(
        self,
        current: Callable[[], Search],
        options: ServiceOptions,
        following: Callable[[], Followed] | None = None,
        *,
        name: str = "local",
        feed: Feed | None = None,
    ) -> None:
        self.current, self.options, self.following, self.name = current, options, following, name
        self.feed = feed
        self.counts = Counts()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="raysys-answer")
        self.metrics = Metrics(current, following, feed)
        self._started = time.monotonic()

    @property
    def uptime_s(self) -> float:
        """Seconds since the start, to the millisecond."""
        return round(time.monotonic() - self._started, 3)

    def asked(self, k: int, arm: Arm | None = None) -> Search:
        """Return the search of now, or that of an arm, for a list of this length.

        Raises:
            SearchError: it is too long.
        """
        search = self.current() if arm is None or arm.search is None else arm.search()
        limit = max(self.options.k_limit, search.n_items)
        if k > limit:
            raise SearchError(f"k={k} is not accepted: expected 1 to {limit}")
        return search

    def arm_of(self, query: RecommendQuery) -> Arm | None:
        """Return the arm that a query's user is in; None: none."""
        experiment = self.options.experiment
        if experiment is None or query.user_id is None or not query.experiment:
            return None
        return experiment.arm_of(query.user_id)

    def filled(
        self,
        query: RecommendQuery,
        arm: Arm | None = None,
        place: tuple[str | int, ...] = ("body",),
    ) -> RecommendQuery:
        """Return a query with the preset that it names, and an arm's settings.

        `place` says where the query stands.

        Raises:
            SearchError: there is no such preset; RequestValidationError: a weight is too large.
        """
        _check_weight(query, self.options.gamma_limit, place)
        if query.scenario is not None:
            scenario = self.options.scenarios.get(query.scenario)
            if scenario is None:
                known = ", ".join(map(repr, self.options.scenarios)) or "none"
                raise SearchError(
                    f"scenario={query.scenario!r} is unknown: this service has {known}"
                )
            query = scenario.filled(query)
        return query if arm is None else arm.settings.filled(query, over=True)

    def given(self, shown: Sequence[tuple[Arm | None, RecommendQuery, Answer]]) -> list[Answer]:
        """Return answers with the arms that made them, and write their impressions down."""
        experiment = self.options.experiment
        if experiment is not None:
            experiment.show((arm, q, answer) for arm, q, answer in shown if arm is not None)
        return [
            answer if arm is None else dataclasses.replace(answer, arm=arm.name)
            for arm, _, answer in shown
        ]

    async def run(self, size: int, masked: object, answer: Callable[..., A], *asked: Any) -> A:
        """Return an answer, made here if it is short and in a thread if not.

        A thread's hand-over takes as long as a short answer. A long one there never delays the
        health check; masks of conditions go over all items.

        Args:
            size: of what the answer goes over.
            masked: conditions on attributes; nothing where there are none.
            answer: called with what is asked.
            asked: its arguments.

        Raises:
            RefusedError: it takes longer than the service waits; what runs is not stopped.
        """
        if size <= _SHORT and not masked:
            return answer(*asked)
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._threads, lambda: answer(*asked))
        with suppress(TimeoutError):  # what waits is taken back, what runs keeps its thread
            return await asyncio.wait_for(running, self.options.timeout_s)
        text = f"the answer took longer than {self.options.timeout_s:g} s"
        raise RefusedError(503, "timeout", text, {"retry-after": "1"})

    async def reply(
        self, kind: TypeAdapter[A], size: int, masked: object, answer: Callable[[], A]
    ) -> tuple[A, Response]:
        """Return an answer, and as JSON; see `run`.

        Our own types need no check on their way out, and long lists are written in their thread.
        """

        def made() -> tuple[A, bytes]:
            value = answer()
            return value, kind.dump_json(value)

        value, content = await self.run(size, masked, made)
        return value, Response(content, media_type="application/json")

    def refusal(
        self,
        status: int,
        kind: str,
        message: str,
        details: Sequence[Any] = (),
        headers: Mapping[str, str] | None = None,
    ) -> JSONResponse:
        """Return the answer of an error, and count it."""
        self.counts.add(f"error_{status}")
        error = {"type": kind, "message": message, "details": list(details)}
        return JSONResponse({"error": error}, status_code=status, headers=headers)

    def refusal_of(self, error: RaysysError | RefusedError) -> JSONResponse | None:
        """Return the answer of an error that a client can act upon; None: it is ours."""
        if isinstance(error, RefusedError):
            return self.refusal(error.status, error.kind, str(error), headers=error.headers)
        known = kind_of(error)
        return None if known is None else self.refusal(*known, str(error))


def kind_of(error: RaysysError) -> tuple[int, str] | None:
    """Return the status and the type of an error that a client can act upon; None: it is ours."""
    if isinstance(error, UnknownUserError):
        return 404, "unknown_user"
    if isinstance(error, UnknownItemError):
        return 404, "unknown_item"
    if isinstance(error, (DataError, SearchError)):
        return 422, "bad_query"
    return None


def _check_weight(body: RecommendQuery, limit: float, place: tuple[str | int, ...]) -> None:
    """Refuse a weight above the limit as a field that is out of range."""
    weights = {"gamma": body.gamma}
    if body.ranking is not None:
        weights["ranking"] = Ranking.parse(body.ranking).weight
    reason = f"Input should be less than or equal to {limit:g}"
    errors = [
        {"loc": (*place, name), "msg": reason if name == "gamma" else f"weight: {reason}"}
        for name, weight in weights.items()
        if weight > limit
    ]
    if errors:
        raise RequestValidationError(errors)
