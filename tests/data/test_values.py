import datetime
import decimal
import math
import uuid

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.data.values import (
    encoded_ids,
    given_ids,
    numbers_of,
    parse_ids,
    spelled,
    to_ids,
    to_ratings,
)
from raysys.errors import DataError

D = decimal.Decimal
UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, None, -3]), ["1", None, "-3"]),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (pa.array([1.0, math.nan, 3.0, None, -0.0]), ["1", None, "3", None, "0"]),
        (pa.array([16.0], pa.float16()), ["16"]),
        (pa.array([2.0**53 - 1]), ["9007199254740991"]),
        (pa.array(["é ü", "", "01", "50.00", " a"]), ["é ü", None, "01", "50.00", " a"]),
        (pa.array(["x", None, "x"]).dictionary_encode(), ["x", None, "x"]),
        (pa.array(["x", None, "y"], pa.large_string()), ["x", None, "y"]),
        (pa.array(["x", None, "y"], pa.string_view()), ["x", None, "y"]),
        (pa.array([D("50.00"), None, D("-7.00")], pa.decimal128(20, 2)), ["50", None, "-7"]),
        (pa.array([D("0")], pa.decimal128(38, 20)), ["0"]),
        (pa.array([D(10**37)], pa.decimal128(38, 0)), ["1" + "0" * 37]),
        (pa.array([D(10**60)], pa.decimal256(70, 5)), ["1" + "0" * 60]),
        (pa.array([D("1200")], pa.decimal128(5, -2)), ["1200"]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array(["é".encode(), None, b""]), ["é", None, None]),
        (pa.array([b"ab"], pa.binary(2)), ["ab"]),
        (pa.array([UUID.bytes, None], pa.uuid()), [str(UUID), None]),
        (pa.array([datetime.date(2020, 1, 2)]), ["2020-01-02"]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_ids_become_text(column, expected):
    ids, faults = parse_ids(column, "user")
    assert (ids.to_pylist(), faults) == (expected, [])
    encoded, faults = encoded_ids(column, "user")
    assert (encoded.to_pylist(), faults) == (expected, [])
    assert encoded.type == pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize(
    ("column", "expected", "reasons"),
    [
        (
            pa.array([1.5, 2.0, math.inf, None, 2.0**53, -(2.0**60)]),
            [None, "2", None, None, None, None],
            {"user id is not a whole number": [0, 2], "user id beyond 2^53 as a float": [4, 5]},
        ),
        (
            pa.array([2.0**24, 5.0], pa.float32()),
            [None, "5"],
            {"user id beyond 2^24 as a float": [0]},
        ),
        (
            pa.array([D("50.25"), D("50.00")], pa.decimal128(20, 2)),
            [None, "50"],
            {"user id is not a whole number": [0]},
        ),
        (
            pa.array([b"\xff", b"a", None]),
            [None, "a", None],
            {"user id is not text in UTF-8": [0]},
        ),
    ],
)
def test_numbers_that_are_no_ids_are_faults_row_by_row(column, expected, reasons, caplog):
    for encode in (lambda c: c, lambda c: c.dictionary_encode()):
        ids, faults = encoded_ids(encode(column), "user")
        assert ids.to_pylist() == expected
        assert {reason: np.flatnonzero(mask).tolist() for reason, mask in faults} == reasons
    assert to_ids(column, "user").to_pylist() == expected
    assert all(reason in caplog.text for reason in reasons)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1]]),
        pa.array([{"a": 1}]),
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())),
    ],
)
def test_lists_and_objects_are_no_ids(column):
    with pytest.raises(DataError, match=r"item ids of type (list|struct|map)<.* cannot be read"):
        encoded_ids(column, "item")


@given(st.lists(st.one_of(st.none(), st.text()), max_size=8))
def test_text_ids_round_trip_whatever_holds_them(texts):
    expected = [text or None for text in texts]
    plain = pa.array(texts, pa.string())
    for column in (plain, plain.dictionary_encode(), plain.cast(pa.binary())):
        assert encoded_ids(column, "user")[0].to_pylist() == expected
        assert to_ids(column, "user").to_pylist() == expected


@given(st.lists(st.integers(-(2**53) + 1, 2**53 - 1), min_size=1, max_size=8))
def test_a_whole_number_is_one_id_in_every_type(numbers):
    expected = [str(number) for number in numbers]
    kinds = (pa.int64(), pa.float64(), pa.decimal128(30, 5), pa.decimal256(40, 0))
    for kind in kinds:
        assert to_ids(pa.array(numbers, pa.int64()).cast(kind), "user").to_pylist() == expected


def test_ids_that_must_be_there():
    assert given_ids(pa.chunked_array([[7.0], [8.0]]), "f") == ["7", "8"]
    with pytest.raises(DataError, match="f row 11: missing item_id"):
        given_ids(pa.array(["a", None]), "f", 10)
    with pytest.raises(DataError, match="f row 0: item id is not a whole number"):
        given_ids(pa.array([0.5]), "f")


@pytest.mark.parametrize(
    ("column", "ratings", "wrong"),
    [
        (
            pa.array([" 4.5", "4,5", "ten", None, "1e999", ".5"]),
            [4.5, None, None, None, None, 0.5],
            3,
        ),
        (pa.array([True, False, None]), [1, 0, None], 0),
        (pa.array([math.inf, math.nan, 1e300, 2.0]), [None, None, None, 2], 3),
        (pa.array([D("4.50"), D(10**30)], pa.decimal128(38, 2)), [4.5, np.float32(1e30)], 0),
        (pa.array([3, None], pa.int8()), [3, None], 0),
        (pa.array(["4.5", "x"]).dictionary_encode(), [4.5, None], 1),
        (pa.array(["4.5"], pa.string_view()), [4.5], 0),
        (pa.nulls(2), [None, None], 0),
    ],
)
def test_ratings_of_every_type(column, ratings, wrong):
    values, bad, outside = to_ratings(column, (None, None))
    assert values.to_pylist() == ratings
    assert (int(bad.sum()), outside.any()) == (wrong, False)


def test_ratings_out_of_range():
    values, bad, outside = to_ratings(pa.array([0, 1, 5, 6, None]), (1.0, 5.0))
    assert outside.tolist() == [True, False, False, True, False]
    assert not bad.any()
    assert values[4].as_py() is None


@pytest.mark.parametrize("column", [pa.array([[1]]), pa.array([datetime.date(2020, 1, 1)])])
def test_columns_that_hold_no_ratings(column):
    with pytest.raises(DataError, match=r"ratings of type .* cannot be read"):
        to_ratings(column, (None, None))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7.0, "7"),
        (7.5, "7.5"),
        (2**60, str(2**60)),
        (True, "true"),
        (None, None),
        ("7.50", "7.50"),
        (D("7.50"), "7.50"),
        (datetime.date(1970, 1, 5), "1970-01-05"),
        (b"a", "a"),
        (b"\xff", "ff"),
        (["a", 1], '["a", 1]'),
        ({"a": D("1.5")}, '{"a": "1.5"}'),
    ],
)
def test_values_are_spelled_as_in_json(value, text):
    assert spelled(value) == text


def test_texts_that_are_numbers():
    texts = pa.array(
        ["7.50", " 7", "1e3", "0007", "-.5", "", "x", "nan", "inf", "1_0", "1e999", None]
    )
    expected = [7.5, 7, 1000, 7, -0.5] + [math.nan] * 7
    np.testing.assert_array_equal(numbers_of(texts), expected)
