import dataclasses
import re

import numpy as np
import pytest

from raysys.commands.query import QueryConfig, format_table, query
from raysys.config import load
from raysys.errors import ConfigError, CorruptBuildError, DataError, SearchError, UnknownItemError
from raysys.http.app import create_app
from raysys.http.client import Client, ServiceError
from raysys.http.service import ServiceOptions
from raysys.http.wire import Scenario
from raysys.search.query import Hit, RecommendQuery
from raysys.search.search import Search
from raysys.store.builds import Workspace
from tests.http.test_app import InProcess
from tests.support.runs import item_id, model_run, user_id, vectors_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model_run(folder)
    return str(folder)


def ask(run, *words):
    return query(load(QueryConfig, [f"run={run}", *words]))


def test_a_stored_user(run):
    lines = ask(run, f"user_id={user_id(4)}", "top_k=3", "ranking=rating").splitlines()
    names = ["rank", "item_id", "title", "score", "P(consume)", "P(like)", "E(rating)"]
    assert re.split(r" {2,}", lines[0]) == names
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]


def test_settings_of_the_ranking(run):
    def items(*words):
        lines = ask(run, f"user_id={user_id(15)}", *words).splitlines()[1:]
        return [re.split(r" {2,}", line.strip())[1] for line in lines]

    assert len(items("top_k=60")) == 60 - 15
    assert len(items("top_k=60", "exclude_seen=false")) == 60
    lists = [items(*w) for w in ([], ["ranking=discover"], ["ranking=discover", "gamma=3"])]
    assert lists[0] != lists[1] != lists[2] != lists[0]


def test_atoms_on_the_command_line(tmp_path):
    workspace, _ = model_run(tmp_path, n_items=300, sparse=True)
    user = f"user_id={user_id(9)}"
    plain = ask(workspace.run, user)
    with Client.open(workspace.run) as client:
        atom = client.atoms(k=1).atoms[0].atom
    assert ask(workspace.run, user, f"atoms={{{atom}: -1, 3: 0}}") != plain
    assert ask(workspace.run, user, f"atoms={{{atom}: 0}}") == plain
    with pytest.raises(ConfigError, match="atoms='3' is not accepted"):
        ask(workspace.run, user, f"atoms={{{atom}: 3}}")
    with pytest.raises(ServiceError, match="no atom of this build"):
        ask(workspace.run, user, "atoms={48: 1}")
    assert "atoms" in ask(workspace.run, user, "because=true").splitlines()[0]


def test_a_profile_on_the_command_line(run, caplog):
    text = ask(run, "profile=[{item_id: 42, rating: 5}, {item_id: nope}]", "top_k=60")
    assert len(text.splitlines()) == 60
    assert "'nope'" in caplog.text
    assert len(ask(run, "profile=[]", "top_k=60").splitlines()) == 61


def test_the_word_null_is_an_id_of_a_profile():
    words = ["profile=[{item_id: null, rating: null}, {item_id: Null}]"]
    first, second = load(QueryConfig, words).profile
    assert (first.item_id, first.rating, second.item_id) == ("null", None, "Null")


def test_similar_items_have_no_probabilities(run):
    text = ask(run, f"similar_to={item_id(1)}", "top_k=2")
    assert text.splitlines()[0].split() == ["rank", "item_id", "title", "score"]


def test_number_like_ids_stay_text(tmp_path):
    vectors_run(tmp_path)
    assert len(ask(tmp_path, "similar_to=42", "top_k=1").splitlines()) == 2


@pytest.mark.parametrize("words", [[], ["user_id=a", "similar_to=b"], ["titles=[a]", "profile=[]"]])
def test_exactly_one_question(run, words):
    with pytest.raises(ConfigError, match="exactly one of"):
        ask(run, *words)


def test_a_service_that_is_not_there(monkeypatch):
    monkeypatch.setattr("raysys.http.retries.FIRST_PAUSE_S", 0.0)
    with pytest.raises(ServiceError, match="no answer") as caught:
        query(QueryConfig(url="http://127.0.0.1:9", user_id="1"))
    assert "127.0.0.1:9" in str(caught.value)


def test_tables_cut_long_titles_and_drop_empty_columns():
    text = format_table([Hit("a", "x" * 99, 1.0), Hit("long id", None, -2.5e-7)])
    header, first, second = text.splitlines()
    assert header.split() == ["rank", "item_id", "title", "score"]
    assert "x" * 47 + "…" in first
    assert second.split() == ["2", "long", "id", "-2.5e-07"]
    assert format_table([]) == "no items\n"


def test_titles_filters_and_levels(run):
    by_title = ask(run, "titles=[Title 7, title 12]", "top_k=60", "levels=true")
    header, first, *_ = by_title.splitlines()
    assert "P(level)" in header
    assert re.search(r"1:0\.\d\d 2:0\.\d\d 3:0\.\d\d 4:0\.\d\d 5:0\.\d\d", first)
    assert len(by_title.splitlines()) == 59
    two = ask(run, "titles=[Title 7]", f"allow={{item_id: [{item_id(5)}, {item_id(9)}]}}")
    assert {line.split()[1] for line in two.splitlines()[1:]} == {item_id(5), item_id(9)}
    rest = ask(run, f"similar_to={item_id(9)}", "deny={title: Title 5}", "top_k=99")
    assert len(rest.splitlines()) == 1 + 58
    with pytest.raises(ServiceError, match="no attribute 'genre'"):
        ask(run, "profile=[]", "allow={genre: Comedy}")
    with pytest.raises(UnknownItemError, match="is several items"):
        ask(run, "titles=[Title]")


