"""Three hosts for all tests of this folder; `make test-cluster` runs them, `make test` does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.hosts import Hosts, missing

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless it is named."""
    named = [Path(word.partition("::")[0]).resolve() for word in config.args]
    return None if any(HERE in (path, *path.parents) for path in named) else True


@pytest.fixture(scope="session")
def hosts() -> Iterator[Hosts]:
    """Start hosts a, b and c of one CPU each, one Ray cluster, and an S3 server."""
    if reason := missing():
        pytest.skip(reason)
    with Hosts("abc") as three:
        yield three


@pytest.fixture(autouse=True)
def whole(hosts: Hosts) -> Iterator[None]:
    """Bring back what a test took away."""
    yield
    hosts.repair()


@pytest.fixture
def figures(request: pytest.FixtureRequest, capfd: Any) -> Callable[..., None]:
    """Return what prints a test's figures as a line of JSON."""

    def show(**found: Any) -> None:
        rounded = {k: round(v, 2) if isinstance(v, float) else v for k, v in found.items()}
        with capfd.disabled():
            sys.stdout.write("\n" + json.dumps({"test": request.node.name, **rounded}) + "\n")

    return show


@pytest.fixture(scope="session")
def world(hosts: Hosts) -> str:
    """Return the URI of a small log on S3."""
    return hosts.upload_world("world", n_users=400, n_items=200, n_interactions=8000)


@pytest.fixture(scope="session")
def profiles(hosts: Hosts, world: str) -> str:
    """Return a run on S3 with profiles."""
    run = f"{hosts.bucket}/profiles"
    hosts.raysys("a", "prepare", f"run={run}", f"source={world}")
    return run
