"""Kills a sweep again and again, resumes it, and compares it with one that ran undisturbed.

    python tests/long/kill_sweep.py RUN [KILLS] [TRIALS]

RUN has profiles. The driver is ended by SIGKILL at random moments, with its cluster. At the end no
finished trial was trained twice, and the table of trials and the winner are those of the other.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [
    "space.optim.lr={low: 0.002, high: 0.05, log: true}",
    "space.autoencoder.profile_exponent={low: 0.2, high: 0.8}",
    "train.optim.epochs=6",
    "finalists=2",
    "seeds=2",
]


def start(run: Path, trials: int) -> subprocess.Popen[str]:
    """Begin the sweep, or go on with it, in a session of its own."""
    words = [sys.executable, "-m", "raysys.cli", "tune", f"run={run}", f"trials={trials}", *WORDS]
    with open(f"{run}.log", "a") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, text=True, start_new_session=True)


def record(run: Path) -> dict[str, object]:
    """Return the record of the run's only sweep."""
    [path] = run.glob("sweeps/*/sweep.json")
    found: dict[str, object] = json.loads(path.read_text())
    return found


def table(found: dict[str, object]) -> list[object]:
    """Return what does not depend on time."""
    rows = found["trials"]
    assert isinstance(rows, list)
    names = ("number", "values", "state", "objectives", "metrics", "epochs", "history", "digest")
    return [{name: row[name] for name in names} for row in rows]


def main(source: str, kills: int = 5, trials: int = 6) -> int:
    """Run both sweeps and say whether they are equal."""
    seed = time.time_ns() % 1_000_000
    rng = random.Random(seed)
    print(f"moments by seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder, name) for name in ("whole", "killed")]
        for run in runs:
            for kind in ("interactions", "profiles"):
                shutil.copytree(Path(source, kind), run / kind)
        began = time.monotonic()
        assert start(runs[0], trials).wait(timeout=1800) == 0
        whole_s = time.monotonic() - began
        print(f"whole: {whole_s:.0f} s", flush=True)
        left, ended = kills, {}
        while True:
            process = start(runs[1], trials)
            wait = None if not left else rng.uniform(0.2 * whole_s, 0.6 * whole_s)
            try:
                code = process.wait(timeout=wait)
                assert code == 0, Path(f"{runs[1]}.log").read_text()[-2000:]
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                left -= 1
                found = (
                    record(runs[1]) if [*runs[1].glob("sweeps/*/sweep.json")] else {"trials": []}
                )
                rows = found["trials"]
                assert isinstance(rows, list)
                done = {row["number"]: row for row in rows if row["state"] != "running"}
                for number, row in ended.items():
                    assert done.get(number) == row, f"trial {number} is not what it was"
                ended = done
                print(f"killed after {wait:.1f} s: {len(done)} trials had ended", flush=True)
        assert left == 0, f"it ended before {left} of {kills} kills: give it more trials"
        one, other = (record(run) for run in runs)
        assert table(one) == table(other), "the tables differ"
        assert one["winner"] == other["winner"], "the winners differ"
        log = Path(f"{runs[1]}.log").read_text()
        for row in other["trials"]:  # type: ignore[attr-defined]
            n_ends = log.count(f"trial ended id={row['number']} ")
            assert n_ends <= 1, f"trial {row['number']} was trained {n_ends} times"
        print(f"equal: {len(table(one))} trials, winner {one['winner']}, {kills} kills", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], *map(int, sys.argv[2:])))
