"""Stops trials of Ray Train's workers early, and looks whether their CPUs come back.

    python tests/long/stopped_workers.py [TIMES]

A cluster of its own each time, without a dashboard: Train's own cleaner asks that. What is not
given back within a minute would keep the next trial waiting for ever.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ray

from raysys.commands.tune import TuneConfig
from raysys.commands.tune_run import tune
from raysys.config import load
from tests.support.training import QUICK, planted_run

WORDS = [
    *(f"train.{word}" for word in QUICK),
    "train.launch.workers=2",
    "train.autoencoder.consume_loss=likelihood",
    "train.optim.epochs=6",
    "train.optim.patience=0",
    "finalists=0",
    "space.optim.lr=[0.00001]",
]


def seconds_until_free() -> float:
    """Stop a trial and return how long its CPUs stayed taken; infinite after a minute."""
    with tempfile.TemporaryDirectory() as folder:
        run = planted_run(Path(folder, "run")).run
        result = tune(load(TuneConfig, [f"run={run}", *WORDS]))
    assert result.extra["trials"] == {"complete": 1, "pruned": 1}, result.extra
    began = time.monotonic()
    while time.monotonic() - began < 60:
        if ray.available_resources().get("CPU") == 2:
            return time.monotonic() - began
        time.sleep(0.2)
    return float("inf")


def main(times: int = 5) -> int:
    """Say how long each time; 1 where CPUs did not come back."""
    found = []
    for _ in range(times):
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        found.append(seconds_until_free())
        ray.shutdown()
        print(f"free after {found[-1]:.1f} s", flush=True)
    return int(max(found) == float("inf"))


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
