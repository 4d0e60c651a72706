"""A host is lost while a stage's tasks run on all of them: the build is that of one host alone."""

from __future__ import annotations

import json
import time

import pytest

from tests.hosts.hosts import Hosts, wait_until

ROWS = 530_000  # more than a job does in its own process
DIM = 32  # codes of four atoms are smaller than as many bytes


def content(hosts: Hosts, run: str, kind: str) -> str:
    """Return the content id of the only build of a kind."""
    prefix = f"{run.removeprefix('s3://raysys/')}/{kind}/"
    listed = hosts.s3("list_objects_v2", Bucket="raysys", Prefix=prefix)["Contents"]
    (key,) = (entry["Key"] for entry in listed if entry["Key"].endswith("/manifest.json"))
    manifest = json.load(hosts.s3("get_object", Bucket="raysys", Key=key)["Body"])
    return manifest["content_id"]


def lose_when(hosts: Hosts, job, pattern: str, figures) -> None:
    """Lose host c once the job says something, and print what its end took after that."""
    job.wait_for(pattern)
    began = time.monotonic()
    hosts.lose("c")
    wait_until(lambda: "c" not in hosts.alive(), "the loss")
    seen = time.monotonic() - began
    job.result()
    figures(seconds_until_seen=seen, seconds_from_the_loss_to_the_end=time.monotonic() - began)


def test_a_host_is_lost_in_prepare(hosts, figures):
    log = hosts.upload_world("many", n_users=6000, n_items=1000, n_interactions=900_000)
    alone, run = f"{hosts.bucket}/prepare-alone", f"{hosts.bucket}/prepare-lost"
    hosts.raysys("b", "prepare", f"run={alone}", f"source={log}", "ray.address=local")
    job = hosts.job("a", "prepare", f"run={run}", f"source={log}")
    lose_when(hosts, job, r"prepare \w+ tasks=", figures)
    assert content(hosts, run, "profiles") == content(hosts, alone, "profiles")


@pytest.fixture(scope="module")
def coded(hosts):
    """Return a run with codes of many vectors, and the settings that made them."""
    make = "import numpy, sys; r = numpy.random.default_rng(0); "
    make += f"numpy.save('/tmp/many.npy', r.normal(size=({ROWS}, {DIM})).astype('float32'))"
    for name in "ab":
        assert hosts.run(name, "python", "-c", make).returncode == 0
    run = f"{hosts.bucket}/codes-alone"
    words = ["model=compressor", "source=/tmp/many.npy", "compressor.code_dim=32"]
    words += ["compressor.n_active=4"]
    hosts.raysys("b", "train", f"run={run}", *words, "ray.address=local")
    return run, words


def test_a_host_is_lost_in_encoding(hosts, coded, figures):
    alone, words = coded
    run = f"{hosts.bucket}/codes-lost"
    job = hosts.job("a", "train", f"run={run}", *words)
    lose_when(hosts, job, r"encode tasks=", figures)
    assert content(hosts, run, "codes") == content(hosts, alone, "codes")


def test_a_host_is_lost_in_the_index_build(hosts, coded, figures):
    run, _ = coded
    first = hosts.job("a", "index", f"run={run}", "n_lists=64")
    lose_when(hosts, first, r"index \w+", figures)
    lost = content(hosts, run, "index")
    hosts.raysys("b", "index", f"run={run}", "n_lists=64", "force=true", "ray.address=local")
    assert content(hosts, run, "index") == lost
