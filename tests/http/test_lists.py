"""Pages, batches, presets, reasons, fallbacks, and lists without a user."""

import base64
import dataclasses
import json

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.commands.update import UpdateConfig, update
from raysys.http.app import create_app
from raysys.http.client import Client, ServiceError
from raysys.http.service import ServiceOptions
from raysys.http.wire import Scenario
from raysys.search.pages import MAX_LISTED, cursor_of
from raysys.search.search import Search
from raysys.search.users import UserStore
from tests.http.test_app import InProcess
from tests.support.runs import ITEM_IDS, item_id, model_run, title, user_id, vectors_run


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    workspace, _ = model_run(tmp_path_factory.mktemp("rated"))
    return Search.open(workspace)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    workspace, _ = vectors_run(tmp_path_factory.mktemp("run"))
    return Search.open(workspace)


def client_of(search, **options):
    app = create_app(lambda: search, ServiceOptions(**options))
    return Client("http://service", transport=InProcess(app), retries=0)


def ids(answer):
    return [item.item_id for item in answer.items]


@pytest.mark.parametrize("ranking", ["consume", "like"])
def test_pages_give_the_whole_list_and_never_repeat(rated, ranking):
    with client_of(rated) as client:
        whole = client.recommend(user_id=user_id(7), ranking=ranking, k=53)
        assert whole.cursor is not None  # it was as long as asked for
        assert client.recommend(user_id=user_id(7), k=3, cursor=whole.cursor).items == []
        given, cursor = [], None
        while True:
            page = client.recommend(user_id=user_id(7), ranking=ranking, k=10, cursor=cursor)
            given += ids(page)
            cursor = page.cursor
            if cursor is None:
                break
    assert given == ids(whole)
    assert len(page.items) == 3


def test_a_page_changes_no_probability(rated):
    with client_of(rated) as client:
        whole = client.recommend(user_id=user_id(7), k=20)
        first = client.recommend(user_id=user_id(7), k=10)
        second = client.recommend(user_id=user_id(7), k=10, cursor=first.cursor)
    shares = [item.p_consume for item in whole.items]
    assert [item.p_consume for item in (*first.items, *second.items)] == pytest.approx(shares)


@pytest.mark.parametrize(
    "cursor",
    ["x", "????", cursor_of(["a"])[:-3], "W10x", "e30", "WzFd", "é", "[" * 4000, "WyJcdWQ4MDAiXQ"],
)
def test_a_cursor_that_no_answer_gave_is_refused(rated, cursor):
    with client_of(rated) as client, pytest.raises(ServiceError, match="cursor is not one"):
        client.recommend(profile=[], cursor=cursor)


def test_a_cursor_has_an_end(rated):
    ids_given = [str(num) for num in range(MAX_LISTED + 1)]
    many = base64.urlsafe_b64encode(json.dumps(ids_given).encode()).decode()
    assert cursor_of(ids_given) is None
    assert cursor_of(["x" * 300] * 4000) is None  # more than a request may hold
    with client_of(rated) as client, pytest.raises(ServiceError, match="10000 at most"):
        client.recommend(profile=[], cursor=many)


def test_a_batch_answers_each_query_for_itself(rated):
    queries = [
        {"user_id": user_id(7), "k": 5},
        {"user_id": "nobody"},
        {"user_id": user_id(3), "k": 5},
        {"profile": [], "ranking": "like", "allow": {"zip": "0007"}},
        {"profile": [{"item_id": "42", "rating": 9}]},
        {"profile": [], "allow": {"nosuch": 1}},
        {"user_id": user_id(7), "k": 5, "scenario": "none"},
        {"profile": [], "k": 20_000},
    ]
    with client_of(rated) as client:
        entries = client.recommend_all(queries).answers
        for place in (0, 2, 3):
            assert entries[place].error is None
            alone = client.recommend(**queries[place])
            assert ids(entries[place].answer) == ids(alone)
            shares = [item.p_consume for item in alone.items]
            found = [item.p_consume for item in entries[place].answer.items]
            assert found == pytest.approx(shares, rel=1e-5)
    errors = {place: entries[place].error for place in (1, 4, 5, 6, 7)}
    assert {place: error.type for place, error in errors.items()} == {
        1: "unknown_user",
        **dict.fromkeys((4, 5, 6, 7), "bad_query"),
    }
    assert "scenario='none' is unknown: this service has none" in errors[6].message


