"""Readers against other writers, a plain parser and themselves."""

import csv
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.log.formats.config import FormatConfig
from raysys.log.formats.contract import Tally
from raysys.log.formats.delimited import DelimitedReader
from raysys.log.readers import Source, make_reader, read_chunks
from raysys.log.sources import list_files

NAMES = ["user_id", "item_id", "note"]
ODD = st.text(alphabet=st.sampled_from("aé漢😀 0.7\"',;\t\n|\\:{}#"), min_size=1, max_size=6)
WORDS = st.sampled_from(
    ["null", "NaN", "None", "NA", "007", " 7 ", "true", "-0", "1e5", "\\N", "'"]
)
ANY = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\x00"), min_size=1)
IDS = ODD | WORDS | ANY
TABLES = st.lists(st.tuples(IDS, IDS, IDS), min_size=1, max_size=12)
FIELDS = "wrong number of fields"
EXAMPLES = settings(max_examples=60, deadline=None)


def read(folder, name, data, settings=None):
    """Return the rows that a file of `data` reads as, its bad lines and its tally."""
    (Path(folder) / name).write_bytes(data)
    settings = settings or FormatConfig()
    files = list_files(f"{folder}/{name}", settings.kind)
    source = Source(files, make_reader(files[0].format, settings))
    rows, bad, tally = [], [], Tally()
    for piece in source.pieces():
        for chunk in read_chunks(source.reader, piece, NAMES):
            rows += zip(*(chunk.table[name].to_pylist() for name in NAMES), strict=True)
            bad += chunk.malformed
            tally.add(chunk.tally or Tally(lines=0))
    assert tally.left_over == 0
    return rows, bad, tally


def by_csv(rows, **how):
    out = io.StringIO(newline="")
    csv.writer(out, **how).writerows([NAMES, *rows])
    return out.getvalue().encode()


def by_pandas(rows, **how):
    return pd.DataFrame(rows, columns=NAMES).to_csv(index=False, **how).encode()


def by_polars(rows, **how):
    return pl.DataFrame(rows, schema=NAMES, orient="row").write_csv(**how).encode()


def by_arrow(rows):
    out = io.BytesIO()
    pyarrow.csv.write_csv(arrow(rows), out)
    return out.getvalue()


def arrow(rows):
    return pa.table([[row[k] for row in rows] for k in range(3)], names=NAMES)


CSV_WRITERS = {
    "csv": by_csv,
    "csv, all quoted": lambda rows: by_csv(rows, quoting=csv.QUOTE_ALL),
    "csv, line feeds": lambda rows: by_csv(rows, lineterminator="\n"),
    "pandas": by_pandas,
    "polars": by_polars,
    "pyarrow": by_arrow,
}


@pytest.mark.parametrize("writer", CSV_WRITERS)
@EXAMPLES
@given(rows=TABLES)
def test_csv_of_any_writer_reads_back(writer, rows):
    with tempfile.TemporaryDirectory() as folder:
        found, bad, tally = read(folder, "t.csv", CSV_WRITERS[writer](rows))
    assert (found, bad) == (rows, [])
    assert tally.rows == len(rows)


@EXAMPLES
@given(rows=TABLES)
def test_tsv_with_the_quote_given_reads_back(rows):
    with tempfile.TemporaryDirectory() as folder:
        for data in (by_csv(rows, delimiter="\t"), by_polars(rows, separator="\t")):
            assert read(folder, "t.tsv", data, FormatConfig(quote='"'))[:2] == (rows, [])


@EXAMPLES
@given(rows=TABLES)
def test_tsv_without_quotes_reads_back(rows):
    plain = [tuple(v.replace("\t", "_").replace("\n", "_") for v in row) for row in rows]
    data = "".join("\t".join(row) + "\n" for row in [NAMES, *plain]).encode()
    blank = [row for row in plain if not any(value.strip(" ") for value in row)]
    with tempfile.TemporaryDirectory() as folder:
        found, bad, _ = read(folder, "t.tsv", data)
    assert (found, bad, blank) == (plain, [], blank)


