import datetime
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.data.attributes import joined, storable, titles_of
from raysys.prepare.catalogue import join_attributes

DAY = datetime.date(1970, 1, 5)


@pytest.mark.parametrize(
    ("column", "kind", "values"),
    [
        (pa.array(["0007", None]), pa.string(), ["0007", None]),
        (pa.array(["a", "b"]).dictionary_encode(), pa.string(), ["a", "b"]),
        (pa.array(["a"], pa.string_view()), pa.string(), ["a"]),
        (pa.RunEndEncodedArray.from_arrays([2], ["a"]), pa.string(), ["a", "a"]),
        (pa.nulls(1), pa.string(), [None]),
        (pa.array([b"a", None]), pa.string(), ["a", None]),
        (pa.array([b"\xff\x00"]), pa.binary(), [b"\xff\x00"]),
        (pa.array([uuid.UUID(int=1).bytes], pa.uuid()), pa.string(), [str(uuid.UUID(int=1))]),
        (pa.array([1.5], pa.float16()), pa.float32(), [1.5]),
        (pa.array([DAY]), pa.date32(), [DAY]),
        (pa.array([datetime.time(1, 2)]), pa.string(), ["01:02:00"]),
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), pa.string(), None),
        (pa.array([[["a"]], None]), pa.list_(pa.list_(pa.string())), [[["a"]], None]),
        (pa.array([["a"]], pa.list_view(pa.string())), pa.list_(pa.string()), [["a"]]),
        (pa.array([{}], pa.struct([])), pa.string(), ["{}"]),
        (pa.array([{"a": 1}]), pa.struct({"a": pa.int64()}), [{"a": 1}]),
        (
            pa.array([["a"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
            pa.list_(pa.string()),
            [["a"]],
        ),
    ],
)
def test_columns_are_kept_or_become_text(tmp_path, column, kind, values):
    stored = storable(pa.chunked_array([column]))
    assert stored.type == kind
    assert values is None or stored.to_pylist() == values
    pq.write_table(pa.table({"x": stored.take(pa.array([0]))}), tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet")["x"].to_pylist() == stored.to_pylist()[:1]


@pytest.mark.parametrize(
    ("first", "second", "values"),
    [
        (pa.array([1]), pa.array([1.5]), [1, 1.5]),
        (pa.array([1]), pa.array(["x"]), ["1", "x"]),
        (pa.array([2.0, 2.5]), pa.array(["x"]), ["2", "2.5", "x"]),
        (pa.array([2**60 + 1]), pa.array([1.5]), [str(2**60 + 1), "1.5"]),
        (pa.array([True]), pa.array([1]), ["true", "1"]),
        (pa.array([DAY]), pa.array(["soon"]), ["1970-01-05", "soon"]),
        (pa.array(["a|b", None]), pa.array([["c"]]), [["a", "b"], None, ["c"]]),
        (pa.array([[1]]), pa.array([["c"]]), [["1"], ["c"]]),
        (pa.array([[["a"], ["b"]]]), pa.array(["c|d"]), [["a", "b"], ["c", "d"]]),
        (pa.array([{"a": 1}]), pa.array(["x"]), ['{"a": 1}', "x"]),
        (pa.array(["x"]), pa.nulls(1), ["x", None]),
        (pa.array(["x"]), pa.array(["y"], pa.large_string()), ["x", "y"]),
    ],
)
def test_tables_of_other_types_join(first, second, values):
    both = joined([pa.table({"x": first, "y": first}), pa.table({"x": second})])
    assert both["x"].to_pylist() == values
    assert both["y"].to_pylist() == [*first.to_pylist(), *[None] * len(second)]


@pytest.mark.parametrize(
    ("column", "titles"),
    [
        (pa.array(["A", None]), ["A", None]),
        (pa.array([1984, None]), ["1984", None]),
        (pa.array([2.0, 2.5]), ["2", "2.5"]),
        (pa.array([["A", "B"], [], None, [None]]), ["A, B", "", None, ""]),
        (pa.array([{"en": "A"}]), ['{"en": "A"}']),
        (pa.nulls(1), [None]),
    ],
)
def test_titles_are_text(column, titles):
    assert titles_of(column).to_pylist() == titles


def test_a_catalogue_takes_attributes_of_any_type():
    items = pa.table(
        {
            "item_num": pa.array([0, 1], pa.int32()),
            "item_id": ["b", "x"],
            "first_seen": [1, 2],
            "n_fit": [3, 4],
        }
    )
    attributes = pa.table(
        {
            "item_id": ["a", "b"],
            "title": [1984, 7],
            "a.b": pa.array(["p", "q"]).dictionary_encode(),
            "my tag": pa.array(["p", "q"], pa.string_view()),
            "n_fit": ["reserved", "too"],
        }
    )
    table, described = join_attributes(items, attributes)
    assert described == 1
    assert table.drop_columns(["item_num", "first_seen"]).to_pylist() == [
        {"item_id": "b", "title": "7", "n_fit": 3, "a.b": "q", "my tag": "q"},
        {"item_id": "x", "title": None, "n_fit": 4, "a.b": None, "my tag": None},
    ]
