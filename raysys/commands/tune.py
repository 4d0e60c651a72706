"""Tune: sweep settings of the train job; a trial is an ordinary training without its refit.

A trial fits on the FIT window and is judged on the validation targets alone, so the test period
stays unseen. Nothing that a trial trains becomes a build: train the winner with
`raysys train --config <run>/sweeps/<id>/best.yaml run=<run>`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import ray.tune
import yaml
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from raysys import progress
from raysys.autoencoder.validation import NLL, RECALL, best_value, check_metric, direction
from raysys.cluster.connect import connected
from raysys.cluster.train_workers import PLACEMENT_GROUP, forget, release
from raysys.commands.train import TrainConfig, fit
from raysys.config import (
    JobConfig,
    digest,
    identity,
    require,
    require_run,
    with_names_of_today,
    with_values,
)
from raysys.errors import ConfigError, find_cause
from raysys.fields import read
from raysys.store.builds import Build, StageResult, Workspace
from raysys.store.leases import leased

log = logging.getLogger(__name__)

DEFAULT_METRIC = f"{RECALL}^0.2"  # what picks online winners most often (docs/decisions/016)
_GRACE_EPOCHS = 3


def _default_space() -> dict[str, Any]:
    return {
        "autoencoder": {"profile_exponent": {"low": 0.2, "high": 0.8}},
        "optim": {"lr": {"low": 0.005, "high": 0.05, "log": True}},
    }


@dataclasses.dataclass
class TuneConfig(JobConfig):
    """Settings of the sweep.

    Attributes:
        space: keys of the train job, each a list of choices or {low, high[, log]}:
            `space.autoencoder.dropout=[0.3,0.5]`. Lists alone are tried in all combinations;
            default: learning rate and profile exponent.
        trials: settings to try where a key has a range.
        metric: of the validation targets; sets `train.select`, whose choices it has, or is `nll`.
            The default penalises popular items.
        concurrent: trials at a time; each holds `train.launch.workers` workers.
        stop_early: let a scheduler (ASHA) stop trials that fall behind.
        train: settings that all trials share.
    """

    space: dict[str, Any] = dataclasses.field(default_factory=dict)
    trials: int = 4
    metric: str = DEFAULT_METRIC
    concurrent: int = 1
    stop_early: bool = True
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for a space that cannot be searched."""
        require(self.trials >= 1, "trials", self.trials, "at least 1")
        require(self.concurrent >= 1, "concurrent", self.concurrent, "at least 1")
        if self.metric != NLL:
            check_metric("metric", self.metric)
            self.train.select = self.metric
        space = flatten(self.space or _default_space())
        space = flatten(with_names_of_today(TrainConfig, space, prefix="space."))
        require(bool(space), "space", self.space, "a key that is not gone")
        self.space = {key: typed(key, domain, self.train) for key, domain in space.items()}


def tune(cfg: TuneConfig) -> StageResult:
    """Run the sweep, or go on with one that was interrupted, and write its table and winner.

    Raises:
        ConfigError: every trial failed.
    """
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    profiles = workspace.current("profiles")
    base = dataclasses.replace(cfg.train, run=cfg.run, cache_dir=cfg.cache_dir, refit="none")
    base.seed = cfg.seed
    sweep_id = digest([identity(cfg), profiles.content_id])
    with connected(cfg.ray, dashboard=True), leased(workspace.storage, f"sweeps/{sweep_id}"):
        results = _tuner(cfg, workspace, profiles, base, sweep_id).fit()
    trials = [_row(result, cfg) for result in results]
    done = [trial for trial in trials if trial["value"] is not None]
    if not done:
        known = find_cause(results.errors[0]) if results.errors else None
        raise ConfigError(f"all {len(trials)} trials failed: {known or 'see the log'}")
    sign = 1 if direction(cfg.metric) == "min" else -1
    done.sort(key=lambda trial: sign * trial["value"])
    where = _write(workspace, sweep_id, trials, done[0])
    for trial in done:
        log.info("trial %s=%.5f epochs=%s %s", cfg.metric, *_shown(trial))
    best = {cfg.metric: {"mean": done[0]["value"], "ci_low": None, "ci_high": None}}
    extra = {"sweep": where, "best": done[0]["values"], "trials": trials}
    return StageResult(
        build_ids={"profiles": profiles.build_id},
        metrics={f"val_{k}": v for k, v in best.items()},
        extra=extra,
    )