def test_a_batch_of_too_much_is_refused(rated):
    with client_of(rated) as client:
        with pytest.raises(ServiceError, match="at most 256"):
            client.recommend_all([{"profile": []}] * 257)
        with pytest.raises(ServiceError, match="at least 1"):
            client.recommend_all([])
        with pytest.raises(ServiceError, match="add up to 25600: expected 20000 at most"):
            client.recommend_all([{"profile": [], "k": 100}] * 256)


def test_reasons_are_items_of_the_profile(rated):
    profile = [{"item_id": item_id(num)} for num in (3, 8, 9, 12, 14)]
    with client_of(rated) as client:
        answer = client.recommend(profile=profile, k=5, explain=True)
        for hit in answer.items:
            near = [item.item_id for item in client.similar(hit.item_id, k=59).items]
            own = [i for i in near if i in {entry["item_id"] for entry in profile}]
            assert [reason.item_id for reason in hit.because] == own[:3]
        assert client.recommend(profile=profile, k=5).items[0].because is None
        assert client.recommend(profile=[], k=1, explain=True).items[0].because == []


def test_a_preset_fills_in_what_a_query_does_not_say(rated):
    home = {"k": 4, "ranking": "like", "deny": {"zip": {"max": 20}}, "levels": True}
    with client_of(rated, scenarios={"home": Scenario.model_validate(home)}) as client:
        answer = client.recommend(user_id=user_id(7), scenario="home")
        assert (answer.ranking, len(answer.items)) == ("like", 4)
        assert answer.items[0].levels
        own = client.recommend(
            user_id=user_id(7), scenario="home", k=60, allow={"zip": {"max": 30}}
        )
        numbers = {int(item.title.split()[1]) for item in own.items}
        assert numbers
        assert numbers <= set(range(21, 31))
        loose = client.recommend(
            user_id=user_id(7), scenario="home", k=60, deny={"zip": {"max": 1}}
        )
        assert {int(item.title.split()[1]) for item in loose.items} <= set(range(21, 60))
        listed = client.scenarios().scenarios
        assert listed["home"].ranking == "like"
        with pytest.raises(ServiceError, match="this service has 'home'"):
            client.recommend(profile=[], scenario="away")


def test_without_fallback_what_is_not_known_is_an_error(rated, plain):
    with client_of(rated) as client, pytest.raises(ServiceError) as unknown:
        client.recommend(user_id="nobody")
    assert (unknown.value.status, unknown.value.type) == (404, "unknown_user")
    with client_of(plain) as client:
        with pytest.raises(ServiceError, match="needs a known item"):
            client.recommend(profile=[{"item_id": "none of ours"}])
        with pytest.raises(ServiceError, match="ranking='like' is not what this build can give"):
            client.recommend(profile=[{"item_id": "42"}], ranking="like")


def test_a_fallback_says_why_and_who_answered(rated, plain):
    def degraded(answer):
        found = answer.degraded
        return None if found is None else (found.reason, found.answered_by)

    with client_of(rated) as client:
        popular = client.popular(k=5)
        lost = client.recommend(user_id="nobody", fallback=True, k=5)
        assert (degraded(lost), ids(lost)) == (("unknown_user", "popular"), ids(popular))
        session = client.recommend(
            user_id="nobody", profile=[{"item_id": "42"}], fallback=True, k=5
        )
        assert degraded(session) == ("unknown_user", "model")
        assert ids(session) == ids(client.recommend(profile=[{"item_id": "42"}], k=5))
        nothing = client.recommend(profile=[{"item_id": "none of ours"}], k=5)
        assert degraded(nothing) == ("no_history", "popular")
        assert degraded(client.recommend(user_id=user_id(0))) == ("no_history", "popular")
        assert degraded(client.recommend(profile=[])) is None
        assert degraded(client.recommend(user_id=user_id(7), fallback=True)) is None
    with client_of(plain) as client:
        other = client.recommend(profile=[{"item_id": "42"}], ranking="like", fallback=True)
        assert (degraded(other), other.ranking) == (("ranking", "similar"), "similar")
        with pytest.raises(ServiceError, match="knows no counts"):  # nothing is left
            client.recommend(user_id="nobody", fallback=True)


