"""Load at a real server: what is asked, how often, and what is counted."""

import asyncio
import json
import threading
import time
from collections import Counter

import numpy as np
import pytest
import uvicorn

from raysys.commands import load as command
from raysys.commands.load import LoadConfig, bodies
from raysys.config import load
from raysys.errors import ConfigError
from raysys.http.app import create_app
from raysys.http.client import ServiceError
from raysys.http.load import Load, LoadResult
from raysys.search.search import Search
from tests.support.runs import model_run, user_id


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    model_run(path)
    return path


class Served:
    """An ASGI app on a port of its own, which notes what it is asked."""

    def __init__(self, app, *, faults=()):
        self.bodies, self.paths, self._faults = [], Counter(), list(faults)
        self._app = app
        config = uvicorn.Config(
            self._asked, port=0, log_level="error", lifespan="off", interface="asgi3"
        )
        self._server = uvicorn.Server(config)

    async def _asked(self, scope, receive, send):
        self.paths[scope["path"]] += 1
        if self._faults and scope["path"] == "/v1/recommend":
            status = self._faults.pop(0)
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})
            return

        async def noted():
            message = await receive()
            if message.get("body"):
                self.bodies.append(json.loads(message["body"]))
            return message

        await self._app(scope, noted, send)

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        [socket] = self._server.servers[0].sockets
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def app(run):
    search = Search.open(model_run(run)[0])
    return create_app(lambda: search)


@pytest.mark.slow
def test_a_closed_loop_asks_as_its_settings_say(app, run, caplog):
    with Served(app) as served:
        words = [f"url={served.url}", f"run={run}", "seconds=0.5", "connections=2"]
        words += ["k=3", "ranking=like", "users=5"]
        record = command.load(load(LoadConfig, words)).extra
        assert record["failed"] == 0
        assert record["requests"] == served.paths["/v1/recommend"] == len(served.bodies)
        assert record["requests"] > 10
        assert {(body["k"], body["ranking"]) for body in served.bodies} == {(3, "like")}
        users = {body["user_id"] for body in served.bodies}
        assert len(users) == 5
        assert sum(count for _, count in record["histogram_ms"]) == record["requests"]
        assert record["ms"]["p50"] <= record["ms"]["p99"] <= record["ms"]["max"]
        served.bodies.clear()
        command.load(load(LoadConfig, [f"url={served.url}", "seconds=0.2", "batch=7"]))
        assert served.paths["/v1/recommend/batch"] == len(served.bodies) > 0
        assert all(len(body["queries"]) == 7 for body in served.bodies)
        assert served.bodies[0]["queries"][0] == {"k": 20, "profile": []}


@pytest.mark.slow
def test_an_open_loop_keeps_its_rate(app):
    with Served(app) as served:
        words = [f"url={served.url}", "seconds=2", "per_second=50"]
        record = command.load(load(LoadConfig, words)).extra
    assert 60 <= record["requests"] <= 140  # 100 in the mean, 10 the deviation
    assert record["failed"] == 0


@pytest.mark.slow
def test_lost_answers_are_counted(app):
    with Served(app, faults=[503, 422, 429]) as served:
        words = [f"url={served.url}", "seconds=0.3", "connections=1"]
        record = command.load(load(LoadConfig, words)).extra
    assert record["errors"] == {"422": 1, "429": 1, "503": 1}
    with Served(app, faults=[503, 422, 429]) as served:
        words = [f"url={served.url}", "seconds=1", "connections=1", "retries=2"]
        record = command.load(load(LoadConfig, words)).extra
    assert (record["errors"], record["retried"]) == ({"422": 1}, 2)


@pytest.mark.slow
def test_where_nothing_is_answered_it_is_an_error(app):
    with Served(app, faults=[422] * 100_000) as served, pytest.raises(ConfigError, match="'422'"):
        command.load(load(LoadConfig, [f"url={served.url}", "seconds=0.1"]))
    with pytest.raises(ServiceError, match="no answer"):
        command.load(load(LoadConfig, ["url=http://127.0.0.1:9", "seconds=0.1"]))


def test_a_path_before_the_routes_is_kept(app):
    async def prefixed(scope, receive, send):
        assert scope["path"].startswith("/api/v1/") or scope["path"] == "/api/v1/health"
        await app({**scope, "path": scope["path"].removeprefix("/api")}, receive, send)

    with Served(prefixed) as served:
        for url in (f"{served.url}/api", f"{served.url}/api/"):
            record = command.load(load(LoadConfig, [f"url={url}", "seconds=0.1"])).extra
            assert record["failed"] == 0


def test_what_waits_for_a_connection_waits_on_the_clock():
    async def slow(scope, receive, send):

        await asyncio.sleep(0.1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    with Served(slow) as served:
        result = Load(served.url, [b"{}"], connections=1, per_second=30, seconds=1).run()
    assert result.latency_ms.max() > 1000  # thirty of a tenth of a second, one at a time
    assert result.latency_ms.min() >= 100


@pytest.mark.parametrize("word", ["connections=0", "batch=257", "per_second=0", "ranking=best"])
def test_what_cannot_be_asked_is_refused(word):
    with pytest.raises(ConfigError, match=word.split("=")[0]):
        load(LoadConfig, [word])


def test_users_are_asked_for_in_a_random_order(run):
    drawn = [json.loads(body)["user_id"] for body in bodies(LoadConfig(run=str(run)))]
    assert sorted(drawn) == sorted(user_id(num) for num in range(len(drawn)))
    assert drawn != [user_id(num) for num in range(len(drawn))]


def test_a_histogram_holds_every_answer():
    drawn = np.random.default_rng(0).lognormal(1, 2, size=1000)
    result = LoadResult(1.0, drawn, {}, 0)
    pairs = result.histogram()
    assert sum(count for _, count in pairs) == 1000
    for (below, _), (bound, count) in zip([(0, 0), *pairs], pairs):
        assert ((drawn <= bound) & (drawn > below)).sum() == count
    assert LoadResult(1.0, np.zeros(0), {"503": 2}, 0).histogram() == []
