"""The whole pipeline by `ray job submit` in all three forms, with storage on S3 alone.

What three hosts make is what one host makes with as many workers, to the last byte.
"""

from __future__ import annotations

import json
import time
import urllib.request

import pytest

from tests.hosts.hosts import JOBS, NET, PATIENCE_S, Hosts, wait_until
from tests.hosts.test_stages import content

KINDS = ("profiles", "autoencoder", "embeddings", "compressor", "codes", "index")
TRAIN = ["optim.epochs=2", "autoencoder.latent=16", "launch.workers=2"]
INDEX = ["n_shards=3"]


def submit(hosts: Hosts, *words: str) -> str:
    done = hosts.run("c", "ray", "job", "submit", "--address", JOBS, *words, timeout=PATIENCE_S)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def run(hosts, world):
    """Return a run that three hosts made, a form of submission each stage."""
    run = f"run={hosts.bucket}/submitted"
    upload = ("--working-dir", ".", "--", "python", "jobs/prepare.py")
    submit(hosts, *upload, run, f"source={world}")
    submit(hosts, "--", "python", "jobs/train.py", run, *TRAIN)
    submit(hosts, "jobs/index.py", run, *INDEX)
    submit(hosts, "jobs/evaluate.py", run)
    return run.removeprefix("run=")


def test_three_hosts_make_what_one_makes(hosts, world, run, figures):
    alone = f"{hosts.bucket}/alone"
    own = [f"run={alone}", "ray.address=local", "ray.num_cpus=2"]
    began = time.monotonic()
    hosts.raysys("b", "prepare", *own, f"source={world}")
    hosts.raysys("b", "train", *own, *TRAIN)
    hosts.raysys("b", "index", *own, *INDEX)
    one = hosts.raysys("b", "evaluate", *own)
    seconds = time.monotonic() - began
    three = hosts.raysys("a", "evaluate", f"run={run}")
    made = {kind: content(hosts, run, kind) for kind in KINDS}
    assert made == {kind: content(hosts, alone, kind) for kind in KINDS}
    assert one["build_ids"] == three["build_ids"]
    assert one["metrics"] == three["metrics"]
    figures(equal_builds=len(KINDS), equal_metrics=len(one["metrics"]), seconds_alone=seconds)


def answer(host: str) -> list[str]:
    """Return the items that the service recommends at a host to nobody in particular."""
    body, url = json.dumps({"k": 10, "profile": []}).encode(), f"http://{host}:8000/v1/recommend"
    asked = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as got:
        return [hit["item_id"] for hit in json.load(got)["items"]]


def test_a_host_of_the_service_is_lost_under_load(hosts, run, figures):
    words = [f"run={run}", "replicas=3", "cpus=0.6", "host=0.0.0.0"]  # one replica a host
    service = hosts.job("a", "serve", *words)
    service.wait_for("service ready")

    def answers() -> list[list[str]] | None:
        try:
            return [answer(f"{NET}.{n}") for n in (1, 2, 3)]
        except OSError:
            return None

    first, second, third = wait_until(answers, "an answer at all hosts")
    assert first == second == third
    words = [f"url=http://{NET}.1:8000", f"run={run}", "connections=2", "per_second=5"]
    load = hosts.job("c", "load", *words, "seconds=120", "retries=3")
    load.wait_for("load url=")
    time.sleep(20)
    hosts.lose("b")
    found = load.result()
    service.stop()
    shown = ("requests", "failed", "retried", "errors", "ms")
    figures(**{name: found[name] for name in shown})
    assert found["failed"] == 0
