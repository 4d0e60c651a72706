"""Fixtures that all tests share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import wheels

settings.register_profile("raysys", deadline=None)  # a loaded machine is no fault of the code
settings.load_profile("raysys")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # tests wait for Ray's workers


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests one worker of `pytest -n 2 --dist loadgroup` runs one after the other.

    Those of the session's cluster share it; those with clusters or servers of their own would share
    ports and processors; all others go file by file.
    """
    for item in items:
        group = item.path.stem
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            group = "the cluster of the session"
        elif item.get_closest_marker("ray"):
            group = "clusters of their own"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """Take back how a test's `main()` set up the log, which writes to that test's stderr."""
    root = logging.getLogger("raysys")
    before = list(root.handlers), root.propagate, root.level
    yield
    root.handlers, root.propagate = before[0], before[1]
    root.setLevel(before[2])


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start one private two-CPU cluster for the whole session."""
    from raysys.cluster.connect import connected
    from raysys.config import RayConfig

    with connected(RayConfig(address="local", num_cpus=2), dashboard=True):
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real data sets, $RAYSYS_DATA or beside the checkout, or skip."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RAYSYS_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real data: set RAYSYS_DATA to a folder laid out like shared/data")
    return folder


@pytest.fixture(scope="session")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this checkout."""
    return wheels.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def wheel_commands(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of commands of an environment that has the wheel and no checkout."""
    return wheels.install(wheel_file, tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """Start an S3 protocol server on loopback and yield the URI of an empty bucket on it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    boto3.client("s3").create_bucket(Bucket="raysys")
    yield "s3://raysys"
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def small_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a CSV log of 120 users in three taste groups over 60 items, ratings and times."""
    import csv
    import random

    draw = random.Random(5)
    path = tmp_path_factory.mktemp("log") / "log.csv"
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["user_id", "item_id", "rating", "timestamp"])
        for user in range(120):
            group = user % 3
            liked = draw.sample(range(group * 20, group * 20 + 20), 12)
            others = draw.sample([i for i in range(60) if i // 20 != group], 4)
            for item in liked + others:
                rating = draw.choice([4, 5]) if item in liked else draw.choice([1, 2, 3])
                second = 1_600_000_000 + draw.randrange(10_000_000)
                writer.writerow([f"user {user}", f"item-{item}", rating, second])
    return path
