import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from raysys.autoencoder.files import Autoencoder
from raysys.autoencoder.linear_form import retrieval_vectors
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.errors import BuildError, CorruptBuildError, SearchError, UnknownItemError
from raysys.scoring.rankings import RANKINGS, Ranking, rankings_of
from raysys.search.changes import Changes
from raysys.search.query import ProfileEntry, RecommendQuery, UnknownUserError
from raysys.search.rescoring import exact_scores
from raysys.search.search import Search
from raysys.search.served import Served
from raysys.store.builds import Workspace
from tests.support.exact import model_scores, rounded
from tests.support.runs import PRESENCE, item_id, model_run, title, user_id, vectors_run


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module", params=["cosine", "inner_product"])
def plain(request, tmp_path_factory):
    workspace, vectors = vectors_run(
        tmp_path_factory.mktemp("run"), n_items=700, similarity=request.param
    )
    vectors = unit(vectors) if request.param == "cosine" else vectors
    return Search.open(workspace), vectors


def test_similar_is_the_exact_cosine_order(plain):
    search, vectors = plain
    cosine = unit(vectors) @ unit(vectors)[5]
    expected = [n for n in np.argsort(-cosine) if n != 5][:8]
    hits = search.similar(item_id(5), top_k=8)
    overlap = {hit.item_id for hit in hits} & {item_id(n) for n in expected}
    assert len(overlap) >= (8 if search.facts["index"]["similarity"] == "cosine" else 7)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    nums = [search.items.num(hit.item_id) for hit in hits]
    np.testing.assert_allclose(scores, cosine[nums], atol=1e-6)


def test_plain_vectors_recommend_by_the_mean_of_the_profile(plain):
    search, vectors = plain
    profile = [ProfileEntry(item_id=item_id(n), rating=3.0) for n in (0, 7)] + [
        ProfileEntry(item_id="?")
    ]
    answer = search.recommend(RecommendQuery(profile=profile, k=700))
    assert (answer.ranking, answer.unknown_items) == ("similar", ["?"])
    query = unit(unit(vectors)[[0, 7]].sum(axis=0, keepdims=True))[0]
    expected = [n for n in np.argsort(-(unit(vectors) @ query)) if n not in (0, 7)]
    assert [hit.item_id for hit in answer.items] == [item_id(n) for n in expected]


def test_rank_pads_excludes_and_takes_any_length(plain):
    search, _ = plain
    history = Cells.from_lists([[(3, 0)], [(n, 0) for n in range(699)]])
    lists = search.engine.rank(history, top_k=700)
    assert lists.dtype == np.int32
    assert sorted(lists[0]) == [-1, *(n for n in range(700) if n != 3)]
    assert lists[1].tolist() == [699] + [-1] * 699
    assert search.engine.rank(history, top_k=5, exclude_seen=False)[0, 0] == 3
    assert search.engine.rank(history, top_k=5, rescore=False).shape == (2, 5)
    assert search.engine.rank(Cells.from_lists([]), top_k=5).shape == (0, 5)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (RecommendQuery(profile=[ProfileEntry(item_id="42")], ranking="like"), "'like'.*similar"),
        (RecommendQuery(profile=[]), "known item"),
        (RecommendQuery(profile=[ProfileEntry(item_id="?")]), "known item"),
    ],
)
def test_queries_that_cannot_be_answered(plain, query, words):
    with pytest.raises(SearchError, match=words):
        plain[0].recommend(query)


def test_unknown_item(plain):
    with pytest.raises(UnknownItemError, match=r"'\?'"):
        plain[0].similar("?")


def test_a_run_without_an_index_names_the_job(tmp_path):
    with pytest.raises(BuildError, match="holds no index build yet: index writes it"):
        Search.open(Workspace(str(tmp_path)))


