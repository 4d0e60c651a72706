"""Measures two hosts of a core each against two lone ones: `prepare`, and epochs of a training.

    python tests/hosts/two_hosts.py [--cores 0,1] [--rows 2000000] [--epochs 6]

A core is a host: `taskset` pins all that runs on it. What two lone hosts do at the same time, each
its own copy of the work, is what two hosts could do at most; both share the machine's memory and
the S3 server, whose processor time is told. Rates are rows a second of both hosts together:

    prepare   rows of the log / seconds of the command; a lone host prepares a log of its own
    train     rows / seconds of the epochs, the first left out; batches are equally large each host

One line of JSON at the end. Root, and nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.hosts.hosts import Hosts, Job, missing

MODEL = ["model=autoencoder", "refit=none", "optim.patience=0", "optim.checkpoint_steps=0"]
MODEL += ["autoencoder.consume_loss=likelihood", "launch.gpu=false"]
BATCH = 256  # rows of a host
EPOCH = re.compile(r"trained .*examples_per_s=(\S+) .*phase=0 epoch=(\d+)")


def main() -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cores", default="0,1")
    parser.add_argument("--rows", type=int, default=1_500_000)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    if reason := missing():
        print(reason)
        return 1
    found: dict[str, float] = {}
    cores = [int(core) for core in args.cores.split(",")]
    with Hosts("ab", cores=cores) as hosts:
        log = hosts.upload_world(
            "log", n_users=args.rows // 60, n_items=3000, n_interactions=args.rows
        )
        found |= prepare(hosts, log)
        found |= train(hosts, args.epochs)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    return 0


def prepare(hosts: Hosts, log: str) -> dict[str, float]:
    """Return the rates of `prepare` on two hosts as one, and as two of their own."""
    run, store = f"{hosts.bucket}/both", hosts.store_seconds()
    began = time.monotonic()
    both = hosts.raysys("a", "prepare", f"run={run}", f"source={log}")
    seconds = time.monotonic() - began
    took = hosts.store_seconds() - store
    lone = [
        hosts.job(name, "prepare", f"run={hosts.bucket}/{name}", f"source={log}", *alone())
        for name in "ab"
    ]
    began = time.monotonic()
    rows = sum(job.result()["interactions"]["rows_in"] for job in lone)
    rates = {"prepare_two_hosts": both["interactions"]["rows_in"] / seconds}
    rates["prepare_lone_hosts"] = rows / (time.monotonic() - began)
    share = rates["prepare_two_hosts"] / rates["prepare_lone_hosts"]
    return rates | {"prepare_share": share, "prepare_store_share": took / seconds}


def train(hosts: Hosts, epochs: int) -> dict[str, float]:
    """Return the rates of epochs, likewise."""
    words = [*MODEL, f"optim.epochs={epochs}"]
    together = [*words, f"optim.batch_size={2 * BATCH}", "launch.workers=2"]
    job = hosts.job("a", "train", f"run={hosts.bucket}/both", *together)
    job.result()
    both = rate(job)
    apart = [*words, f"optim.batch_size={BATCH}", "launch.workers=1"]
    lone = [
        hosts.job(name, "train", f"run={hosts.bucket}/{name}", *apart, *alone()) for name in "ab"
    ]
    for one in lone:
        one.result()
    alone_ = sum(map(rate, lone))
    return {"train_two_hosts": both, "train_lone_hosts": alone_, "train_share": both / alone_}


def alone() -> list[str]:
    """Return the settings of a job that leaves the cluster alone."""
    return ["ray.address=local", "ray.num_cpus=1", "ray.object_store_mb=200"]


def rate(job: Job) -> float:
    """Return the middle rate of a training's epochs without the first."""
    rates = sorted(float(m[1]) for m in EPOCH.finditer(job.said()) if m[2] != "1")
    return rates[len(rates) // 2]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
