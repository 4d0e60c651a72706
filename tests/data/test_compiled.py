"""Compiled loops: what they are kept under, and whose arithmetic they have."""

import os
import subprocess
import sys

import numpy as np

from raysys.data.compiled import compiled, compiled_fast

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
BELOW = CALLER.replace(
    "return 2 * factor(x)",
    "return 2 * middle(x)\n\n@compiled\ndef middle(x):\n    return factor(x)",
)


FOLDER = "NUMBA_CACHE_DIR"


def started(folder, value, cache, caller=CALLER, **environment):
    """Write both files to a folder and start a process there."""
    folder.mkdir(exist_ok=True)
    (folder / "caller.py").write_text(caller)
    (folder / "called.py").write_text(CALLED.format(value))
    return subprocess.Popen(
        [sys.executable, "-B", "caller.py"],
        cwd=folder,
        env={**os.environ, FOLDER: str(cache), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def ran(*args, **environment):
    """Return what a process found: the result, and the loops that it loaded."""
    process = started(*args, **environment)
    out, _ = process.communicate()
    assert process.returncode == 0
    return out.split()


def test_a_loop_is_loaded_from_another_folder_until_one_that_it_calls_changes(tmp_path):
    one, two, cache = tmp_path / "one", tmp_path / "two", tmp_path / "cache"
    assert ran(one, 3, cache) == ["6", "0"]
    assert ran(one, 3, cache) == ["6", "1"]
    assert ran(two, 3, cache) == ["6", "1"]
    assert ran(two, 5, cache) == ["10", "0"]
    assert ran(one, 3, cache) == ["6", "1"]  # and the other one is still there
    assert ran(one, 3, cache, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="") == ["6", "0"]
    assert ran(two, 5, cache) == ["10", "1"]


def test_a_loop_knows_those_that_are_defined_below_it(tmp_path):
    cache = tmp_path / "cache"
    assert ran(tmp_path / "one", 3, cache, BELOW) == ["6", "0"]
    assert ran(tmp_path / "one", 3, cache, BELOW) == ["6", "1"]
    assert ran(tmp_path / "one", 5, cache, BELOW) == ["10", "0"]


def test_processes_that_compile_at_once_and_damaged_or_old_files_do_no_harm(tmp_path):
    cache = tmp_path / "cache"
    both = [started(tmp_path / name, value, cache) for name, value in (("a", 3), ("b", 5))]
    both += [started(tmp_path / "c", 3, cache)]
    assert [process.communicate()[0].split()[0] for process in both] == ["6", "10", "6"]
    assert [ran(tmp_path / name, value, cache) for name, value in (("a", 3), ("b", 5))] == [
        ["6", "1"],
        ["10", "1"],
    ]
    files = sorted(cache.glob("caller.twice-*.nbc"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert ran(tmp_path / "a", 3, cache) == ["6", "0"]
    assert ran(tmp_path / "a", 3, cache) == ["6", "1"]
    for file in files:
        os.utime(file, (0, 0))
    assert ran(tmp_path / "a", 7, cache) == ["14", "0"]
    assert len(list(cache.glob("caller.twice-*.nbc"))) == 1


def test_without_a_folder_loops_are_compiled_each_time(tmp_path):
    file = tmp_path / "file"
    file.touch()  # no folder can be made below it
    nowhere = {"HOME": str(file), "XDG_CACHE_HOME": str(file)}
    here = tmp_path / "here"
    for expected in ("0", "1"):  # beside the code, as numba does
        assert ran(here, 3, file / "cache", **nowhere) == ["6", expected]
    assert list((here / "__pycache__").glob("caller.twice-*.nbc"))
    (tmp_path / "there" / "__pycache__").parent.mkdir()
    (tmp_path / "there" / "__pycache__").touch()
    for _ in range(2):
        assert ran(tmp_path / "there", 3, file / "cache", **nowhere) == ["6", "0"]


@compiled
def differs_from_itself(x):
    return x != x


@compiled_fast
def how_many_differ(x):
    total = 0
    for value in x:
        total += differs_from_itself(value)
    return total


def test_a_loop_keeps_its_arithmetic_whoever_calls_it_first():
    assert how_many_differ(np.array([1, np.nan])) == 1  # a fast loop takes no number for NaN
    assert differs_from_itself(np.nan)
