"""POST /v1/events through the app: lists follow it, and what no log could take is refused."""

import time

import pytest

from raysys.errors import BuildError
from raysys.events.feed import Feed, FeedOptions
from raysys.events.journal import FullError
from raysys.http.app import create_app
from raysys.http.client import Client, ServiceError
from raysys.http.keys import KeyRing, hash_of
from raysys.http.service import ServiceOptions
from raysys.search.search import Search
from raysys.store.storage import Storage
from tests.http.test_app import InProcess
from tests.support.runs import item_id, model_run, user_id, vectors_run


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return model_run(tmp_path_factory.mktemp("rated"))[0]


@pytest.fixture
def feed(tmp_path):
    return Feed(Storage(str(tmp_path)), FeedOptions())


@pytest.fixture
def client(workspace, feed):
    search = Search.open(workspace)
    search.asking.lately = feed.of
    app = create_app(lambda: search, ServiceOptions(), feed=feed)
    return Client("http://service", transport=InProcess(app), retries=0)


NOW = int(time.time()) - 100
SOMEBODY = user_id(7)


def ids(answer):
    return [item.item_id for item in answer.items]


def entry(num, user=SOMEBODY, **more):
    return {"user_id": user, "item_id": item_id(num), "rating": 5, **more}


def test_the_next_list_of_a_user_follows_an_event(client):
    before = client.recommend(user_id=user_id(7), k=10)
    new = ids(before)[0]
    num = next(n for n in range(60) if item_id(n) == new)
    taken = client.send([entry(num)])
    assert (taken.accepted, taken.not_counted) == (1, 0)
    after = client.recommend(user_id=user_id(7), k=10)
    assert new not in ids(after)
    posted = client.recommend(
        user_id=user_id(7), profile=[{"item_id": new, "rating": 5, "timestamp": int(time.time())}]
    )
    assert ids(after) == ids(posted)[:10]


def test_a_new_user_is_known_by_events_alone(client):
    with pytest.raises(ServiceError, match="nobody yet"):
        client.recommend(user_id="nobody yet")
    client.send([entry(n, user="nobody yet", timestamp=NOW + n) for n in (3, 5)])
    answer = client.recommend(user_id="nobody yet", k=10)
    profile = [{"item_id": item_id(n), "rating": 5, "timestamp": NOW + n} for n in (3, 5)]
    assert ids(answer) == ids(client.recommend(profile=profile, k=10))
    assert answer.degraded is None


def test_an_event_id_counts_once(client, feed):
    client.send([entry(3, event_id="a"), entry(3, event_id="a")])
    client.send([entry(3, event_id="a"), entry(4, event_id="a")])
    assert [event.item_id for event in feed.of(user_id(7))] == [item_id(3)]


def test_items_and_kinds_that_the_build_does_not_know_are_told(client):
    unknown = {"user_id": "1", "item_id": "never seen"}
    taken = client.send([entry(3), unknown, entry(4, rating=None, event="a new kind")])
    assert (taken.accepted, taken.not_counted) == (3, 2)
    assert client.recommend(user_id="1").degraded.reason == "no_history"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rating": 9}, "events.1: rating=9 is off the scale: expected 1 to 5"),
        ({"rating": 3.7}, "events.1: rating=3.7 is none of this build's: expected one of 1, 2, 3"),
        ({"timestamp": 4_000_000_000}, "events.1.timestamp=4000000000 lies more than a day ahead"),
        ({"event_id": ""}, "event_id"),
        ({"item_id": None}, "item_id"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_no_log_could_take_is_refused_whole(client, feed, wrong, message):
    with pytest.raises(ServiceError, match=message) as caught:
        client.send([entry(3), entry(4, **wrong)])
    assert caught.value.status == 422
    assert not feed.of(user_id(7))


def test_ratings_are_no_matter_where_a_build_has_no_model(tmp_path_factory, feed):
    workspace, _ = vectors_run(tmp_path_factory.mktemp("plain"))
    search = Search.open(workspace)
    search.asking.lately = feed.of
    app = create_app(lambda: search, feed=feed)
    with Client("http://service", transport=InProcess(app)) as client:
        client.send([{"user_id": "new", "item_id": item_id(3), "rating": 77}])
        similar = client.recommend(profile=[{"item_id": item_id(3)}])
        assert ids(client.recommend(user_id="new")) == ids(similar)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(FullError("too much"), "busy"), (BuildError("no space left"), "not_written")],
)
def test_what_cannot_be_written_is_asked_for_again(client, feed, monkeypatch, error, kind):
    def refuse(_):
        raise error

    monkeypatch.setattr(feed, "accept", refuse)
    with pytest.raises(ServiceError, match=f"{error}") as caught:
        client.send([entry(3)])
    assert (caught.value.status, caught.value.type) == (503, kind)


def test_a_service_without_a_feed_says_so(workspace):
    with Client.local(Search.open(workspace)) as client, pytest.raises(ServiceError) as caught:
        client.send([entry(3)])
    assert (caught.value.status, caught.value.type) == (409, "no_events")


def test_events_need_a_key_that_may_write_and_erasure_one_that_administrates(
    workspace, feed, tmp_path
):
    scopes = ("read", "write", "admin")
    lines = [f"- {{name: {s}, sha256: {hash_of(s)}, scopes: [{s}]}}" for s in scopes]
    (tmp_path / "keys.yaml").write_text("keys:\n" + "\n".join(lines))
    search = Search.open(workspace)
    search.asking.lately = feed.of
    options = ServiceOptions(keys=KeyRing(str(tmp_path / "keys.yaml")))
    transport = InProcess(create_app(lambda: search, options, feed=feed))
    clients = {s: Client("http://service", transport=transport, key=s) for s in scopes}
    with pytest.raises(ServiceError, match="'write'"):
        clients["read"].send([entry(3)])
    clients["write"].send([entry(3)])
    with pytest.raises(ServiceError, match="'admin'"):
        clients["write"].erase(user_id(7))
    erased = clients["admin"].erase(user_id(7))
    assert erased.user_id == user_id(7)
    assert not feed.of(user_id(7))


def test_events_are_measured(client):
    client.send([entry(3), entry(4)])
    text = client._http.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['raysys_events_total{replica="local"}'] == "2.0"
    assert lines['raysys_recent_events{replica="local"}'] == "2.0"


def test_what_is_too_old_for_lists_is_told(client):
    taken = client.send([entry(3, timestamp=1_500_000_000), entry(4)])
    assert (taken.accepted, taken.not_counted) == (2, 1)


def test_a_disk_that_is_full_is_told_without_its_path(client, feed, monkeypatch):
    def refuse(_):
        raise OSError(28, "No space left on device", "/srv/run/journal")

    monkeypatch.setattr(feed, "accept", refuse)
    with pytest.raises(ServiceError, match=r"send it again: No space left on device$"):
        client.send([entry(3)])
