"""Load: many requests at a service, and how long each took.

Closed loop: every connection asks again as soon as it has its answer, which shows what a service
can do at most. Open loop: requests come at moments of their own, whatever became of those before,
as users do; what waits for a connection waits on the clock of its user, so that a pause of the
service is seen by all that it kept waiting.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

from raysys.http.retries import FIRST_PAUSE_S, is_passing

SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
_STEP = 2**0.5  # of the histogram's bounds
_FIRST_MS = 0.25


@dataclasses.dataclass(frozen=True)
class LoadResult:
    """What became of the requests.

    Attributes:
        seconds: from the first request to the last answer.
        latency_ms: [n] of answers with status 200, in the order in which they came.
        errors: {status or what was lost: requests}.
        retried: attempts that were made again.
    """

    seconds: float
    latency_ms: NDArray[np.float64]
    errors: dict[str, int]
    retried: int

    def record(self) -> dict[str, Any]:
        """Return counts, rates and quantiles as JSON values."""
        n_failed = sum(self.errors.values())
        found = {
            "requests": len(self.latency_ms) + n_failed,
            "failed": n_failed,
            "errors": self.errors,
            "retried": self.retried,
            "seconds": round(self.seconds, 3),
            "per_second": round(len(self.latency_ms) / max(self.seconds, 1e-9), 1),
        }
        if len(self.latency_ms):
            values = np.quantile(self.latency_ms, list(SHARES.values()))
            named = {name: round(float(v), 3) for name, v in zip(SHARES, values, strict=True)}
            found["ms"] = {**named, "max": round(float(self.latency_ms.max()), 3)}
        return found

    def histogram(self) -> list[tuple[float, int]]:
        """Return (upper bound in ms, answers below it and above the one before), none empty."""
        if not len(self.latency_ms):
            return []
        top = max(float(self.latency_ms.max()), _FIRST_MS)
        n_bounds = int(np.ceil(np.log(top / _FIRST_MS) / np.log(_STEP))) + 1
        bounds = _FIRST_MS * _STEP ** np.arange(n_bounds + 1)
        counts = np.bincount(np.searchsorted(bounds, self.latency_ms), minlength=len(bounds))
        pairs = zip(bounds.tolist(), counts.tolist(), strict=True)
        return [(round(bound, 3), count) for bound, count in pairs if count]


@dataclasses.dataclass(frozen=True)
class Load:
    """How a service is asked.

    Attributes:
        url: of the service.
        bodies: of POST requests, taken in turn.
        path: of the route.
        connections: at once.
        per_second: requests of an open loop; None: a closed one.
        seconds: how long requests begin.
        retries: further attempts where a connection is lost or the service busy.
        timeout_s: of one attempt.
        headers: of every request.
        seed: of the moments of an open loop.
    """

    url: str
    bodies: Sequence[bytes]
    path: str = "/v1/recommend"
    connections: int = 8
    per_second: float | None = None
    seconds: float = 10.0
    retries: int = 0
    timeout_s: float = 10.0
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def run(self) -> LoadResult:
        """Ask, and return what became of it."""
        return asyncio.run(_Asking(self).run())


class _Asking:
    def __init__(self, load: Load) -> None:
        self._load = load
        self._url = f"{load.url.rstrip('/')}{load.path}"
        self._latency: list[float] = []
        self._errors: Counter[str] = Counter()
        self._retried = 0

    async def run(self) -> LoadResult:
        load = self._load
        timeout = aiohttp.ClientTimeout(total=load.timeout_s)
        connector = aiohttp.TCPConnector(limit=load.connections, force_close=False)
        headers = {"content-type": "application/json", **load.headers}
        async with aiohttp.ClientSession(
            timeout=timeout, connector=connector, headers=headers, trust_env=False
        ) as self._session:
            self._start = time.perf_counter()
            bodies = self._bodies()
            if load.per_second is None:
                await asyncio.gather(*(self._again(bodies) for _ in range(load.connections)))
            else:
                await self._in_time(bodies, load.per_second)
            seconds = time.perf_counter() - self._start
        return LoadResult(
            seconds,
            np.array(self._latency) * 1e3,
            dict(sorted(self._errors.items())),
            self._retried,
        )

    def _bodies(self) -> Iterator[bytes]:
        while True:
            yield from self._load.bodies

    async def _again(self, bodies: Iterator[bytes]) -> None:
        """Ask on one connection until the time is over."""
        while (now := time.perf_counter()) < self._start + self._load.seconds:
            await self._ask(next(bodies), now)

    async def _in_time(self, bodies: Iterator[bytes], per_second: float) -> None:
        """Ask at random moments, of which there are so many a second."""
        draw = random.Random(self._load.seed)
        running: set[asyncio.Task[None]] = set()
        due = self._start
        while (due := due + draw.expovariate(per_second)) < self._start + self._load.seconds:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._ask(next(bodies), due))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def _ask(self, body: bytes, due: float) -> None:
        """Ask once, and again where that may help; the clock runs from `due` on."""
        for left in range(self._load.retries, -1, -1):
            try:
                async with self._session.post(self._url, data=body) as answer:
                    await answer.read()
                    outcome = str(answer.status)
                    passing = is_passing(answer.status, answer.headers.get("content-type", ""))
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                outcome, passing = type(error).__name__, True
            if outcome == "200":
                now = time.perf_counter()
                self._latency.append(now - due)
                return
            if not passing or not left:
                break
            self._retried += 1
            pause_s = FIRST_PAUSE_S * 2.0 ** (self._load.retries - left)
            await asyncio.sleep(pause_s * random.uniform(1.0, 1.5))
        self._errors[outcome] += 1
