"""Kills refreshes at random moments; the next one ends with the builds of an undisturbed one.

    python tests/long/kill_refresh.py [--kills 15] [--seed 1] [--storage folder|s3]

Every round begins with a copy of a run that is served, and two new logs are there: a refresh is
killed, its whole process tree, at a moment drawn from the time that an undisturbed one takes. Then

    what is current opens, verifies and answers, and no two stages of it are mixed
    the next refresh ends with 0, with the builds, decision and metrics of the undisturbed one
    one more says that there is nothing new, and nothing is left in the place of the work

Exit status 1 where a round broke a rule.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from raysys.commands.refresh_models import current
from raysys.reports import refreshes
from raysys.search.query import RecommendQuery
from raysys.search.search import Search
from raysys.simulate.world import World, WorldSpec
from raysys.store.builds import Workspace
from tests.support.processes import end, tree
from tests.support.weeks import weeks_of

RAY = ["ray.address=local", "ray.num_cpus=1", "ray.object_store_mb=100"]
SMALL = ["autoencoder.latent=16", "autoencoder.level_latent=8", "optim.epochs=3"]
WEEKS = 9
S3 = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
S3 |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}


def logs(folder: Path) -> None:
    """Write the first log and two weeks that follow it."""
    spec = WorldSpec(n_users=400, n_items=150, n_interactions=15_000, days=7 * (WEEKS + 2))
    weeks = weeks_of(World.make(spec))
    pq.write_table(pa.concat_tables(weeks[:WEEKS]), folder / "base.parquet")
    (folder / "new").mkdir()
    for number, rows in enumerate(weeks[WEEKS:]):
        pq.write_table(rows, folder / f"new/{number}.parquet")


def words(name: str, run: str, *further: str) -> list[str]:
    """Return a command."""
    return [sys.executable, "-m", "raysys.cli", name, f"run={run}", *RAY, *further]


def told(command: list[str], log: Path) -> dict[str, Any]:
    """Run a command to its end and return its line of JSON."""
    with log.open("a") as out:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=out, check=False, cwd=ROOT)
    assert done.returncode == 0, log.read_text()[-3000:]
    return dict(json.loads(done.stdout))


def copied(source: str, target: str) -> None:
    """Copy a run to a place on the same storage."""
    if "://" not in source:
        shutil.copytree(source, target)
        return
    filesystem, path = pafs.FileSystem.from_uri(source)
    pafs.copy_files(path, pafs.FileSystem.from_uri(target)[1], filesystem, filesystem)


def state(run: str) -> dict[str, Any]:
    """Return what is current and decided, without times."""
    workspace = Workspace(run)
    ledger = refreshes.read(workspace.storage)
    kept = [(d.number, d.decision, d.state, d.after, dict(d.metrics), d.rows) for d in ledger]
    return {"current": current(workspace), "ledger": json.loads(json.dumps(kept))}


def answers(run: str) -> int:
    """Verify what is served, ask it, and return the length of its list."""
    search = Search.open(Workspace(run))
    return len(search.recommend(RecommendQuery(user_id="u001", k=5)).items)


def main() -> int:
    """Run the rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--storage", choices=("folder", "s3"), default="folder")
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    folder = Path(tempfile.mkdtemp(prefix="raysys-kills-"))
    print(folder, flush=True)
    logs(folder)
    place = str(folder)
    if asked.storage == "s3":
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        host, port = server.get_host_and_port()
        os.environ |= S3 | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        import boto3

        boto3.client("s3").create_bucket(Bucket="kills")
        place = "s3://kills"
    base, log = f"{place}/base", folder / "log"
    train = [f"train.{word}" for word in (*SMALL, "launch.workers=0")]
    told(words("pipeline", base, f"source={folder}/base.parquet", *train), log)
    # of so few users the skill of these weeks lies just below its limit
    asks = [f"source={folder}/new", "launch.workers=0", "accept=[skill]"]
    copied(base, f"{place}/whole")
    started = time.monotonic()
    told(words("refresh", f"{place}/whole", *asks), log)
    whole_s, whole = time.monotonic() - started, state(f"{place}/whole")
    print(f"undisturbed: {whole_s:.0f} s, {whole['ledger'][0][1]}", flush=True)
    assert whole["ledger"][0][1] == refreshes.PUBLISHED, "rounds would end nothing that publishes"
    broken = 0
    for number in range(asked.kills):
        run = f"{place}/round-{number}"
        copied(base, run)
        moment = rng.uniform(0.05, 1.0) * whole_s
        begin = words("refresh", run, *asks)
        with log.open("a") as out:
            process = subprocess.Popen(begin, stdout=out, stderr=out, cwd=ROOT)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            end(tree(process.pid))
            process.wait()
        wrong = [] if answers(run) == 5 else ["what is served gave no list"]
        told(words("refresh", run, *asks), log)
        wrong += [] if state(run) == whole else ["builds or decision differ"]
        again = told(words("refresh", run, *asks), log)
        wrong += [] if again["decision"] == "nothing new" else ["it was not finished"]
        wrong += ["work is left"] if Workspace(run).storage.files("refresh/work") else []
        print(f"round {number}: killed after {moment:.1f} s {wrong or 'equal'}", flush=True)
        broken += bool(wrong)
    print(f"{asked.kills} kills, {broken} broken", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
