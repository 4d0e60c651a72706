"""Catalogues with equal items: each distinct vector asked for finds its items, as a scan does."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.compressor.codes import Codes
from raysys.index.build import IndexParams, build_index
from raysys.index.entries import number_entries
from raysys.index.files import IndexFacts, open_index
from raysys.index.recall import sample_probes, set_efforts
from raysys.index.request import SearchRequest
from raysys.index.shards import Shards, shard_bounds, shard_of
from raysys.search.changes import Changed, Changes
from raysys.store.builds import Workspace
from tests.support.planting import plant_index
from tests.support.worlds import pursuit

DIM = 16
SIMILARITIES = ("cosine", "inner_product")


def make(sizes, similarity="cosine", *, kind="graph", sparse=False, seed=0):
    """Return an index over `sizes[g]` copies of vector g, shuffled; each item's g; the vectors."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(len(sizes), DIM)).astype(np.float32)
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = base[group]
    n_bias = 2 if similarity == "inner_product" else 0
    bias = rng.normal(size=(len(sizes), n_bias)).astype(np.float32)[group]
    dictionary = np.zeros((0, DIM), np.float32)
    if sparse:
        dictionary = rng.normal(size=(64, DIM)).astype(np.float32)
        dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
        codes = Codes.pack(
            *pursuit(base, dictionary, 8),
            dictionary=dictionary,
            vectors=base,
            similarity=similarity,
        ).take(group)
    else:
        codes = Codes.pack_dense(vectors, similarity=similarity)
    params = IndexParams(kind=kind)
    index = build_index(codes, dictionary, bias, similarity=similarity, params=params)
    probes = sample_probes(vectors, n_bias, similarity=similarity, sample=100, seed=0)
    set_efforts(index, probes, params=params)
    assert index.kind == kind
    return index, group, base


def one_crowd(n_groups=200, crowd=2000):
    """Half of the items have one vector, the others are 3 to 17 copies of each."""
    return np.array([crowd, *np.random.default_rng(1).integers(3, 18, n_groups - 1)])


@pytest.mark.parametrize("kind", ["graph", "ivf"])
@pytest.mark.parametrize("sparse", [False, True])
def test_each_vector_finds_its_copies_first(kind, sparse):
    index, group, base = make(one_crowd(), kind=kind, sparse=sparse)
    for top_k in (1, 10, 40):
        nums, _ = index.search(SearchRequest(base, top_k=top_k))
        for g in range(len(base)):
            copies = np.flatnonzero(group == g)[:top_k]
            assert nums[g, : len(copies)].tolist() == copies.tolist()


SHAPES = {
    "one crowd": one_crowd(),
    "all equal": [1500],
    "two groups": [700, 800],
    "one beside a crowd": [1500, 1],
    "fewer than hnswlib links": [150] * 12,
    "pairs": [2] * 600,
    "one pair": [2, *[1] * 1100],
}


@pytest.fixture(scope="module", params=itertools.product(SHAPES, SIMILARITIES), ids="-".join)
def case(request):
    shape, similarity = request.param
    index, group, base = make(SHAPES[shape], similarity)
    weights = np.random.default_rng(3).normal(size=(len(base), index.n_bias)).astype(np.float32)
    assert index.n_routed == len(base)
    return index, group, base, weights


def best_scores(index, queries, weights, top_k, gone=()):
    scores = index.score_all(queries, weights)
    scores[:, gone] = -np.inf
    best = -np.sort(-scores, axis=1)[:, :top_k]
    return np.pad(best, ((0, 0), (0, top_k - best.shape[1])), constant_values=-np.inf)


@pytest.mark.parametrize("top_k", [1, 10, 300, 5000])
def test_a_walk_through_most_entries_scores_as_a_scan(case, top_k):
    index, _, base, weights = case
    effort = max(index.n_routed - 1, 1)
    nums, scores = index.search(SearchRequest(base, weights=weights, top_k=top_k, effort=effort))
    if top_k < 300:
        np.testing.assert_array_equal(scores, best_scores(index, base, weights, top_k))
    exact = index.score_all(base, weights)
    found = nums >= 0
    assert (found.sum(axis=1) == min(top_k, index.n_items)).all()
    for q in range(len(base)):
        own = nums[q][found[q]]
        assert len(set(own)) == len(own)
        np.testing.assert_array_equal(scores[q][found[q]], exact[q, own])


def test_the_measured_setting_reaches_its_target_for_every_vector(case):
    index, _, base, weights = case
    for top_k in (1, 10, 100):
        _, scores = index.search(SearchRequest(base, weights=weights, top_k=top_k))
        exact = best_scores(index, base, weights, top_k)
        assert (scores >= exact[:, -1:]).mean() >= 0.95


def test_shards_that_cut_through_groups_answer_as_the_whole(case):
    index, _, base, weights = case
    bounds = shard_bounds(index, 3)
    shards = Shards([shard_of(index, a, b) for a, b in itertools.pairwise(bounds)])
    for top_k, effort in ((10, None), (10, max(index.n_routed - 1, 1)), (400, None)):
        query = {"weights": weights, "top_k": top_k, "effort": effort}
        merged, whole = (
            shards.search(SearchRequest(base, **query)),
            index.search(SearchRequest(base, **query)),
        )
        np.testing.assert_array_equal(merged[0], whole[0])
        np.testing.assert_array_equal(merged[1], whole[1])