def _tuner(
    cfg: TuneConfig, workspace: Workspace, profiles: Build, base: TrainConfig, sweep_id: str
) -> ray.tune.Tuner:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    storage = workspace.storage
    path = f"{storage.root}/sweeps"
    filesystem = None if storage.is_local else storage.filesystem
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(
            _trial, base=base, profiles_id=profiles.build_id, metric=cfg.metric, sweep=sweep_id
        ),
        {"CPU": 0.01},
    )
    where = f"{path}/{sweep_id}"
    if ray.tune.Tuner.can_restore(where, storage_filesystem=filesystem) and not cfg.force:
        log.info("sweep resumed path=%s", where)
        return ray.tune.Tuner.restore(
            where,
            trainable,
            resume_unfinished=True,
            resume_errored=True,
            storage_filesystem=filesystem,
        )
    only_lists = all(isinstance(domain, list) for domain in cfg.space.values())
    epochs = cfg.train.optim.epochs
    grace = min(_GRACE_EPOCHS, epochs)
    # a trial that reaches its last epoch ends by itself: only those that fall behind are stopped
    scheduler = ASHAScheduler(time_attr="epoch", max_t=epochs + 1, grace_period=grace)
    return ray.tune.Tuner(
        trainable,
        param_space={"values": {key: _domain(d, grid=only_lists) for key, d in cfg.space.items()}},
        tune_config=ray.tune.TuneConfig(
            metric=cfg.metric,
            mode=direction(cfg.metric),
            num_samples=1 if only_lists else cfg.trials,
            max_concurrent_trials=cfg.concurrent,
            search_alg=None if only_lists else OptunaSearch(seed=cfg.seed),
            scheduler=scheduler if cfg.stop_early else None,
        ),
        run_config=ray.tune.RunConfig(
            name=sweep_id,
            storage_path=path,
            storage_filesystem=filesystem,
            verbose=0,
            callbacks=[_Progress(cfg.metric, _count(cfg))],
        ),
    )


def _trial(
    config: dict[str, Any], *, base: TrainConfig, profiles_id: str, metric: str, sweep: str
) -> None:
    """Train one setting inside a Tune trial."""
    cfg = with_values(base, config["values"])
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    name = f"sweep-{sweep}-{digest(config['values'])}"
    state = fit(
        cfg,
        workspace,
        workspace.open("profiles", profiles_id),
        name=name,
        callbacks=(_Epochs(),),
    )
    epochs = state["epochs"][metric]
    last = max(state["history"], key=lambda record: record["epoch"])["epoch"]
    ray.tune.report({metric: state["metrics"][metric], "best_epoch": epochs, "epoch": last})
    forget(workspace.storage, name)


class _Epochs(TuneReportCallback):  # type: ignore[misc]
    """Passes a trial's epochs on to the sweep; a state saved inside an epoch says nothing yet."""

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        if "time" in metrics[0]:  # a whole epoch's record
            super().after_report(run_context, metrics, checkpoint)