def test_vectors_on_the_command_line_and_in_files(tmp_path):
    _, vectors = vectors_run(tmp_path)
    numbers = ",".join(str(float(x)) for x in vectors[5])
    one = ask(tmp_path, f"vector=[{numbers}]", "top_k=2")
    assert one.splitlines()[1].split()[1] == item_id(5)
    np.save(tmp_path / "q.npy", vectors[:3])
    three = ask(tmp_path, f"vectors={tmp_path / 'q.npy'}", "top_k=1")
    assert [line.split()[0] for line in three.splitlines() if line] == ["rank", "1"] * 3
    with pytest.raises(ServiceError, match="query vectors have shape"):
        ask(tmp_path, "vector=[1,2]")
    with pytest.raises(DataError, match="cannot be read as a"):
        ask(tmp_path, "vectors=none.npy")


def test_explain_needs_a_profile_and_atoms(run):
    with pytest.raises(ConfigError, match="explain= goes with"):
        ask(run, "similar_to=42", "explain=42")
    with pytest.raises(SearchError, match="needs atoms"):
        ask(run, "profile=[]", "explain=42")
    with pytest.raises(ConfigError, match="needs run="):
        query(QueryConfig(url="http://127.0.0.1:9", titles=["x"]))


def test_ids_with_line_feeds_keep_a_row_each(tmp_path):
    workspace, _ = model_run(tmp_path)
    found = query(QueryConfig(run=workspace.run, user_id=user_id(0), top_k=60)).splitlines()
    assert len(found) == 61
    assert any("two\\nlines\\n" in line for line in found)


def test_what_http_takes_the_command_takes(run):
    keys = {field.name for field in dataclasses.fields(QueryConfig)}
    renamed = {"k", "explain", "cursor", "experiment"}
    assert keys >= (set(RecommendQuery.model_fields) - renamed) | {"top_k", "because"}
    plain, weighted = ["ranking=discover", "top_k=60"], ["ranking=discover^0.1", "top_k=60"]
    user = f"user_id={user_id(4)}"
    assert ask(run, user, *plain) == ask(run, user, "ranking=discover^0.5", "top_k=60")
    assert ask(run, user, *weighted) == ask(run, user, *plain, "gamma=0.1")
    assert ask(run, user, *weighted) != ask(run, user, *plain)
    assert ask(run, user, "exclude_seen=false", "top_k=60") != ask(run, user, "top_k=60")


def test_weights_are_as_asked(run, caplog):
    user = [f"user_id={user_id(4)}", "top_k=60"]
    large = ask(run, *user, "ranking=discover", "gamma=11")
    assert large == ask(run, *user, "ranking=discover^11")
    assert large != ask(run, *user, "ranking=discover^10")
    assert caplog.text == ""
    assert ask(run, *user, "gamma=3") == ask(run, *user)
    assert "gamma is ignored without a ranking" in caplog.text


def test_a_damaged_build_is_named(run, monkeypatch):
    def damage(*_args, **_kwargs):
        raise CorruptBuildError("codes.bin is missing")

    monkeypatch.setattr(Search, "recommend", damage)
    with pytest.raises(CorruptBuildError, match=r"^codes\.bin is missing$"):
        ask(run, f"user_id={user_id(4)}")


@pytest.mark.parametrize(
    ("word", "accepted"),
    [
        ("top_k=0", "top_k=0 is not accepted: expected greater than or equal to 1"),
        ("ranking=best", "ranking='best' is not accepted: expected 'consume'"),
        ("gamma=-1", "gamma=-1.0 is not accepted: expected greater than or equal to 0"),
        ("profile=[{item_id: a, stars: 5}]", "stars: Extra inputs are not permitted"),
        ("profile=[{rating: 5}]", "item_id: Field required"),
    ],
)
def test_what_no_request_may_say_is_refused(word, accepted):
    with pytest.raises(ConfigError) as caught:
        load(QueryConfig, [word])
    assert accepted in str(caught.value)


def test_a_service_answers_as_the_builds_do(run, monkeypatch):
    search = Search.open(Workspace(run))
    words = [f"user_id={user_id(4)}", "profile=[{item_id: 42, rating: 5}]", "similar_to=42"]
    answers = [ask(run, word) for word in words]
    monkeypatch.setattr("raysys.commands.query.Client", lambda url, key: Client.local(search))
    assert [query(load(QueryConfig, ["url=http://it", word])) for word in words] == answers


def test_reasons_and_fallbacks(run, caplog):
    text = ask(run, "profile=[{item_id: 42, rating: 5}]", "because=true", "top_k=2")
    assert text.splitlines()[0].split()[-1] == "because"
    assert all(line.endswith("Title 0") for line in text.splitlines()[1:])
    with pytest.raises(ServiceError, match="nobody"):
        ask(run, "user_id=nobody")
    assert len(ask(run, "user_id=nobody", "fallback=true").splitlines()) == 21
    assert "answered by=popular reason=unknown_user" in caplog.text


def test_presets_are_those_of_a_service(run, monkeypatch):
    with pytest.raises(ServiceError, match="this service has none"):
        ask(run, f"user_id={user_id(4)}", "scenario=home")
    alone = ask(run, f"user_id={user_id(4)}", "top_k=3", "ranking=like")
    search = Search.open(Workspace(run))
    home = ServiceOptions(scenarios={"home": Scenario(k=3, ranking="like")})
    client = Client("http://it", transport=InProcess(create_app(lambda: search, home)))
    monkeypatch.setattr("raysys.commands.query.Client", lambda url, key: client)
    words = ["url=http://it", f"user_id={user_id(4)}", "scenario=home"]
    assert query(load(QueryConfig, words)) == alone
