"""The only place that starts or joins Ray."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from raysys.config import RayConfig
from raysys.errors import ConfigError

log = logging.getLogger(__name__)

_MIB = 1 << 20
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def connected(cfg: RayConfig, *, dashboard: bool = False) -> Iterator[None]:
    """Run the block on a Ray cluster: joined if there is one, else started and stopped again.

    A process that is connected already keeps its connection, so stages nest.

    Args:
        cfg: how to find the cluster.
        dashboard: start a private cluster with its dashboard, which sweeps need (a scheduler that
            stops trials leaks their placement groups without it).

    Raises:
        ConfigError: `ray.address` names a cluster that does not answer.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    if cfg.address != "local" and _join(cfg.address):
        log.info("ray joined cpus=%g", ray.cluster_resources().get("CPU", 0))
    else:
        ray.init(
            address="local",
            num_cpus=cfg.num_cpus,
            object_store_memory=cfg.object_store_mb * _MIB,
            include_dashboard=dashboard,
            **_QUIET,
        )
        log.info("ray started cpus=%g", ray.cluster_resources().get("CPU", 0))
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str | None) -> bool:
    """Join the cluster at `address`; None: one that $RAY_ADDRESS or `ray start` announces.

    Returns:
        False when `address` is None and no cluster is announced. Another job's private cluster is
        not: it would vanish with that job.
    """
    announced = Path(tempfile.gettempdir(), "ray", "ray_current_cluster").is_file()
    if address is None and "RAY_ADDRESS" not in os.environ and not announced:
        return False
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        ray.init(address=where, **_QUIET)
    except (ConnectionError, RuntimeError) as error:
        raise ConfigError(
            f"ray.address={where!r} does not answer ({str(error).splitlines()[0]}): start the "
            "cluster, or say ray.address=local"
        ) from error
    return True
