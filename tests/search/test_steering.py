"""Raised and muted atoms, against scores of all items made by hand."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import SearchError
from raysys.index.strengths import N_FULL, Strengths
from raysys.scoring.normaliser import Normaliser, exact_sums
from raysys.scoring.rankings import RANKINGS
from raysys.search.changes import Changes
from raysys.search.query import RecommendQuery
from raysys.search.search import Search
from raysys.search.steering import MIDDLE
from raysys.store.builds import Workspace
from tests.support.planting import plant
from tests.support.runs import (
    item_id,
    model_run,
    user_id,
    vectors_run,
    write_embeddings,
    write_sparse_index,
)
from tests.support.worlds import CASES, make_index

N_ITEMS = 700


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search that scores all items."""
    workspace, _ = model_run(tmp_path_factory.mktemp("run"), n_items=N_ITEMS, sparse=True)
    return Search.open(workspace)


@pytest.fixture(scope="module")
def indexed(whole):
    """The same behind candidates of the index, as in large catalogues."""
    search = Search(whole.served)
    engine = search.engine
    z = engine.encode(search.opened.users.history(user_id(9)))
    spread, *_ = exact_sums(engine.scorer, z, z)
    engine.normaliser = Normaliser(engine.scorer, spread, np.inf)
    assert not engine.normaliser.exact
    return search


def test_every_ranking_is_compiled_before_anybody_asks(indexed, monkeypatch):
    asked = []

    def best_of_some(*_, ranking, **__):
        asked.append(ranking.name)
        yield from ()

    monkeypatch.setattr("raysys.search.engine.best_of_some", best_of_some)
    indexed.engine.compile()
    assert asked == [*indexed.engine.rankings]
    assert "discover" in asked


def ask(search, **fields):
    return search.recommend(RecommendQuery.model_validate({"user_id": user_id(9), **fields})).items


def held_by_hand(search, atom):
    """What every item holds of an atom, from 0 to 1."""
    codes = search.engine.codes.codes
    atoms, values = codes.atoms_and_values(np.arange(codes.n_items))
    signed = np.where(atoms == atom, values, 0).sum(axis=1)
    signed = signed * np.sign((signed * np.abs(signed)).sum())
    strongest = np.sort(signed[signed > 0])[-N_FULL:]
    return np.clip(signed / strongest[0], 0, 1) if len(strongest) else signed


def steered_by_hand(search, weights, **fields):
    """The whole list {item_id: score}, from the unsteered one."""
    plain = ask(search, k=N_ITEMS, **fields)
    nums = [search.items.num(hit.item_id) for hit in plain]
    shares = sum(w * held_by_hand(search, int(a))[nums] for a, w in weights.items())
    scores = np.array([hit.score for hit in plain])
    others = np.sort(scores[shares == 0])[::-1]
    spread = scores.max() - others[min(MIDDLE, len(others)) - 1]
    found = dict(zip((hit.item_id for hit in plain), scores + spread * shares, strict=True))
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def atom_of(search, ranking, place=0):
    """An atom that the best item holds as one of the ten strongest, or nearly so."""
    num = search.items.num(ask(search, ranking=ranking)[place].item_id)
    return max(range(48), key=lambda atom: held_by_hand(search, atom)[num])


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("weights", [(-1,), (1,), (0.4, -0.7, 1)])
def test_a_steered_list_is_what_scores_of_all_items_give(whole, ranking, weights):
    atoms = [atom_of(whole, ranking), 5, 11][: len(weights)]
    given = dict(zip(map(str, atoms), weights, strict=True))
    expected = steered_by_hand(whole, given, ranking=ranking)
    hits = ask(whole, ranking=ranking, atoms=given, k=60)
    np.testing.assert_allclose([hit.score for hit in hits], [*expected.values()][:60], rtol=1e-4)
    close = np.isclose([expected[hit.item_id] for hit in hits], [h.score for h in hits], rtol=1e-4)
    assert close.all()


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("kind", ["whole", "indexed"])
def test_muting_removes_raising_brings_and_probabilities_stay(request, kind, ranking):
    search = request.getfixturevalue(kind)
    atom = atom_of(search, ranking)
    strongest = {item.item_id for item in search.atoms.of(atom, N_FULL).items}
    plain = {hit.item_id: hit for hit in ask(search, ranking=ranking, k=N_ITEMS)}
    before = strongest & set([*plain][:20])
    muted = ask(search, ranking=ranking, atoms={str(atom): -1})
    raised = ask(search, ranking=ranking, atoms={str(atom): 1})
    assert not strongest & {hit.item_id for hit in muted}
    assert len(strongest & {hit.item_id for hit in raised}) > len(before)
    for hit in [*muted, *raised]:
        given = (hit.p_consume, hit.p_like, hit.expected_rating)
        same = plain[hit.item_id]
        if kind == "whole":  # what a sum over a sample takes exactly goes with the list's length
            assert given == (same.p_consume, same.p_like, same.expected_rating)
    short = {hit.item_id: hit for hit in ask(search, ranking=ranking)}
    both = [hit for hit in [*muted, *raised] if hit.item_id in short]
    assert both
    for hit in both:
        same = short[hit.item_id]
        assert (hit.p_consume, hit.p_like) == (same.p_consume, same.p_like)
    nothing = ask(search, ranking=ranking, atoms={str(atom): 0})
    assert nothing == ask(search, ranking=ranking) == ask(search, ranking=ranking, atoms={})


