"""The bench job: one suite by name, its record as JSON and its rows as a table on stderr."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from typing import Any

from raysys import progress
from raysys.bench import records
from raysys.config import JobConfig, location
from raysys.data.schema import RatingLevels, default_liked
from raysys.errors import ConfigError
from raysys.reports.tables import aligned, of_records
from raysys.store.builds import StageResult

log = logging.getLogger(__name__)

SUITES = {
    "agreement": ("raysys.bench.agreement", "AgreementBenchConfig"),
    "answer": ("raysys.bench.answer", "AnswerBenchConfig"),
    "codes": ("raysys.bench.codes", "CodesBenchConfig"),
    "evaluate": ("raysys.bench.evaluate", "EvaluateBenchConfig"),
    "events": ("raysys.bench.events", "EventsBenchConfig"),
    "experiments": ("raysys.bench.experiments", "ExperimentsBenchConfig"),
    "order": ("raysys.bench.order", "OrderBenchConfig"),
    "loop": ("raysys.bench.loop", "LoopBenchConfig"),
    "minutes": ("raysys.bench.minutes", "MinutesBenchConfig"),
    "prepare": ("raysys.bench.prepare", "PrepareBenchConfig"),
    "ratings": ("raysys.bench.ratings", "RatingsBenchConfig"),
    "recovery": ("raysys.bench.recovery", "RecoveryBenchConfig"),
    "scale": ("raysys.bench.scale", "ScaleBenchConfig"),
    "retrieval": ("raysys.bench.retrieval", "RetrievalBenchConfig"),
    "serve": ("raysys.bench.serve", "ServeBenchConfig"),
    "steer": ("raysys.bench.steer", "SteerBenchConfig"),
    "sweeps": ("raysys.bench.sweeps", "SweepsBenchConfig"),
    "train": ("raysys.bench.training", "TrainBenchConfig"),
    "volume": ("raysys.bench.volume", "VolumeBenchConfig"),
}

# ratings of the suites' simulated logs
_VALUES = (1.0, 2.0, 3.0, 4.0, 5.0)
STARS = RatingLevels(tuple(f"{v:g}" for v in _VALUES), _VALUES, default_liked(_VALUES))


@dataclasses.dataclass
class BenchConfig(JobConfig):
    """Base of every suite's settings.

    Attributes:
        suite: name of the suite.
        save: .json file or folder that the record is written to; what is there stays.
    """

    suite: str = ""
    save: str | None = location(None)


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
    """Run one suite and return its record, which `save=` writes to a file too."""
    record = records.begin(cfg.suite, cfg)
    path = records.free_path(cfg.save, record) if cfg.save else None
    module = importlib.import_module(SUITES[cfg.suite][0])
    with progress.stage(f"bench {cfg.suite}", lines=progress.NONE):
        rows: list[dict[str, Any]] = module.rows(cfg)
    record = dataclasses.replace(record, rows=rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for line in aligned(of_records(rows, columns), left=range(len(columns))):
        log.info("%s", line)
    if path is not None:
        records.write(record, path)
        log.info("record written path=%s", path)
    return StageResult(extra=dataclasses.asdict(record))
