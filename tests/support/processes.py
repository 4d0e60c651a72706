"""Processes that tests start and end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def tree(pid):
    """Return a process and all below it."""
    found = [pid]
    for member in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{member}/task").glob("*/children"):
                found += [int(child) for child in task.read_text().split()]
    return found


def end(pids):
    """Kill processes at once, as a lost machine would."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def job(folder, *settings, name="prepare", log=subprocess.DEVNULL):
    """Start a job on a private one-CPU cluster; whatever is left of it is ended."""
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), f"run={folder}", *settings]
    private = ["ray.address=local", "ray.num_cpus=1", "ray.object_store_mb=100"]
    started = subprocess.Popen([*command, *private], stdout=subprocess.PIPE, stderr=log, cwd=ROOT)
    seen = []
    try:
        yield started, seen
    finally:
        end({*seen, *tree(started.pid)})
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.communicate(timeout=20)


def wait_for(folder, pattern, started, seen):
    """Wait until a file of the run matches; remember the job's processes."""
    until = time.monotonic() + 120
    while not list(Path(folder).glob(pattern)):
        assert started.poll() is None, f"the job ended before {pattern}"
        assert time.monotonic() < until, f"no {pattern}"
        time.sleep(0.01)
    seen += tree(started.pid)
