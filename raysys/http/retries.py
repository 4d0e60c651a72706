"""How often a client asks, how long it waits between, and whom it believes to ask."""

from __future__ import annotations

import logging
import random
from typing import Any

import httpx

from raysys.http.calls import Call, ServiceError
from raysys.http.wire import VERSION

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 30.0  # that a service may ask for
_LOST = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
_BUSY = (429, 502, 503, 504)
_OF_A_PROXY = (404, 500)


class Asking:
    """What both clients share: how often they ask, and whom.

    Args:
        base_url: where the service listens.
        key: sent with every request.
        retries: further attempts after the first.
    """

    def __init__(self, base_url: str, key: str | None, retries: int) -> None:
        self.base_url, self._retries = base_url.rstrip("/"), retries
        self.headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._compared = False

    def pause_s(
        self, call: Call[Any], attempt: int, got: httpx.Response | httpx.HTTPError
    ) -> float | None:
        """Return how long to wait before another attempt, or None where this was the last.

        It doubles from .1 s on, or is what the service asks for, with up to half as much again, so
        that many clients do not come back at once.

        Raises:
            ServiceError: no answer came, and no further attempt is made.
        """
        left = self._retries - attempt
        pause_s = FIRST_PAUSE_S * float(2**attempt)
        if isinstance(got, httpx.HTTPError):
            where = f"{call.method} {self.base_url}{call.path}"
            if not isinstance(got, _LOST):
                raise ServiceError(f"{where}: {type(got).__name__}: {got}") from got
            never_sent = isinstance(got, (httpx.ConnectError, httpx.ConnectTimeout))
            if not left or not (call.repeatable or never_sent):
                raise ServiceError(f"{where}: no answer: {got}") from got
        else:
            self._compare(got)
            if (
                not left
                or not call.repeatable
                or not is_passing(got.status_code, got.headers.get("content-type", ""))
            ):
                return None
            asked = got.headers.get("retry-after", "")
            if asked.isascii() and asked.isdecimal():
                pause_s = max(pause_s, min(float(asked), _LONGEST_PAUSE_S))
        return pause_s * random.uniform(1.0, 1.5)

    def _compare(self, response: httpx.Response) -> None:
        """Warn once of a service of another version."""
        served = response.headers.get("x-raysys-version")
        if served is None or self._compared:
            return
        self._compared = True
        if served.split(".")[:2] != VERSION.split(".")[:2]:
            log.warning("versions differ client=%s service=%s", VERSION, served)


def is_passing(status: int, content_type: str) -> bool:
    """Tell whether another try may be answered: it is busy, or no replica was there to answer.

    What a service refuses itself is JSON; a proxy that knows no replica yet says 404 in text.
    """
    if status in _BUSY:
        return True
    return status in _OF_A_PROXY and not content_type.startswith("application/json")