@pytest.mark.parametrize("name", ["embeddings/*/vectors.npy", "codes/*/scale.npy"])
def test_a_damaged_file_is_named_unless_hashes_are_not_checked(tmp_path, name):
    workspace, _ = vectors_run(tmp_path)
    [path] = tmp_path.glob(name)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    Served.open(workspace, verify=False)
    with pytest.raises(CorruptBuildError, match=str(path)):
        Search.open(workspace)


def test_a_mixture_is_refused(tmp_path):
    workspace, _ = vectors_run(tmp_path)
    [manifest] = tmp_path.glob("codes/*/manifest.json")
    content = workspace.current("codes").content_id
    manifest.write_text(manifest.read_text().replace(content, "0123456789abcdef"))
    with pytest.raises(BuildError, match=r"mixed builds: index .* codes"):
        Search.open(workspace)


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """Return (search, model, cells) of a run whose candidates are the whole catalogue."""
    workspace, cells = model_run(tmp_path_factory.mktemp("run"))
    model = rounded(Autoencoder.open(workspace.current("autoencoder")).model)
    return Search.open(workspace), model, cells


def oracle(model, cells, ranking, *, reference_time=1100):
    """The model's exact scores of all items, seen ones at -inf."""
    with torch.inference_mode():
        z = model.encode(ragged(cells, reference_time=reference_time))
        scores = model.scores(z, Ranking(ranking)).numpy().copy()
    scores[cells.rows, cells.item_num] = -np.inf
    return scores


@pytest.mark.parametrize("ranking", RANKINGS)
def test_rank_is_the_order_of_the_models_exact_scores(rated, ranking):
    search, model, cells = rated
    early = cells.take(cells.timestamp < 1100)
    expected = oracle(model, early, ranking)
    lists = search.engine.rank(early, top_k=60, ranking=Ranking(ranking))
    assert lists.shape == (20, 60)
    for user in range(20):
        n = 60 - early.counts[user]
        found = lists[user][:n]
        assert set(lists[user][n:]) <= {-1}
        assert len(set(found)) == n
        scores = expected[user][found]
        np.testing.assert_allclose(scores, np.sort(expected[user])[::-1][:n], atol=1e-5)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_a_list_without_its_probabilities_is_the_same_list(rated, ranking):
    search, _, cells = rated
    asked = {"top_k": 30, "ranking": Ranking(ranking)}
    whole = list(search.engine.lists(cells, **asked))
    bare = list(search.engine.lists(cells, **asked, probabilities=False))
    for one, other in zip(whole, bare, strict=True):
        np.testing.assert_array_equal(one.item_nums, other.item_nums)
        if ranking in ("consume", "rating", "like"):  # discover's hold log P(i | u)
            np.testing.assert_array_equal(one.scores, other.scores)
    assert (bare[0].level_probs is None) == (ranking == "consume")


def test_rank_is_the_same_alone_and_in_a_batch(rated):
    search, _, cells = rated
    together = search.engine.rank(cells, top_k=30)
    alone = [search.engine.rank(cells.users(np.array([u])), top_k=30)[0] for u in range(20)]
    np.testing.assert_array_equal(together, alone)


def test_the_index_alone_is_almost_exact_with_dense_codes(rated):
    search, _, cells = rated
    exact = search.engine.rank(cells, top_k=10, rescore=True)
    index = search.engine.rank(cells, top_k=10, rescore=False)
    shared = [len(set(a) & set(b)) for a, b in zip(exact, index, strict=True)]
    assert np.mean(shared) > 9


