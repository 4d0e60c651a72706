import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.compressor.codes import Codes
from raysys.compressor.dictionary import Dictionary
from raysys.data.compiled import half
from raysys.index.head import NO_ROWS, heads_of
from raysys.index.holders import nobody
from raysys.index.kernels import (
    NO_SPILLS,
    Excluded,
    Runs,
    products,
    search_queries,
)
from raysys.index.layout import Layout
from raysys.index.rows import score_all, score_rows

NOBODY = np.zeros(0, dtype=bool)
NOTHING = np.zeros(0, dtype=np.int32)
ONE = np.ones(1, np.float32)  # weight of a bias that is zero everywhere


def search_one(stored, asked, runs, spills, head, denied, excluded, nums, best):
    """Search with one query whose only bias has this head; return how many it found."""
    bias = np.zeros((len(stored.items), 1), np.float32)
    bias[head] = 1
    heads = heads_of(stored._replace(bias=bias), [1.0])
    heads.stored.bias[:] = 0
    found = np.zeros(1, np.int64)
    search_queries(
        stored._replace(bias=bias * 0),
        *asked,
        ONE[None],
        Runs(*runs, np.zeros(1, np.int64), np.array([len(runs[0])])),
        spills,
        heads,
        nobody(1),
        denied,
        Excluded(excluded, np.array([0, len(excluded)])),
        nums[None],
        best[None],
        found,
    )
    return found[0]


def make_codes(packing, rng, n_items=200, n_atoms=32, dim=16, n_active=5):
    rounded = Dictionary(rng.normal(size=(n_atoms, dim)).astype(np.float32))
    dictionary = rounded.floats
    if packing == "dense8":
        vectors = rng.normal(size=(n_items, dim)).astype(np.float32)
        return Codes.pack_dense(vectors, similarity="inner_product"), rounded
    atoms = rng.integers(0, n_atoms, (n_items, n_active))
    values = rng.normal(size=atoms.shape)
    bits = {"packed4": 4, "int8": 8, "float16": 16}[packing]
    codes = Codes.pack(
        atoms, values, dictionary=dictionary, similarity="inner_product", value_bits=bits
    )
    return codes, rounded


def in_16_bits(query):
    step = np.abs(query).max() / 32767
    return np.rint(query / step) * step


@pytest.mark.parametrize("packing", ["packed4", "int8", "float16", "dense8"])
def test_scores_equal_the_dense_product_with_the_reconstruction(packing):
    rng = np.random.default_rng(3)
    codes, dictionary = make_codes(packing, rng)
    bias = rng.normal(size=(codes.n_items, 2)).astype(np.float32)
    items = rng.permutation(codes.n_items).astype(np.int32)
    query = rng.normal(size=(1, 16)).astype(np.float32)
    weights = np.array([0.5, -2], dtype=np.float32)
    asked = query[0] if packing == "dense8" else in_16_bits(query[0].astype(np.float64))
    wanted = codes.decode(dictionary.floats).astype(np.float64) @ asked + bias @ weights
    stored, table = codes.stored(bias, items), codes.table(query, dictionary)[0]
    out = np.empty(codes.n_items, dtype=np.float32)
    score_all(stored, table, weights, out)
    np.testing.assert_allclose(out[items], wanted, atol=1e-5 * np.abs(wanted).max())
    some = np.array([5, 199, 0])
    few = np.empty(3, dtype=np.float32)
    score_rows(stored, table, weights, some, few)
    np.testing.assert_array_equal(few, out[items[some]])


def test_half_reads_every_finite_float16():
    every = np.arange(1 << 16, dtype=np.uint16)
    every = every[np.isfinite(every.view(np.float16))]
    got = np.array([half(int(bits)) for bits in every[::7]])
    np.testing.assert_array_equal(got, every[::7].view(np.float16).astype(np.float32))


