import asyncio
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx
import pytest

from raysys.errors import CorruptBuildError
from raysys.http.app import create_app
from raysys.http.client import Client, ServiceError
from raysys.http.service import Holder, ServiceOptions
from raysys.http.wire import VERSION
from raysys.scoring.rankings import NAMES
from raysys.search.query import RecommendQuery
from raysys.search.search import Search
from tests.support.runs import BINS, ITEM_IDS, item_id, model_run, title, user_id, vectors_run


class InProcess(httpx.BaseTransport):
    """Runs every request through the app in this thread, without a socket."""

    def __init__(self, app):
        self._app = httpx.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, request):
        async def ask():
            answer = await self._app.handle_async_request(request)
            return answer, await answer.aread()

        answer, body = asyncio.run(ask())
        return httpx.Response(answer.status_code, headers=answer.headers, content=body)


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    workspace, _ = vectors_run(tmp_path_factory.mktemp("run"))
    return Search.open(workspace)


@pytest.fixture
def http(search):
    with httpx.Client(
        transport=InProcess(create_app(lambda: search)), base_url="http://service"
    ) as client:
        yield client


def ask(http, **body):
    return http.post("/v1/recommend", json=body)


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    workspace, _ = model_run(tmp_path_factory.mktemp("rated"))
    return Search.open(workspace)


@pytest.mark.parametrize("ranking", ["consume", "rating", "like", "discover"])
def test_recommend_with_a_model(rated, ranking):
    with httpx.Client(
        transport=InProcess(create_app(lambda: rated)), base_url="http://service"
    ) as http:
        response = ask(http, user_id=user_id(7), ranking=ranking, k=60)
        posted = ask(http, profile=[], ranking=ranking)
    answer = response.json()
    assert (answer["ranking"], len(answer["items"])) == (ranking, 60 - 7)
    for item in answer["items"]:
        assert 0 < item["p_consume"] < 1
        assert 0 < item["p_like"] < 1
        assert 1 <= item["expected_rating"] <= 5
    assert len(posted.json()["items"]) == 20


def test_what_a_posted_profile_may_say_depends_on_the_build(rated):
    with httpx.Client(
        transport=InProcess(create_app(lambda: rated)), base_url="http://service"
    ) as http:
        entries = {"rating": 9}, {"event": "purchase"}
        refused = [ask(http, profile=[{"item_id": 42, **entry}]) for entry in entries]
        unknown = ask(http, user_id="nobody")
    assert "expected 1 to 5" in error_of(refused[0], 422)["message"]
    assert "expected one of '1', '2'" in error_of(refused[1], 422)["message"]
    assert error_of(unknown, 404)["type"] == "unknown_user"


def test_a_posted_rating_off_the_scale_of_bins_is_refused(tmp_path):
    search = Search.open(model_run(tmp_path, levels=BINS)[0])
    with httpx.Client(
        transport=InProcess(create_app(lambda: search)), base_url="http://service"
    ) as http:
        for rating in (0.5, 40.2, 98.5):
            assert ask(http, profile=[{"item_id": "42", "rating": rating}]).status_code == 200
        for rating in (0, 99, -1e300, 1e300):
            error = error_of(ask(http, profile=[{"item_id": "42", "rating": rating}]), 422)
            assert "off the scale: expected 0.5 to 98.5" in error["message"]


@pytest.mark.parametrize(
    ("allow", "numbers"),
    [
        ({"zip": "0007"}, [7]),
        ({"zip": 7}, [7]),
        ({"zip": {"min": "57", "max": 58}}, [57, 58]),
        ({"released": {"min": "1999-01-01"}}, [39]),
        ({"categories": "odd1", "zip": {"max": 4}}, [1, 3]),
        ({"item_id": ["..", "two\nlines\n"]}, [40, 41]),
    ],
)
def test_attributes_filter_by_their_meaning(search, allow, numbers):
    with Client("http://service", transport=InProcess(create_app(lambda: search))) as client:
        profile = [{"item_id": "42"}]
        answer = client.recommend(profile=profile, allow=allow, exclude_seen=False)
        assert {item.item_id for item in answer.items} == {item_id(num) for num in numbers}
        [items] = client.search([[1.0] * 8], k=60, deny=allow).lists
        met = {item_id(num) for num in numbers} & {item.item_id for item in items}
        assert met == set()


