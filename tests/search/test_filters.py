import datetime
import decimal
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import SearchError
from raysys.search.changes import Changes, joined_items
from raysys.search.filters import Attributes

D = decimal.Decimal
DAYS = [datetime.date(1939, 12, 15), datetime.date(1970, 1, 1), datetime.date(1970, 1, 5), None]
ITEMS = pa.table(
    {
        "item_num": pa.array(range(5), pa.int32()),
        "item_id": ["a", "b|c", "ü", "d", "e"],
        "title": ["Face|Off", "Drama", None, "7", ""],
        "genres": ["Comedy|Drama", "Drama", None, "Sci-Fi", ""],
        "tags": [["x", "y"], ["y"], [], None, ["z"]],
        "year": pa.array([1990, 1995, None, 2001, 1995], pa.int64()),
        "price": [1.5, 2.0, math.nan, None, 2.0],
        "new": [True, False, None, True, False],
    }
)
# As a CSV file holds them: every value is text.
TEXTS = pa.table(
    {
        "item_id": ["007", "7", "8", "9", "10"],
        "zip": ["0007", "7", "10115", None, "SW1A 1AA"],
        "price": ["7.50", "7.5", "$3.00", "12", ""],
        "released": ["1970-01-05", "1969-12-31", "soon", "1970-01-05T10:00:00", None],
        "new": ["True", "false", "TRUE", None, "yes"],
        "my tag": ["a b", "a", "b", "a b", None],
        "a.b": ["x", "y", "x", "y", "x"],
    }
)
TYPED = pa.table(
    {
        "item_id": list("abcd"),
        "day": pa.array(DAYS, pa.date32()),
        "time": pa.array([None if d is None else f"{d} 12:30:00Z" for d in DAYS]).cast(
            pa.timestamp("us", "UTC")
        ),
        "cost": pa.array([D("7.50"), D("0.00"), None, D("-1.25")], pa.decimal128(9, 2)),
        "small": pa.array([4.1, 0.1, None, math.nan], pa.float32()),
        "big": pa.array([2**60 + 1, 2**60, 7, None], pa.int64()),
        "categories": [[["Books", "odd1"]], [["Books"], ["odd0", None], []], None, [[]]],
        "fixed": pa.array([[1, 2], None, [2, 3], [4, 5]], pa.list_(pa.int64(), 2)),
        "years": [[1990, 1991], [1992], None, []],
        "code": pa.array(["p", "q", "p", None]).dictionary_encode(),
        "raw": [b"x", b"y", None, b"x"],
        "info": [{"a": 1}, None, {"a": 2}, None],
        "infos": [[{"a": 1}], None, [], None],
        "picture": [b"\xff", None, b"\x00", None],
        "nothing": pa.nulls(4),
    }
)


def rows_of(items, allow):
    return np.flatnonzero(Attributes(items).mask(allow, None)).tolist()


@pytest.mark.parametrize(
    ("allow", "wanted"),
    [
        ({"genres": "Drama"}, [0, 1]),
        ({"genres": ["Comedy", "Sci-Fi"]}, [0, 3]),
        ({"genres": "Drama", "year": {"max": 1992}}, [0]),
        ({"tags": "y"}, [0, 1]),
        ({"year": 1995}, [1, 4]),
        ({"year": "1995"}, [1, 4]),
        ({"year": "1995.0"}, [1, 4]),
        ({"year": {"min": 1995}}, [1, 3, 4]),
        ({"year": {"min": "1995", "max": 2e3}}, [1, 4]),
        ({"price": 2}, [1, 4]),
        ({"price": "2"}, [1, 4]),
        ({"price": "2.00"}, [1, 4]),
        ({"price": "nan"}, []),
        ({"price": {"min": 1.6, "max": 2.5}}, [1, 4]),
        ({"new": True}, [0, 3]),
        ({"new": "true"}, [0, 3]),
        ({"new": 1}, []),
        ({"item_id": ["b|c", "ü"]}, [1, 2]),
        ({"title": "Face|Off"}, [0]),
        ({"title": 7}, [3]),
        ({"genres": []}, []),
        ({"genres": "Western"}, []),
    ],
)
def test_allow_keeps_items_that_meet_every_condition(allow, wanted):
    attributes = Attributes(ITEMS)
    assert np.flatnonzero(attributes.mask(allow, None)).tolist() == wanted
    rest = np.setdiff1d(np.arange(5), wanted)
    if len(allow) == 1:
        assert np.flatnonzero(attributes.mask(None, allow)).tolist() == rest.tolist()