def test_more_candidates_are_searched_where_muted_ones_fill_them(indexed, whole):
    given = {str(atom): -1.0 for atom in range(32)}
    expected = steered_by_hand(whole, given, ranking="like")
    hits = ask(indexed, ranking="like", atoms=given)
    assert {hit.item_id for hit in hits} == set([*expected][:20])


def test_what_may_not_be_listed_is_not_raised(indexed):
    atom = atom_of(indexed, "consume")
    raised = {str(atom): 1}
    listed = [hit.item_id for hit in ask(indexed, atoms=raised, k=5)]
    first, seen = listed[0], {"item_id": listed[1]}
    denied = ask(indexed, atoms=raised, deny={"item_id": first}, profile=[seen])
    assert not {first, seen["item_id"]} & {hit.item_id for hit in denied}
    pages, cursor = [], None
    for _ in range(3):
        query = {"user_id": user_id(9), "k": 5, "atoms": raised, "cursor": cursor}
        page = indexed.recommend(RecommendQuery.model_validate(query))
        pages += [hit.item_id for hit in page.items]
        cursor = page.cursor
    assert len(set(pages)) == 15
    assert pages[:5] == listed


def test_queries_of_a_batch_are_steered_each_for_itself(indexed):
    fields = [{"atoms": {"3": 1}}, {}, {"atoms": {"3": -1, "7": 0.5}}]
    queries = [RecommendQuery.model_validate({"user_id": user_id(9), **f}) for f in fields]
    together = [answer.items for answer in indexed.recommend_all(queries)]
    assert together == [indexed.recommend(query).items for query in queries]


def test_items_that_came_later_are_as_they_were_and_gone_ones_stay_away(tmp_path):
    workspace, _ = model_run(tmp_path, n_items=N_ITEMS, sparse=True)
    search = Search.open(workspace)
    atom = atom_of(search, "consume")
    gone = search.atoms.of(atom, 3).items[0].item_id
    changes = Changes.none(search.engine.codes.dim, 2).delete([gone], search.opened.built)
    new = pa.table({"item_id": ["new"], "title": ["New"]})
    vectors = np.full((1, search.engine.codes.dim), 0.2, np.float32)
    changes = changes.upsert(new, vectors, np.full((1, 2), 3, np.float32))
    plant(workspace, "changes", changes.save, inputs=[search.served.coded.embeddings])
    search = Search.open(workspace)
    plain = {hit.item_id: hit.score for hit in ask(search, k=N_ITEMS)}
    steered = {hit.item_id: hit.score for hit in ask(search, k=N_ITEMS, atoms={str(atom): 1})}
    assert steered["new"] == plain["new"]
    assert gone not in steered
    assert gone not in {item.item_id for item in search.atoms.of(atom, 10).items}
    assert max(steered.values()) > max(plain.values())


