from pathlib import Path

import numpy as np
import pytest

from raysys.data import arrays
from raysys.data.arrays import new_file, release, row_blocks, take_rows


def resident_bytes(path):
    """Bytes of a mapped file that count as this process's memory."""
    size, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            inside = str(path) in line
        elif inside and first == "Rss:":
            size += int(line.split()[1]) * 1024
    return size


def test_a_pass_over_a_mapped_file_takes_the_memory_of_a_block(tmp_path):
    path = tmp_path / "x.npy"
    out = new_file(path, (40_000, 64), np.float32)
    for start in range(0, len(out), 4000):
        out[start : start + 4000] = start
        release(out)
        assert resident_bytes(path) < 2_000_000
    mapped = np.load(path, mmap_mode="r")
    total = 0.0
    for start, rows in row_blocks(mapped, 4000):
        assert (rows == start).all()
        total += float(rows.sum())
        assert resident_bytes(path) < 3_000_000
    assert total == float(np.arange(0, 40_000, 4000).sum() * 4000 * 64)
    assert resident_bytes(path) < 100_000


@pytest.mark.parametrize("shape", [(5, 3), (5, 0), (5,), (0, 3)])
def test_new_files_are_those_that_numpy_saves(tmp_path, shape):
    wanted = np.arange(int(np.prod(shape)), dtype=np.float16).reshape(shape)
    np.save(tmp_path / "a.npy", wanted)
    new_file(tmp_path / "b.npy", shape, np.float16)[:] = wanted
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_rows_are_taken_across_blocks(monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK_ROWS", 7)
    array = np.random.default_rng(0).normal(size=(50, 3))
    for rows in (np.arange(50), np.array([0, 6, 7, 7, 8, 49]), np.array([], dtype=np.int64)):
        np.testing.assert_array_equal(take_rows(array, rows), array[rows])