@pytest.mark.parametrize(
    ("allow", "wanted"),
    [
        ({"zip": "0007"}, [0]),
        ({"zip": "7"}, [1]),
        ({"zip": 7}, [0, 1]),
        ({"zip": {"min": 8}}, [2]),
        ({"price": "7.50"}, [0]),
        ({"price": 7.5}, [0, 1]),
        ({"price": {"min": 7, "max": "10"}}, [0, 1]),
        ({"price": {"min": 8}}, [3]),
        ({"price": "$3.00"}, [2]),
        ({"released": {"min": "1970-01-01"}}, [0, 3]),
        ({"released": {"max": "1970-01-05"}}, [0, 1, 3]),  # the day as a whole
        ({"released": {"max": "1970-01-05T00:00"}}, [0, 1]),
        ({"released": "1970-01-05"}, [0]),
        ({"new": True}, [0, 2]),
        ({"new": "true"}, []),
        ({"my tag": "a b"}, [0, 3]),
        ({"a.b": "y"}, [1, 3]),
        ({"item_id": "7"}, [1]),
        ({"item_id": 7}, [1]),
        ({"item_id": "007"}, [0]),
    ],
)
def test_attributes_of_a_text_file_keep_their_text(allow, wanted):
    assert rows_of(TEXTS, allow) == wanted


@pytest.mark.parametrize(
    ("allow", "wanted"),
    [
        ({"day": "1970-01-05"}, [2]),
        ({"day": {"min": "1970-01-01"}}, [1, 2]),
        ({"day": {"min": "1939-01-01", "max": "1970-01-01"}}, [0, 1]),
        ({"time": {"max": "1970-01-01"}}, [0, 1]),
        ({"time": "1970-01-05T12:30:00Z"}, [2]),
        ({"time": "1970-01-05 14:30+02:00"}, [2]),
        ({"cost": "7.5"}, [0]),
        ({"cost": 7.5}, [0]),
        ({"cost": 0}, [1]),
        ({"cost": {"max": 0}}, [1, 3]),
        ({"small": 4.1}, [0]),
        ({"small": ["0.1", "4.1"]}, [0, 1]),
        ({"big": 2**60}, [1]),  # a float could not tell them apart
        ({"big": str(2**60 + 1)}, [0]),
        ({"big": 7}, [2]),
        ({"categories": "odd1"}, [0]),
        ({"categories": ["odd0", "none"]}, [1]),
        ({"categories": "Books"}, [0, 1]),
        ({"fixed": 2}, [0, 2]),
        ({"fixed": {"min": 5}}, [3]),
        ({"years": {"min": 1991, "max": 1991}}, [0]),
        ({"code": "p"}, [0, 2]),
        ({"raw": "x"}, [0, 3]),
        ({"nothing": "x"}, []),
    ],
)
def test_typed_and_nested_attributes(tmp_path, allow, wanted):
    assert rows_of(TYPED, allow) == wanted
    pq.write_table(TYPED, tmp_path / "items.parquet")
    assert rows_of(pq.read_table(tmp_path / "items.parquet"), allow) == wanted
    assert rows_of(pa.concat_tables([TYPED[:1], TYPED[1:]]), allow) == wanted


def test_deny_drops_items_that_meet_any_condition():
    mask = Attributes(ITEMS).mask(None, {"genres": "Drama", "year": {"min": 2000}})
    assert np.flatnonzero(mask).tolist() == [2, 4]
    assert Attributes(ITEMS).mask(None, {}) is None


@pytest.mark.parametrize(
    ("items", "allow", "message"),
    [
        (ITEMS, {"genre": "Drama"}, r"no attribute 'genre'.*did you mean 'genres'"),
        (ITEMS, {"item_num": 3}, "no attribute 'item_num'"),
        (ITEMS, {"year": {"from": 3}}, "is no range"),
        (ITEMS, {"year": {}}, "is no range"),
        (ITEMS, {"year": {"min": "x"}}, "is no range"),
        (ITEMS, {"year": {"min": "nan"}}, "is no range"),
        (ITEMS, {"year": {"min": math.inf}}, "is no range"),
        (ITEMS, {"year": {"min": True}}, "is no range"),
        (ITEMS, {"year": {"min": [3]}}, "is no range"),
        (ITEMS, {"year": {"min": 3, "max": "1990-01-31"}}, "is no range"),
        (ITEMS, {"year": {"min": "1990-01-31"}}, "holds int64, for example '1990'.*needs dates"),
        (ITEMS, {"genres": {"min": 3}}, "holds string, for example 'Comedy'.*needs numbers"),
        (TYPED, {"day": {"min": 1970}}, "holds date32.*needs numbers"),
        (ITEMS, {"genres": None}, "genres=None is no condition"),
        (ITEMS, {"genres": [["Drama"]]}, "is no condition"),
        (ITEMS, {"genres": "\ud800"}, "not valid Unicode"),
        (TYPED, {"info": "x"}, "'info' holds struct<a: int64>, which conditions cannot look into"),
        (TYPED, {"infos": "x"}, "'infos' holds list<"),
        (TYPED, {"picture": "x"}, "'picture' holds binary"),
    ],
)
def test_conditions_that_cannot_be_used(items, allow, message):
    for given_as in ({"allow": allow, "deny": None}, {"allow": None, "deny": allow}):
        with pytest.raises(SearchError, match=message):
            Attributes(items).mask(**given_as)


