"""A service follows its run: newer builds take over while it answers."""

import gc
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref

import pytest

from raysys.commands.update import UpdateConfig, update
from raysys.errors import SearchError
from raysys.http.client import Client, ServiceError
from raysys.http.follow import Following, canaries
from raysys.http.service import Holder
from raysys.search.engine import Engine
from raysys.search.query import RecommendQuery
from raysys.search.search import Search
from raysys.store.builds import Build, Workspace
from tests.support.runs import item_id, model_run, user_id, vectors_run


@pytest.fixture
def followed(tmp_path):
    """A run, a holder of its search, and what follows it."""
    workspace, _ = vectors_run(tmp_path)
    holder = Holder(Search.open(workspace))
    return workspace, holder, Following(holder, workspace, every_s=60)


def listed(holder, name):
    query = RecommendQuery(profile=[{"item_id": name}], k=60, exclude_seen=False)
    return [hit.item_id for hit in holder().recommend(query).items]


def test_what_is_served_already_stays(followed):
    _, holder, following = followed
    before = holder()
    assert [following.look() for _ in range(3)] == [False] * 3
    assert holder() is before
    assert (following.state().swaps, following.state().refused) == (0, None)


def test_changes_and_a_newer_index_are_served(followed, tmp_path):
    workspace, holder, following = followed
    assert item_id(7) in listed(holder, "item-5")
    before = holder()
    update(UpdateConfig(run=workspace.run, delete=["item-7"]))
    assert following.look()
    assert "item-7" not in listed(holder, "item-5")
    assert "item-7" in [hit.item_id for hit in before.similar("item-5", top_k=60)]
    assert not following.look()
    vectors_run(tmp_path, n_items=70, seed=1)
    assert following.look()
    assert holder().n_items == 70
    assert following.state().swaps == 2


def test_only_the_first_changes_compile(followed, monkeypatch):
    workspace, _, following = followed
    compiled = []
    monkeypatch.setattr(Engine, "compile", lambda engine: compiled.append(engine))
    for num in (21, 22):
        update(UpdateConfig(run=workspace.run, delete=[item_id(num)]))
        assert following.look()
    assert len(compiled) == 1


def test_what_was_served_before_goes_as_soon_as_nobody_asks_it(followed, tmp_path):
    workspace, holder, following = followed
    queries = [RecommendQuery(profile=[{"item_id": item_id(n)}], k=5) for n in range(3)]
    gc.disable()
    try:
        for seed in (1, 2):
            holder().recommend_all(queries)
            holder().recommend(queries[0])
            before = weakref.ref(holder())
            update(UpdateConfig(run=workspace.run, delete=[item_id(20 + seed)]))
            assert following.look()
            assert before() is None
    finally:
        gc.enable()


