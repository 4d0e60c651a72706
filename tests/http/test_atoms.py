"""Steering and atoms over HTTP."""

import pytest

from raysys.http.app import create_app
from raysys.http.client import Client, ServiceError
from raysys.http.service import ServiceOptions
from raysys.http.wire import Scenario
from raysys.search.search import Search
from tests.http.test_app import InProcess
from tests.support.runs import model_run, user_id, vectors_run


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    workspace, _ = model_run(tmp_path_factory.mktemp("run"), n_items=300, sparse=True)
    return Search.open(workspace)


def used(search):
    """The atom that most items hold."""
    return search.atoms.used(1)[0].atom


@pytest.fixture
def client(search):
    preset = Scenario.model_validate({"atoms": {str(used(search)): -1}, "explain": True})
    app = create_app(lambda: search, ServiceOptions(scenarios={"calm": preset}))
    with Client("http://service", transport=InProcess(app), retries=0) as client:
        yield client


def test_a_query_is_steered_and_a_preset_steers(client, search):
    atom = used(search)
    plain = client.recommend(user_id=user_id(5), k=300)
    muted = client.recommend(user_id=user_id(5), k=300, atoms={atom: -1, "3": 0})
    assert {item.item_id for item in plain.items} == {item.item_id for item in muted.items}
    assert plain.items != muted.items
    preset = client.recommend(user_id=user_id(5), k=300, scenario="calm")
    assert [i.score for i in preset.items] == [i.score for i in muted.items]
    assert all(atom.name is None for item in preset.items for atom in item.atoms)
    own = client.recommend(user_id=user_id(5), k=300, scenario="calm", atoms={})
    assert [i.score for i in own.items] == [i.score for i in plain.items]
    batch = client.recommend_all(
        [
            {"user_id": user_id(5), "k": 300, "atoms": {str(atom): -1}},
            {"user_id": user_id(5), "atoms": {"48": 1}},
            {"user_id": user_id(5), "k": 300},
        ]
    )
    first, second, third = batch.answers
    assert (first.answer.items, third.answer.items) == (muted.items, plain.items)
    assert second.error.type == "bad_query"


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        ({"48": 1}, "'48' is no atom of this build: 0..47"),
        ({"two": 1}, "'two' is no atom"),
        ({"2": 1.01}, "less than or equal to 1"),
        ({"2": -2}, "greater than or equal to -1"),
        ({"2": True}, "no numbers"),
        ({"2": None}, "valid number"),
        ({"2": float("nan")}, "finite"),
        ({str(atom): 1 for atom in range(33)}, "at most 32"),
        ([], "valid dictionary"),
    ],
)
def test_weights_that_cannot_be_used(client, atoms, words):
    with pytest.raises(ServiceError, match=words) as caught:
        client.recommend(user_id=user_id(5), atoms=atoms)
    assert caught.value.status == 422


def test_atoms_are_listed_by_use_and_one_by_strength(client, search):
    listed = client.atoms(k=3)
    assert listed.build_id == search.build_id
    n_items = [atom.n_items for atom in listed.atoms]
    assert n_items == sorted(n_items, reverse=True)
    assert len(listed.atoms) == 3
    assert all(len(atom.items) == 3 for atom in listed.atoms)
    [one] = client.atoms(k=25, atom=listed.atoms[0].atom).atoms
    assert one.items[:3] == listed.atoms[0].items
    scores = [item.score for item in one.items]
    assert scores == sorted(scores, reverse=True)
    assert len(one.items) == min(25, one.n_items)
    with pytest.raises(ServiceError, match=r"atom=48 is no atom of this build: 0\.\.47") as caught:
        client.atoms(atom=48)
    assert caught.value.status == 422


def test_dense_codes_have_no_atoms(tmp_path):
    search = Search.open(vectors_run(tmp_path)[0])
    app = create_app(lambda: search)
    with Client("http://service", transport=InProcess(app), retries=0) as client:
        query = {"profile": [{"item_id": "42"}], "fallback": True}
        for ask in (client.atoms, lambda: client.recommend(**query, atoms={"1": 1})):
            with pytest.raises(ServiceError, match="dense 8-bit") as caught:
                ask()
            assert caught.value.status == 422
        assert client.recommend(**query, explain=True).items[0].atoms is None
