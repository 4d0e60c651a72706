"""A small typed client of the HTTP service, synchronous and asynchronous.

with Client("http://127.0.0.1:8000") as client:
    answer = client.recommend(user_id="42", k=10)
    print([item.title for item in answer.items])

async with AsyncClient("http://127.0.0.1:8000", key=KEY) as client:
    answer = await client.recommend(user_id="42", k=10)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx

from raysys.http import calls
from raysys.http.calls import Call, Given, ServiceError
from raysys.http.calls import checked as checked
from raysys.http.retries import Asking
from raysys.http.wire import (
    AtomList,
    BatchAnswer,
    Erased,
    EvaluationAnswer,
    EventEntry,
    FoundItems,
    Health,
    ItemDetailsList,
    ItemList,
    Replicas,
    Scenarios,
    SimilarItems,
    Status,
    Taken,
    VectorHits,
)
from raysys.search.query import Answer, RecommendQuery

if TYPE_CHECKING:  # keeps the search out of the client
    from raysys.search.search import Search

__all__ = ["AsyncClient", "Client", "ServiceError", "checked"]

T = TypeVar("T")


class Client:
    """Asks one service.

    What only reads is asked again where no replica answered, a connection was lost, or the service
    is too busy.

    Args:
        base_url: where the service listens.
        key: of the service, where it has keys.
        timeout_s: for one attempt.
        retries: further attempts after the first; six take six to nine seconds.
        transport: replaces the network, e.g. `httpx.MockTransport`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 6,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._asking = Asking(base_url, key, retries)
        self._http = httpx.Client(
            base_url=base_url,
            timeout=timeout_s,
            transport=transport,
            headers=self._asking.headers,
        )

    @classmethod
    def local(cls, search: Search) -> Client:
        """Return a client that a search in this process answers, without a socket.

        A RaysysError that a service would hide (a damaged build) comes through as it is.
        """
        from raysys.http.local import InProcess  # a server, which most clients do not need

        return cls("http://local", transport=InProcess(search))

    @classmethod
    def open(cls, run: str, *, cache_dir: str | None = None, verify: bool = True) -> Client:
        """Return a client that the current index of a run answers, opened in this process.

        Raises:
            BuildError: there is none, or a build is damaged or mixed.
        """
        from raysys.search.search import Search
        from raysys.store.builds import Workspace

        return cls.local(Search.open(Workspace(run, cache_dir=cache_dir), verify=verify))

    def recommend(self, query: RecommendQuery | None = None, /, **fields: Any) -> Answer:
        """Recommend items to a stored user or for a profile.

        Args:
            query: what is asked.
            fields: of a `RecommendQuery`, where none is given: `user_id="42", k=10`.

        Raises:
            ServiceError: 404 for an unknown user, 422 for anything a caller should change (also
                what breaks the wire format and was not sent), 0 when no answer came.
        """
        return self._do(calls.recommend(query, fields))

    def recommend_all(self, queries: Sequence[RecommendQuery | Mapping[str, Any]]) -> BatchAnswer:
        """Answer up to 256 queries at once; each has an answer, or an error of its own."""
        return self._do(calls.batch(queries))

    def similar(
        self, item_id: str, *, k: int = 20, allow: Given = None, deny: Given = None
    ) -> SimilarItems:
        """List the `k` items most similar to `item_id`; ServiceError 404 when it is unknown."""
        return self._do(calls.similar(item_id, k, allow, deny))

    def similar_to(
        self, items: Sequence[str], *, k: int = 20, allow: Given = None, deny: Given = None
    ) -> ItemList:
        """List the `k` items most similar to several together."""
        return self._do(calls.similar_to(items, k, allow, deny))

    def search(
        self,
        vectors: Sequence[Sequence[float]],
        *,
        k: int = 20,
        allow: Given = None,
        deny: Given = None,
    ) -> VectorHits:
        """List the `k` items nearest to every vector in the space of the indexed ones."""
        return self._do(calls.search(vectors, k, allow, deny))

    def popular(self, *, k: int = 20, allow: Given = None, deny: Given = None) -> ItemList:
        """List what is expected of a user of whom nothing is known."""
        return self._do(calls.nobody("popular", k, allow, deny))

    def recent(self, *, k: int = 20, allow: Given = None, deny: Given = None) -> ItemList:
        """List the newest items."""
        return self._do(calls.nobody("recent", k, allow, deny))

    def titles(
        self, title: str, *, k: int = 20, allow: Given = None, deny: Given = None
    ) -> FoundItems:
        """Find items whose titles hold every word of `title`."""
        return self._do(calls.titles(title, k, allow, deny))

    def items(self, item_ids: Sequence[str]) -> ItemDetailsList:
        """Return titles and attributes of items."""
        return self._do(calls.items(item_ids))

    def atoms(self, *, k: int = 20, atom: int | None = None) -> AtomList:
        """List the atoms that most items hold, or one of them with its `k` strongest items."""
        return self._do(calls.atoms(k, atom))

    def scenarios(self) -> Scenarios:
        """Return the presets of the service."""
        return self._do(calls.scenarios())

    def send(self, events: Sequence[EventEntry | Mapping[str, Any]]) -> Taken:
        """Tell what users did, up to 1,000 events; once this returns they are never lost.

        Args:
            events: `{"user_id", "item_id", "rating"?, "event"?, "timestamp"?, "event_id"?}` each.
        """
        return self._do(calls.events(events))

    def erase(self, user_id: str) -> Erased:
        """Have the events of a user forgotten; needs an admin key."""
        return self._do(calls.erase(user_id))

    def health(self) -> Health:
        """Return the service's health; ServiceError when it is not up."""
        return self._do(calls.health())

    def status(self) -> Status:
        """Return what one replica serves."""
        return self._do(calls.status())

    def evaluation(self) -> EvaluationAnswer:
        """Return headline metrics of what is served, where it was evaluated."""
        return self._do(calls.evaluation())

    def replicas(self) -> Replicas:
        """Return what every replica serves; needs an admin key."""
        return self._do(calls.replicas())

    def reload(self) -> Replicas:
        """Have every replica look for newer builds now; needs an admin key."""
        return self._do(calls.reload())

    def rollback(self, build_id: str | None = None, *, kind: str = "index") -> Replicas:
        """Have the index or the changes of before served, or a given build; needs an admin key."""
        return self._do(calls.rollback(build_id, kind))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _do(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            got: httpx.Response | httpx.HTTPError
            try:
                got = self._http.request(call.method, call.path, **call.content)
            except httpx.HTTPError as error:
                got = error
            pause_s = self._asking.pause_s(call, attempt, got)
            if pause_s is None:
                assert isinstance(got, httpx.Response)
                return call.read(got)
            time.sleep(pause_s)
            attempt += 1


class AsyncClient:
    """The same as `Client` for event loops; see there.

    Args:
        base_url: where the service listens.
        key: of the service, where it has keys.
        timeout_s: for one attempt.
        retries: further attempts after the first; six take six to nine seconds.
        transport: replaces the network.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 6,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._asking = Asking(base_url, key, retries)
        self._http = httpx.AsyncClient(
            base_url=base_url,
            timeout=timeout_s,
            transport=transport,
            headers=self._asking.headers,
        )

    async def recommend(self, query: RecommendQuery | None = None, /, **fields: Any) -> Answer:
        """Recommend items; see `Client.recommend`."""
        return await self._do(calls.recommend(query, fields))

    async def recommend_all(
        self, queries: Sequence[RecommendQuery | Mapping[str, Any]]
    ) -> BatchAnswer:
        """Answer up to 256 queries at once."""
        return await self._do(calls.batch(queries))

    async def similar(
        self, item_id: str, *, k: int = 20, allow: Given = None, deny: Given = None
    ) -> SimilarItems:
        """List the `k` items most similar to `item_id`."""
        return await self._do(calls.similar(item_id, k, allow, deny))

    async def similar_to(
        self, items: Sequence[str], *, k: int = 20, allow: Given = None, deny: Given = None
    ) -> ItemList:
        """List the `k` items most similar to several together."""
        return await self._do(calls.similar_to(items, k, allow, deny))

    async def search(
        self,
        vectors: Sequence[Sequence[float]],
        *,
        k: int = 20,
        allow: Given = None,
        deny: Given = None,
    ) -> VectorHits:
        """List the `k` items nearest to every vector."""
        return await self._do(calls.search(vectors, k, allow, deny))

    async def popular(self, *, k: int = 20, allow: Given = None, deny: Given = None) -> ItemList:
        """List what is expected of a user of whom nothing is known."""
        return await self._do(calls.nobody("popular", k, allow, deny))

    async def recent(self, *, k: int = 20, allow: Given = None, deny: Given = None) -> ItemList:
        """List the newest items."""
        return await self._do(calls.nobody("recent", k, allow, deny))

    async def titles(
        self, title: str, *, k: int = 20, allow: Given = None, deny: Given = None
    ) -> FoundItems:
        """Find items by title."""
        return await self._do(calls.titles(title, k, allow, deny))

    async def items(self, item_ids: Sequence[str]) -> ItemDetailsList:
        """Return titles and attributes of items."""
        return await self._do(calls.items(item_ids))

    async def atoms(self, *, k: int = 20, atom: int | None = None) -> AtomList:
        """List the atoms that most items hold, or the strongest items of one."""
        return await self._do(calls.atoms(k, atom))

    async def scenarios(self) -> Scenarios:
        """Return the presets of the service."""
        return await self._do(calls.scenarios())

    async def send(self, events: Sequence[EventEntry | Mapping[str, Any]]) -> Taken:
        """Tell what users did; see `Client.send`."""
        return await self._do(calls.events(events))

    async def erase(self, user_id: str) -> Erased:
        """Have the events of a user forgotten; needs an admin key."""
        return await self._do(calls.erase(user_id))

    async def health(self) -> Health:
        """Return the service's health."""
        return await self._do(calls.health())

    async def status(self) -> Status:
        """Return what one replica serves."""
        return await self._do(calls.status())

    async def evaluation(self) -> EvaluationAnswer:
        """Return headline metrics of what is served."""
        return await self._do(calls.evaluation())

    async def replicas(self) -> Replicas:
        """Return what every replica serves."""
        return await self._do(calls.replicas())

    async def reload(self) -> Replicas:
        """Have every replica look for newer builds now."""
        return await self._do(calls.reload())

    async def rollback(self, build_id: str | None = None, *, kind: str = "index") -> Replicas:
        """Have the index (or the changes) of before served, or the build given."""
        return await self._do(calls.rollback(build_id, kind))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _do(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            got: httpx.Response | httpx.HTTPError
            try:
                got = await self._http.request(call.method, call.path, **call.content)
            except httpx.HTTPError as error:
                got = error
            pause_s = self._asking.pause_s(call, attempt, got)
            if pause_s is None:
                assert isinstance(got, httpx.Response)
                return call.read(got)
            await asyncio.sleep(pause_s)
            attempt += 1
