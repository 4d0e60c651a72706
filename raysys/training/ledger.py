"""What a training took: time, workers, memory, rows a second. The names are the same everywhere.

seconds         of the whole, the start of workers and what is lost with them included
worker_seconds  workers x seconds of the loop
workers         that trained, of an elastic training those at its end; one where the job did so
peak_bytes      most memory that one worker held, of the host
rows, rows_per_s  rows passed (of an epoch x epochs; one pass where there was none), and those
                per second of the loop
gpu_peak_bytes  most memory that one worker's tensors held on its GPU; absent without
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from raysys.training.task import Ranks, State

PEAK, GPU_PEAK = "peak_bytes", "gpu_peak_bytes"
Record = dict[str, Any]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Let `peak_bytes` count from what this process holds now, where the system can do that."""
    with contextlib.suppress(OSError):
        _RESET.write_text("5")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Return the most memory that this process held since `reset_peak`, else since it began."""
    try:
        return int(_STATUS.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):  # no Linux
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def worst(ranks: Ranks) -> dict[str, int]:
    """Return the peaks of the worker with the largest; called on all ranks."""
    peaks = {PEAK: peak_bytes()}
    if ranks.device.type == "cuda":
        peaks[GPU_PEAK] = torch.cuda.max_memory_allocated(ranks.device)
    every = torch.zeros(ranks.world, len(peaks), dtype=torch.float64, device=ranks.device)
    every[ranks.rank] = torch.tensor(list(peaks.values()), dtype=torch.float64)
    ranks.total(every)
    return {name: int(most) for name, most in zip(peaks, every.amax(dim=0).tolist(), strict=True)}


def of_state(state: State, *, seconds: float) -> Record:
    """Return the record of a training from the loop's final state.

    Args:
        state: of `loop.train`.
        seconds: of the whole, as the job saw it.
    """
    loop = sum(state["seconds"].values())
    return _record(seconds, loop, state["world"], rows=state["rows"], peaks=state["peaks"])


def of_one(*, seconds: float, rows: int) -> Record:
    """Return the record of what this process worked out by itself since `reset_peak`."""
    return _record(seconds, seconds, 1, rows=rows, peaks={PEAK: peak_bytes()})


def totals(records: Iterable[Record]) -> Record:
    """Return the sums of seconds and the largest peak of several trainings."""
    records = list(records)
    return {
        "training_seconds": round(sum(r["seconds"] for r in records), 3),
        "worker_seconds": round(sum(r["worker_seconds"] for r in records), 3),
        PEAK: max((r[PEAK] for r in records), default=0),
    }


def line(record: Record) -> str:
    """Return a record as the end of a log line."""
    return (
        f"seconds={record['seconds']:.1f} worker_seconds={record['worker_seconds']:.1f} "
        f"workers={record['workers']} peak_mb={record[PEAK] >> 20} "
        f"rows={record['rows']} rows_per_s={record['rows_per_s']:.0f}"
    )


def _record(
    seconds: float, loop: float, workers: int, *, rows: int, peaks: dict[str, int]
) -> Record:
    return {
        "seconds": round(seconds, 3),
        "worker_seconds": round(workers * loop, 3),
        "workers": workers,
        "rows": rows,
        "rows_per_s": round(rows / max(loop, 1e-9), 1),
        **peaks,
    }