def error_of(response, status):
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"type", "message", "details"}
    return error


def test_recommend_for_a_posted_profile(http, search):
    response = ask(http, profile=[{"item_id": 42}, {"item_id": "nope", "timestamp": 5}], k=3)
    assert response.status_code == 200
    answer = response.json()
    assert answer["build_id"] == search.build_id
    assert answer["ranking"] == "similar"
    assert answer["unknown_items"] == ["nope"]
    assert len(answer["items"]) == 3
    best = answer["items"][0]
    assert set(best) == {"item_id", "title", "score", "p_consume", "p_like", "expected_rating"}
    assert best["item_id"] != "42"
    assert best["p_like"] is None


def in_path(text):
    quoted = quote(text, safe="")
    return quoted.replace(".", "%2E") if text in (".", "..") else quoted


@pytest.mark.parametrize("num", [*ITEM_IDS, 4])
def test_similar_takes_any_id(http, num):
    response = http.get(f"/v1/items/{in_path(item_id(num))}/similar", params={"k": 59})
    assert response.status_code == 200
    answer = response.json()
    assert answer["item_id"] == item_id(num)
    assert {i["item_id"] for i in answer["items"]} == {item_id(n) for n in range(60) if n != num}
    titles = {i["item_id"]: i["title"] for i in answer["items"]}
    assert all(titles[item_id(n)] == title(n) for n in range(60) if n != num)


@pytest.mark.parametrize("text", ["nope", "two\nline", "\n", "..x", "x", "similar"])
def test_ids_that_are_not_there_are_unknown_items(http, text):
    error = error_of(http.get(f"/v1/items/{in_path(text)}/similar"), 404)
    assert error["type"] == "unknown_item"
    assert repr(text) in error["message"]


@pytest.mark.parametrize("num", ITEM_IDS)
def test_the_client_asks_for_any_id(search, num):
    with Client("http://service", transport=InProcess(create_app(lambda: search))) as client:
        answer = client.similar(item_id(num), k=3)
        assert (answer.item_id, len(answer.items)) == (item_id(num), 3)
        other = client.recommend(profile=[{"item_id": item_id(num)}], k=59)
        assert item_id(num) not in {item.item_id for item in other.items}
        assert other.unknown_items == []


