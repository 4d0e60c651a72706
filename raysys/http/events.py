"""The routes that take what users did, and forget it."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from fastapi import FastAPI, Response
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from raysys.data.cells import AHEAD_S
from raysys.errors import SearchError, told
from raysys.events.feed import Feed, now_ms
from raysys.events.journal import FullError
from raysys.events.records import Event
from raysys.http.limits import RefusedError
from raysys.http.service import Service
from raysys.http.wire import Erased, EraseRequest, ErrorBody, EventsRequest, Taken
from raysys.search.search import Search

EVENTS = "/v1/events"
_TAKEN = TypeAdapter(Taken)
_NONE_TAKEN: dict[int | str, dict[str, Any]] = {409: {"model": ErrorBody}}


def add_events(app: FastAPI, service: Service) -> None:
    """Add the routes."""

    @app.post(EVENTS, response_model=Taken, responses=_NONE_TAKEN)
    async def take(body: EventsRequest) -> Response:
        """Take events: they are written down, and lists of their users follow within a second."""
        feed, search = _fed(service), service.current()
        events = _events(body, feed)
        _check(events, search)
        await written(service, feed, events)
        service.counts.add("events")
        service.metrics.took(len(events))
        current = [event for event in events if not feed.is_past(event)]
        n_past = len(events) - len(current)
        answer = Taken(len(events), search.asking.not_counted(current) + n_past)
        return Response(_TAKEN.dump_json(answer), media_type="application/json")

    @app.post("/v1/admin/erase", responses=_NONE_TAKEN)
    async def erase(body: EraseRequest) -> Erased:
        """Forget the events of a user that came until now.

        Lists forget them within seconds, the files of the run within a quarter of an hour. Builds
        stay as they are: what was learned from a log stays until it is prepared without the user.
        """
        feed = _fed(service)
        try:
            order = await run_in_threadpool(feed.erase, body.user_id)
        except Exception as error:
            raise _not_written(error) from error
        return Erased(order.user_id, order.at_ms)


async def written(service: Service, feed: Feed, events: list[Event]) -> None:
    """Wait until events are safe.

    Raises:
        RefusedError: they may not be.
    """
    try:
        future = asyncio.wrap_future(feed.accept(events))
        await asyncio.wait_for(asyncio.shield(future), service.options.timeout_s)
    except FullError as error:
        raise RefusedError(503, "busy", told(error), {"retry-after": "1"}) from error
    except Exception as error:
        raise _not_written(error) from error


def _not_written(error: Exception) -> RefusedError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else told(error)
    text = f"not written, send it again: {reason}"  # no path of ours
    return RefusedError(503, "not_written", text, {"retry-after": "1"})


def _fed(service: Service) -> Feed:
    if service.feed is None:
        raise RefusedError(409, "no_events", "this service takes no events: start it with events")
    return service.feed


def _events(body: EventsRequest, feed: Feed) -> list[Event]:
    """Return what is written down."""
    received_ms, now = now_ms(), int(feed.now())
    return [
        Event(
            entry.event_id or uuid.uuid4().hex,
            entry.user_id,
            entry.item_id,
            entry.event,
            entry.rating,
            now if entry.timestamp is None else entry.timestamp,
            received_ms,
        )
        for entry in body.events
    ]


def _check(events: list[Event], search: Search) -> None:
    """Raise SearchError for what the log could not take; the message names the entry."""
    latest = time.time() + AHEAD_S
    for place, event in enumerate(events):
        if event.timestamp > latest:
            raise SearchError(
                f"events.{place}.timestamp={event.timestamp} lies more than a day ahead "
                "(UTC seconds)"
            )
        reason = search.asking.levels.refusal(event)
        if reason is not None:
            raise SearchError(f"events.{place}: {reason}")