def test_a_damaged_index_is_refused_and_named_until_it_is_whole(followed, tmp_path, caplog):
    workspace, holder, following = followed
    before = holder()
    vectors_run(tmp_path, n_items=70, seed=1)
    path = workspace.current("codes").path("scale.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not following.look()
    assert holder() is before
    assert f"{path} does not have the hash" in following.state().refused
    told = caplog.text.count("service stays with")
    assert not any(following.look() for _ in range(5))
    assert caplog.text.count("service stays with") == told == 1
    path.write_bytes(whole)
    assert any(following.look() for _ in range(70))
    assert following.state().refused is None
    assert holder().n_items == 70


def test_a_run_that_cannot_be_read_is_told_and_read_again(followed, tmp_path):
    workspace, holder, following = followed
    path = tmp_path / "index" / "current.json"
    text = path.read_text()
    path.unlink()
    assert not following.look()
    assert "holds no index build yet" in following.state().refused
    path.write_text(text)
    assert not any(following.look() for _ in range(5))
    assert following.state().refused is None
    assert workspace.current("index").build_id == holder().build_id


def test_a_search_without_answers_is_refused(followed, monkeypatch, tmp_path):
    _, holder, following = followed
    before = holder()
    vectors_run(tmp_path, n_items=70, seed=1)
    recommend_all = Search.recommend_all

    def empty(self, queries):
        answers = recommend_all(self, queries)
        if self is not before:
            for answer in answers:
                answer.items.clear()
        return answers

    monkeypatch.setattr(Search, "recommend_all", empty)
    assert not following.look()
    assert "has no usable list for a profile of '42'" in following.state().refused
    assert holder() is before


def test_scores_that_are_no_numbers_and_faults_of_ours_are_refused_too(
    followed, monkeypatch, tmp_path, caplog
):
    _, holder, following = followed
    before = holder()
    vectors_run(tmp_path, n_items=70, seed=1)
    recommend_all = Search.recommend_all

    def odd(self, queries):
        answers = recommend_all(self, queries)
        if self is not before:
            for answer in answers:
                answer.items[0].score = None
        return answers

    monkeypatch.setattr(Search, "recommend_all", odd)
    assert not following.look()
    assert "has no usable list" in following.state().refused
    monkeypatch.setattr("raysys.http.follow.canaries", lambda *_: 1 / 0)
    assert not any(following.look() for _ in range(3))
    assert following.state().refused == "division by zero"
    assert "ZeroDivisionError" in caplog.text
    assert holder() is before


def test_only_new_builds_are_hashed_again(followed, monkeypatch):
    workspace, _, following = followed
    checked = []
    monkeypatch.setattr(Build, "verify", lambda self, *_: checked.append(self.kind))
    update(UpdateConfig(run=workspace.run, delete=["item-7"]))
    checked.clear()
    assert following.look()
    assert checked == ["changes"]


def test_what_a_uri_says_of_keys_is_not_told(followed, monkeypatch):
    _, _, following = followed

    def failing(kind):
        raise OSError("cannot read s3://KEY:SECRET@bucket/run/index/current.json")

    monkeypatch.setattr(following._workspace, "current", failing)
    assert not following.look()
    told = following.state().refused
    assert told == "cannot read s3://bucket/run/index/current.json"


def test_a_refused_build_is_tried_soon_however_often_a_look_failed_before(
    followed, monkeypatch, tmp_path
):
    workspace, _, following = followed
    current = workspace.current

    def failing(kind):
        raise OSError("away")

    for _ in range(7):
        monkeypatch.setattr(workspace, "current", failing)
        assert not following.look()
        monkeypatch.setattr(workspace, "current", current)
        assert not following.look()
    vectors_run(tmp_path, n_items=70, seed=1)
    path = workspace.current("codes").path("scale.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not following.look()
    path.write_bytes(whole)
    assert [following.look() for _ in range(2)] == [False, True]


def test_canaries_compare_the_lists_of_two_searches(tmp_path, monkeypatch):
    first, _ = vectors_run(tmp_path / "a", n_items=200)
    other, _ = vectors_run(tmp_path / "b", n_items=200, seed=1)
    one, two = Search.open(first), Search.open(other)
    assert canaries(one, one) == 1.0
    assert canaries(one, two) < 0.4

    def unknown(self, queries):
        return [SearchError("no such item") for _ in queries]

    monkeypatch.setattr(Search, "recommend_all", unknown)
    assert canaries(one, two) == 1.0


def test_a_model_and_its_stored_users_are_followed(tmp_path):
    workspace, _ = model_run(tmp_path)
    holder = Holder(Search.open(workspace))
    following = Following(holder, workspace, every_s=60)
    best = holder().recommend(RecommendQuery(user_id=user_id(4), k=1)).items[0].item_id
    update(UpdateConfig(run=workspace.run, delete=[best]))
    assert following.look()
    assert holder().recommend(RecommendQuery(user_id=user_id(4), k=1)).items[0].item_id != best


def test_a_run_on_an_object_store_is_followed(s3_bucket, tmp_path):
    run = f"{s3_bucket}/followed"
    vectors_run(run)
    workspace = Workspace(run, cache_dir=str(tmp_path / "cache"))
    holder = Holder(Search.open(workspace))
    following = Following(holder, workspace, every_s=60)
    assert not following.look()
    update(UpdateConfig(run=run, delete=["item-7"], cache_dir=str(tmp_path / "other")))
    assert following.look()
    assert "item-7" not in listed(holder, "item-5")
    vectors_run(run, n_items=70, seed=1)
    assert following.look()
    assert holder().n_items == 70
    assert following.state().refused is None


@pytest.mark.slow
def test_a_running_service_takes_changes_without_a_failed_request(tmp_path):
    vectors_run(tmp_path, n_items=300, dim=16)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [f"run={tmp_path}", f"port={port}", "local=true", "follow_s=0.2"]
    process = subprocess.Popen([sys.executable, "-m", "raysys.cli", "serve", *words])
    failed, asked, over = [], [0], threading.Event()

    def ask():
        with Client(f"http://127.0.0.1:{port}", retries=0) as client:
            while not over.is_set():
                try:
                    asked[0] += 1
                    assert len(client.recommend(profile=[{"item_id": "item-5"}], k=20).items) == 20
                except (ServiceError, AssertionError) as error:
                    failed.append(error)

    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            wait_until(lambda: healthy(client, process))
            thread = threading.Thread(target=ask)
            thread.start()
            for swap in range(1, 4):
                best = client.recommend(profile=[{"item_id": "item-5"}], k=1).items[0].item_id
                update(UpdateConfig(run=str(tmp_path), delete=[best]))
                wait_until(lambda swap=swap: client.status().following.swaps == swap)
                items = client.recommend(profile=[{"item_id": "item-5"}], k=299).items
                assert best not in [hit.item_id for hit in items]
            over.set()
            thread.join()
            assert client.status().following.refused is None
    finally:
        over.set()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    assert failed == []
    assert asked[0] > 10
    assert process.returncode == 0


def healthy(client, process):
    assert process.poll() is None
    try:
        return client.health()
    except ServiceError:
        return None


def wait_until(done, *, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)