@EXAMPLES
@given(rows=TABLES, escape=st.sampled_from("\\^"))
def test_escaped_values_read_back(rows, escape):
    how = {"escapechar": escape, "doublequote": False, "lineterminator": "\n"}
    kept = [tuple(v.replace(escape, "/") for v in row) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        data = by_csv(kept, quoting=csv.QUOTE_ALL, **how)
        assert read(folder, "t.csv", data, FormatConfig(escape=escape))[:2] == (kept, [])


@EXAMPLES
@given(rows=TABLES, separator=st.sampled_from(["::", "||", " , ", "§", ";"]))
def test_any_separator_reads_back(rows, separator):
    quoted = [['"' + value.replace('"', '""') + '"' for value in row] for row in [NAMES, *rows]]
    data = "".join(separator.join(row) + "\n" for row in quoted).encode()
    with tempfile.TemporaryDirectory() as folder:
        found = read(folder, "t.csv", data, FormatConfig(separator=separator))
    assert found[:2] == (rows, [])


JSON_WRITERS = {
    "json": lambda rows: "".join(
        json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in rows
    ).encode(),
    "json, not escaped": lambda rows: "".join(
        json.dumps(dict(zip(NAMES, row, strict=True)), ensure_ascii=False) + "\r\n" for row in rows
    ).encode(),
    "pandas": lambda rows: (
        pd.DataFrame(rows, columns=NAMES).to_json(orient="records", lines=True).encode()
    ),
    "polars": lambda rows: pl.DataFrame(rows, schema=NAMES, orient="row").write_ndjson().encode(),
}


@pytest.mark.parametrize("writer", JSON_WRITERS)
@EXAMPLES
@given(rows=TABLES)
def test_json_lines_of_any_writer_read_back(writer, rows):
    with tempfile.TemporaryDirectory() as folder:
        assert read(folder, "t.jsonl", JSON_WRITERS[writer](rows))[:2] == (rows, [])


@EXAMPLES
@given(rows=TABLES)
def test_parquet_of_any_writer_reads_back(rows):
    writers = [
        lambda path: pq.write_table(arrow(rows), path, row_group_size=3),
        lambda path: pl.DataFrame(rows, schema=NAMES, orient="row").write_parquet(path),
        lambda path: pd.DataFrame(rows, columns=NAMES).to_parquet(path),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for write in writers:
            path = Path(folder) / "t.parquet"
            write(path)
            assert read(folder, "t.parquet", path.read_bytes())[0] == rows


RUBBISH = st.sampled_from(
    [b"rubbish", b'"', b'"a', b"1,2", b"1,2,3,4", b'1,"2', b"\xff,\xfe,x", b'"a"b', b"{", b"[1]"]
)


@EXAMPLES
@given(rows=TABLES, rubbish=RUBBISH, place=st.integers(0, 12), ends=st.sampled_from(["\n", "\r\n"]))
def test_a_line_of_rubbish_costs_itself_alone(rows, rubbish, place, ends):
    simple = [tuple(v.replace("\n", "_") for v in row) for row in rows]
    place = min(place, len(rows))
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (
            ("t.csv", by_csv(simple, quoting=csv.QUOTE_ALL, lineterminator=ends)),
            ("t.jsonl", JSON_WRITERS["json"](simple)),
        ):
            lines = data.splitlines(keepends=True)
            if len(lines) != len(rows) + (name == "t.csv"):
                continue  # a value holds what bytes.splitlines takes for a line end
            number = place + (name == "t.csv")
            dirty = b"".join([*lines[:number], rubbish + ends.encode(), *lines[number:]])
            found, bad, _ = read(folder, name, dirty)
            assert found == simple
            assert [line.line for line in bad] == [number + 1]


def test_arrow_and_the_exact_scan_agree(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    values = ["a", "b c", "", "é", "12", '"x"', '"x, y"', "'", "x y"]
    drawn = rng.choice(values, size=(5000, 3))
    text = "".join(",".join(row) + "\n" for row in [NAMES, *drawn])
    fast = read(tmp_path, "t.csv", text.encode())
    monkeypatch.setattr(DelimitedReader, "_parse", lambda *_: None)
    exact = read(tmp_path, "t.csv", text.encode())
    assert fast == exact
    expected = [
        tuple(value or None for value in row)
        for row in csv.reader(io.StringIO(text))
        if row != NAMES
    ]
    assert exact[0] == expected


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_rows_across_windows_keep_their_lines(tmp_path, monkeypatch, name):
    rows = [(f"u{n}", f"i{n}", f'say "{n}"\n, twice' if n % 7 == 0 else "x") for n in range(4000)]
    data = by_csv(rows, lineterminator="\n") if "csv" in name else JSON_WRITERS["json"](rows)
    lines = data.split(b"\n")
    for place in (3500, 1200, 2):  # a line after each third row's first one, outside of values
        while b"twice" in lines[place]:
            place += 1
        lines[place:place] = [b'{"user_id": "\xff"}' if "json" in name else b"\xff,1,2", b"rubbish"]
    data = b"\n".join(lines)
    whole = read(tmp_path, name, data)
    monkeypatch.setattr("raysys.log.formats.text.BLOCK_BYTES", 512)
    small = read(tmp_path, name, data)
    assert small == whole
    assert small[0] == rows
    reasons = {True: "not UTF-8 text", False: "not JSON" if "json" in name else FIELDS}
    placed = [
        n for n, line in enumerate(data.split(b"\n"), 1) if b"\xff" in line or line == b"rubbish"
    ]
    assert [bad.line for bad in small[1]] == placed
    assert [bad.reason for bad in small[1]] == [reasons[n % 2 == 0] for n in range(6)]