@pytest.mark.parametrize(("kind", "similarity"), CASES)
def test_strengths_are_those_of_the_codes(kind, similarity):
    index = make_index(kind, similarity)
    strengths = Strengths(index)
    rows = index.rows_of(np.arange(index.n_items))
    atoms, values = index.codes.atoms_and_values(rows)
    nums = np.arange(index.n_items, dtype=np.int32)
    for atom in (0, 17, 99):
        entries = np.where(atoms == atom, values, 0)
        sign = np.sign((entries * np.abs(entries)).sum())
        assert strengths.n_items[atom] == (entries * sign > 0).sum()
        assert np.sign(strengths.full[atom]) == sign
        found, held = strengths.items_of(atom, top_k=30)
        assert (np.diff(held) <= 0).all()
        assert len(set(found.tolist())) == len(found)
        expected = np.clip(entries / strengths.full[atom], 0, 1).sum(axis=1)
        shares = strengths.shares(np.array([atom]), np.ones(1, np.float32), nums)
        np.testing.assert_allclose(shares, expected, atol=1e-5)
        some = np.array([index.n_items + 3, 5], dtype=np.int32)
        got = strengths.shares(np.array([atom]), np.ones(1, np.float32), some)
        np.testing.assert_allclose(got, [0, expected[5]], atol=1e-5)


def test_plain_vectors_are_steered_too(tmp_path):
    workspace = Workspace(str(tmp_path))
    vectors = np.random.default_rng(0).normal(size=(500, 12)).astype(np.float32)
    bias = np.zeros((500, 0), dtype=np.float32)
    embeddings = write_embeddings(workspace, vectors, bias, similarity="cosine", inputs=[])
    write_sparse_index(workspace, embeddings, vectors, similarity="cosine")
    search = Search.open(workspace)
    fields = {"user_id": None, "profile": [{"item_id": item_id(n)} for n in (9, 12)]}
    atom = atom_of_profile(search, fields)
    expected = steered_by_hand(search, {str(atom): -1}, **fields)
    hits = ask(search, atoms={str(atom): -1}, **fields)
    assert [hit.item_id for hit in hits] == [*expected][:20]


def atom_of_profile(search, fields):
    num = search.items.num(ask(search, **fields)[0].item_id)
    return max(range(48), key=lambda atom: held_by_hand(search, atom)[num])


@pytest.mark.parametrize("text", ["48", "-1", "x", "1.5", "²", ""])
def test_an_atom_that_is_not_there_is_named_with_those_that_are(whole, text):
    with pytest.raises(SearchError, match=r"0\.\.47"):
        ask(whole, atoms={text: 1})


def test_dense_codes_have_nothing_to_steer_by(tmp_path):
    search = Search.open(vectors_run(tmp_path)[0])
    query = {"profile": [{"item_id": item_id(3)}], "atoms": {"1": 1}, "fallback": True}
    with pytest.raises(SearchError, match="dense 8-bit"):
        search.recommend(RecommendQuery.model_validate(query))


def test_hits_name_the_atoms_that_brought_most(whole):
    hits = ask(whole, ranking="like", explain=True)
    query = RecommendQuery.model_validate({"user_id": user_id(9), "ranking": "like"})
    for hit in hits[:5]:
        explained = whole.explain(hit.item_id, query)
        assert [each.atom for each in hit.atoms] == [each.atom for each in explained.atoms]
        brought = np.array([each.contribution for each in explained.atoms])
        shares = np.array([each.share for each in hit.atoms])
        np.testing.assert_allclose(shares / shares[0], brought / brought[0], rtol=1e-4)
        assert 0 < np.abs(shares).sum() <= 1 + 1e-6
    assert ask(whole)[0].atoms is None
    assert dataclasses.asdict(hits[0])["atoms"]


@pytest.mark.parametrize("ranking", ["consume", "like"])
@pytest.mark.parametrize("name", ["whole", "indexed"])
def test_pages_of_a_steered_list_are_those_of_a_long_one(name, ranking, request):
    search = request.getfixturevalue(name)
    atom = int(search.opened.strengths.strongest[:, 0].argmax())
    query = {"user_id": user_id(9), "ranking": ranking, "atoms": {str(atom): 1, "3": -1}}
    long = search.recommend(RecommendQuery.model_validate(query | {"k": 12})).items
    pages, cursor = [], None
    for _ in range(3):
        asked = query | {"k": 4, "cursor": cursor}
        page = search.recommend(RecommendQuery.model_validate(asked))
        pages, cursor = [*pages, *page.items], page.cursor
    assert [(hit.item_id, hit.score) for hit in pages] == [(h.item_id, h.score) for h in long]
