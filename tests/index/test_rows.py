"""Scores of packed rows, sixteen at a time, and the best of many scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data.compiled import scores_sixteen
from raysys.index.best import best_places, key_of, num_of, score_of
from raysys.index.rows import packed_by_four, packed_by_sixteen


@pytest.mark.skipif(not scores_sixteen(), reason="this processor has no registers of 512 bits")
@pytest.mark.parametrize("n_active", [1, 8, 31, 32, 33, 80])
def test_sixteen_rows_at_a_time_have_the_bits_of_four(n_active):
    rng = np.random.default_rng(n_active)
    entries = rng.integers(0, 1 << 16, (50, n_active), dtype=np.uint16)
    codebook = rng.normal(size=(n_active, 16)).astype(np.float32)
    table = rng.normal(size=4096).astype(np.float32)
    rows = np.concatenate([np.full(16, 49), rng.integers(0, 50, 40)])
    for count in (0, 5, 16, 31, 56):
        four, sixteen = np.empty((2, count), np.float32)
        packed_by_four(entries, codebook, table, rows[:count], four)
        packed_by_sixteen(entries, codebook, table, rows[:count], sixteen)
        np.testing.assert_array_equal(four, sixteen)


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2),
    st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=2),
)
def test_keys_are_in_the_order_of_scores_then_of_lower_numbers(scores, nums):
    a, b = (key_of(score, num) for score, num in zip(scores, nums, strict=True))
    first = scores[0] > scores[1] or (scores[0] == scores[1] and nums[0] < nums[1])
    assert (int(a) > int(b)) == first
    assert (num_of(np.uint64(a)), score_of(np.uint64(a))) == (nums[0], scores[0])


@given(st.integers(1, 900), st.integers(1, 400), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_best_of_many_scores_with_ties(n_scores, top_k, n_different, seed):
    rng = np.random.default_rng(seed)
    top_k = min(top_k, n_scores)
    scores = rng.normal(size=n_different).astype(np.float32)[rng.integers(0, n_different, n_scores)]
    wanted = np.lexsort((np.arange(n_scores), -scores))[:top_k]
    places, lists = np.empty(top_k, np.int32), np.empty(top_k, np.int64)
    best_places(scores, places)
    best_places(scores, lists)
    np.testing.assert_array_equal(places, wanted)
    np.testing.assert_array_equal(lists, wanted)
