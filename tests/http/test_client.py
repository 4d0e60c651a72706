import json

import httpx
import pytest

from raysys.http import client as client_module
from raysys.http.client import Client, ServiceError

ANSWER = {"build_id": "b", "ranking": "consume", "unknown_items": [], "items": []}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(client_module, "_FIRST_PAUSE_S", 0.0)


def scripted(*steps):
    """A transport that plays `steps` (answers or errors) and records the requests."""
    requests = []
    todo = list(steps)

    def handle(request):
        requests.append(request)
        step = todo.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    return Client("http://service", transport=httpx.MockTransport(handle)), requests


def busy():
    return httpx.Response(503, text="busy")


def test_retries_503_and_lost_connections():
    lost = httpx.RemoteProtocolError("closed"), httpx.ConnectError("refused")
    service, requests = scripted(busy(), *lost, httpx.Response(200, json=ANSWER))
    with service:
        answer = service.recommend(user_id="42", k=3, ranking="like")
    assert answer.build_id == "b"
    assert len(requests) == 4
    sent = {"user_id": "42", "k": 3, "ranking": "like", "exclude_seen": True}
    sent |= {"gamma": 0.5, "levels": False}
    assert [json.loads(request.content) for request in requests] == [sent] * 4


def test_gives_up_with_the_last_answer():
    service, requests = scripted(*[busy() for _ in range(4)])
    with pytest.raises(ServiceError, match="status 503: busy") as caught:
        service.health()
    assert caught.value.status == 503
    assert len(requests) == 4


def test_gives_up_without_an_answer():
    service, _ = scripted(*[httpx.ConnectError("refused") for _ in range(4)])
    with pytest.raises(ServiceError, match=r"GET http://service/v1/health: no answer: refused"):
        service.health()


@pytest.mark.parametrize("step", [httpx.Response(500, text="oops"), httpx.Response(502)])
def test_where_no_replica_answered_it_asks_again(step):
    service, requests = scripted(step, httpx.Response(200, json={"build_id": "b"}))
    assert service.health().build_id == "b"
    assert len(requests) == 2


@pytest.mark.parametrize("step", [httpx.ReadTimeout("slow"), httpx.Response(500, json={"a": 1})])
def test_what_may_fail_again_is_not_retried(step):
    service, requests = scripted(step)
    with pytest.raises(ServiceError):
        service.status()
    assert len(requests) == 1


def test_refusals_carry_type_and_message():
    error = {"error": {"type": "unknown_user", "message": "user_id='x' is not known"}}
    service, _ = scripted(httpx.Response(404, json=error))
    with pytest.raises(ServiceError, match=r"user_id='x' is not known") as caught:
        service.recommend(user_id="x")
    assert (caught.value.status, caught.value.type) == (404, "unknown_user")


def test_bad_requests_are_not_sent():
    service, requests = scripted()
    with pytest.raises(ServiceError, match="ranking") as caught:
        service.recommend(user_id="x", ranking="best")
    assert caught.value.status == 422
    with pytest.raises(ServiceError, match="give user_id, profile or both"):
        service.recommend()
    assert requests == []


def test_answers_of_another_service():
    service, _ = scripted(httpx.Response(200, json={"hello": 1}))
    with pytest.raises(ServiceError, match="unknown format"):
        service.health()


@pytest.mark.parametrize(
    "item_id",
    [
        "a/b",
        "caffè latte",
        "a?b#c%2F",
        "ends/",
        "42",
        "two\nlines",
        ".",
        "..",
        "a/../b",
        "%2E",
        "😀",
    ],
)
def test_ids_survive_the_path(item_id):
    answer = {"build_id": "b", "item_id": item_id, "items": []}
    service, requests = scripted(httpx.Response(200, json=answer))
    assert service.similar(item_id, k=7).item_id == item_id
    assert requests[0].url.path == f"/v1/items/{item_id}/similar"
    assert requests[0].url.params["k"] == "7"


def test_what_no_service_would_take_is_not_sent():
    service, requests = scripted()
    for ask in (
        lambda: service.similar("\ud800"),
        lambda: service.search([[float("nan")]]),
        lambda: service.recommend(profile=[{"item_id": "a", "rating": float("inf")}]),
    ):
        with pytest.raises(ServiceError) as caught:
            ask()
        assert (caught.value.status, caught.value.type) == (422, "invalid_request")
    assert requests == []
