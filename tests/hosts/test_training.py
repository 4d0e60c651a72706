"""A training on three hosts, of which one is lost, cut off, given notice, or holds the driver."""

from __future__ import annotations

import time

import pytest

from tests.hosts.hosts import Hosts, Job, wait_until

ENDLESS = 100_000  # epochs
EVERY = 20  # steps between two saved states
NOTICE_S = 60
STEPS = 8  # of an epoch of the small log
MODEL = ["model=autoencoder", "refit=none", "optim.patience=0", "autoencoder.latent=16"]
SAVED = r"trained .*phase=0 epoch=6\b"  # 48 steps: two states
GOES_ON = r"fit goes on from=(\S+) was=(\S+)"


def begin(
    hosts: Hosts, host: str, run: str, workers: str, epochs: int, *, every: int = EVERY
) -> Job:
    words = [f"run={run}", f"launch.workers={workers}", f"optim.epochs={epochs}"]
    return hosts.job(host, "train", *words, *MODEL, f"optim.checkpoint_steps={every}")


def copied(hosts: Hosts, profiles: str, name: str) -> str:
    """Return a run of its own with the same profiles."""
    run = profiles.removeprefix("s3://raysys/")
    for entry in hosts.s3("list_objects_v2", Bucket="raysys", Prefix=f"{run}/")["Contents"]:
        source = {"Bucket": "raysys", "Key": entry["Key"]}
        key = name + entry["Key"].removeprefix(run)
        hosts.s3("copy_object", Bucket="raysys", CopySource=source, Key=key)
    return f"{hosts.bucket}/{name}"


def cost(job: Job) -> tuple[float, float]:
    """Wait until a training goes on; return (steps lost, seconds until then)."""
    found, seconds = job.wait_for(GOES_ON)
    return (float(found[2]) - float(found[1])) * STEPS, seconds


def test_a_lost_host_makes_an_elastic_training_smaller_and_its_return_larger(
    hosts, profiles, figures
):
    job = begin(hosts, "a", copied(hosts, profiles, "elastic"), "[1,4]", ENDLESS)
    job.wait_for(SAVED)
    job.wait_for("training workers ready workers=3")
    began = time.monotonic()
    hosts.lose("b")
    _, seen = job.wait_for("workers stopped")
    lost, _ = cost(job)
    shrunk = time.monotonic() - began
    job.wait_for("training workers ready workers=2")
    began = time.monotonic()
    hosts.start("b")
    joined = time.monotonic()
    job.wait_for("training workers ready workers=3", times=2)
    grown = time.monotonic() - joined
    job.stop()
    assert lost <= EVERY + 1
    figures(
        seconds_until_seen=seen,
        seconds_until_it_goes_on=shrunk,
        steps_lost=lost,
        seconds_of_the_hosts_return=joined - began,
        seconds_until_grown=grown,
    )


def test_a_training_of_fixed_size_says_that_it_waits_until_the_host_is_back(
    hosts, profiles, figures
):
    job = begin(hosts, "a", copied(hosts, profiles, "fixed"), "3", 60)
    job.wait_for(SAVED)
    assert hosts.kill("a", "ray::Mailbox")  # what carries the lines: no fault either
    hosts.lose("c")
    job.wait_for("workers stopped")
    _, waited = job.wait_for("waiting for workers .* launch.workers=3: 3 .* the nodes hold 2 ")
    began = time.monotonic()
    hosts.start("c")
    lost, _ = cost(job)
    assert lost <= EVERY + 1
    result = job.result()
    assert result["build_ids"].keys() == {"autoencoder", "embeddings"}
    assert "no longer shown" not in job.said()
    seconds = time.monotonic() - began
    figures(seconds_until_said=waited, steps_lost=lost, seconds_from_return_to_end=seconds)


def test_the_host_of_the_job_is_lost_and_another_goes_on(hosts, profiles, figures):
    run = copied(hosts, profiles, "driver")
    job = begin(hosts, "b", run, "[1,2]", 400)
    job.wait_for(SAVED)
    hosts.lose("b")
    job.process.wait()
    began = time.monotonic()
    again = begin(hosts, "c", run, "[1,2]", 400)
    trained, _ = again.wait_for(r"trained .*phase=0 epoch=(\d+)")
    seconds = time.monotonic() - began
    assert int(trained[1]) >= 4  # of six epochs, two and a half between saved states
    again.result()
    figures(first_epoch_of_the_second_job=int(trained[1]), seconds_until_it_trains=seconds)


@pytest.mark.parametrize("seconds", [30])
def test_a_partition_that_ends_is_no_loss(hosts, profiles, figures, seconds):
    job = begin(hosts, "a", copied(hosts, profiles, "partition"), "3", 60)
    job.wait_for(SAVED)
    hosts.cut("b")
    time.sleep(seconds)
    hosts.mend("b")
    before, began = len(job.said()), time.monotonic()
    wait_until(lambda: "phase=0 epoch=" in job.said()[before:], "an epoch")
    waited = time.monotonic() - began
    job.result()
    figures(restarts=job.said().count("workers ready") - 1, seconds_until_it_goes_on=waited)


def test_a_host_that_is_to_be_taken_away_is_saved_from_first(hosts, profiles, figures):
    job = begin(hosts, "a", copied(hosts, profiles, "notice"), "[1,3]", ENDLESS, every=100_000)
    job.wait_for(r"trained .*phase=0 epoch=3\b")
    hosts.drain("b", seconds=NOTICE_S)
    deadline = time.monotonic() + NOTICE_S
    _, told = job.wait_for("a host is to be taken away: saving now")
    time.sleep(max(0.0, deadline - time.monotonic()))
    hosts.lose("b")
    found, seconds = job.wait_for(GOES_ON)
    job.stop()
    assert float(found[1]) > 3  # of 100,000 steps between two states, none was due
    figures(
        seconds_until_told=told,
        seconds_from_the_loss_until_it_goes_on=seconds,
        epochs_saved=float(found[1]),
        epochs_reached=float(found[2]),
    )
