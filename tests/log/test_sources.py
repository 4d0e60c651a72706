import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.errors import DataError
from raysys.log.formats.config import FormatConfig
from raysys.log.formats.contract import CHUNK_ROWS, BadLine, Piece
from raysys.log.readers import Source, make_reader, read_chunks
from raysys.log.sources import fingerprint, list_files

ROWS = {"user_id": ["a b", "ü"], "item_id": ["007", "8"], "rating": [1.5, None]}
CSV = "user_id,item_id,rating\na b,007,1.5\nü,8,\n"


def opened(path):
    files = list_files(str(path))
    return Source(files, make_reader(files[0].format, FormatConfig()))


def read(path, columns=("user_id", "item_id", "rating")):
    source = opened(path)
    chunks = [c for piece in source.pieces() for c in read_chunks(source.reader, piece, columns)]
    return pa.concat_tables([c.table for c in chunks]), chunks


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.csv.gz", "log.jsonl", "log.ndjson.gz"])
def test_every_text_format_reads_the_same(tmp_path, name):
    text = CSV.replace(",", "\t") if "tsv" in name else CSV
    if "json" in name:
        lines = [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    table, _ = read(tmp_path / name)
    assert table["user_id"].to_pylist() == ["a b", "ü"]
    assert table["item_id"].to_pylist() == ["007", "8"]
    assert [None if v is None else float(v) for v in table["rating"].to_pylist()] == [1.5, None]


def test_parquet_is_read_in_pieces_that_know_their_rows(tmp_path):
    pq.write_table(pa.table({"user_id": list(range(10))}), tmp_path / "a.parquet", row_group_size=3)
    source = opened(tmp_path / "a.parquet")
    (file,) = source.files
    assert source.pieces() == [Piece(file, (0, 1, 2, 3), 0)]
    (chunk,) = read_chunks(source.reader, Piece(file, (2, 3), 6), ["user_id"])
    assert chunk.first_row == 6
    assert chunk.table["user_id"].to_pylist() == [6, 7, 8, 9]
    assert CHUNK_ROWS > 10


def test_malformed_lines_are_kept_apart_with_their_number(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id\na,b\nonly one\n\nc,d\n")
    table, (chunk,) = read(tmp_path / "a.csv", ["user_id", "item_id"])
    assert table["user_id"].to_pylist() == ["a", "c"]
    assert chunk.malformed == [BadLine(3, "wrong number of fields", "only one")]
    assert chunk.lines.take(np.arange(2)).tolist() == [2, 5]


def test_directories_and_globs_list_visible_files_in_order(tmp_path):
    for name in ("b.csv", "a.csv", ".hidden.csv", "_SUCCESS"):
        (tmp_path / name).write_text(CSV)
    assert [f.name for f in list_files(str(tmp_path))] == ["a.csv", "b.csv"]
    assert [f.name for f in list_files(f"{tmp_path}/b*.csv")] == ["b.csv"]
    assert [f.name for f in list_files(f"file://{tmp_path}")] == ["a.csv", "b.csv"]


def test_the_fingerprint_follows_content_not_names(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    before = fingerprint(list_files(str(tmp_path)))
    (tmp_path / "a.csv").rename(tmp_path / "z.csv")
    assert fingerprint(list_files(str(tmp_path))) == before
    (tmp_path / "z.csv").write_text(CSV + "x,1,2\n")
    assert fingerprint(list_files(str(tmp_path))) != before


def test_the_fingerprint_follows_the_columns_that_folders_name(tmp_path):
    marks = []
    for name in ("event=view", "event=buy"):
        (tmp_path / name / name).mkdir(parents=True)
        (tmp_path / name / name / "a.csv").write_text(CSV)
        marks.append(fingerprint(list_files(str(tmp_path / name))))
    assert marks[0] != marks[1]


def test_files_of_other_formats_are_refused_by_name(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "b.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"a\.csv is csv, b\.jsonl is jsonl"):
        list_files(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"\n \n", "a.csv is empty"),
        ("a.parquet", b"PAR1 this is not one", "cannot be read as parquet"),
        ("a.csv.gz", b"not gzip", "cannot be read as csv"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 9, mtime=0)[:-5], "cannot be read as jsonl"),
        ("a.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:-5], "cannot be read as csv"),
    ],
)
def test_unreadable_files_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    source = opened(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        source.columns()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "source= is empty"),
        ("nowhere.csv", "does not exist"),
        ("no*where.csv", "holds no files"),
        ("nope://x/y", "cannot be listed"),
    ],
)
def test_sources_that_are_not_there(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        list_files(source)


def test_unknown_endings_are_refused(tmp_path):
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"a\.xlsx .* has no known format"):
        list_files(str(tmp_path))
    assert list_files(str(tmp_path), "csv")[0].format == "csv"
