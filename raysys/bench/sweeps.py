"""Sweeps: what stopping early saves, what the winner is worth, what a front costs beside chance.

    raysys bench suite=sweeps run=RUN parts=[asha,winner,front]

`run` has profiles of a log that is split in time; models are trained in copies of it. Parts:

    asha    the same settings, all of which take gradient epochs, with and without early stopping:
            worker-seconds and epochs, the winners' metric on validation, and their difference over
            users and seeds with its interval.
    winner  a sweep from the defaults, as `raysys tune` begins one; then its winner and the defaults
            are trained for the test period, which the sweep has not seen, and compared on it.
    front   two objectives, `metrics[0]` and bytes of an item: the area that the trials dominate
            after each, of three samplers, from one corner.

Each row says which share of the trials' time was no training.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysys import progress
from raysys.bench.resources import load_average
from raysys.bench.serve_host import linked
from raysys.bench.suites import BenchConfig
from raysys.bench.vectors import scratch
from raysys.cluster.connect import connected
from raysys.commands.compare import CompareConfig, compare
from raysys.commands.train import TrainConfig, train
from raysys.commands.trial import finalist
from raysys.commands.tune import TuneConfig
from raysys.commands.tune_run import plan_of, tune
from raysys.config import load, require, require_run
from raysys.evaluation.comparison import users_of_report
from raysys.evaluation.finalists import compare_finalists
from raysys.store.builds import Workspace
from raysys.sweeps import outcome
from raysys.sweeps.study import Objective

log = logging.getLogger(__name__)

PARTS = ("asha", "winner", "front")
_GRADIENT = {"autoencoder.consume_loss": "likelihood", "autoencoder.latent": 32}
_GRADIENT_SPACE = {
    "optim.lr": {"low": 0.0005, "high": 0.02, "log": True},
    "optim.weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
    "autoencoder.profile_exponent": {"low": 0.2, "high": 0.8},
}
_FRONT_SPACE = {
    "compressor.n_active": {"low": 4, "high": 128, "log": True},
    "compressor.code_dim": [512, 1024, 2048, 4096],
    "compressor.value_bits": [4, 8],
}
_FINALISTS, _SEEDS = 2, 2
_SAMPLERS = ("random", "tpe", "nsga2")


@dataclasses.dataclass
class SweepsBenchConfig(BenchConfig):
    """Settings of the sweeps suite.

    Attributes:
        parts: asha, winner, front.
        trials: settings of each sweep.
        epochs: at most, of the part `asha`.
        metric: that leads.
    """

    parts: list[str] = dataclasses.field(default_factory=lambda: [*PARTS])
    trials: int = 16
    epochs: int = 27
    metric: str = "recall@20^0.2"

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        known = bool(self.parts) and set(self.parts) <= set(PARTS)
        require(known, "parts", self.parts, f"a list of {', '.join(PARTS)}")
        require(self.trials >= 2, "trials", self.trials, ">= 2")
        require(self.epochs >= 4, "epochs", self.epochs, ">= 4")


def rows(cfg: SweepsBenchConfig) -> list[dict[str, Any]]:
    """Return the rows of every part."""
    require_run(cfg)
    makers = {"asha": _asha, "winner": _winner, "front": _front}
    found = []
    with connected(cfg.ray):
        for part in cfg.parts:
            for row in makers[part](cfg):
                found.append(
                    {
                        "part": part,
                        "data": Path(cfg.run).name,
                        **row,
                        "load_average": load_average(),
                    }
                )
                log.info("bench %s", found[-1])
    return found


def _asha(cfg: SweepsBenchConfig) -> Iterator[dict[str, Any]]:
    settings = {**_below("train", _GRADIENT), "train.optim.epochs": cfg.epochs}
    settings |= {"train.optim.patience": 0, "sampler": "random", "space": _GRADIENT_SPACE}
    with scratch() as folder:
        run = linked(cfg.run, f"{folder}/asha", "profiles")
        records = {
            early: _swept(cfg, run, {**settings, "stop_early": early}, force=True)
            for early in (True, False)
        }
        rows = {row["number"]: row for row in records[False]["trials"]}
        best = {early: record["best"] for early, record in records.items()}
        spent = {early: each["totals"]["worker_seconds"] for early, each in records.items()}
        epochs = {early: _epochs(record) for early, record in records.items()}
        same = {"difference": 0.0, "difference_low": 0.0, "difference_high": 0.0}
        chosen = [rows[best[early]]["values"] for early in (True, False)]
        compared = same if chosen[0] == chosen[1] else _compared(cfg, run, settings, chosen)
        for early, record in records.items():
            yield {
                "condition": "stopped early" if early else "whole",
                "trials": len(record["trials"]),
                **_cost(record),
                "worker_share": round(spent[early] / spent[False], 4),
                "epochs": epochs[early],
                "epochs_share": round(epochs[early] / epochs[False], 4),
                "winner": best[early],
                "value": round(rows[best[early]]["objectives"][cfg.metric], 5),
                **(compared if early else {}),
            }


def _compared(
    cfg: SweepsBenchConfig,
    run: str,
    settings: Mapping[str, Any],
    values: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the first of two settings minus the second, over users and seeds of validation."""
    workspace = Workspace(run)
    swept = load(TuneConfig, {"run": run, "metrics": [cfg.metric], **settings})
    plan = plan_of(swept, workspace.current("profiles"))
    tables = {}
    for number, one in enumerate(reversed(values)):  # of two, 0 is what is compared with
        found = [
            finalist(plan, one, seed=seed, folder=f"sweeps/compared/{number}-{seed}")["users"]
            for seed in range(_SEEDS)
        ]
        tables[number] = [users_of_report(workspace.storage, *users) for users in found]
    compared = compare_finalists(
        tables, metric=cfg.metric, direction="max", seed=cfg.seed, replicates=1000
    )
    [pair] = compared.comparisons
    return {
        "difference": round(pair.difference, 5),
        "difference_low": round(pair.ci_low, 5),
        "difference_high": round(pair.ci_high, 5),
        "users": compared.users,
    }


