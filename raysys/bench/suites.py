"""The bench job: one suite by name, its rows as JSON and as a table on stderr."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from raysys.config import JobConfig
from raysys.data.schema import RatingLevels, default_liked
from raysys.errors import ConfigError
from raysys.store.builds import StageResult

log = logging.getLogger(__name__)

SUITES = {
    "agreement": ("raysys.bench.agreement", "AgreementBenchConfig"),
    "codes": ("raysys.bench.codes", "CodesBenchConfig"),
    "evaluate": ("raysys.bench.evaluate", "EvaluateBenchConfig"),
    "prepare": ("raysys.bench.prepare", "PrepareBenchConfig"),
    "recovery": ("raysys.bench.recovery", "RecoveryBenchConfig"),
    "scale": ("raysys.bench.scale", "ScaleBenchConfig"),
    "retrieval": ("raysys.bench.retrieval", "RetrievalBenchConfig"),
    "train": ("raysys.bench.training", "TrainBenchConfig"),
}

# ratings of the suites' simulated logs
_VALUES = (1.0, 2.0, 3.0, 4.0, 5.0)
STARS = RatingLevels(tuple(f"{v:g}" for v in _VALUES), _VALUES, default_liked(_VALUES))


@dataclasses.dataclass
class BenchConfig(JobConfig):
    """Base of every suite's settings.

    Attributes:
        suite: name of the suite.
    """

    suite: str = ""


def schema_of(suite: str) -> type[BenchConfig]:
    """Return the configuration schema of a suite.

    Raises:
        ConfigError: there is no such suite.
    """
    if suite not in SUITES:
        raise ConfigError(f"suite={suite!r} is not known: expected one of {', '.join(SUITES)}")
    module, name = SUITES[suite]
    schema: type[BenchConfig] = getattr(importlib.import_module(module), name)
    return schema


def bench(cfg: BenchConfig) -> StageResult:
    """Run one suite and return its rows."""
    module = importlib.import_module(SUITES[cfg.suite][0])
    rows: list[dict[str, Any]] = module.rows(cfg)
    for line in _table(rows):
        log.info("%s", line)
    return StageResult(extra={"suite": cfg.suite, "machine": machine(), "rows": rows})


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge the figures: processor, cores, memory, versions."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x.partition(":")[2] for x in info.read_text().splitlines() if "model name" in x]
        model = names[0].strip() if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = ("raysys", "ray", "torch", "numpy", "numba", "hnswlib")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / (1 << 30), 1),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
    }


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Lay the rows out as aligned columns; nested values as JSON."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(c), *(len(r[i]) for r in cells)) for i, c in enumerate(columns)]
    lines = [columns, *cells]
    return ["  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)) for line in lines]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