def test_excluded_and_denied_copies_leave_the_others(case):
    index, group, base, weights = case
    rng = np.random.default_rng(5)
    allow = rng.random(index.n_items) < 0.7
    seen = np.flatnonzero(rng.random(index.n_items) < 0.3)
    nums, scores = index.search(
        SearchRequest(base, weights=weights, top_k=5, allow=allow, exclude=[seen] * len(base))
    )
    gone = np.union1d(seen, np.flatnonzero(~allow))
    assert not np.isin(nums, gone).any()
    exact = best_scores(index, base, weights, 5, gone)
    assert (scores >= exact[:, -1:]).mean() >= 0.95
    own = np.flatnonzero(group == 0)
    nums, _ = index.search(
        SearchRequest(base[:1], weights=weights[:1], top_k=3, exclude=[own[:-1]])
    )
    assert not np.isin(nums, own[:-1]).any()
    if index.similarity == "cosine":
        assert nums[0, 0] == own[-1]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_saved_graph_opens_as_it_was(tmp_path, similarity):
    index, _, base = make(one_crowd(), similarity)
    workspace = Workspace(str(tmp_path))
    index.router.unreached = np.array([3, 5])  # of whatever graph: they come back
    build, coded = plant_index(workspace, index)
    facts = IndexFacts.of(build)
    assert (facts.n_routed, facts.n_unreached) == (len(base), 2)
    opened = open_index(build, coded)
    assert opened.router.unreached.tolist() == [3, 5]
    weights = np.ones((len(base), index.n_bias), np.float32)
    for top_k in (10, 500):
        got = opened.search(SearchRequest(base, weights=weights, top_k=top_k))
        wanted = index.search(SearchRequest(base, weights=weights, top_k=top_k))
        np.testing.assert_array_equal(got[0], wanted[0])
        np.testing.assert_array_equal(got[1], wanted[1])


def test_deleted_and_upserted_copies(tmp_path):
    index, group, base = make(one_crowd())
    known = {f"i{num}": num for num in range(index.n_items)}
    fresh = pa.table({"item_id": ["new", "i0"], "title": ["", ""]})
    changes = Changes.none(DIM, 0).delete([f"i{n}" for n in np.flatnonzero(group == 0)], known)
    changes = changes.upsert(fresh, base[:2], np.zeros((2, 0), np.float32))
    nums, _ = Changed(index, changes, known, cosine=True).search(SearchRequest(base, top_k=4))
    assert nums[0, 0] == index.n_items
    assert not np.isin(nums, np.flatnonzero(group == 0)).any()
    for g in range(2, len(base)):
        copies = np.flatnonzero(group == g)
        copies = copies[copies > 0][:4]
        assert nums[g, : len(copies)].tolist() == copies.tolist()


def test_what_copies_find_does_not_stand_for_the_others():
    group = np.repeat([0, *range(1, 300)], [5000, *[1] * 299])
    vectors = np.random.default_rng(0).normal(size=(300, DIM)).astype(np.float32)[group]
    similar, distinct = sample_probes(vectors, 1, similarity="cosine", sample=100, seed=0)
    assert (similar.name, distinct.name) == ("similar", "distinct")
    assert len(np.unique(distinct.queries, axis=0)) == len(distinct.queries) == 100
    assert len(np.unique(similar.queries, axis=0)) < 20
    assert distinct.weights.shape == (100, 1)
    assert not any(len(nums) for nums in distinct.exclude)
    [alone] = sample_probes(vectors[5000:], 0, similarity="cosine", sample=100, seed=0)
    assert alone.name == "similar"


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=30
    ),
    st.sampled_from(SIMILARITIES),
)
@settings(max_examples=60, deadline=None)
def test_entries_are_numbered_by_their_first_items(rows, similarity):
    values = np.array([[a, b] for a, b, _ in rows], np.int8).reshape(len(rows), 2)
    codes = Codes(
        "dense8",
        np.zeros((len(rows), 0), np.uint16),
        values,
        np.zeros((0, 16), np.float32),
        np.ones(len(rows), np.float16),
        np.ones(1, np.float32),
    )
    bias = np.array([[c - 0.0 if c else -0.0] for *_, c in rows], np.float32).reshape(len(rows), 1)
    keys = [row[:2] if similarity == "cosine" else row for row in rows]
    order = list(dict.fromkeys(keys))
    found = number_entries(codes, bias, similarity)
    assert found.tolist() == [order.index(key) for key in keys]


def test_many_rows_without_links_are_a_warning_and_still_found(monkeypatch, caplog):
    lost = np.arange(100, 200)
    monkeypatch.setattr("raysys.index.router.unreached_rows", lambda graph: lost)
    index, group, base = make([3] * 400)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "graph n_unreached=100 of 400" in warnings[0]
    nums, _ = index.search(SearchRequest(base, top_k=3))
    assert (group[nums] == np.arange(400)[:, None]).all()
