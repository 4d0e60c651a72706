"""Kills `raysys pipeline` again and again at random moments; gc then leaves the current builds.

    python tests/long/kill_pipeline.py [--kills 30] [--storage folder|s3|both] [--seed 1]

A kill ends the whole process group, cluster included, by SIGKILL. After each the next run ends
with 0 and has the build ids of a run that nobody disturbed; then `gc keep=0 older_days=0` leaves
the builds that are current, with all they were made from, and no other file of builds or jobs: the
rest is listed. One line of JSON at the end; exit status 1 where a rule was broken. S3 is moto on
loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from raysys.store.builds import Workspace
from raysys.store.collect import _PARTIAL_S
from raysys.store.inventory import Inventory

SETTINGS = ["train.launch.workers=0", "train.optim.epochs=2", "ray.num_cpus=1"]
WORLD = ["n_users=300", "n_items=120", "n_interactions=6000"]
KEPT = ("reports/", "report.html", "world/")  # results, which no collection touches


def words_of(command: str, run: str, *words: str) -> list[str]:
    """Return the words of a command."""
    return [sys.executable, "-m", "raysys.cli", command, f"run={run}", *words]


def answer_of(words: list[str], log: Path) -> dict[str, object]:
    """Run a command to its end and return what it says.

    Raises:
        AssertionError: it does not end with 0.
    """
    with log.open("a") as err:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=err, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{words[3]} ended with {done.returncode}: see {log}"
    found: dict[str, object] = json.loads(done.stdout)
    return found


def killed(words: list[str], log: Path, after_s: float) -> bool:
    """Run a command and end its process group after so long; tell whether it had not ended."""
    with log.open("a") as err:
        job = subprocess.Popen(words, stdout=err, stderr=err, start_new_session=True, cwd=ROOT)
    try:
        job.wait(timeout=after_s)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        return True
    return False


def unexpected(run: str, *, since: float) -> list[str]:
    """Return the files that are no part of current builds and their lineage, and no results.

    Partial files of writes that were killed are given a minute before gc takes them.
    """
    inventory = Inventory(Workspace(run).storage)
    current = inventory.lineage(inventory.current())
    wanted = {name for place in current for name in inventory.builds[place].files}
    wanted |= {f"{kind}/current.json" for kind in inventory.current().values()}
    young = inventory.partials(before_s=time.time()).keys() if since < _PARTIAL_S else set()
    return [
        name
        for name in inventory.files
        if name not in wanted and name not in young and not name.startswith(KEPT)
    ]


@contextlib.contextmanager
def storage_of(kind: str, folder: Path) -> Iterator[str]:
    """Give the place of runs: a folder, or a bucket of a server of its own."""
    if kind == "folder":
        yield str(folder)
        return
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    boto3.client("s3").create_bucket(Bucket="runs")
    yield "s3://runs"
    server.stop()


def loop(kind: str, kills: int, draw: random.Random, folder: Path) -> dict[str, object]:
    """Kill, run again, collect; return what was found."""
    log = folder / "jobs.log"
    answer_of(words_of("simulate", str(folder), *WORLD), log)
    source = f"source={folder}/world/interactions"
    cache = f"cache_dir={folder}/cache"
    collect = ["keep=0", "older_days=0", "dry_run=false", cache]
    found: dict[str, object] = {"storage": kind, "kills": 0, "late": 0, "removed": {}}
    removed: dict[str, int] = {}
    with storage_of(kind, folder / "runs") as place:
        began = time.monotonic()
        pipeline = words_of("pipeline", f"{place}/whole", source, cache, *SETTINGS)
        whole = answer_of(pipeline, log)
        whole_s = time.monotonic() - began
        print(f"{kind}: undisturbed {whole_s:.1f} s", flush=True)
        problems: list[str] = []
        for number in range(kills):
            run = f"{place}/killed-{number % 3}"  # goes on from whatever earlier rounds left
            pipeline = words_of("pipeline", run, source, cache, *SETTINGS)
            if number >= 3:
                pipeline.append("force=true")
            after_s = draw.uniform(0.05, 1.0) * whole_s
            was_killed = killed(pipeline, log, after_s)
            found["kills" if was_killed else "late"] += 1  # type: ignore[operator]
            ended = time.monotonic()
            again = answer_of([word for word in pipeline if word != "force=true"], log)
            if again["build_ids"] != whole["build_ids"]:
                problems.append(f"kill {number}: build ids differ")
            gone = answer_of(words_of("gc", run, *collect), log)["removed"]
            assert isinstance(gone, list)
            for waste in gone:
                removed[waste["what"]] = removed.get(waste["what"], 0) + 1
            rest = unexpected(run, since=time.monotonic() - ended)
            problems += [f"kill {number}: {name} is left" for name in rest]
            print(
                f"{kind} {number}: killed after {after_s:.1f} s, {len(gone)} removed, "
                f"{len(rest)} left over",
                flush=True,
            )
        left = [str(path) for path in Path(tempfile.gettempdir()).glob("raysys-*.*")]
    found |= {"seconds_whole": round(whole_s, 1), "removed": removed}
    return found | {"temporary_left": left, "problems": problems}


def main() -> int:
    """Run the loops."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--storage", choices=["folder", "s3", "both"], default="both")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    kinds = ["folder", "s3"] if args.storage == "both" else [args.storage]
    results = []
    for kind in kinds:
        folder = Path(tempfile.mkdtemp(prefix=f"kill-{kind}-"))
        print(f"{kind}: output in {folder}", flush=True)
        results.append(loop(kind, args.kills, random.Random(args.seed), folder))
    print(json.dumps({"seed": args.seed, "results": results}))
    return int(any(result["problems"] for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
