"""Items of large biases are found wherever they lie."""

import dataclasses
import itertools

import numpy as np
import pytest

from raysys.compressor.codes import Codes
from raysys.index.build import IndexParams, build_index
from raysys.index.efforts import PLAIN, Efforts, is_long
from raysys.index.files import IndexFacts, open_index
from raysys.index.head import HEAD_ROWS, Head, heads_of, threshold
from raysys.index.recall import Probe, choose_efforts, set_efforts
from raysys.index.request import SearchRequest
from raysys.index.shards import Shards, shard_bounds, shard_of
from raysys.store.builds import Workspace
from tests.support.planting import plant_index
from tests.support.worlds import make_index

N_ITEMS, DIM = 6000, 16


@pytest.fixture(scope="module")
def made():
    """An index whose biases matter more than where an item lies, and its biases."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(N_ITEMS, DIM)).astype(np.float32)
    bias = np.stack([8 * rng.standard_exponential(N_ITEMS), np.zeros(N_ITEMS)], axis=1)
    codes = Codes.pack_dense(vectors, similarity="inner_product")
    index = build_index(
        codes,
        np.zeros((0, DIM), np.float32),
        bias.astype(np.float32),
        similarity="inner_product",
        params=IndexParams(kind="ivf"),
    )
    return index, bias[:, 0].astype(np.float32)


def request(weight, effort=1):
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(20, DIM)).astype(np.float32)
    weights = np.tile(np.array([weight, 0], np.float32), (20, 1))
    return SearchRequest(queries, top_k=10, weights=weights, effort=effort, guarantee=False)


def test_one_list_is_enough_where_biases_decide(made):
    index, _ = made
    found, exact = (index.search(request(1.0, effort))[0] for effort in (1, index.n_lists))
    np.testing.assert_array_equal(found, exact)


def test_without_weight_there_is_no_head(made):
    index, _ = made
    for weights in ([0, 0], [-1, 0], [-1, 1]):
        asked = dataclasses.replace(
            request(0.0), weights=np.tile(np.array(weights, np.float32), (20, 1))
        )
        found = index.search(asked)[0]
        heads, index._heads = index._heads, (index._no_heads,) * 2
        np.testing.assert_array_equal(index.search(asked)[0], found)
        index._heads = heads


def test_the_head_follows_biases_that_move(made):
    index, bias = made
    moved = index.with_bias(0, bias[::-1].copy())
    found, exact = (moved.search(request(1.0, effort))[0] for effort in (1, index.n_lists))
    np.testing.assert_array_equal(found, exact)
    assert not np.array_equal(found, index.search(request(1.0, 1))[0])


def test_shards_have_the_head_of_the_whole(made):
    index, bias = made
    bounds = shard_bounds(index, 3)
    shards = Shards([shard_of(index, a, b) for a, b in itertools.pairwise(bounds)])
    for one, other in ((index, shards), (index.with_bias(0, -bias), shards.with_bias(0, -bias))):
        for weight in (0.0, 1.0):
            got, wanted = other.search(request(weight)), one.search(request(weight))
            np.testing.assert_array_equal(got[0], wanted[0])
            np.testing.assert_array_equal(got[1], wanted[1])


def test_a_head_is_a_thousand_rows_or_none_where_many_are_equal():
    rng = np.random.default_rng(0)
    column = rng.normal(size=10_000).astype(np.float32)
    least = threshold(column)
    assert np.count_nonzero(column >= least) == HEAD_ROWS
    assert threshold(np.zeros(10_000, np.float32)) is None
    assert threshold(np.zeros(1, np.float32)) is None
    codes = Codes.pack_dense(column[:, None], similarity="inner_product")
    bias, items = np.stack([column, -column], axis=1), np.arange(10_000, dtype=np.int32)
    heads = heads_of(codes.stored(bias, items), [least, None])
    rows = np.argsort(-column)[:HEAD_ROWS]
    np.testing.assert_array_equal(heads.stored.items, rows)
    np.testing.assert_array_equal(heads.stored.values, codes.values[rows])
    np.testing.assert_array_equal(np.flatnonzero(heads.columns), np.sort(rows))
    np.testing.assert_array_equal(heads.starts, [0, len(rows), len(rows)])


def test_long_queries_have_an_effort_of_their_own(made):
    """Some users like few items much: what serves the others does not serve them."""
    index, _ = made
    rng = np.random.default_rng(2)
    queries = rng.normal(size=(100, DIM)).astype(np.float32)
    queries[:10] *= 40
    weights = np.tile(np.array([1, 0], np.float32), (100, 1))
    nobody = [np.zeros(0, np.int32)] * 100
    none = np.zeros_like(weights)
    probes = [Probe("consume", queries, weights, nobody), Probe("similar", queries, none, nobody)]
    tables = set_efforts(index, probes, params=IndexParams(kind="ivf"))
    assert [set(table[-1]) - {"effort", "ms"} for table in tables] == [
        {"similar"},
        {"consume"},
        {"consume"},
    ]
    np.testing.assert_array_equal(is_long(index.sorts(queries, weights)), np.arange(100) < 10)
    assert (index.sorts(queries, none) == PLAIN).all()
    assert index.efforts.headed[10] < index.efforts.long[10]
    found = index.search(SearchRequest(queries, top_k=10, weights=weights))[0]
    exact = index.search(SearchRequest(queries, top_k=10, weights=weights, effort=index.n_lists))[0]
    shared = np.array([len(np.intersect1d(*pair)) for pair in zip(found, exact, strict=True)])
    assert shared[:10].mean() > 9
    assert shared[10:].mean() > 9


def test_queries_of_one_bias_have_efforts_of_their_own():
    """The best of one ranking are far away, and those of the other in its head."""
    rng = np.random.default_rng(4)
    codes = Codes.pack_dense(rng.normal(size=(N_ITEMS, DIM)), similarity="inner_product")
    bias = (8 * rng.standard_exponential((N_ITEMS, 2))).astype(np.float32)
    settings = {"similarity": "inner_product", "params": IndexParams(kind="ivf")}
    index = build_index(codes, np.zeros((0, DIM), np.float32), bias, **settings)
    queries = rng.normal(size=(100, DIM)).astype(np.float32)
    nobody = [np.zeros(0, np.int32)] * 100
    weights = np.tile(np.array([1, 0], np.float32), (100, 1))
    asked = {"consume": (40 * queries, weights), "like": (queries / 1000, weights[:, ::-1])}
    probes = [Probe(name, *some, nobody) for name, some in asked.items()]
    set_efforts(index, probes, params=IndexParams(kind="ivf"))
    efforts = index.efforts
    (consume, far_consume), (like, far_like) = efforts.own
    assert like[300] < consume[300]
    assert dict(efforts.headed) == {k: max(consume[k], like[k]) for k in consume}
    sorts = index.sorts(*asked["consume"])
    assert all(efforts.of(sort) == consume for sort in sorts[~is_long(sorts)])
    assert all(efforts.of(sort) == far_consume for sort in sorts[is_long(sorts)])
    sorts = index.sorts(*asked["like"])
    assert {*sorts[is_long(sorts)].tolist()} == {PLAIN + 2 + 6}
    assert all(efforts.of(sort) == far_like for sort in sorts[is_long(sorts)])
    both = index.sorts(queries[:1] / 1000, np.ones((1, 2), np.float32))
    assert efforts.of(int(both[0])) == efforts.headed
    for some in asked.values():
        request_ = SearchRequest(some[0], top_k=10, weights=some[1])
        found = index.search(request_)[0]
        exact = index.search(dataclasses.replace(request_, effort=index.n_lists))[0]
        shared = [len(np.intersect1d(*pair)) for pair in zip(found, exact, strict=True)]
        assert np.mean(shared) > 9


def test_efforts_come_back_and_an_index_of_before_keeps_its_walks(tmp_path, monkeypatch):
    index = make_index("ivf", "inner_product")
    own = ({10: 1, 300: 2}, {10: 4}), ({}, {})
    index.efforts = Efforts({10: 2}, {10: 3}, {10: 5}, (1.0, None), own)
    build, coded = plant_index(Workspace(str(tmp_path)), index)
    opened = open_index(build, coded)
    assert opened.efforts == index.efforts
    assert opened.router.short_ef == 16
    before = dataclasses.replace(IndexFacts.of(build), own_efforts=None)  # version 6
    monkeypatch.setattr(IndexFacts, "of", lambda build: before)
    opened = open_index(build, coded)
    assert opened.efforts == dataclasses.replace(index.efforts, own=())
    assert opened.router.short_ef == 48


def test_heads_grow_where_that_saves_lists():
    """What users want lies just behind the thousand items of the largest biases."""
    rng = np.random.default_rng(3)
    n_items = 24_000
    vectors = rng.normal(size=(n_items, DIM)).astype(np.float32)
    bias = np.zeros((n_items, 2), np.float32)
    bias[rng.permutation(n_items), 0] = -np.arange(n_items, dtype=np.float32) / 300
    bias[:, 1] = rng.integers(0, 2, n_items)  # no head: half of the items share the larger one
    codes = Codes.pack_dense(vectors, similarity="inner_product")
    params = IndexParams(kind="ivf")
    nothing = np.zeros((0, DIM), np.float32)
    index = build_index(codes, nothing, bias, similarity="inner_product", params=params)
    queries = rng.normal(size=(100, DIM)).astype(np.float32)
    weights = np.tile(np.array([1, 0], np.float32), (100, 1))
    probe = Probe("consume", queries, weights, [np.zeros(0, np.int32)] * 100)

    small_head = choose_efforts(index, [probe], params=params)[0]
    alone = HEAD_ROWS + index.rows_for(small_head[300])
    set_efforts(index, [probe], params=params)
    assert index.heads[0].rows[0] > HEAD_ROWS
    assert index.heads[0].rows[0] + index.rows_for(index.efforts.headed[300]) < alone
    assert index.heads[0].rows[1] == HEAD_ROWS
    assert index.heads[0].least[1] is None
    assert np.count_nonzero(index.bias[:, 0] >= index.heads[0].least[0]) == index.heads[0].rows[0]

    asked = SearchRequest(queries, top_k=300, weights=weights)
    exact = index.search(dataclasses.replace(asked, effort=index.n_lists))[0]
    got = index.search(asked)[0]
    shared = [len(np.intersect1d(*pair)) / 300 for pair in zip(got, exact, strict=True)]
    assert np.mean(shared) >= 0.95
    moved = index.with_bias(0, -bias[:, 0])
    assert moved.heads[0].rows == index.heads[0].rows
    assert np.count_nonzero(moved.bias[:, 0] >= moved.heads[0].least[0]) == index.heads[0].rows[0]
    bounds = shard_bounds(index, 3)
    shards = Shards([shard_of(index, a, b) for a, b in itertools.pairwise(bounds)])
    np.testing.assert_array_equal(shards.search(asked)[0], got)


def test_a_fixed_effort_leaves_heads_as_they_are(made):
    index, _ = made
    queries, weights = request(1.0).queries, request(1.0).weights
    probe = Probe("consume", queries, weights, [np.zeros(0, np.int32)] * len(queries))
    params = IndexParams(kind="ivf", effort=2, target_recall=None)
    set_efforts(index, [probe], params=params)
    assert index.heads[0].rows == (HEAD_ROWS, HEAD_ROWS)


def test_a_head_that_ties_make_too_large_is_halved():
    column = np.zeros(20_000, np.float32)
    column[:1500] = 2 + np.arange(1500) / 1500
    column[1500:9000] = 1
    for rows in (HEAD_ROWS, 2048, 4096):
        head = Head.of(column[:, None], (rows,))
        assert np.count_nonzero(column >= head.least[0]) == HEAD_ROWS
        assert head.moved(0, column) == head


def test_long_queries_that_nobody_sampled_have_the_heads_of_the_others():
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(24_000, DIM)).astype(np.float32)
    bias = -rng.permutation(24_000).astype(np.float32)[:, None] / 300
    codes = Codes.pack_dense(vectors, similarity="inner_product")
    params = IndexParams(kind="ivf")
    nothing = np.zeros((0, DIM), np.float32)
    index = build_index(codes, nothing, bias, similarity="inner_product", params=params)
    queries = np.tile(rng.normal(size=(1, DIM)).astype(np.float32), (50, 1))
    weights = np.ones((50, 1), np.float32)
    probe = Probe("consume", queries, weights, [np.zeros(0, np.int32)] * 50)
    set_efforts(index, [probe], params=params)
    assert not index.efforts.long
    assert index.heads[1] == index.heads[0]
    assert index.heads[0].rows[0] > HEAD_ROWS


def test_a_head_that_is_enough_needs_no_list(made, monkeypatch):
    index, _ = made
    rng = np.random.default_rng(5)
    queries = (rng.normal(size=(70, DIM)) / 1000).astype(np.float32)
    weights = np.tile(np.array([1, 0], np.float32), (70, 1))
    nobody = [np.zeros(0, np.int32)] * 70
    set_efforts(index, [Probe("consume", queries, weights, nobody)], params=IndexParams(kind="ivf"))
    assert index.efforts.headed == {10: 0, 100: 0, 300: 0}
    seen = [rng.permutation(N_ITEMS)[: n % 9].astype(np.int32) for n in range(70)]
    asked = SearchRequest(queries, top_k=300, weights=weights, exclude=seen)
    exact = index.search(dataclasses.replace(asked, effort=index.n_lists))[0]
    monkeypatch.setattr(index, "_lists", None)
    with monkeypatch.context() as patch:
        patch.setattr(index.router, "nearest", None)
        found = index.search(asked)[0]
        np.testing.assert_array_equal(found, exact)
        one = index.search(SearchRequest(queries[:1], top_k=300, weights=weights[:1]))[0]
        assert len(np.intersect1d(one[0], exact[0])) == 300
    some = rng.random(70) < 0.5  # of one batch, some need lists
    mixed = weights * some[:, None]
    both = index.search(SearchRequest(queries, top_k=10, weights=mixed))
    for row in range(70):
        alone = index.search(SearchRequest(queries[[row]], top_k=10, weights=mixed[[row]]))
        np.testing.assert_array_equal(both[0][row], alone[0][0])
    mask = np.zeros(N_ITEMS, dtype=np.bool_)
    mask[rng.permutation(N_ITEMS)[:1200]] = True
    masked = SearchRequest(queries, top_k=10, weights=weights, allow=mask)
    exact = index.search(dataclasses.replace(masked, effort=index.n_lists))[0]
    np.testing.assert_array_equal(index.search(masked)[0], exact)


def test_efforts_grow_beyond_what_was_measured():
    efforts = Efforts({10: 1, 100: 3}, {10: 0, 100: 0})
    plain, headed = PLAIN, PLAIN + 1
    assert [efforts.wanted(plain, depth, 0) for depth in (5, 11, 100, 101, 300)] == [1, 3, 3, 4, 9]
    assert [efforts.wanted(headed, depth, 0) for depth in (5, 100, 200, 201, 500)] == [
        *(0, 0, 0),
        *(3, 5),
    ]
    assert efforts.wanted(headed, 100, 100) == 100  # of a graph
    assert Efforts().wanted(plain, 7, 0) == 7
