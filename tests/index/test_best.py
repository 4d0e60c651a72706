import numpy as np
import pytest

from raysys.index.best import best_places


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
