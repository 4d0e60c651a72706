"""The compiled loops of sums, against what NumPy makes of them."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from raysys.scoring.kernels import log_sums, unique_runs

LISTS = st.lists(st.lists(st.integers(0, 30), max_size=20), min_size=1, max_size=5)


@given(LISTS)
def test_runs_are_sorted_and_hold_each_item_once(lists):
    offsets = np.cumsum([0, *map(len, lists)])
    items = np.array([item for mine in lists for item in mine], dtype=np.int64)
    unique_runs(items, offsets)
    found = [items[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    assert found == [sorted(set(mine)) for mine in lists]


@given(LISTS, st.sets(st.integers(0, 30), min_size=1), st.integers(0, 2**31))
def test_a_sum_takes_exact_items_once_and_not_from_the_sample(lists, sampled, seed):
    draw = np.random.default_rng(seed)
    nums = np.array(sorted(sampled))
    mine = [sorted(set(items)) for items in lists]
    offsets = np.cumsum([0, *map(len, mine)])
    items = np.array([item for each in mine for item in each], dtype=np.int64)
    logs = draw.normal(0, 20, size=(len(mine), len(nums))).astype(np.float32)
    exact = draw.normal(0, 20, size=len(items)).astype(np.float32)
    wanted = []
    for row, each in enumerate(mine):
        left = logs[row][~np.isin(nums, each)]
        every = np.concatenate([left, exact[offsets[row] : offsets[row + 1]]])
        wanted.append(logsumexp(every.astype(float)) if len(every) else -1e30)
    out = np.empty(len(mine), dtype=np.float32)
    log_sums(logs.copy(), nums, items, offsets, exact, out)
    some = np.array(wanted) > -1e29
    np.testing.assert_allclose(out[some], np.array(wanted)[some], rtol=1e-5, atol=1e-5)