def test_a_bare_slash_in_the_path_is_part_of_the_id(http):
    response = http.get("/v1/items/caffè/latte 1/similar?k=1")
    assert response.json()["item_id"] == "caffè/latte 1"


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "body", "give user_id, profile or both"),
        ({"user_id": True}, "body.user_id", "string"),
        ({"user_id": ""}, "body.user_id", "at least 1"),
        ({"user_id": "a", "k": 0}, "body.k", "greater than or equal to 1"),
        ({"user_id": "a", "k": 2.5}, "body.k", "integer"),
        ({"user_id": "a", "ranking": "best"}, "body.ranking", "'consume'"),
        ({"user_id": "a", "kk": 5}, "body.kk", "not permitted"),
        ({"profile": [{"rating": 5}]}, "body.profile.0.item_id", "required"),
        ({"profile": [{"item_id": "a", "rating": "x"}]}, "body.profile.0.rating", "number"),
        (
            {"profile": [{"item_id": "a", "timestamp": 1_600_000_000_000}]},
            "body.profile.0.timestamp",
            "less than",
        ),
    ],
)
def test_invalid_requests(http, body, field, words):
    error = error_of(ask(http, **body), 422)
    assert error["type"] == "invalid_request"
    assert [detail["field"] for detail in error["details"]] == [field]
    assert words in error["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"",
        b"[]",
        b'{"profile": [{"item_id": "a", "rating": NaN}]}',
        b'{"profile": [{"item_id": "\\ud800"}]}',
        b'{"profile": [], "\\ud800": 1}',
        b'{"profile": [{"item_id": "42"}], "allow": {"zip": "\\ud800"}}',
        b'{"profile": [{"item_id": "42"}], "allow": {"\\ud800": "x"}}',
        b'{"profile": [{"item_id": "42"}], "allow": {"zip": NaN}}',
        b'{"profile": [{"item_id": "42"}], "allow": {"zip": {"min": NaN}}}',
        b'{"profile": [{"item_id": "42"}], "allow": {"zip": {"max": Infinity}}}',
        b'{"profile": [{"item_id": "42"}], "allow": {"zip": {"min": true}}}',
        b'{"profile": [{"item_id": "42"}], "allow": {"zip": {"min": "nan"}}}',
        b'{"profile": [{"item_id": "42"}], "allow": {"zip": [["0007"]]}}',
        b'{"profile": [{"item_id": "42"}], "allow": {"info": 7}}',
        b'{"profile": [{"item_id": "42"}], "allow": {"zip": {"min": "1990-01-31"}}}',
    ],
)
def test_bodies_that_are_not_json_of_ours(http, content):
    headers = {"content-type": "application/json"}
    error_of(http.post("/v1/recommend", content=content, headers=headers), 422)


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/recommend/batch"])
@pytest.mark.parametrize(
    "kind", ["application/jsonx", "application/json, text/plain", "text/plain"]
)
def test_bodies_of_another_type(http, path, kind):
    body = {"profile": [{"item_id": "42"}]}
    content = json.dumps(body if path == "/v1/recommend" else {"queries": [body]})
    error_of(http.post(path, content=content, headers={"content-type": kind}), 422)
    plain = {"content-type": "application/json ; charset=utf-8"}
    assert http.post(path, content=content, headers=plain).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        ({"user_id": 7}, 404, "unknown_user", "'7'"),
        ({"profile": [{"item_id": "42"}], "ranking": "like"}, 422, "bad_query", "similar"),
        ({"profile": []}, 422, "bad_query", "known item"),
        ({"profile": [{"item_id": "42"}], "k": 1001}, 422, "bad_query", "1 to 1000"),
    ],
)
def test_queries_that_this_build_cannot_answer(http, body, status, kind, words):
    error = error_of(ask(http, **body), status)
    assert error["type"] == kind
    assert words in error["message"]


def test_errors_outside_the_queries(http):
    assert error_of(http.get("/v1/items/nope/similar"), 404)["type"] == "unknown_item"
    assert error_of(http.get("/v1/items/42/similar?k=x"), 422)["type"] == "invalid_request"
    assert error_of(http.get("/nowhere"), 404)["type"] == "http"
    assert error_of(http.get("/v1/recommend"), 405)["type"] == "http"


def test_faults_of_ours_tell_nothing_and_are_logged(search, caplog, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(search, "recommend", broken)
    with httpx.Client(
        transport=InProcess(create_app(lambda: search)), base_url="http://service"
    ) as http:
        response = ask(http, profile=[])
    assert error_of(response, 500)["type"] == "internal"
    assert "secret" not in response.text
    assert "secret" in caplog.text


def test_health_and_status(http, search):
    ask(http, profile=[{"item_id": "42"}])
    ask(http, profile=[{"item_id": "42"}])
    http.get("/nowhere")
    expected = {"status": "ok", "build_id": search.build_id, "version": VERSION}
    assert [http.get(path).json() for path in ("/v1/health", "/livez", "/readyz")] == [expected] * 3
    status = http.get("/v1/status").json()
    assert status["build_ids"] == search.build_ids
    assert status["rankings"] == ["similar"]
    assert (status["n_items"], status["n_users"]) == (60, 0)
    assert status["facts"]["index"]["similarity"] == "cosine"
    assert status["counts"] == {"error_404": 1, "recommend": 2}
    assert status["uptime_s"] >= 0


def test_the_schema_documents_every_answer(http):
    schema = http.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        *("/v1/recommend", "/v1/recommend/batch", "/v1/similar", "/v1/search"),
        *("/v1/items", "/v1/items/{item_id}/similar", "/v1/popular", "/v1/recent"),
        *("/v1/events", "/v1/admin/erase", "/v1/atoms"),
        *("/v1/scenarios", "/v1/health", "/v1/status", "/livez", "/readyz", "/metrics"),
        "/v1/evaluation",
        *("/v1/admin/replicas", "/v1/admin/reload", "/v1/admin/rollback"),
    }
    errors = schema["paths"]["/v1/recommend"]["post"]["responses"]
    named = {401, 403, 404, 405, 408, 413, 422, 429, 500, 503}
    assert set(map(int, errors)) == {200, *named}
    assert json.dumps(errors).count("ErrorBody") == len(named)


