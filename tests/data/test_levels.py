import numpy as np
import pytest

from raysys.data.levels import LevelCounts, assign_levels, build_levels
from raysys.errors import ConfigError


def test_few_rating_values_are_one_level_each():
    levels = build_levels(LevelCounts({5.0: 3, 0.5: 1, 4.0: 2}, 0, {None: 6}))
    assert levels.names == ("0.5", "4", "5")
    assert levels.liked == (False, True, True)
    rating = np.array([0.5, 4, 5, 4.4, np.nan], dtype=np.float32)
    level, unknown = assign_levels(levels, rating=rating, event=np.full(5, -1), events=[])
    assert level.tolist() == [0, 1, 2, 1, 0]
    assert unknown.tolist() == [False] * 4 + [True]


def test_unrated_rows_of_a_rated_log_are_one_more_level():
    levels = build_levels(LevelCounts({1.0: 3, 2.0: 1}, 2, {None: 6}))
    assert levels.names == ("1", "2", "unrated")
    assert levels.values == (1.0, 2.0, None)
    rating = np.array([np.nan, 2], dtype=np.float32)
    level, unknown = assign_levels(levels, rating=rating, event=np.full(2, -1), events=[])
    assert level.tolist() == [2, 1]
    assert not unknown.any()


def test_many_rating_values_are_quantile_bins_valued_by_their_mean():
    rng = np.random.default_rng(0)
    ratings = np.round(rng.normal(50, 20, 5000), 1).astype(np.float32)
    values, counts = np.unique(ratings, return_counts=True)
    levels = build_levels(LevelCounts(dict(zip(values.tolist(), counts.tolist())), 0, {}))
    assert levels.n_levels == 10
    level = levels.level_of_rating(ratings)
    sizes = np.bincount(level)
    assert sizes.min() > 400
    means = np.bincount(level, weights=ratings) / sizes
    np.testing.assert_allclose(levels.value_array(), means, rtol=1e-5)


def test_bins_survive_one_dominating_value():
    counts = {float(v): 1 for v in range(20)} | {7.0: 1000}
    levels = build_levels(LevelCounts(counts, 0, {}))
    level = levels.level_of_rating(np.array([0.0, 7.0, 19.0]))
    assert len(set(level.tolist())) > 1
    assert level.max() < levels.n_levels


def test_events_are_unordered_levels():
    counts = LevelCounts({}, 9, {"view": 5, "buy": 3, "return": 1, None: 1})
    levels = build_levels(counts, negative_events=["return"])
    assert levels.names == ("buy", "return", "unspecified", "view")
    assert levels.liked == (True, False, True, True)
    level, unknown = assign_levels(
        levels,
        rating=np.full(4, np.nan, dtype=np.float32),
        event=np.array([0, 1, 2, -1]),
        events=["view", "new", "buy"],
    )
    assert unknown.tolist() == [False, True, False, False]
    assert [levels.names[n] for n in level[[0, 2, 3]]] == ["view", "buy", "unspecified"]


def test_neither_ratings_nor_events_is_one_level():
    levels = build_levels(LevelCounts({}, 9, {None: 9}))
    assert levels.names == ("consumed",)
    assert levels.liked == (True,)


def test_liked_levels_are_named_and_checked():
    counts = LevelCounts({1.0: 1, 2.0: 1}, 0, {})
    assert build_levels(counts, liked_levels=["1.0"]).liked == (True, False)
    with pytest.raises(ConfigError, match="'3' is not a level of this log: 1, 2"):
        build_levels(counts, liked_levels=["3"])
