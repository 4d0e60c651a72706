"""Processes that tests start and end."""

import contextlib
import os
import signal
from pathlib import Path


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