class _Progress(ray.tune.Callback):  # type: ignore[misc]
    """Tells whenever a trial starts, reports or ends; Tune keeps a copy on disk for restores."""

    def __init__(self, metric: str, n_trials: int) -> None:
        self._metric = metric
        self._n_trials = n_trials
        self._best: float | None = None
        self._stage: progress.Stage | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_stage": None}

    @property
    def _work(self) -> progress.Stage:
        if self._stage is None:
            self._stage = progress.Stage("tune", "trials", self._n_trials, progress.STEPS).begin()
        return self._stage

    def _say(self, line: str) -> None:
        note = "" if self._best is None else f"best {self._metric} {self._best:.5g}"
        self._work.say(line, note=note)

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._say(f"trial started id={trial.trial_id} values={trial.config['values']}")

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
    ) -> None:
        value = result.get(self._metric, math.nan)
        known = [one for one in (self._best, value) if one is not None and not math.isnan(one)]
        self._best = best_value(self._metric, known)
        epoch = result.get("epoch")
        self._say(f"trial id={trial.trial_id} epoch={epoch} {self._metric}={value:.5f}")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        held = (trial.last_result or {}).get(PLACEMENT_GROUP)
        if held is not None:
            release(held)  # one that the scheduler stopped may still hold its workers
        self._work.add()
        done = f"done={self._work.done:.0f}/{self._n_trials}"
        self._say(f"trial ended id={trial.trial_id} {done}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._work.add()
        log.error("trial failed id=%s", trial.trial_id)

    def on_experiment_end(self, trials: Any, **info: Any) -> None:
        self._work.end(finished=True)


def flatten(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: list of choices or {low, high[, log]}}.

    Raises:
        ConfigError: a value is neither.
    """
    flat: dict[str, Any] = {}
    for name, domain in space.items():
        key = f"{prefix}{name}"
        if isinstance(domain, Mapping) and {"low", "high"} <= set(domain) <= {"low", "high", "log"}:
            flat[key] = dict(domain)
        elif isinstance(domain, Mapping):
            flat |= flatten(domain, f"{key}.")
        elif isinstance(domain, list) and domain:
            flat[key] = domain
        else:
            raise ConfigError(f"space.{key}={domain!r}: expected a list or {{low, high[, log]}}")
    return flat


def typed(key: str, domain: Any, train: TrainConfig) -> Any:
    """Return a domain whose values are of the type of the train job's key.

    Raises:
        ConfigError: there is no such key, or it does not take one of the values.
    """

    def value(raw: Any) -> Any:
        return attrgetter(key)(with_values(train, {key: raw}, prefix="space."))

    if isinstance(domain, list):
        return [value(raw) for raw in domain]
    low, high = value(domain["low"]), value(domain["high"])
    log_scale = read(bool, domain.get("log", False), key=f"space.{key}.log")
    require(None not in (low, high) and low < high, f"space.{key}", domain, "low < high")
    return {"low": low, "high": high, "log": log_scale}


def _domain(domain: Any, *, grid: bool) -> Any:
    if isinstance(domain, list):
        return ray.tune.grid_search(domain) if grid else ray.tune.choice(domain)
    low, high, log_scale = domain["low"], domain["high"], domain["log"]
    if isinstance(low, int) and isinstance(high, int):
        return (ray.tune.lograndint if log_scale else ray.tune.randint)(low, high + 1)
    return (ray.tune.loguniform if log_scale else ray.tune.uniform)(low, high)


def _count(cfg: TuneConfig) -> int:
    if all(isinstance(domain, list) for domain in cfg.space.values()):
        return math.prod(map(len, cfg.space.values()))
    return cfg.trials


def _row(result: Any, cfg: TuneConfig) -> dict[str, Any]:
    """Return one trial as JSON values; `value` None where it failed."""
    metrics = result.metrics or {}
    frame = result.metrics_dataframe
    values = [] if frame is None or cfg.metric not in frame else frame[cfg.metric].dropna().tolist()
    return {
        "values": dict((result.config or {}).get("values", {})),
        "value": best_value(cfg.metric, values) if result.error is None else None,
        "epochs": metrics.get("epoch"),
        "seconds": round(float(metrics.get("time_total_s", 0.0)), 1),
        "error": None if result.error is None else type(result.error).__name__,
    }


def _shown(trial: dict[str, Any]) -> tuple[float, Any, str]:
    return trial["value"], trial["epochs"], json.dumps(trial["values"])


def _write(
    workspace: Workspace, sweep_id: str, trials: list[dict[str, Any]], best: dict[str, Any]
) -> str:
    """Write `trials.json` and `best.yaml` into the sweep's folder and return it."""
    folder = f"sweeps/{sweep_id}"
    workspace.storage.write_atomic(f"{folder}/trials.json", json.dumps(trials, indent=1) + "\n")
    settings = yaml.safe_dump(json.loads(json.dumps(best["values"])))
    workspace.storage.write_atomic(f"{folder}/best.yaml", settings)
    return f"{workspace.run.rstrip('/')}/{folder}"
