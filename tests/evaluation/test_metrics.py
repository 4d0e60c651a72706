"""Ranking metrics against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raysys.data.cells import Cells
from raysys.evaluation import metrics


def cells_of(rows):
    return Cells.from_lists([[(int(i), 0) for i in row] for row in rows])


@given(
    scores=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 12)),
        elements=st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 2.0, np.inf, np.nan]),
    ),
    top_k=st.integers(1, 15),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_top_items_sorts_by_score_then_item_num(scores, top_k, seed):
    rng = np.random.default_rng(seed)
    n_rows, n_items = scores.shape
    seen = [rng.choice(n_items + 3, rng.integers(0, n_items), replace=False) for _ in range(n_rows)]
    lists = metrics.top_items(scores, top_k, exclude=cells_of(seen))
    for row in range(n_rows):
        left = [i for i in range(n_items) if i not in seen[row] and scores[row, i] > -np.inf]
        best = sorted(left, key=lambda i: (-scores[row, i], i))[:top_k]
        assert lists[row].tolist() == best + [-1] * (top_k - len(best))


def test_top_items_leaves_the_scores_alone():
    scores = np.ones((1, 3), dtype=np.float32)
    metrics.top_items(scores, 2, exclude=cells_of([[0]]))
    np.testing.assert_array_equal(scores, 1)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_target_ranks_equal_a_search_in_each_list(seed):
    rng = np.random.default_rng(seed)
    lists = np.stack([rng.permutation(9)[:5] for _ in range(4)]).astype(np.int32)
    lists[rng.random((4, 5)) < 0.2] = -1
    rows = [rng.choice(12, rng.integers(0, 6), replace=False) for _ in range(4)]
    ranks = metrics.target_ranks(lists, cells_of(rows))
    expected = [
        lists[u].tolist().index(i) + 1 if i in lists[u] else 0 for u in range(4) for i in rows[u]
    ]
    assert ranks.tolist() == expected


@pytest.mark.parametrize(
    ("counts", "expected"), [([5, 5, 5, 5], 0.0), ([0, 0, 0, 8], 0.75), ([0, 0], 0.0), ([], 0.0)]
)
def test_gini(counts, expected):
    assert metrics.gini(np.array(counts, dtype=np.int64)) == pytest.approx(expected)


def test_rated_distribution_renormalises_over_rated_levels():
    probs = np.array([[0.2, 0.2, 0.6], [0.0, 0.0, 1.0]])
    found = metrics.rated_distribution(probs, np.array([True, True, False]))
    np.testing.assert_allclose(found, [[0.5, 0.5], [0.5, 0.5]])


def test_equal_mass_groups_hold_equal_mass():
    rng = np.random.default_rng(0)
    cells = metrics.calibration_cell(rng.beta(1, 20, 100_000))
    counts = np.bincount(cells, minlength=metrics.CALIBRATION_GRID)
    groups = metrics.equal_mass_groups(counts)
    masses = np.bincount(groups, weights=counts)
    assert len(masses) == metrics.CALIBRATION_BINS
    np.testing.assert_allclose(masses / counts.sum(), 1 / 15, atol=0.01)
