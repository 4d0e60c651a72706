"""The item file in every format: values as they stand, bad rows counted, columns found or named."""

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.config import load
from raysys.errors import ConfigError, DataError
from raysys.prepare.config import PrepareConfig
from raysys.prepare.item_file import open_items, read_items
from tests.support.logs import write_lines

ITEMS = range(1, 61)


def items_of(path, *settings, log_column=None, max_bad_share=0.05):
    cfg = load(PrepareConfig, [f"items={path}", "split=users", *settings])
    source = open_items(str(path), cfg.items_format, cfg.items_columns)
    how = {"log_column": log_column, "max_bad_share": max_bad_share}
    return read_items(source, cfg.items_format, cfg.items_columns, **how)


def test_delimited_values_are_text_as_written(tmp_path):
    lines = ["item_id,title,zip,price", *(f"{i:03d},T {i},0{i:03d},{i}.50" for i in ITEMS)]
    table = items_of(write_lines(tmp_path / "i.csv", lines))
    assert table.column_names == ["item_id", "title", "zip", "price"]
    assert table.slice(6, 1).to_pylist() == [
        {"item_id": "007", "title": "T 7", "zip": "0007", "price": "7.50"}
    ]


@pytest.mark.parametrize("quote", ['"', "'", '""'])
def test_quotes_of_titles_are_text_in_tsv(tmp_path, quote):
    lines = ["item_id\ttitle", *(f"{i}\t{quote if i % 20 == 7 else ''}T {i}" for i in ITEMS)]
    titles = items_of(write_lines(tmp_path / "i.tsv", lines))["title"].to_pylist()
    assert titles == [f"{quote if i % 20 == 7 else ''}T {i}" for i in ITEMS]


def test_json_and_parquet_values_are_as_they_are(tmp_path):
    records = [
        {
            "item_id": i if i % 2 else str(i),
            "tags": [["a", f"odd{i % 2}"]],
            "price": 1.5 * i if i % 2 else f"${i}",
            "year": 1990 + i,
            "score": i if i < 50 else i + 0.5,
            "seen": None if i < 3 else "2020-01-05",
            "empty": {},
        }
        for i in ITEMS
    ]
    path = write_lines(tmp_path / "i.jsonl", map(json.dumps, records))
    table = items_of(path)
    assert table["item_id"].to_pylist() == [str(i) for i in ITEMS]
    assert table["tags"][0].as_py() == [["a", "odd1"]]
    assert table["price"].to_pylist()[:3] == ["1.5", "$2", "4.5"]
    assert table.schema.field("year").type == pa.int64()
    assert table["score"].to_pylist() == [float(record["score"]) for record in records]
    assert table["seen"].to_pylist()[:3] == [None, None, "2020-01-05"]
    assert table["empty"].to_pylist() == ["{}"] * len(table)
    pq.write_table(table.drop_columns(["price"]), tmp_path / "i.parquet")
    assert items_of(tmp_path / "i.parquet").equals(table.drop_columns(["price"]))


def test_files_of_other_columns_and_types_are_one_catalogue(tmp_path):
    (tmp_path / "c").mkdir()
    pq.write_table(
        pa.table({"item_id": [1, 2], "year": [1990, 1991]}), tmp_path / "c" / "0.parquet"
    )
    other = {"item_id": ["x"], "year": ["unknown"], "genre": ["a"]}
    pq.write_table(pa.table(other), tmp_path / "c" / "1.parquet")
    table = items_of(tmp_path / "c")
    assert table["item_id"].to_pylist() == ["1", "2", "x"]
    assert table["year"].to_pylist() == ["1990", "1991", "unknown"]
    assert table["genre"].to_pylist() == [None, None, "a"]


@pytest.mark.parametrize("name", ["i.csv", "i.jsonl"])
def test_bad_rows_are_left_out_and_said(tmp_path, caplog, name):
    def line(i):
        return json.dumps({"item_id": i, "title": "T"}) if "json" in name else f"{i},T"

    head = [] if "json" in name else ["item_id,title"]
    path = write_lines(
        tmp_path / name, [*head, *map(line, ITEMS[:40]), "rubbish", *map(line, ITEMS[40:])]
    )
    with caplog.at_level(logging.WARNING):
        table = items_of(path)
    assert table["item_id"].to_pylist() == [str(i) for i in ITEMS]
    assert f"items left out rows=1 of 61 example={name} line {41 + len(head)}" in caplog.text
    with pytest.raises(DataError, match=r"1 of 61 rows cannot be read \(max_bad_share=0.01\)"):
        items_of(path, max_bad_share=0.01)


def test_columns_are_named_or_proposed(tmp_path):
    lines = ["asin;name", *(f"{i};T {i}" for i in ITEMS)]
    path = write_lines(tmp_path / "i.csv", lines)
    with pytest.raises(
        ConfigError, match=r"'items_format.separator=;' items_columns.item=asin items_c"
    ):
        items_of(path)
    keys = ["items_format.separator=;", "items_columns.item=asin", "items_columns.title=name"]
    table = items_of(path, *keys)
    assert table.column_names == ["item_id", "title"]
    assert table["title"].to_pylist()[6] == "T 7"
    assert len(items_of(path, keys[0], log_column="asin")) == 60
    named = ["items_columns.names=[item_id,title]", "items_format.header=true", keys[0]]
    assert items_of(path, *named)["title"].to_pylist()[6] == "T 7"
    with pytest.raises(ConfigError, match=r"no column 'brand' \(items_columns.title\)"):
        items_of(path, *keys[:2], "items_columns.title=brand")


def test_a_column_that_stands_twice_is_one_line(tmp_path):
    path = write_lines(tmp_path / "i.csv", ["item_id,title,tag,tag", "1,T,a,b"])
    with pytest.raises(DataError, match=r"column 'tag' stands 2 times in i.csv \(type string\)"):
        items_of(path)
    columns = [pa.array([1]), pa.array([["a"]]), pa.array([["b"]])]
    pq.write_table(
        pa.Table.from_arrays(columns, names=["item_id", "g", "g"]), tmp_path / "i.parquet"
    )
    with pytest.raises(DataError, match=r"column 'g' stands 2 times in i.parquet \(type list<"):
        items_of(tmp_path / "i.parquet")


def test_a_catalogue_of_unknown_ending_is_proposed_for(tmp_path):
    path = write_lines(tmp_path / "movies.dat", (f"{i}::T {i} (1995)::Drama|War" for i in ITEMS))
    with pytest.raises(DataError, match=r"no known format.*items_format.kind=csv items_format.sep"):
        items_of(path)
    keys = ["items_format.kind=csv", "items_format.separator=::"]
    table = items_of(path, *keys, "items_columns.names=[item_id,title,genres]")
    assert table["genres"].to_pylist() == ["Drama|War"] * 60
