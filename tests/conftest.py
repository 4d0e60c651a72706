"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start one private two-CPU cluster for the whole session."""
    from raysys.config import RayConfig
    from raysys.stages.cluster import connected

    with connected(RayConfig(address="local", num_cpus=2), dashboard=False):
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real data sets, or skip."""
    from raysys.config import default_data_dir

    folder = default_data_dir()
    if folder is None or not folder.is_dir():
        pytest.skip("no real data: set RAYSYS_DATA to a folder laid out like shared/data")
    return folder
