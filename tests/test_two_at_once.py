"""The short form of tests/long/two_at_once.py: two equal jobs on an object store, one killed."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "long" / "two_at_once.py"


@pytest.mark.ray
@pytest.mark.slow
def test_two_equal_jobs_of_which_one_is_killed():
    words = ["--rounds", "1", "--storage", "s3", "--commands", "prepare", "--seed", "3"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed/0 ok" in done.stdout or "0/killed ok" in done.stdout
