"""Experiments: who is in which arm, what each is answered with, and what is written down of it."""

import numpy as np
import pytest
from scipy import stats

from raysys.errors import BuildError
from raysys.events.feed import Feed
from raysys.events.fold import files_of, fold, read_file
from raysys.events.records import IMPRESSIONS
from raysys.http.app import create_app
from raysys.http.arms import Arm, Experiment
from raysys.http.client import Client
from raysys.http.service import ServiceOptions
from raysys.http.wire import Scenario
from raysys.search.search import Search
from raysys.store.storage import Storage
from tests.http.test_app import InProcess
from tests.support.runs import model_run, user_id, vectors_run

SHARES = {"control": 0.5, "like": 0.3, "other": 0.2}


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    return Search.open(model_run(tmp_path_factory.mktemp("rated"))[0])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Search.open(vectors_run(tmp_path_factory.mktemp("run"))[0])


@pytest.fixture
def feed(tmp_path):
    return Feed(Storage(str(tmp_path)))


@pytest.fixture
def experiment(plain, feed):
    like = Scenario(ranking="like", k=3)
    arms = [
        Arm("control", SHARES["control"], None, Scenario()),
        Arm("like", SHARES["like"], None, like),
        Arm("other", SHARES["other"], lambda: plain, Scenario()),
    ]
    return Experiment("first", arms, salt="s", feed=feed)


@pytest.fixture
def client(rated, experiment):
    app = create_app(lambda: rated, ServiceOptions(experiment=experiment))
    return Client("http://service", transport=InProcess(app), retries=0)


def asks(experiment, arm):
    """Return a query for a stored user in an arm."""
    user = next(u for u in map(user_id, range(20)) if experiment.arm_of(u).name == arm)
    return {"user_id": user, "profile": [{"item_id": "42"}], "fallback": True}


def test_users_are_given_to_arms_by_their_shares(experiment):
    names = [experiment.arm_of(str(number)).name for number in range(20_000)]
    counts = [names.count(name) for name in SHARES]
    assert stats.chisquare(counts, 20_000 * np.array([*SHARES.values()])).pvalue > 0.001
    assert names == [experiment.arm_of(str(number)).name for number in range(20_000)]


def test_another_salt_gives_users_anew(experiment):
    other = Experiment("second", experiment.arms, salt="t")
    both = [(experiment.arm_of(str(n)).name, other.arm_of(str(n)).name) for n in range(20_000)]
    table = [[both.count((a, b)) for b in SHARES] for a in SHARES]
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_arms_answer_from_their_index_with_their_settings(client, experiment, rated, plain):
    control = client.recommend(**asks(experiment, "control"))
    assert (control.arm, control.build_id, control.ranking) == (
        *("control", rated.build_id),
        "consume",
    )
    like = client.recommend(**asks(experiment, "like"), k=7, ranking="rating")
    assert (like.arm, like.ranking, len(like.items)) == ("like", "like", 3)
    other = client.recommend(**asks(experiment, "other"))
    assert (other.arm, other.build_id, other.ranking) == ("other", plain.build_id, "similar")


def test_a_batch_answers_each_user_as_alone(client, experiment):
    queries = [asks(experiment, arm) for arm in ("other", "control", "like", "other")]
    queries.insert(2, {"user_id": "nobody"})  # refused
    batch = client.recommend_all(queries)
    alone = [client.recommend(**query) for query in (*queries[:2], *queries[3:])]
    given = [entry.answer for entry in batch.answers if entry.answer is not None]
    assert [(a.arm, [i.item_id for i in a.items]) for a in given] == [
        (a.arm, [i.item_id for i in a.items]) for a in alone
    ]
    assert batch.answers[2].error is not None


def test_queries_without_a_user_are_in_no_arm(client, rated):
    answer = client.recommend(profile=[{"item_id": "42"}])
    assert (answer.arm, answer.build_id) == (None, rated.build_id)


def test_impressions_are_written_down(client, experiment, feed):
    client.recommend(profile=[])
    answers = [client.recommend(**asks(experiment, "like"))]
    answers += [entry.answer for entry in client.recommend_all([asks(experiment, "other")]).answers]
    feed.stop()
    fold(feed._storage, settled_s=0)
    [name] = files_of(feed._storage, IMPRESSIONS)
    rows = read_file(feed._storage, name).to_pylist()
    assert [(row["arm"], row["item_ids"], row["build_id"], row["ranking"]) for row in rows] == [
        (a.arm, [hit.item_id for hit in a.items], a.build_id, a.ranking) for a in answers
    ]
    assert [row["user_id"] for row in rows] == [
        asks(experiment, arm)["user_id"] for arm in ("like", "other")
    ]
    assert {(row["experiment"], row["weight"]) for row in rows} == {("first", 0.3), ("first", 0.2)}
    assert len({row["impression_id"] for row in rows}) == 2


def test_an_answer_does_not_wait_for_its_impression(client, experiment, feed, monkeypatch, caplog):
    def refuse(_):
        raise BuildError("no space left")

    monkeypatch.setattr(feed, "show", refuse)
    for _ in range(2):
        assert client.recommend(**asks(experiment, "like")).items
    assert caplog.text.count("impressions are not written: no space left") == 1


def test_the_status_names_the_arms(client, rated, plain):
    state = client.status().experiment
    assert state.experiment == "first"
    assert {arm.arm: (arm.share, arm.build_id) for arm in state.arms} == {
        "control": (0.5, rated.build_id),
        "like": (0.3, rated.build_id),
        "other": (0.2, plain.build_id),
    }


def test_whoever_looks_at_a_user_is_in_no_arm(client, experiment, feed, rated):
    answer = client.recommend(**asks(experiment, "other"), experiment=False)
    assert (answer.arm, answer.build_id) == (None, rated.build_id)
    feed.stop()
    assert not feed._storage.files("journal")
