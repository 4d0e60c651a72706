"""Seconds, memory and load: what a suite takes from its machine."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def timed_cpu(function: Callable[[], T]) -> tuple[T, float, float]:
    """Return a result, the seconds it took, and the CPU seconds of all threads of this process."""
    started, used = time.perf_counter(), time.process_time()
    result = function()
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    return result, round(seconds, 3), round(cpu, 2)


def resident_bytes(*, peak: bool = False) -> int:
    """Return this process's resident memory, after freed memory went back to the system.

    With `peak`, the most it ever was; `ru_maxrss` would count its parent's from before exec too.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:" if peak else "VmRSS:")[2].split()[0]) * 1024


def load_average() -> float:
    """Return how many processes wanted a core over the last minute."""
    return round(os.getloadavg()[0], 1)