def test_the_schema_says_what_a_request_needs(http):
    schema = http.get("/openapi.json").json()
    parameters = schema["paths"]["/v1/items/{item_id}/similar"]["get"]["parameters"]
    masks = [each for each in parameters if each["name"] in ("allow", "deny")]
    assert all(list(mask["content"]) == ["application/json"] for mask in masks)
    assert "Range" in schema["components"]["schemas"]
    assert "#/components/schemas/Range" in json.dumps(masks)
    body = schema["components"]["schemas"]["RecommendQuery"]
    assert [choice["required"] for choice in body["anyOf"]] == [["user_id"], ["profile"]]
    [_, weighted] = body["properties"]["ranking"]["anyOf"][0]["anyOf"]
    assert re.search(weighted["pattern"], "discover^0.3")
    assert not re.search(weighted["pattern"], "like^0.3")


def test_filters_levels_and_vectors_over_http(rated, search):
    transport = InProcess(create_app(lambda: rated))
    with Client("http://service", transport=transport) as client:
        some = {"item_id": [item_id(5), item_id(9)]}
        answer = client.recommend(profile=[], allow=some, deny={"title": "Title 9"}, levels=True)
        assert [item.item_id for item in answer.items] == [item_id(5)]
        assert sum(answer.items[0].levels.values()) == pytest.approx(1)
        assert client.recommend(profile=[]).items[0].levels is None
        with pytest.raises(ServiceError, match="no attribute 'year'"):
            client.recommend(profile=[], allow={"year": {"min": 1990}})
        alike = client.similar(item_id(1), allow=some)
        assert {item.item_id for item in alike.items} == {item_id(5), item_id(9)}
    with Client("http://service", transport=InProcess(create_app(lambda: search))) as client:
        lists = client.search([[1.0] * 8, [-1.0] * 8], k=3).lists
        assert [len(items) for items in lists] == [3, 3]
        for bad in ([[1.0]], [[1.0] * 8, [1.0]], [[0.0] * 8]):
            with pytest.raises(ServiceError):
                client.search(bad)
    with httpx.Client(transport=transport, base_url="http://service") as http:
        assert http.get("/v1/items/42/similar", params={"allow": "[1]"}).status_code == 422


def test_a_request_names_its_ranking_with_its_weight(rated):
    with Client.local(rated) as client:
        user = {"user_id": user_id(7), "k": 60}
        weighted = client.recommend(**user, ranking="discover^0.1")
        assert weighted.ranking == "discover^0.1"
        assert weighted.items == client.recommend(**user, ranking="discover", gamma=0.1).items
        assert weighted.items != client.recommend(**user, ranking="discover").items
        for text in ("like^0.5", "discover^"):
            with pytest.raises(ServiceError, match=r"'discover\^GAMMA'"):
                client.recommend(**user, ranking=text)
        assert client.recommend(**user, ranking="discover^11").ranking == "discover^11"


@pytest.mark.parametrize("field", [{"gamma": 10.5}, {"ranking": "discover^11"}])
def test_weights_over_http_have_a_bound(rated, field):
    with httpx.Client(
        transport=InProcess(create_app(lambda: rated)), base_url="http://service"
    ) as http:
        assert ask(http, profile=[], ranking="discover", gamma=10).status_code == 200
        error = error_of(ask(http, profile=[], **field), 422)
    [name] = field
    assert error["type"] == "invalid_request"
    assert error["details"][0]["field"] == f"body.{name}"
    assert "Input should be less than or equal to 10" in error["message"]


