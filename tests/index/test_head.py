"""Items of large biases are found wherever they lie."""

import dataclasses
import itertools

import numpy as np
import pytest

from raysys.compressor.codes import Codes
from raysys.index.build import IndexParams, Probe, build_index, set_efforts
from raysys.index.efforts import LONG, PLAIN
from raysys.index.head import HEAD_ROWS, NO_HEADS, heads_of, threshold
from raysys.index.request import SearchRequest
from raysys.index.shards import Shards, shard_bounds, shard_of

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
        heads, index._heads = index._heads, NO_HEADS
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
    heads = heads_of(np.stack([column, -column], axis=1), [least, None])
    np.testing.assert_array_equal(heads.rows, np.flatnonzero(column >= least))
    np.testing.assert_array_equal(np.flatnonzero(heads.columns), heads.rows)
    np.testing.assert_array_equal(heads.starts, [0, len(heads.rows), len(heads.rows)])


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
    np.testing.assert_array_equal(index.sorts(queries, weights) == LONG, np.arange(100) < 10)
    assert (index.sorts(queries, none) == PLAIN).all()
    assert index.efforts.headed[10] < index.efforts.long[10]
    found = index.search(SearchRequest(queries, top_k=10, weights=weights))[0]
    exact = index.search(SearchRequest(queries, top_k=10, weights=weights, effort=index.n_lists))[0]
    shared = np.array([len(np.intersect1d(*pair)) for pair in zip(found, exact, strict=True)])
    assert shared[:10].mean() > 9
    assert shared[10:].mean() > 9