def test_popular_and_recent_without_times_or_counts(rated, plain):
    with client_of(rated) as client:
        popular = client.popular(k=3, deny={"zip": {"max": 5}})
        prior = client.recommend(profile=[], k=3, deny={"zip": {"max": 5}})
        assert [item.score for item in popular.items] == [item.p_consume for item in prior.items]
    with client_of(plain) as client:
        for listing in (client.popular, client.recent):
            with pytest.raises(ServiceError, match="this build knows no"):
                listing()


def test_items_like_several_together(rated):
    with client_of(rated) as client:
        assert ids(client.similar_to(["42"], k=9)) == ids(client.similar("42", k=9))
        several = client.similar_to(["42", item_id(5), "42"], k=60)
        assert len(several.items) == 58
        scores = [item.score for item in several.items]
        assert scores == sorted(scores, reverse=True)
        with pytest.raises(ServiceError, match="'nope'") as unknown:
            client.similar_to(["42", "nope"])
        assert unknown.value.status == 404


def test_items_are_found_by_title(rated):
    with client_of(rated) as client:
        assert [i.title for i in client.titles("tiTLE 4", k=3).items] == [
            *("Title 4", "Title 40", "Title 41")
        ]
        assert client.titles("5 title").items[0].title == "Title 5"
        assert len(client.titles("title", k=60).items) == 59  # one has none
        assert client.titles("title", allow={"zip": "0009"}).items[0].item_id == item_id(9)
        assert client.titles("a.*").items == []
        with pytest.raises(ServiceError):
            client.titles("")


def test_items_are_described(rated):
    asked = [item_id(num) for num in (*ITEM_IDS, 9)]
    with client_of(rated) as client:
        found = client.items([*asked, "nope", asked[0]])
    assert [item.item_id for item in found.items] == asked
    assert found.unknown_items == ["nope"]
    nine = found.items[-1]
    assert nine.title == title(9)
    assert nine.attributes["zip"] == "0009"
    assert nine.attributes["categories"] == [["Books", "odd1"]]
    assert nine.attributes["info"] == {"a": 9}


def test_every_answer_names_builds_and_times(rated):
    app = create_app(lambda: rated)
    with httpx.Client(transport=InProcess(app), base_url="http://service") as http:
        answer = http.post("/v1/recommend", json={"user_id": user_id(7)}).json()
        assert set(answer["took_ms"]) == {"history", "encode", "rescore", "hits"}
        assert all(ms >= 0 for ms in answer["took_ms"].values())
        for got in (
            http.get("/v1/popular"),
            http.get("/v1/items", params={"title": "title"}),
            http.post("/v1/items", json={"items": ["42"]}),
            http.post("/v1/similar", json={"items": ["42"]}),
            http.get("/v1/items/42/similar"),
        ):
            assert got.status_code == 200, got.text
            assert got.json()["build_id"] == rated.build_id
            assert got.json()["changes_id"] is None
        status = http.get("/v1/status").json()["counts"]
    assert status["popular"] == status["titles"] == status["items"] == 1
    assert json.dumps(status)


def test_a_preset_holds_whatever_a_query_says(rated):
    kids = Scenario.model_validate({"deny": {"zip": {"max": 20}}, "k": 60})
    with client_of(rated, scenarios={"kids": kids}) as client:
        for own in ({}, {"deny": {}}, {"deny": None}, {"deny": {"zip": "none"}}, {"allow": {}}):
            answer = client.recommend(profile=[], scenario="kids", **own)
            assert min(int(item.title.split()[1]) for item in answer.items) == 21


