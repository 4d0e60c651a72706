import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.compressor import vector_files
from raysys.compressor.vector_files import check_rows, embedding_files, open_npy, open_parquet
from raysys.errors import DataError


def vectors(n_rows=100, dim=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n_rows, dim)).astype(np.float32)


def shard(path, rows, first=0, kind=None, **columns):
    names = [f"item {n}" for n in range(first, first + len(rows))]
    lists = pa.array(list(rows), kind or pa.list_(pa.float32()))
    table = {"item_id": names, "embedding": lists, **columns}
    pq.write_table(pa.table({k: v for k, v in table.items() if v is not None}), path)


def read(source):
    opened = open_parquet(embedding_files(str(source)))
    batches = list(opened.batches())
    for batch in batches:
        check_rows(batch)
    names = [name for batch in batches for name in batch.names]
    return opened.shape, np.concatenate([b.vectors for b in batches]), names


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 6), pa.large_list(pa.float32())]
)
def test_shards_follow_one_another_by_name(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(vector_files, "_BATCH_BYTES", 7 * 6 * 4)
    x = vectors().astype(np.float16).astype(np.float32)
    for number, start in enumerate(range(0, 100, 40)):
        shard(tmp_path / f"part-{number}.parquet", x[start : start + 40], start, kind)
    shard(tmp_path / "part-3.parquet", x[:0], 0, kind)
    for source in (tmp_path, tmp_path / "*.parquet"):
        shape, found, names = read(source)
        assert shape == found.shape == (100, 6)
        np.testing.assert_array_equal(found, x)
        assert names == [f"item {n}" for n in range(100)]


def test_titles_and_numbers_as_ids(tmp_path):
    shard(tmp_path / "x.parquet", vectors(3), item_id=[7, 8, 9], title=["a", None, "c"])
    [batch] = open_parquet(embedding_files(str(tmp_path))).batches()
    assert (batch.names, batch.titles) == (["7", "8", "9"], ["a", None, "c"])


def test_a_row_of_another_length_names_its_shard(tmp_path):
    shard(tmp_path / "a.parquet", vectors(5))
    shard(tmp_path / "b.parquet", [*vectors(2), np.ones(5, dtype=np.float32)], 5)
    with pytest.raises(DataError, match=r"b\.parquet row 2 \(item 'item 7'\) has 5 numbers"):
        read(tmp_path)
    shard(tmp_path / "b.parquet", [vectors(1)[0], None], 5)
    with pytest.raises(DataError, match=r"b\.parquet row 1 \(item 'item 6'\) has 0 numbers"):
        read(tmp_path)


@pytest.mark.parametrize("value", [None, np.nan, np.inf])
def test_numbers_that_are_none_name_their_row(tmp_path, value):
    rows = vectors(5).tolist()
    rows[3][2] = value
    shard(tmp_path / "a.parquet", rows)
    with pytest.raises(DataError, match=r"a\.parquet row 3 \(item 'item 3'\) is zero or not fin"):
        read(tmp_path)


def test_sources_that_hold_no_embeddings(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        embedding_files(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        embedding_files(str(tmp_path / "empty"))
    (tmp_path / "empty" / "log.csv").write_text("item_id\n")
    with pytest.raises(DataError, match="holds csv"):
        embedding_files(str(tmp_path / "empty"))
    shard(tmp_path / "x.parquet", vectors(0))
    with pytest.raises(DataError, match="no rows"):
        read(tmp_path / "x.parquet")
    shard(tmp_path / "x.parquet", vectors(3), item_id=None)
    with pytest.raises(DataError, match=r"no column item_id, it has \['embedding'\]"):
        read(tmp_path / "x.parquet")
    shard(tmp_path / "x.parquet", vectors(3), embedding=["a", "b", "c"])
    with pytest.raises(DataError, match="must hold lists of numbers, not string"):
        read(tmp_path / "x.parquet")
    shard(tmp_path / "x.parquet", [["a"], ["b"]], kind=pa.list_(pa.string()))
    with pytest.raises(DataError, match="must hold numbers"):
        read(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read(tmp_path / "x.parquet")


def test_matrices(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_files, "_BATCH_BYTES", 7 * 6 * 4)
    x = vectors()
    np.save(tmp_path / "x.npy", x.astype(np.float64))
    [file] = embedding_files(str(tmp_path / "x.npy"))
    batches = list(open_npy(file).batches())
    np.testing.assert_array_equal(np.concatenate([b.vectors for b in batches]), x)
    assert [n for b in batches for n in b.names] == [str(n) for n in range(100)]
    names = [f"n{n}" for n in range(100)]
    batches = list(open_npy(file, (names, [None] * 100)).batches())
    assert [n for b in batches for n in b.names] == names
    with pytest.raises(DataError, match="names 99 items"):
        open_npy(file, (names[:99], [None] * 99))
    np.save(tmp_path / "x.npy", np.zeros(4))
    with pytest.raises(DataError, match="must hold a matrix"):
        open_npy(file)
