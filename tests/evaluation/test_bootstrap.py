"""Bootstrap weights and exact sums."""

from __future__ import annotations

import numpy as np
import pytest

from raysys.evaluation import bootstrap


def test_weights_are_poisson_and_independent_of_order():
    keys = bootstrap.user_keys(range(5000))
    weights = bootstrap.poisson_weights(keys, seed=3, replicates=101)
    assert weights.shape == (5000, 101)
    assert weights.mean() == pytest.approx(1, abs=0.01)
    assert weights.var() == pytest.approx(1, abs=0.02)
    shares = np.bincount(weights.ravel(), minlength=12)[:3] / weights.size
    np.testing.assert_allclose(shares, [0.3679, 0.3679, 0.1839], atol=0.002)
    order = np.random.default_rng(0).permutation(5000)
    np.testing.assert_array_equal(
        bootstrap.poisson_weights(keys[order], seed=3, replicates=101), weights[order]
    )


def test_weights_do_not_depend_on_how_many_replicates_are_asked_for():
    keys = bootstrap.user_keys(["a", "b", "ü"])
    many = bootstrap.poisson_weights(keys, seed=0, replicates=100)
    np.testing.assert_array_equal(
        bootstrap.poisson_weights(keys, seed=0, replicates=7), many[:, :7]
    )
    assert (bootstrap.poisson_weights(keys, seed=1, replicates=100) != many).any()


def test_users_and_replicates_are_uncorrelated():
    keys = bootstrap.user_keys(range(2000))
    weights = bootstrap.poisson_weights(keys, seed=0, replicates=64).astype(float)
    between = np.corrcoef(weights.T) - np.eye(64)
    assert np.abs(between).max() < 5 / np.sqrt(2000)


@pytest.mark.parametrize("largest", [10, 1 << 36, 1 << 50])
def test_weighted_sums_are_exact(largest):
    rng = np.random.default_rng(0)
    values = rng.integers(-largest, largest, (9000, 3))
    weights = rng.integers(0, 9, (9000, 5)).astype(np.uint8)
    exact = [
        [sum(int(w) * int(v) for w, v in zip(weights[:, b], values[:, c])) for c in range(3)]
        for b in range(5)
    ]
    assert bootstrap.weighted_sums(weights, values).tolist() == exact


def test_no_replicates_mean_no_interval():
    assert bootstrap.interval(np.array([])) == (None, None)
    assert bootstrap.interval(np.array([np.nan])) == (None, None)
