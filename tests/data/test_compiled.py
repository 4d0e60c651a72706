"""Compiled loops: what they are kept under, and the sums of four rows."""

import subprocess
import sys

import numpy as np
import pytest

from raysys.data.compiled import LANES, compiled, four_products

CALLED = """
from raysys.data.compiled import compiled

@compiled
def factor(x):
    return {} * x
"""
CALLER = """
from called import factor
from raysys.data.compiled import compiled

@compiled
def twice(x):
    return 2 * factor(x)

print(twice(1), sum(twice.stats.cache_hits.values()))
"""


def test_a_kept_loop_is_made_anew_when_one_that_it_calls_has_changed(tmp_path):
    (tmp_path / "caller.py").write_text(CALLER)
    found = []
    for value in (3, 3, 5):
        (tmp_path / "called.py").write_text(CALLED.format(value))
        command = [sys.executable, "caller.py"]
        found.append(subprocess.check_output(command, cwd=tmp_path, text=True).split())
    assert found == [["6", "0"], ["6", "1"], ["10", "0"]]


@compiled
def sums_of(rows, vector, out):
    """Write the products of four rows at a time."""
    for first in range(0, rows.shape[0], 4):
        four_products(rows, first, vector, out[first : first + 4])


@pytest.mark.parametrize("width", [LANES, 3 * LANES])
def test_four_products_are_exact(width):
    rng = np.random.default_rng(width)
    rows = rng.integers(-127, 128, (8, width)).astype(np.int8)
    vector = rng.integers(-(2**15), 2**15, width).astype(np.int16)
    out = np.empty(8, np.int32)
    sums_of(rows, vector, out)
    np.testing.assert_array_equal(out, rows.astype(np.int64) @ vector.astype(np.int64))
