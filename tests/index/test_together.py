"""Sixteen queries that score the same rows get what each gets alone, bit for bit."""

import numpy as np
import pytest

from raysys.compressor.codes import Codes
from raysys.compressor.dictionary import Dictionary
from raysys.index.build import IndexParams, build_index
from raysys.index.request import SearchRequest
from raysys.index.together import FEWEST

N_ITEMS, N_ATOMS, DIM, N_ACTIVE, N_QUERIES = 6000, 64, 24, 7, 45


@pytest.fixture(scope="module", params=["flat", "ivf"])
def index(request):
    rng = np.random.default_rng(0)
    dictionary = Dictionary(rng.normal(size=(N_ATOMS, DIM)).astype(np.float32)).floats
    atoms = rng.integers(0, N_ATOMS, (N_ITEMS, N_ACTIVE))
    codes = Codes.pack(
        atoms,
        rng.normal(size=atoms.shape),
        dictionary=dictionary,
        similarity="inner_product",
        value_bits=4,
    )
    bias = np.stack([rng.standard_exponential(N_ITEMS), rng.normal(size=N_ITEMS)], axis=1)
    return build_index(
        codes,
        dictionary,
        np.round(bias, 1).astype(np.float32),  # ties are many
        similarity="inner_product",
        params=IndexParams(kind=request.param),
    )


def asked(rows, **settings):
    rng = np.random.default_rng(1)
    queries = np.round(rng.normal(size=(N_QUERIES, DIM))).astype(np.float32)
    weights = rng.integers(-1, 3, (N_QUERIES, 2)).astype(np.float32)
    exclude = [rng.permutation(N_ITEMS)[: rng.integers(0, 900)] for _ in range(N_QUERIES)]
    return SearchRequest(
        queries[rows],
        weights=weights[rows],
        exclude=[exclude[row].astype(np.int32) for row in rows],
        **settings,
    )


@pytest.mark.parametrize("top_k", [1, 10, 300])
@pytest.mark.parametrize("share", [None, 0.8, 0.02])
def test_a_batch_finds_what_each_query_finds_alone(index, top_k, share):
    allow = None if share is None else np.random.default_rng(2).random(N_ITEMS) < share
    every = np.arange(N_QUERIES)
    assert N_QUERIES > 2 * FEWEST
    nums, scores = index.search(asked(every, top_k=top_k, allow=allow))
    for row in every:
        one = index.search(asked(every[row : row + 1], top_k=top_k, allow=allow))
        np.testing.assert_array_equal(one[0][0], nums[row])
        np.testing.assert_array_equal(one[1][0].view(np.uint32), scores[row].view(np.uint32))


def test_a_bias_of_any_weight_counts_alike_in_batches(index):
    """A weight of zero is left out, alone and where another query of the batch weighs it."""
    every = np.arange(N_QUERIES)
    nums, scores = index.search(asked(every, top_k=5))
    exact = index.score_all(asked(every, top_k=5).queries, asked(every, top_k=5).weights)
    taken = np.take_along_axis(exact, nums, axis=1)
    np.testing.assert_array_equal(taken.view(np.uint32), scores.view(np.uint32))


def test_a_bias_that_rules_an_item_out_is_left_out_where_it_weighs_nothing(index):
    bias = np.array(index.bias[:, 0])[index.layout.rows]
    bias[::3] = -np.inf
    ruled_out = index.with_bias(0, bias)
    every = np.arange(N_QUERIES)
    nums, scores = ruled_out.search(asked(every, top_k=20))
    for row in every:
        one = ruled_out.search(asked(every[row : row + 1], top_k=20))
        np.testing.assert_array_equal(one[0][0], nums[row])
        np.testing.assert_array_equal(one[1][0], scores[row])