def test_one_request_asks_for_so_many_items(rated):
    with client_of(rated, k_limit=5_000) as client:
        with pytest.raises(ServiceError, match="k=1001 with explain: expected 1000 at most"):
            client.recommend(profile=[], k=1001, explain=True)
        with pytest.raises(ServiceError, match="adds up to 21000: expected 20000 at most"):
            client.search([[1.0] * 8] * 1000, k=21)
        with pytest.raises(ServiceError, match="title has no word"):
            client.titles("  ")
        long = [{"profile": [], "cursor": "x" * (1 << 19)}] * 3
        with pytest.raises(ServiceError, match="all cursors: 1572864: expected 1048576"):
            client.recommend_all(long)


def test_a_weight_that_is_too_large_is_named_where_it_stands(rated):
    with client_of(rated) as client, pytest.raises(ServiceError, match=r"body.queries.1.gamma"):
        client.recommend_all([{"profile": []}, {"profile": [], "gamma": 11}])


@pytest.mark.parametrize("ranking", ["consume", "like"])
def test_deleted_items_change_no_probability_of_others(tmp_path, monkeypatch, ranking):
    workspace, _ = model_run(tmp_path, n_items=6_000)  # more than are scored as a whole
    query = {"user_id": user_id(7), "ranking": ranking, "k": 30, "exclude_seen": False}
    with Client.local(Search.open(workspace)) as client:
        whole = client.recommend(**query)
        gone = [item.item_id for item in whole.items[::3]]
        update(UpdateConfig(run=str(tmp_path), delete=gone))
    answers = []
    for few in (100, 0):  # left out one by one, and by a mask of all items
        monkeypatch.setattr("raysys.search.changes._FEW", few)
        with Client.local(Search.open(workspace)) as client:
            answers.append(client.recommend(**query))
    left = [item for item in whole.items if item.item_id not in gone]
    for answer in answers:
        assert ids(answer)[: len(left)] == [item.item_id for item in left]
        shares = [item.p_consume for item in answer.items[: len(left)]]
        assert shares == pytest.approx([item.p_consume for item in left], rel=0.02)


def test_what_is_upserted_keeps_its_place_in_time(tmp_path):
    workspace, vectors = vectors_run(tmp_path / "run")
    counted = pa.table(
        {
            "item_id": [item_id(num) for num in range(60)],
            "n_fit": [num % 7 for num in range(60)],
            "first_seen": pa.array([None if num == 5 else 1000 + num for num in range(60)]),
        }
    )
    upserted = {"item_id": [item_id(9), "fresh"], "title": ["Nine", "Fresh"]}
    upserted["embedding"] = vectors[:2].tolist()
    pq.write_table(pa.table(upserted), tmp_path / "up.parquet")
    update(UpdateConfig(run=workspace.run, upsert=str(tmp_path / "up.parquet")))
    search = Search.open(workspace)
    search._browse._embeddings = type(
        "Counted",
        (),
        {"columns": counted.column_names, "items": lambda self, names: counted.select(names)},
    )()
    recent = search.recent(top_k=60)
    assert [item.item_id for item in recent][:3] == ["fresh", item_id(59), item_id(58)]
    assert item_id(5) not in [item.item_id for item in recent]  # it was never seen
    place = [item.item_id for item in recent].index(item_id(9))
    assert (recent[place].score, recent[place].title) == (1009, "Nine")
    popular = {item.item_id: item.score for item in search.popular(top_k=61)}
    assert (popular[item_id(9)], popular["fresh"]) == (2, 0)


def test_reasons_are_the_users_own_whatever_came_after_the_model(tmp_path):
    workspace, cells = model_run(tmp_path)
    search = Search.open(workspace)
    later = dataclasses.replace(
        cells, item_num=np.where(cells.item_num % 5 == 0, 70, cells.item_num)
    )
    search.asking._users = UserStore(search.asking._users._ids, later)
    query = {"user_id": user_id(12), "k": 5, "explain": True}
    own = set(later.users(np.array([12])).item_num.tolist()) - {70}
    with Client.local(search) as client:
        for hit in client.recommend(**query).items:
            assert {reason.item_id for reason in hit.because} <= {item_id(num) for num in own}
