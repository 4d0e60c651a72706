"""One behavioural suite for every kind of index, on a planted world with a known answer."""

import numpy as np
import pytest

from raysys.data.arrays import unit_rows
from raysys.errors import BuildError, ConfigError, SearchError
from raysys.index import recall
from raysys.index.build import IndexParams
from raysys.index.index import INDEX_KINDS
from raysys.index.kernels import NO_SPILLS
from raysys.index.lists import RoutingSpace, assign
from raysys.index.recall import Probe, sample_probes
from raysys.index.request import SearchRequest
from raysys.index.router import Router
from tests.support.worlds import CASES, DIM, N_ITEMS, PER_GROUP, make_index, planted_world


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case) for case in CASES])
def case(request):
    kind, similarity = request.param
    index = make_index(kind, similarity)
    assert index.kind == kind
    vectors, _ = planted_world(similarity)
    weights = np.tile(np.float32([1, 0]), (N_ITEMS, 1))[:, : index.n_bias]
    return index, vectors, weights


def ranking(index, query, weights):
    scores = index.score_all(query[None], weights[None])[0]
    return np.lexsort((np.arange(index.n_items), -scores)), scores


def test_planted_neighbours_come_first(case):
    index, vectors, weights = case
    queries = np.arange(0, N_ITEMS, 37)
    nums, scores = index.search(SearchRequest(vectors[queries], weights=weights[queries], top_k=10))
    same_group = nums // PER_GROUP == queries[:, None] // PER_GROUP
    assert same_group.mean() > 0.95
    assert np.all(np.diff(scores, axis=1) <= 0)
    hits = [
        len(set(row) & set(ranking(index, vectors[q], weights[q])[0][:10]))
        for row, q in zip(nums, queries)
    ]
    assert np.mean(hits) / 10 >= 0.93


def test_scores_are_the_scores_of_the_codes(case):
    index, vectors, weights = case
    nums, scores = index.search(SearchRequest(vectors[:5], weights=weights[:5], top_k=20))
    exact = index.score_all(vectors[:5], weights[:5])
    np.testing.assert_array_equal(scores, np.take_along_axis(exact, nums, 1))
    some = index.score_items(vectors[3], nums[3], weights[3])
    np.testing.assert_array_equal(some, scores[3])
    dense = index.decode(nums[3]) @ vectors[3]
    if index.n_bias == 0:
        np.testing.assert_allclose(dense / np.linalg.norm(vectors[3]), scores[3], atol=1e-5)


def test_ties_go_to_the_lower_item_num(case):
    index, vectors, weights = case
    nums, scores = index.search(SearchRequest(vectors[7:8], weights=weights[7:8], top_k=30))
    where = np.flatnonzero(np.isin(nums[0], [7, 8]))
    assert nums[0, where].tolist() == [7, 8]
    assert np.diff(where) == 1
    assert scores[0, where[0]] == scores[0, where[1]]


def test_a_batch_gives_what_single_queries_give(case):
    index, vectors, weights = case
    nums, scores = index.search(SearchRequest(vectors[:20], weights=weights[:20], top_k=15))
    for q in range(20):
        one = index.search(SearchRequest(vectors[q : q + 1], weights=weights[q : q + 1], top_k=15))
        np.testing.assert_array_equal(one[0][0], nums[q])
        np.testing.assert_array_equal(one[1][0], scores[q])


def test_more_results_than_items_are_padded(case):
    index, vectors, weights = case
    nums, scores = index.search(SearchRequest(vectors[:2], weights=weights[:2], top_k=N_ITEMS + 5))
    order, _ = ranking(index, vectors[1], weights[1])
    np.testing.assert_array_equal(nums[1, :N_ITEMS], order)
    assert np.all(nums[:, N_ITEMS:] == -1)
    assert np.all(scores[:, N_ITEMS:] == -np.inf)


def test_an_empty_filter_gives_empty_rows(case):
    index, vectors, weights = case
    nothing = np.zeros(N_ITEMS, dtype=bool)
    nums, scores = index.search(
        SearchRequest(vectors[:3], weights=weights[:3], top_k=4, allow=nothing)
    )
    assert np.all(nums == -1)
    assert np.all(scores == -np.inf)


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5, 0.999])
def test_filters_keep_k(case, share):
    index, vectors, weights = case
    allow = np.random.default_rng(5).random(N_ITEMS) < share
    allow[:12] = True
    nums, _ = index.search(
        SearchRequest(vectors[:40:4], weights=weights[:40:4], top_k=12, allow=allow)
    )
    assert np.all(nums >= 0)
    assert allow[nums].all()
    hits = []
    for row, q in zip(nums, range(0, 40, 4)):
        order, _ = ranking(index, vectors[q], weights[q])
        hits.append(len(set(row) & set(order[allow[order]][:12])) / 12)
    assert np.mean(hits) > 0.9