def test_upserted_rows_of_another_type_are_filtered_with_the_others():
    items = TYPED.select(["item_id", "big", "day", "years"])
    fresh = pa.table(
        {"item_id": ["z"], "title": ["Z"], "big": ["seven"], "day": ["1970-01-05"], "years": [1992]}
    )
    none = Changes.none(2, 0)
    changes = none.upsert(fresh, np.ones((1, 2), np.float32), np.zeros((1, 0), np.float32))
    together = joined_items(items, changes)
    assert rows_of(together, {"big": 7}) == [2]
    assert rows_of(together, {"big": "seven"}) == [4]
    assert rows_of(together, {"day": {"min": "1970-01-02"}}) == [2, 4]
    assert rows_of(together, {"years": 1992}) == [1, 4]
    assert rows_of(together, {"title": "Z"}) == [4]


NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")


def number_of(value):
    """The number that a value is, or None: the plain model of the numeric view."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        found = float(value) if NUMBER.fullmatch(value) else math.nan
        return found if math.isfinite(found) else None
    return float(value)


def values_of(cell):
    """Every value in a cell."""
    if isinstance(cell, list):
        return [value for element in cell for value in values_of(element)]
    return [] if cell is None else [cell]


def text_of(value):
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else str(value).lower()


def value_meets(value, native, wanted):
    """Whether one value meets one condition, written without arrays."""
    number = number_of(value)
    if isinstance(wanted, dict):
        low, high = float(wanted.get("min", -math.inf)), float(wanted.get("max", math.inf))
        return number is not None and low <= number <= high
    if isinstance(wanted, bool):
        return text_of(value).lower() == str(wanted).lower()
    if isinstance(wanted, str):
        also = native and number_of(wanted) is not None and number == number_of(wanted)
        return also or text_of(value) == wanted
    return number == wanted


ODD_TEXTS = st.sampled_from(
    [
        *("0007", "7", "7.0", "7.50", "7.5", " 7", "7 ", "+7", "1e1", "-0", "1_0", "0x7", "nan"),
        *("inf", "", "|", "a|b", "7|8", "a", "True", "true", "ü", "a.b", "\n", "null", "[]"),
    ]
)
CELLS = {
    "text": (st.none() | ODD_TEXTS, pa.string()),
    "int": (st.none() | st.integers(-20, 20), pa.int64()),
    "float": (st.none() | st.sampled_from([7.0, 7.5, -0.5, 10.0, 1e10]), pa.float64()),
    "bool": (st.none() | st.booleans(), pa.bool_()),
    "texts": (st.none() | st.lists(st.none() | ODD_TEXTS, max_size=3), pa.list_(pa.string())),
    "deep": (
        st.none() | st.lists(st.none() | st.lists(st.integers(0, 9), max_size=2), max_size=2),
        pa.list_(pa.list_(pa.int64())),
    ),
}
BOUNDS = st.sampled_from([-1, 0, 7, 7.5, 10, "7", "7.50", "-1e0"])
CONDITIONS = (
    ODD_TEXTS
    | st.booleans()
    | st.sampled_from([7, 7.0, 7.5, 10, 0, -0.5])
    | st.dictionaries(st.sampled_from(["min", "max"]), BOUNDS, min_size=1)
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(CELLS)), wanted=CONDITIONS)
def test_conditions_agree_with_a_plain_model(data, kind, wanted):
    strategy, arrow = CELLS[kind]
    cells = data.draw(st.lists(strategy, min_size=1, max_size=6))
    native = kind in ("int", "float", "deep")
    items = pa.table({"item_id": list(map(str, range(len(cells)))), "x": pa.array(cells, arrow)})
    split = [cell.split("|") if isinstance(cell, str) else values_of(cell) for cell in cells]
    expected = [any(value_meets(v, native, wanted) for v in values) for values in split]
    numbers = [number_of(value) for values in split for value in values]
    attributes = Attributes(items)
    if isinstance(wanted, dict) and not native and set(numbers) <= {None}:
        with pytest.raises(SearchError, match="needs numbers"):
            attributes.mask({"x": wanted}, None)
        return
    assert attributes.mask({"x": wanted}, None).tolist() == expected
    assert attributes.mask(None, {"x": wanted}).tolist() == [not met for met in expected]
