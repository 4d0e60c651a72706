import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.data.schema import RatingLevels
from raysys.errors import ConfigError
from raysys.prepare.levels import LevelCounts, assign_levels, build_levels

NAN = np.float32("nan")


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


@pytest.mark.parametrize(
    ("counts", "names", "liked"),
    [
        (LevelCounts({1.0: 9}, 0, {None: 9}), ("consumed",), (True,)),
        (LevelCounts({0.0: 9}, 0, {None: 9}), ("consumed",), (True,)),
        (LevelCounts({5.0: 4}, 5, {None: 9}), ("rated", "unrated"), (True, False)),
        (LevelCounts({1.0: 9}, 0, {"view": 6, "buy": 3}), ("buy", "view"), (True, True)),
        (LevelCounts({1.0: 4}, 5, {"view": 6, "buy": 3}), ("buy", "view"), (True, True)),
    ],
)
def test_ratings_that_never_differ_make_no_scale(counts, names, liked, caplog):
    levels = build_levels(counts)
    assert (levels.names, levels.liked) == (names, liked)
    assert levels.values == (None,) * len(names)
    [record] = caplog.records
    value = next(iter(counts.ratings))
    assert f"are all {value:g}: they make no scale, levels={','.join(names)}" in record.getMessage()


def test_rows_of_later_windows_find_a_level_where_the_fit_window_had_one_rating():
    rating = np.array([1, 4, NAN], dtype=np.float32)
    columns = {"rating": rating, "event": np.array([0, 1, 2]), "events": ["view", "buy", "new"]}
    for counts, expected, unknown in (
        (LevelCounts({1.0: 9}, 0, {}), [0, 0, 0], [False] * 3),
        (LevelCounts({1.0: 9}, 2, {}), [0, 0, 1], [False] * 3),
        (LevelCounts({1.0: 9}, 0, {"buy": 2, "view": 7}), [1, 0, 0], [False, False, True]),
    ):
        level, none = assign_levels(build_levels(counts), **columns)
        assert (level.tolist(), none.tolist()) == (expected, unknown)


def test_events_called_like_our_levels_are_events():
    levels = build_levels(LevelCounts({}, 4, {"rated": 2, "unrated": 2}))
    rating = np.full(2, NAN)
    level, _ = assign_levels(
        levels, rating=rating, event=np.array([0, 1]), events=["unrated", "rated"]
    )
    assert [levels.names[number] for number in level] == ["unrated", "rated"]


def test_ratings_of_many_digits_keep_names_of_their_own():
    ratings = np.array([16777214, 16777215, 4.1], dtype=np.float32)
    levels = build_levels(LevelCounts(dict.fromkeys(ratings.tolist(), 1), 0, {}))
    assert levels.names == ("4.1", "16777214", "16777215")
    liked = build_levels(
        LevelCounts(dict.fromkeys(ratings.tolist(), 1), 0, {}), liked_levels=["4.10"]
    )
    assert liked.liked == (True, False, False)


RATINGS = st.dictionaries(
    st.floats(-1e6, 1e6, width=32), st.integers(1, 10**6), min_size=2, max_size=40
)


@given(ratings=RATINGS, dominant=st.integers(0, 39), n_unrated=st.integers(0, 2))
def test_no_level_is_empty_and_ratings_that_differ_are_at_least_two(ratings, dominant, n_unrated):
    ratings = dict(ratings)
    ratings[sorted(ratings)[dominant % len(ratings)]] = 10**9
    levels = build_levels(LevelCounts(ratings, n_unrated, {}))
    assert levels.n_rated >= 2
    assert len(set(levels.names)) == levels.n_levels
    assert levels.scale == (min(ratings), max(ratings))
    level = levels.level_of_rating(np.array(list(ratings), dtype=np.float32))
    assert set(level.tolist()) == set(range(levels.n_rated))


def test_levels_are_read_back_and_builds_of_before_had_no_scale(tmp_path):
    levels = build_levels(LevelCounts({float(v): 1 for v in range(20)}, 3, {}))
    levels.save(tmp_path / "levels.json")
    assert RatingLevels.load(tmp_path / "levels.json") == levels
    text = (tmp_path / "levels.json").read_text()
    assert '"scale"' in text
    (tmp_path / "old.json").write_text('{"names": ["x"], "values": [null], "liked": [true]}')
    assert RatingLevels.load(tmp_path / "old.json").scale is None