def test_denied_and_excluded_items_never_return(case):
    index, vectors, weights = case
    allow = np.ones(N_ITEMS, dtype=bool)
    allow[[7, 11]] = False
    exclude = [np.array([3, 8, 9]), np.array([], dtype=np.int64)]
    nums, _ = index.search(
        SearchRequest(
            vectors[[7, 11]], weights=weights[[7, 11]], top_k=N_ITEMS, allow=allow, exclude=exclude
        )
    )
    assert set(nums[0]) == {-1, *range(N_ITEMS)} - {7, 11, 3, 8, 9}
    assert set(nums[1]) == {-1, *range(N_ITEMS)} - {7, 11}


def test_a_long_exclusion_leaves_k(case):
    index, vectors, weights = case
    order, _ = ranking(index, vectors[0], weights[0])
    nums, _ = index.search(
        SearchRequest(vectors[:1], weights=weights[:1], top_k=10, exclude=[order[: PER_GROUP * 3]])
    )
    assert np.all(nums >= 0)
    wanted = order[PER_GROUP * 3 :][:10]
    assert len(set(nums[0]) & set(wanted)) >= 5


def test_a_query_whose_lists_hold_too_few_takes_more_before_it_scans(monkeypatch):
    index = make_index("ivf", "cosine")
    vectors, _ = planted_world("cosine")
    rows = np.arange(0, N_ITEMS, 97)
    short = SearchRequest(vectors[rows], top_k=PER_GROUP * 3, effort=1, guarantee=False)
    assert np.any(index.search(short)[0] < 0)
    scans = []
    monkeypatch.setattr(index, "_scan", lambda some, *runs: scans.append(len(some.queries)))
    asked = SearchRequest(vectors[rows], top_k=PER_GROUP * 3, effort=1)
    nums, scores = index.search(asked)
    assert not scans
    assert np.all(nums >= 0)
    for row, one in enumerate(rows[:5]):
        alone = SearchRequest(vectors[[one]], top_k=PER_GROUP * 3, effort=1)
        np.testing.assert_array_equal(index.search(alone)[1][0], scores[row])
    index.search(SearchRequest(vectors[rows], top_k=N_ITEMS, effort=1))
    assert scans == [len(rows)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_query_that_is_not_finite_is_refused(case, bad):
    index, vectors, _ = case
    query = vectors[:3].copy()
    query[1, 4] = bad
    with pytest.raises(SearchError, match="query 1 holds"):
        index.search(SearchRequest(query, top_k=3))


def test_wrong_shapes_are_refused(case):
    index, vectors, _ = case
    with pytest.raises(SearchError, match="expected \\[Q, 32\\]"):
        index.search(SearchRequest(vectors[:2, :5], top_k=3))
    with pytest.raises(SearchError, match="weights have shape"):
        index.search(SearchRequest(vectors[:2], weights=np.zeros((2, 7), np.float32), top_k=3))
    with pytest.raises(SearchError, match="allow has shape"):
        index.search(SearchRequest(vectors[:2], top_k=3, allow=np.ones(3, dtype=bool)))
    with pytest.raises(SearchError, match="exclude has 1 lists for 2"):
        index.search(SearchRequest(vectors[:2], top_k=3, exclude=[np.array([1])]))
    with pytest.raises(SearchError, match="top_k=0"):
        index.search(SearchRequest(vectors[:2], top_k=0))


def test_no_queries(case):
    index, vectors, _ = case
    nums, scores = index.search(SearchRequest(vectors[:0], top_k=3))
    assert nums.shape == scores.shape == (0, 3)


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_a_single_item(kind):
    index = make_index(kind, "cosine", rows=np.array([5]))
    assert index.kind == "flat"
    nums, _ = index.search(SearchRequest(planted_world("cosine")[0][:2], top_k=3))
    assert nums.tolist() == [[0, -1, -1], [0, -1, -1]]


def test_a_zero_query_has_no_cosine():
    index = make_index("flat", "cosine", rows=np.arange(20))
    with pytest.raises(SearchError, match="query 0 is all zeros"):
        index.search(SearchRequest(np.zeros((1, DIM), np.float32), top_k=3))


@pytest.mark.parametrize("kind", ["ivf", "graph"])
def test_the_same_seed_gives_the_same_index(kind, tmp_path):
    files = []
    for trial in range(2):
        index = make_index(kind, "inner_product", seed=3)
        path = tmp_path / f"{trial}.hnsw"
        index.router.save(path)
        files.append((path.read_bytes(), index.layout.items.tobytes()))
    assert files[0] == files[1]


def test_a_missed_target_is_refused_and_none_is_not():
    with pytest.raises(BuildError, match=r"misses target_recall=1\.0"):
        make_index("ivf", "cosine", target_recall=1.0, effort=1)
    index = make_index("ivf", "cosine", target_recall=None, effort=1)
    assert set(index.efforts.plain.values()) == {1}


def test_lists_and_effort_are_those_asked_for():
    index = make_index("ivf", "cosine", n_lists=17, effort=3, target_recall=0.01)
    assert index.n_lists == 17 != make_index("ivf", "cosine").n_lists
    assert set(index.efforts.plain.values()) == {3}


def test_a_lower_target_needs_fewer_lists():
    low, high = (make_index("ivf", "cosine", target_recall=share) for share in (0.3, 1.0))
    assert low.efforts.plain.keys() == high.efforts.plain.keys()
    assert sum(low.efforts.plain.values()) < sum(high.efforts.plain.values())


def test_settings_that_cannot_be_used_are_refused():
    with pytest.raises(ConfigError, match="kind='ifv'"):
        IndexParams(kind="ifv")
    with pytest.raises(ConfigError, match="n_lists=5000"):
        make_index("ivf", "cosine", n_lists=5000)


def test_recall_counts_ties():
    exact = np.float32([[5, 4, 4, -np.inf]])
    assert recall._recall(np.float32([[5, 4, 3]]), exact, 2) == 1.0
    assert recall._recall(np.float32([[5, 3, 3]]), exact, 2) == 0.5
    assert recall._recall(np.float32([[5, 4, 4, -np.inf]]), exact, 4) == 1.0


def test_probes_take_the_queries_of_real_users_along():
    vectors, _ = planted_world("inner_product")
    users = np.arange(20 * (DIM + 2), dtype=np.float32).reshape(20, DIM + 2)
    probes = sample_probes(
        vectors, 2, similarity="inner_product", sample=10, seed=0, users={"like": users}
    )
    assert [p.name for p in probes] == ["similar", "like"]
    like = probes[1]
    assert isinstance(like, Probe)
    assert like.queries.shape == (10, DIM)
    both = np.hstack([like.queries, like.weights])
    assert {tuple(row) for row in both} <= {tuple(row) for row in users}


@pytest.mark.parametrize("similarity", ["cosine", "inner_product"])
def test_second_lists_find_more_at_the_same_number_of_lists(similarity):
    index = make_index("ivf", similarity, n_lists=200)
    vectors, bias = planted_world(similarity)
    queries, weights = vectors[::5], np.ones((N_ITEMS // 5, bias.shape[1]), np.float32)
    wanted = index.search(SearchRequest(queries, weights=weights, top_k=10, effort=index.n_lists))[
        0
    ]

    def share():
        found = index.search(
            SearchRequest(queries, weights=weights, top_k=10, effort=3, guarantee=False)
        )[0]
        return np.mean([len(set(f) & set(w)) / 10 for f, w in zip(found, wanted, strict=True)])

    missed = 1 - share()
    index._spills = NO_SPILLS
    assert missed < (1 - share()) / 2


def test_an_item_has_its_nearest_list_and_another_that_lies_to_another_side():
    rng = np.random.default_rng(0)
    points = unit_rows(rng.normal(size=(500, 4)).astype(np.float32))
    centroids = unit_rows(rng.normal(size=(60, 4)).astype(np.float32))
    lists = assign(points, Router.fit(centroids, seed=0), centroids)
    order = np.argsort(-points @ centroids.T, axis=1)[:, :8]
    for point, near, found in zip(points, order, lists, strict=True):
        first = (point - centroids[near[0]]) / np.linalg.norm(point - centroids[near[0]])
        rest = point - centroids[near[1:]]
        loss = (rest**2).sum(axis=1) + (rest @ first) ** 2
        np.testing.assert_array_equal(found, [near[0], near[1 + loss.argmin()]])
    assert (lists[:, 1] != order[:, 1]).any()  # not simply the next
    alone = assign(points, Router.fit(centroids[:1], seed=0), centroids[:1])
    assert (alone == 0).all()


@pytest.mark.parametrize("similarity", ["cosine", "inner_product"])
def test_a_wide_routing_space_is_cut_to_its_principal_axes(similarity):
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(900, 100)) @ rng.normal(size=(100, 200))).astype(np.float32)
    bias = np.zeros((900, 1 if similarity == "inner_product" else 0), np.float32)
    whole = RoutingSpace.fit(lambda rows: vectors[rows], bias, similarity, cut=False)
    space = RoutingSpace.fit(lambda rows: vectors[rows], bias, similarity)
    assert (space.dim, whole.dim) == (128, 200 + 2 * bias.shape[1])
    query = vectors[:5], np.ones((5, bias.shape[1]), np.float32)
    full = whole.queries(*query) @ whole.items(vectors, bias).T
    cut = space.queries(*query) @ space.items(vectors, bias).T
    np.testing.assert_allclose(cut, full, atol=0.02)  # 100 axes hold all there is