def test_products_do_not_depend_on_the_batch():
    rng = np.random.default_rng(4)
    matrix = rng.normal(size=(70, 33)).astype(np.float32)
    vectors = rng.normal(size=(9, 33)).astype(np.float32)
    out, one = np.empty((9, 70), np.float32), np.empty((1, 70), np.float32)
    products(matrix, vectors, out)
    products(matrix, vectors[4:5], one)
    np.testing.assert_allclose(out, vectors @ matrix.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out[4], one[0])


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**31), st.booleans())
@settings(max_examples=60, deadline=None)
def test_search_orders_by_score_then_item_num(n_items, top_k, seed, masked):
    rng = np.random.default_rng(seed)
    codes, dictionary = make_codes("packed4", rng, n_items=n_items)
    twins = rng.integers(0, n_items, n_items)  # many items share a code: real ties
    codes = codes.take(twins)
    items = rng.permutation(n_items).astype(np.int32)
    stored = codes.stored(np.zeros((n_items, 1), np.float32), items)
    query = rng.normal(size=(1, 16)).astype(np.float32)
    table = codes.table(query, dictionary)[0]
    asked = dictionary.rounded, query, float(codes.unit[0])
    scores = np.empty(n_items, np.float32)
    score_all(stored, table, ONE, scores)
    denied = rng.random(n_items) < 0.3 if masked else NOBODY
    excluded = np.unique(rng.integers(0, n_items, 3)).astype(np.int32) if masked else NOTHING
    cuts = np.unique(np.concatenate([[0, n_items], rng.integers(0, n_items, 4)]))
    nums, best = np.full(top_k, -1, np.int32), np.full(top_k, -np.inf, np.float32)
    head = np.unique(rng.integers(0, n_items, 5)) if masked else NO_ROWS
    runs = cuts[:-1], cuts[1:], np.zeros(0, np.int64)
    found = search_one(stored, asked, runs, NO_SPILLS, head, denied, excluded, nums, best)
    order = np.lexsort((np.arange(n_items), -scores))
    order = order[~np.isin(order, excluded)]
    order = order[~denied[order]] if masked else order
    wanted = order[:top_k]
    assert found == len(wanted)
    np.testing.assert_array_equal(nums[:found], wanted)
    np.testing.assert_array_equal(best[:found], scores[wanted])


def in_head_of(layout, head):
    """Tell which items [N] the rows of a head hold."""
    mask = np.zeros(len(layout.items), dtype=bool)
    mask[layout.items[head]] = True
    return mask


def test_probed_lists_give_their_rows_and_those_that_spilled_into_them_once():
    rng = np.random.default_rng(5)
    n_items, n_lists = 3000, 12
    codes, dictionary = make_codes("packed4", rng, n_items=n_items)
    members = rng.integers(0, n_lists, (n_items, 2)).astype(np.int32)
    layout = Layout.of_lists(members, n_lists)
    codes = codes.take(layout.items)
    stored = codes.stored(np.zeros((n_items, 1), np.float32), layout.items)
    query = rng.normal(size=(1, 16)).astype(np.float32)
    table = codes.table(query, dictionary)[0]
    asked = dictionary.rounded, query, float(codes.unit[0])
    heads = NO_ROWS, np.sort(rng.choice(n_items, 1500, replace=False))
    probed = np.array([4]), np.array([7, 0, 11]), np.arange(n_lists)
    for lists, head in itertools.product(probed, heads):
        nums, best = np.full(n_items, -1, np.int32), np.empty(n_items, np.float32)
        runs = layout.starts[lists], layout.starts[lists + 1], lists
        found = search_one(stored, asked, runs, layout.spills, head, NOBODY, NOTHING, nums, best)
        wanted = np.flatnonzero(np.isin(members, lists).any(axis=1) | in_head_of(layout, head))
        np.testing.assert_array_equal(np.sort(nums[:found]), wanted)
        scores = np.empty(found, np.float32)
        score_rows(stored, table, ONE, layout.rows[nums[:found]].astype(np.int64), scores)
        np.testing.assert_array_equal(best[:found], scores)
        assert (np.diff(best[:found]) <= 0).all()