@pytest.mark.parametrize("ranking", RANKINGS)
def test_recommend_gives_the_models_probabilities(rated, ranking):
    search, model, cells = rated
    query = RecommendQuery(user_id=user_id(4), k=60, ranking=ranking, exclude_seen=False)
    answer = search.recommend(query)
    assert len(answer.items) == 60
    one = cells.users(np.array([4]))
    with torch.inference_mode():
        z = model.encode(ragged(one, reference_time=1100))
        nums = np.array([search.items.num(hit.item_id) for hit in answer.items])
        exact = model_scores(model, z[0], nums)
    hits = answer.items
    np.testing.assert_allclose([h.p_consume for h in hits], np.exp(exact.log_p_consume), rtol=1e-5)
    np.testing.assert_allclose([h.p_like for h in hits], exact.p_like, rtol=1e-5)
    np.testing.assert_allclose([h.expected_rating for h in hits], exact.expected_rating, rtol=1e-5)
    assert sum(h.p_consume for h in hits) == pytest.approx(1, abs=1e-5)
    assert [h.title for h in hits] == [title(n) for n in nums]
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


def test_a_new_row_like_a_known_one_is_as_likely_to_be_liked(rated):
    search, model, cells = rated
    vectors, bias = retrieval_vectors(model)
    items = pa.table({"item_id": ["a", "b"], "title": ["A", "B"]})
    changes = Changes.none(vectors.shape[1], 2).upsert(items, vectors[5:7], bias[5:7])
    with torch.inference_mode():
        z = model.encode(ragged(cells.users(np.array([4])), reference_time=1100))[0]
        z = torch.cat([z[: model.width], model.mean_level_latent])  # the form is exact there
    n_items = model.n_items
    nums = np.array([5, 6, n_items, n_items + 1])
    exact = exact_scores(search.engine.scorer, z.numpy(), nums, 0.0, changes)
    np.testing.assert_allclose(exact.p_like[2:], exact.p_like[:2], rtol=1e-4)
    np.testing.assert_allclose(exact.consume_score[2:], exact.consume_score[:2], rtol=1e-4)


def test_a_posted_profile_is_worth_as_much_as_the_stored_one(rated):
    search, _, cells = rated
    one = cells.users(np.array([6]))
    profile = [
        ProfileEntry(item_id=item_id(item), rating=float(level + 1), timestamp=int(time))
        for item, level, time in zip(one.item_num, one.level, one.timestamp, strict=True)
    ]
    stored = search.recommend(RecommendQuery(user_id=user_id(6)))
    posted = search.recommend(RecommendQuery(profile=profile[::-1]))
    assert posted == stored


def entries(cells):
    columns = cells.item_num, cells.level, cells.timestamp
    return [
        ProfileEntry(item_id=item_id(item), rating=float(level + 1), timestamp=int(time))
        for item, level, time in zip(*columns, strict=True)
    ]


def test_a_session_goes_on_with_the_stored_history(rated):
    search, _, cells = rated
    history = entries(cells.users(np.array([6])))
    again = history[0].model_copy(update={"timestamp": 1300})
    session = [ProfileEntry(item_id=item_id(33), rating=5, timestamp=1200), again]
    both = search.recommend(RecommendQuery(user_id=user_id(6), profile=session, k=60))
    assert both == search.recommend(RecommendQuery(profile=[*history, *session], k=60))
    assert item_id(33) not in [hit.item_id for hit in both.items]
    stored = search.recommend(RecommendQuery(user_id=user_id(6), k=60))
    assert stored != both
    assert search.recommend(RecommendQuery(user_id=user_id(6), profile=[], k=60)) == stored
    untimed = [ProfileEntry(item_id=item_id(33), rating=5)]
    last = [ProfileEntry(item_id=item_id(33), rating=5, timestamp=1100)]
    answers = [
        search.recommend(RecommendQuery(user_id=user_id(6), profile=p)) for p in (untimed, last)
    ]
    assert answers[0] == answers[1]
    newcomer = search.recommend(RecommendQuery(user_id=user_id(0), profile=session))
    assert newcomer == search.recommend(RecommendQuery(profile=session))