def damage(*_args, **_kwargs):
    raise CorruptBuildError("codes.bin is missing")


def test_a_damaged_build_is_named_in_this_process_alone(search, monkeypatch, caplog):
    monkeypatch.setattr(Search, "similar", damage)
    with Client.local(search) as client, pytest.raises(CorruptBuildError, match="is missing"):
        client.similar("42")
    assert caplog.text == ""
    app = create_app(lambda: search)
    with (
        Client("http://service", transport=InProcess(app)) as client,
        pytest.raises(ServiceError, match="its log has the details") as caught,
    ):
        client.similar("42")
    assert (caught.value.status, caught.value.type) == (500, "internal")


def test_a_client_in_this_process_asks_as_over_http(rated, search):
    with Client.local(rated) as client:
        asked = RecommendQuery(user_id=user_id(7), k=3, levels=True)
        answer = client.recommend(asked)
        assert answer == rated.recommend(asked)
        assert client.similar("42", k=2).items == rated.similar("42", top_k=2)
        assert client.status().n_items == 60
        with pytest.raises(ServiceError, match="'nobody'") as caught:
            client.recommend(user_id="nobody")
    assert (caught.value.status, caught.value.type) == (404, "unknown_user")


def test_a_client_in_this_process_works_inside_an_event_loop(search):
    async def ask_here():
        with Client.local(search) as client:
            return client.health().build_id

    assert asyncio.run(ask_here()) == search.build_id


def test_another_search_takes_over_between_requests(rated, search):
    holder = Holder(rated)
    with Client("http://service", transport=InProcess(create_app(holder))) as client:
        assert client.recommend(profile=[]).build_id == rated.build_id
        assert holder.exchange(search) is rated
        assert client.health().build_id == search.build_id
        assert client.status().rankings == ["similar"]
        assert client.recommend(profile=[{"item_id": "42"}]).ranking == "similar"


def test_searches_exchanged_at_once_are_each_returned_once():
    holder = Holder(0)
    numbers = range(1, 4001)
    with ThreadPoolExecutor(8) as pool:
        returned = list(pool.map(holder.exchange, numbers))
    assert sorted([*returned, holder()]) == [0, *numbers]


def test_a_request_that_runs_is_answered_by_the_search_that_it_began_with(rated, search):
    begun, exchanged = threading.Event(), threading.Event()

    class Slow:
        """The rated search, which answers when another has taken its place."""

        n_items, build_id, changes_id, size_of_scan = rated.n_items, rated.build_id, None, 0

        def similar(self, item_id, **limits):
            begun.set()
            assert exchanged.wait(30)
            return rated.similar(item_id, **limits)

    holder = Holder(Slow())
    transport = InProcess(create_app(holder))
    with Client("http://service", transport=transport) as client, ThreadPoolExecutor() as pool:
        running = pool.submit(client.similar, "42", k=3)
        assert begun.wait(30)
        holder.exchange(search)
        assert client.health().build_id == search.build_id
        exchanged.set()
        answer = running.result(30)
    assert answer.build_id == rated.build_id
    assert answer.items == rated.similar("42", top_k=3)


def test_options_limit_the_length_of_lists(search):
    app = create_app(lambda: search, ServiceOptions(k_limit=5))
    with Client("http://service", transport=InProcess(app)) as client:
        assert len(client.similar("42", k=60).items) == 59  # the catalogue is longer than 5
        with pytest.raises(ServiceError, match="k=61 is not accepted: expected 1 to 60"):
            client.similar("42", k=61)


def test_the_schema_is_that_of_the_answers(http):
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    answer = ask(http, profile=[{"item_id": "42"}], k=1).json()
    assert set(schemas["Answer"]["properties"]) == set(answer)
    assert set(schemas["Hit"]["properties"]) == {*answer["items"][0], "levels", "because", "atoms"}
    assert set(schemas["RecommendQuery"]["properties"]) == set(RecommendQuery.model_fields)
    options = str(schemas["RecommendQuery"]["properties"]["ranking"])
    assert all(name in options for name in NAMES)
