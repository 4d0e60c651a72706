"""Two equal jobs at once, some killed: nothing finished is lost and every build stays whole.

    python tests/long/two_at_once.py [--rounds 10] [--storage folder|s3|both]
        [--commands prepare,train,index,pipeline] [--seed 1]

A round draws everything from its seed, the next round's is one more. An odd seed kills one of the
two jobs, its whole process tree, at a random moment; half of the rounds start the jobs together,
the others a moment apart; some build again with force=true what is finished. Then

    each job that was not killed ended with 0, or with 2 and one ERROR line
    what was finished before the round, and what every current.json names, opens and verifies
    a lone job ends with 0, and the builds verify again

`--seed SEED --rounds 1` with its command and storage repeats a round. Jobs run on private clusters;
S3 is moto on loopback. Output of jobs stays in the folder that is named first. Exit status 1 where
a round broke a rule.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pyarrow import fs as pafs

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from raysys.errors import RaysysError
from raysys.store.builds import MANIFEST, Workspace
from raysys.store.current import CURRENT
from raysys.store.storage import open_filesystem
from tests.support.processes import end, tree

PATIENCE_S = 900  # for one job
RAY = ["ray.address=local", "ray.num_cpus=1", "ray.object_store_mb=100"]
SMALL = ["autoencoder.latent=16", "autoencoder.level_latent=8"]
MODEL = [*SMALL, "optim.epochs=2", "launch.workers=1"]
WHOLE = [*(f"train.{word}" for word in MODEL), "evaluate.replicates=50"]
NEEDS = {  # what runs alone before the rounds of a command, itself last
    "prepare": ["prepare"],
    "train": ["prepare", "train"],
    "index": ["prepare", "train", "index"],
    "pipeline": ["pipeline"],
}
S3 = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
S3 |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}


def log_of(folder: Path, variant: int) -> Path:
    """Return a log of 400 users in two groups over 1,050 items, another for each variant."""
    path, draw = folder / f"log-{variant}.csv", random.Random(f"log {variant}")
    if not path.exists():
        with path.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["user_id", "item_id", "rating", "timestamp"])
            for user in range(400):
                for item in draw.sample(range(user % 2, 1050, 2), 40):
                    second = 1_600_000_000 + draw.randrange(10_000_000)
                    writer.writerow([f"u{user}", f"i{item}", draw.choice([3, 4, 5]), second])
    return path


class Job:
    """One command at work. Equal variants are equal jobs; output goes to `<name>.txt`."""

    def __init__(self, run: str, folder: Path, name: str, variant: int, force: bool = False):
        self.name, self.killed = name, False
        command = name.partition("-")[0]
        words = [f"run={run}", f"cache_dir={folder}/cache-{name}", *RAY]  # a host of its own
        if command in ("prepare", "pipeline"):
            words += [f"source={log_of(folder, variant)}"]
        else:
            words += [f"seed={variant}"]
        words += {"train": MODEL, "pipeline": WHOLE}.get(command, []) + ["force=true"] * force
        self._output = folder / f"{name}.txt"
        argv = [sys.executable, "-m", "raysys.cli", command, *words]
        with self._output.open("wb") as out:
            self.process = subprocess.Popen(argv, stdout=out, stderr=out, cwd=folder)

    def close(self) -> None:
        """Kill the job and all processes below it, unless it has ended."""
        if self.process.poll() is None:
            self.killed = True
            end(tree(self.process.pid))
            self.process.wait()

    def broken(self, *accepted: int) -> list[str]:
        """Wait for the end and return which rules it breaks; a killed job breaks none."""
        try:
            status = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.close()
            return [f"{self.name} hung for {PATIENCE_S} s"]
        if self.killed:
            return []
        lines = self._output.read_text(errors="replace").splitlines()
        errors = [line[15:] for line in lines if line[9:15] == "ERROR "]
        broken = []
        if status not in accepted or (status == 2 and len(errors) != 1):
            said = errors or [line for line in lines if "Error" in line][-1:]
            broken.append(f"{self.name} ended with {status}, {len(errors)} ERROR lines, {said}")
        if any(line.startswith("Traceback (most recent call last)") for line in lines):
            broken.append(f"{self.name} shows a traceback")
        return broken


def folders_with(run: str, name: str) -> list[tuple[str, ...]]:
    """Return the folders of a run in which a file `name` lies, without hidden ones: drafts."""
    filesystem, root = open_filesystem(run)
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    paths = (Path(info.path).relative_to(root) for info in filesystem.get_file_info(selector))
    return sorted(p.parts[:-1] for p in paths if p.name == name and "." not in f"{p.parent}")


def broken_builds(run: str, before: list[tuple[str, ...]], folder: Path) -> list[str]:
    """Return what is wrong with the builds of `before` and with those that are current."""
    broken = []
    with tempfile.TemporaryDirectory(dir=folder) as cache:  # empty: what the storage holds counts
        workspace = Workspace(run, cache_dir=cache)
        for kind, *build_id in [*before, *folders_with(run, CURRENT)]:
            try:
                build = workspace.open(kind, *build_id) if build_id else workspace.current(kind)
                build.verify()
                if not build_id:
                    workspace.chain(build)
            except (RaysysError, OSError) as error:
                text = f"{kind} {'of before' if build_id else 'current'}: {error}"
                broken.append(text.replace(cache, ""))
    return broken


def one_round(
    run: str, folder: Path, command: str, seed: int, alone_s: float
) -> tuple[list[str], str]:
    """Run two equal jobs; return what broke, and a line of what was done."""
    draw = random.Random(f"{command} {seed}")
    force = draw.random() < 0.3
    variant = 0 if force else seed
    apart_s = draw.choice([0.0, draw.uniform(0, 0.8 * alone_s)])
    victim, kill_s = draw.randrange(2), draw.uniform(0, alone_s)  # counted from its own start
    before = folders_with(run, MANIFEST)
    moments = [(0.0, "start"), (apart_s, "start")]
    if seed % 2:
        moments.append((kill_s + victim * apart_s, "kill"))
    jobs: list[Job] = []
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        for moment, act in sorted(moments):
            time.sleep(max(0.0, started + moment - time.monotonic()))
            if act == "start":
                name = f"{command}-{seed}-{'ab'[len(jobs)]}"
                jobs.append(Job(run, folder, name, variant, force))
                stack.enter_context(contextlib.closing(jobs[-1]))
            else:
                jobs[victim].close()
        broken = [rule for job in jobs for rule in job.broken(0, 2)]
    broken += broken_builds(run, before, folder)
    ends = ["killed" if job.killed else str(job.process.returncode) for job in jobs]
    broken += alone(run, folder, f"{command}-{seed}-again", variant)
    broken += broken_builds(run, before, folder)
    did = f"force={force} apart={apart_s:.1f}s kill={f'{kill_s:.1f}s' if seed % 2 else 'no'}"
    return list(dict.fromkeys(broken)), f"{did} ended {'/'.join(ends)}"


def alone(run: str, folder: Path, name: str, variant: int) -> list[str]:
    """Run one job to its end and return what it broke."""
    with contextlib.closing(Job(run, folder, name, variant)) as job:
        return job.broken(0)


def all_rounds(run: str, folder: Path, command: str, seeds: range) -> dict[str, object]:
    """Run the rounds of one command, print a line for each, and return its row of the summary."""
    folder.mkdir(parents=True)
    started, ends, n_broken = time.monotonic(), [], 0
    for need in NEEDS[command]:
        begun = time.monotonic()
        if broken := alone(run, folder, f"{need}-first", 0):
            raise SystemExit(f"{folder.name}: cannot begin: {'; '.join(broken)}")
        alone_s = time.monotonic() - begun
    for seed in seeds:
        begun = time.monotonic()
        broken, did = one_round(run, folder, command, seed, alone_s)
        n_broken += bool(broken)
        ends.append(did.rpartition(" ")[2])
        verdict = f"{'BROKEN' if broken else 'ok'} {time.monotonic() - begun:.0f}s"
        print("\n    ".join([f"{folder.name} seed={seed} {did} {verdict}", *broken]), flush=True)
    row = {"what": folder.name, "rounds": len(seeds), "broken": n_broken}
    row |= {"killed": sum("killed" in each for each in ends)}
    return row | {"seconds": round(time.monotonic() - started), "ended": " ".join(ends)}


@contextlib.contextmanager
def s3_bucket() -> Iterator[str]:
    """Serve an S3 bucket on loopback, to this process and to those that it starts."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    os.environ |= S3 | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    boto3.client("s3").create_bucket(Bucket="raysys")
    try:
        yield "s3://raysys"
    finally:
        server.stop()


def main() -> int:
    """Return 1 where a round broke a rule."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--storage", choices=("folder", "s3", "both"), default="both")
    parser.add_argument("--commands", default=",".join(NEEDS))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    commands = args.commands.split(",")
    if set(commands) - set(NEEDS):
        parser.error(f"--commands={args.commands}: expected some of {','.join(NEEDS)}")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # jobs end with this process
    folder, seeds = Path(tempfile.mkdtemp(prefix="two-")), range(args.seed, args.seed + args.rounds)
    print(f"output below {folder}, seeds {seeds.start} to {seeds.stop - 1}", flush=True)
    table = []
    for storage in ("folder", "s3") if args.storage == "both" else (args.storage,):
        local = contextlib.nullcontext(f"{folder}/runs")
        with s3_bucket() if storage == "s3" else local as root:
            for command in commands:
                name = f"{storage}-{command}"
                table.append(all_rounds(f"{root}/{name}", folder / name, command, seeds))
    for row in [dict(zip(table[0], table[0])), *table]:
        print(*(str(value).ljust(15 if name == "what" else 8) for name, value in row.items()))
    return int(any(row["broken"] for row in table))


if __name__ == "__main__":
    raise SystemExit(main())