def _winner(cfg: SweepsBenchConfig) -> Iterator[dict[str, Any]]:
    with scratch() as folder:
        run = linked(cfg.run, f"{folder}/winner", "profiles")
        plain = linked(cfg.run, f"{folder}/plain", "profiles")
        record = _swept(cfg, run, {"seeds": _SEEDS}, force=False, finalists=_FINALISTS)
        best = f"{run}/sweeps/{record['sweep_id']}/best.yaml"
        with progress.shown("off"):
            train(load(TrainConfig, {"run": run, "model": "autoencoder"}, yaml_path=best))
            train(load(TrainConfig, {"run": plain, "model": "autoencoder", "select": cfg.metric}))
            found = compare(load(CompareConfig, {"run": run, "other": plain}))
        test = found.extra["comparison"][cfg.metric]
        verdict = record["finalists"]["verdict"] if record["finalists"] else None
        yield {
            "trials": len(record["trials"]),
            **_cost(record),
            "winner": record["winner"],
            "verdict": verdict,
            "value": record["trials"][record["winner"]]["objectives"][cfg.metric],
            "defaults_value": record["trials"][0]["objectives"][cfg.metric],
            "test": round(test["mean"], 5),
            "defaults_test": round(test["other"], 5),
            "difference": round(test["difference"], 5),
            "difference_low": test["ci_low"] and round(test["ci_low"], 5),
            "difference_high": test["ci_high"] and round(test["ci_high"], 5),
            "users": found.extra["common_users"],
        }


def _front(cfg: SweepsBenchConfig) -> Iterator[dict[str, Any]]:
    objectives = [Objective(cfg.metric, "max"), Objective("bytes", "min")]
    with scratch() as folder:
        run = linked(cfg.run, f"{folder}/front", "profiles")
        records = {}
        for sampler in _SAMPLERS:
            metrics = [objective.name for objective in objectives]
            settings = {"metrics": metrics, "sampler": sampler, "space": _FRONT_SPACE}
            records[sampler] = _swept(cfg, run, settings, force=False)
        trials = {sampler: outcome.trials_of(record) for sampler, record in records.items()}
        corner = outcome.worst([t for each in trials.values() for t in each], objectives)
        assert corner is not None
        for sampler, record in records.items():
            area = outcome.hypervolumes(trials[sampler], objectives, corner)
            yield {
                "sampler": sampler,
                "trials": len(record["trials"]),
                **_cost(record),
                "front": len(record["front"]),
                "corner": json.dumps([round(value, 5) for value in corner]),
                "hypervolume": round(area[-1], 5),
                "halfway": round(area[len(area) // 2], 5),
            }


def _swept(
    cfg: SweepsBenchConfig,
    run: str,
    settings: Mapping[str, Any],
    *,
    force: bool,
    finalists: int = 0,
) -> dict[str, Any]:
    """Run a sweep and return its record."""
    given = {"run": run, "trials": cfg.trials, "metrics": [cfg.metric], "seed": cfg.seed}
    given |= {"force": force, "finalists": finalists, **settings}
    with progress.shown("off"):
        result = tune(load(TuneConfig, given))
    record: dict[str, Any] = json.loads(Path(result.extra["sweep"], "sweep.json").read_text())
    return record


def _cost(record: Mapping[str, Any]) -> dict[str, Any]:
    totals = record["totals"]
    names = ("trial_seconds", "worker_seconds", "overhead_share")
    return {name: totals[name] for name in names}


def _epochs(record: Mapping[str, Any]) -> int:
    """Return how many epochs the trials of a sweep trained, those that ended early too."""
    return sum(
        max((int(epoch) for epoch, _ in row["history"] or ()), default=0)
        for row in record["trials"]
    )


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in values.items()}
