"""A large log, simulated and prepared: time, processor and memory of both.

    raysys bench suite=volume run=runs/bench [sizes=[1000000,10000000,100000000]]

Every step has a process of its own, with a private cluster, and the memory of all its processes is
summed (PSS, as in the suite of `prepare`). The log of a size is deleted before the next one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from raysys.bench.prepare import Measured, measure
from raysys.bench.suites import BenchConfig
from raysys.config import RayConfig, require, require_run
from raysys.prepare.config import PrepareConfig

log = logging.getLogger(__name__)


@dataclasses.dataclass
class VolumeBenchConfig(BenchConfig):
    """Settings of the volume suite.

    Attributes:
        sizes: rows of the logs, about.
        rows_per_user: of a log; more rows have more users.
        n_items: distinct items.
    """

    sizes: list[int] = dataclasses.field(default_factory=lambda: [10**6, 10**7, 10**8])
    rows_per_user: int = 100
    n_items: int = 100_000

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that make no log."""
        require(bool(self.sizes), "sizes", self.sizes, "at least one number of rows")
        least = 20 * self.rows_per_user
        require(min(self.sizes, default=least) >= least, "sizes", self.sizes, f"{least} or more")


def rows(cfg: VolumeBenchConfig) -> list[dict[str, Any]]:
    """Return a row for each size and step."""
    require_run(cfg)
    found: list[dict[str, Any]] = []
    for size in cfg.sizes:
        folder = Path(cfg.run) / "bench-volume" / str(size)
        shutil.rmtree(folder, ignore_errors=True)
        settings = {
            "n_interactions": size,
            "n_users": size // cfg.rows_per_user,
            "n_items": cfg.n_items,
            "seed": cfg.seed,
        }
        try:
            simulated = measure(_simulate, str(folder), settings, cfg.ray)
            world = Path(folder) / "world" / "interactions"
            found.append(_row("simulate", settings, simulated, _size(world)))
            log.info("bench volume %s", found[-1])
            prepared = measure(_prepare, str(folder), cfg.ray)
            shutil.rmtree(folder / "world")
            found.append(_row("prepare", settings, prepared, _size(folder)))
            log.info("bench volume %s", found[-1])
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def _row(step: str, settings: dict[str, Any], got: Measured, written: int) -> dict[str, Any]:
    return {
        "step": step,
        "rows": got.rows,
        "n_users": settings["n_users"],
        "n_items": settings["n_items"],
        "seconds": round(got.seconds, 1),
        "cpu_s": round(got.cpu_s, 1),
        "rows_per_cpu_s": round(got.rows / max(got.cpu_s, 1e-9)),
        "peak_pss_mb": got.peak_bytes >> 20,
        "written_bytes_per_row": round(written / max(got.rows, 1), 1),
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _simulate(out: Any, folder: str, settings: dict[str, Any], ray: RayConfig) -> None:
    from raysys.commands.simulate import SimulateConfig, simulate  # not before the clock

    config = functools.partial(SimulateConfig, run=folder, **settings)
    _timed(out, lambda ray: int(simulate(config(ray=ray)).extra["rows"]), ray)


def _prepare(out: Any, folder: str, ray: RayConfig) -> None:
    from raysys.commands.prepare import prepare  # not before the clock

    def work(ray: RayConfig) -> int:
        config = PrepareConfig(run=folder, source=f"{folder}/world/interactions", ray=ray)
        return int(prepare(config).extra["interactions"]["rows"])

    _timed(out, work, ray)


def _timed(out: Any, work: Any, ray: RayConfig) -> None:
    """Send when the process began, when the cluster was there, when work ended, and its rows."""
    from raysys.cluster.connect import connected

    first = time.perf_counter()
    ray = dataclasses.replace(ray, address="local")
    with connected(ray):
        begin = time.perf_counter()
        rows = work(ray)
        end = time.perf_counter()
    out.send((first, begin, end, rows))