def test_only_ages_within_a_profile_count_after_the_fitted_period(rated):
    search, _, cells = rated
    one = cells.users(np.array([6]))
    assert one.timestamp.max() < 1100
    at_the_cut = dataclasses.replace(one, timestamp=one.timestamp + 1100 - one.timestamp.max())
    much_later = dataclasses.replace(one, timestamp=at_the_cut.timestamp + 10**9)
    lists = [
        list(search.engine.lists(c, top_k=60, ranking=Ranking("consume")))
        for c in (at_the_cut, much_later)
    ]
    np.testing.assert_array_equal(lists[0][0].scores, lists[1][0].scores)
    older = dataclasses.replace(one, timestamp=one.timestamp - 10**4)
    [other] = search.engine.lists(older, top_k=60, ranking=Ranking("consume"))
    assert not np.array_equal(other.scores, lists[0][0].scores)


@pytest.mark.parametrize("query", [RecommendQuery(profile=[]), RecommendQuery(user_id=user_id(0))])
def test_an_empty_profile_gets_the_prior(rated, query):
    search, model, _ = rated
    answer = search.recommend(query.model_copy(update={"k": 60}))
    nobody = Cells.from_lists([[]])
    with torch.inference_mode():
        z = model.encode(ragged(nobody))
        expected = model.log_p_consume(z)[0].exp().numpy()
    found = {hit.item_id: hit.p_consume for hit in answer.items}
    np.testing.assert_allclose([found[item_id(n)] for n in range(60)], expected, rtol=1e-5)


def test_gamma_moves_discover_away_from_likely_finds(rated):
    search, _, _ = rated
    query = RecommendQuery(user_id=user_id(9), k=5, ranking="discover")
    none, much = (search.recommend(query.model_copy(update={"gamma": g})) for g in (0.0, 5.0))
    like = search.recommend(query.model_copy(update={"ranking": "like"}))
    assert [h.item_id for h in none.items] == [h.item_id for h in like.items]
    assert sum(h.p_consume for h in much.items) < sum(h.p_consume for h in none.items)


def test_items_after_the_served_catalogue_are_left_out(rated):
    search, _, _ = rated
    known, more = Cells.from_lists([[(3, 4)]]), Cells.from_lists([[(3, 4), (60, 4), (99, 0)]])
    np.testing.assert_array_equal(
        search.engine.rank(more, top_k=9), search.engine.rank(known, top_k=9)
    )


def test_similar_compares_the_consume_block(rated):
    search, model, _ = rated
    unit = torch.nn.functional.normalize(model.items, dim=1)
    cosine = (unit @ unit[2]).numpy()
    hits = search.similar(item_id(2), top_k=59)
    expected = [n for n in np.argsort(-cosine) if n != 2]
    assert [hit.item_id for hit in hits] == [item_id(n) for n in expected]
    assert hits[0].score == pytest.approx(cosine[expected[0]], abs=1e-5)


def test_unknown_users_and_a_search_without_users(rated):
    search, _, _ = rated
    with pytest.raises(UnknownUserError, match=r"'nobody'.*20 known users"):
        search.recommend(RecommendQuery(user_id="nobody"))
    blind = Search(search.served, users=False)
    with pytest.raises(UnknownUserError, match="stores no users"):
        blind.recommend(RecommendQuery(user_id=user_id(3)))
    assert (search.n_users, blind.n_users) == (20, 0)


def test_a_log_of_one_level_ranks_by_consume_only(tmp_path):
    workspace, _ = model_run(tmp_path, levels=PRESENCE, fitted_until=None)
    search = Search.open(workspace)
    assert search.rankings == rankings_of(PRESENCE)
    answer = search.recommend(RecommendQuery(profile=[ProfileEntry(item_id="42")], k=3))
    assert all(hit.expected_rating is None for hit in answer.items)
    with pytest.raises(SearchError, match=r"'discover'.*expected one of consume"):
        search.recommend(RecommendQuery(profile=[], ranking="discover"))
    with pytest.raises(SearchError, match="no scale of ratings"):
        search.recommend(RecommendQuery(profile=[ProfileEntry(item_id="42", rating=5)]))
