import numpy as np
import pytest

from raysys.index.best import ascend, best_places, narrowed


@pytest.mark.parametrize("size", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("top_k", [1, 20, 300])
def test_the_best_come_first_and_the_first_of_equals(size, top_k):
    scores = np.random.default_rng(size).integers(0, 9, size).astype(np.float32)
    places = np.empty(min(top_k, size), np.int64)
    best_places(scores, places)
    np.testing.assert_array_equal(places, np.argsort(-scores, kind="stable")[:top_k])


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_every_place_is_one_of_theirs_whatever_the_scores(value):
    scores = np.full(300, value, np.float32)
    scores[70:80] = 1
    places = np.full(200, -7, np.int64)
    best_places(scores, places)
    assert len(np.unique(places)) == 200
    assert places.min() >= 0
    assert places.max() < 300


@pytest.mark.parametrize("size", [2, 33, 64, 300, 664])
@pytest.mark.parametrize("largest", [3, 1 << 34, 1 << 63])
@pytest.mark.parametrize("order", ["drawn", "rising", "falling"])
def test_keys_are_narrowed_and_sorted_whatever_their_order(size, largest, order):
    rng = np.random.default_rng(size)
    keys = rng.integers(0, largest, size, dtype=np.uint64)
    keys = keys if order == "drawn" else np.sort(keys)[:: 1 if order == "rising" else -1].copy()
    wanted = np.sort(keys)
    for top_k in {1, size // 2, size - 1}:
        some = keys.copy()
        assert narrowed(some, size, top_k) == wanted[-top_k]
        np.testing.assert_array_equal(np.sort(some[:top_k]), wanted[-top_k:])
        np.testing.assert_array_equal(np.sort(some), wanted)
    ascend(keys)
    np.testing.assert_array_equal(keys, wanted)
