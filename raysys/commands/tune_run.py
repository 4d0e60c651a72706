"""Runs a sweep from its beginning or from where it was left: study, trials, finalists, winner."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from raysys.cluster.connect import connected
from raysys.cluster.node_probes import node_resources
from raysys.cluster.placement import refuse_unplaceable
from raysys.cluster.sweep_runner import Epochs, Job, cpus_of_each, run_jobs
from raysys.cluster.tasks import alone
from raysys.commands import tune_best
from raysys.commands.preflight_hosts import refuse_oversized
from raysys.commands.train import TrainConfig, sized
from raysys.commands.trial import Measured, TrialPlan, direction, finalist, measure
from raysys.commands.trial_records import (
    code_version,
    record,
    recorded,
    trial_digest,
    trial_folder,
)
from raysys.commands.tune import TuneConfig
from raysys.commands.tune_sweep import (
    FINISHED,
    INTERRUPTED,
    NOW_RUNNING,
    RECORD,
    SWEEPS,
    Sweep,
)
from raysys.config import as_dict, require_run
from raysys.data.profiles import ProfilesFacts
from raysys.errors import ConfigError, DataError, without_keys
from raysys.evaluation.evaluator import point
from raysys.evaluation.finalists import Finalists
from raysys.reports.html.sweep import publish
from raysys.store.builds import Build, StageResult, Workspace
from raysys.store.leases import leased
from raysys.store.storage import Storage, join
from raysys.sweeps import study as studies
from raysys.sweeps.requests import Requests
from raysys.sweeps.space import Space, choices_of
from raysys.sweeps.study import GRID
from raysys.tracking import tracked_stage

log = logging.getLogger(__name__)

SETTINGS = "settings.json"
_APART_CPUS = 0.0  # of a process that waits for Ray Train's workers


@tracked_stage("tune")
def tune(cfg: TuneConfig, sweep_id: str | None = None) -> StageResult:
    """Run the sweep, or go on with one that ended early, and write its record and winner.

    Args:
        cfg: its settings.
        sweep_id: of one to go on with; None: what the settings name.

    Raises:
        ConfigError: a key cannot be swept, workers cannot be placed, or every trial failed.
    """
    started = time.monotonic()
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    storage = workspace.storage
    profiles = _profiles(workspace, sweep_id)
    plan = plan_of(cfg, profiles)
    space = cfg.sought(profiles.manifest.config)
    sweep_id = sweep_id or _id(cfg, storage, profiles)
    folder = f"{SWEEPS}/{sweep_id}"
    drawing = studies.Drawing(
        space=space,
        sampler=cfg.drawn_by,
        seed=cfg.seed,
        n_trials=cfg.expected(space),
        parallel=cfg.concurrent > 1,
    )
    requests = Requests(storage, folder)
    requests.begin()  # what is asked while this one waits for its turn is for it, too
    with connected(cfg.ray, dashboard=cfg.train.launch.most > 0):
        cpus = _cpus(cfg)
        refuse_oversized(
            _largest(cfg, profiles), ProfilesFacts.of(profiles), concurrent=cfg.concurrent
        )
        with (
            leased(storage, folder) as lease,
            studies.opened(storage, folder, drawing, cfg.objectives, confirm=lease.confirm) as (
                study,
                upload,
            ),
        ):
            head = _head(cfg, sweep_id, profiles, storage, folder, space, plan.watched)
            sweep = Sweep(cfg, plan, study, upload, storage, folder, requests, head, started)
            n_done = sum(trial.is_measured for trial in study.trials())
            log.info("sweep id=%s trials=%d of %d", sweep_id, n_done, sweep.n_trials)
            found = _directed(cfg, plan, sweep, storage, cpus)
            return _result(cfg, plan, sweep, workspace, folder, profiles, found)


def _directed(
    cfg: TuneConfig, plan: TrialPlan, sweep: Sweep, storage: Storage, cpus: float
) -> Finalists | None:
    """Run what is left of a sweep; return the comparison of its finalists."""
    finished = False
    stopped_by = None if not cfg.stop_early else plan.watched
    try:
        run_jobs(
            sweep,
            work,
            settings={
                "plan": plan if cpus < 1 else dataclasses.replace(plan, threads=int(cpus)),
                "anew": cfg.force,
            },
            cpus=cpus,
            concurrent=cfg.concurrent,
            direction=None if stopped_by is None else direction(stopped_by),
            epochs=most_epochs(cfg),
            earlier=sweep.histories(),
        )
        finished = True
    finally:
        if not finished:
            sweep.state = INTERRUPTED
        elif sweep.state == NOW_RUNNING:
            sweep.state = FINISHED
        sweep.close(finished=finished)
        if not finished:
            sweep.write()
            words = f"run={without_keys(cfg.run)} sweep={sweep.sweep_id}"
            log.info("sweep interrupted: raysys tune resume %s goes on", words)
    if sweep.state != FINISHED or not cfg.finalists:
        return None
    n_compared = len(sweep.compared()) - 1
    if 0 <= n_compared < min(cfg.finalists, sweep.n_trials - 1):
        log.warning(
            "finalists=%d, but only %d trials beside the defaults were trained to their end: "
            "stop_early=false trains all",
            cfg.finalists,
            n_compared,
        )
    try:
        return tune_best.compared(cfg, sweep, storage)
    except DataError as error:
        log.warning("finalists are not compared: %s", error)
        return None


def work(
    job: Job, report: Callable[[int, float, float], None], *, plan: TrialPlan, anew: bool
) -> dict[str, Any]:
    """Do a job of the sweep in a process of its own; see `cluster.sweep_runner.run_jobs`.

    Args:
        job: number, values, and the seed of a finalist.
        report: tells of an epoch.
        plan: of all trials.
        anew: whatever was measured before.
    """
    seed = job.get("seed", plan.train.seed)
    name = trial_digest(plan, job["values"], seed=seed)
    folder = trial_folder(name)
    apart = plan.train.launch.most > 0  # Ray Train's workers hold the CPUs, not this process
    storage = Storage(plan.run, cache_dir=plan.cache_dir)
    # two sweeps may come to one setting at a time
    with leased(storage, folder), contextlib.nullcontext() if apart else alone():
        started = time.monotonic()
        if "seed" in job:
            found = finalist(plan, job["values"], seed=seed, folder=folder)
            return {**found, "seconds": round(time.monotonic() - started, 3)}
        measured = None if anew else recorded(storage, name, objectives=plan.objectives)
        if measured is None:
            measured = _measured(job, report, plan, seed=seed, folder=folder, apart=apart)
            record(storage, name, measured)
    return dataclasses.asdict(measured) | {"digest": name}


def _measured(
    job: Job,
    report: Callable[[int, float, float], None],
    plan: TrialPlan,
    *,
    seed: int,
    folder: str,
    apart: bool,
) -> Measured:
    started, metric = time.monotonic(), plan.watched

    def on_epoch(values: Mapping[str, float]) -> None:
        if metric in values:
            report(int(values["epoch"]), values[metric], time.monotonic() - started)

    callbacks = (Epochs(metric),) if apart else ()
    return measure(
        plan, job["values"], seed=seed, folder=folder, on_epoch=on_epoch, callbacks=callbacks
    )


def plan_of(cfg: TuneConfig, profiles: Build) -> TrialPlan:
    """Return what the trials of a sweep over these profiles share."""
    return TrialPlan(
        run=cfg.run,
        cache_dir=cfg.cache_dir,
        profiles=profiles.build_id,
        train=dataclasses.replace(cfg.train, seed=cfg.seed),
        index=dataclasses.replace(cfg.index, seed=cfg.seed),
        objectives=tuple(cfg.metrics),
        stop_on=cfg.stop_on,
        whole=cfg.is_whole,
    )


def _profiles(workspace: Workspace, sweep_id: str | None) -> Build:
    """Return the profiles of a sweep that goes on, which the run may have replaced, else the run's.

    Raises:
        BuildError: they are gone.
    """
    if sweep_id is None:
        return workspace.current("profiles")
    record = workspace.storage.read_json(f"{SWEEPS}/{sweep_id}/{RECORD}") or {}
    return workspace.open("profiles", record["profiles_id"])


def most_epochs(cfg: TuneConfig) -> int:
    """Return the most epochs that a trial may have."""
    return _most(cfg, "optim.epochs", cfg.train.optim.epochs)


def _largest(cfg: TuneConfig, profiles: Build) -> TrainConfig:
    """Return the settings of the largest model that a trial may have."""
    train = sized(cfg.train, profiles)
    model, optim = train.autoencoder, train.optim
    return dataclasses.replace(
        train,
        autoencoder=dataclasses.replace(
            model,
            latent=_most(cfg, "autoencoder.latent", model.latent),
            level_latent=_most(cfg, "autoencoder.level_latent", model.level_latent),
        ),
        optim=dataclasses.replace(
            optim, batch_size=_most(cfg, "optim.batch_size", optim.batch_size)
        ),
    )


def _most(cfg: TuneConfig, key: str, usual: int | None) -> int:
    """Return the most that a swept number may be, the usual one among them."""
    domain = cfg.space.get(key, [])
    swept = choices_of(domain)
    most = [domain["high"]] if swept is None else swept
    return max(int(value) for value in [usual, *most] if value is not None)


def _id(cfg: TuneConfig, storage: Storage, profiles: Build) -> str:
    """Return the id of the sweep; with `force` that of a new one beside those of before."""
    first = cfg.sweep_id(profiles)
    if not cfg.force:
        return first
    number = 2
    while storage.exists(f"{SWEEPS}/{first}-{number}/{SETTINGS}"):
        number += 1
    return f"{first}-{number}"


def _cpus(cfg: TuneConfig) -> float:
    """Return the CPUs of each trial's own process, which the nodes must have.

    Raises:
        ConfigError: they have not; the message does the sum.
    """
    nodes = node_resources()
    if cfg.train.launch.most:
        refuse_unplaceable(cfg.train.launch, nodes, concurrent=cfg.concurrent)
        return _APART_CPUS
    return cpus_of_each(cfg.concurrent, nodes)


def _head(
    cfg: TuneConfig,
    sweep_id: str,
    profiles: Build,
    storage: Storage,
    folder: str,
    space: Space,
    watched: str,
) -> dict[str, Any]:
    """Return what the record says beside what was found; write the settings for `resume`."""
    settings = f"{folder}/{SETTINGS}"
    before = storage.read_json(f"{folder}/{RECORD}") or {}
    name = cfg.name or before.get("name")
    own = as_dict(cfg) | {"name": name, "dry_run": False}
    for key in ("run", "cache_dir", "progress", "ray", "tracking"):  # of the process, some secret
        del own[key]
    storage.write_atomic(settings, json.dumps(own, indent=1) + "\n")
    shown = {key: own[key] for key in ("train", "index", "finalists", "seeds", "concurrent")}
    return {
        "sweep_id": sweep_id,
        "name": name,
        "started": before.get("started", int(time.time())),
        "profiles_id": profiles.build_id,
        "code_version": code_version(),
        "seed": cfg.seed,
        "sampler": cfg.drawn_by,
        "stop_on": watched if cfg.stop_early else None,
        "watched": watched,
        "space": cfg.space,
        "defaults": space.defaults,
        "grid": None if cfg.drawn_by != GRID else space.n_settings,
        "settings": shown,
    }


def _result(
    cfg: TuneConfig,
    plan: TrialPlan,
    sweep: Sweep,
    workspace: Workspace,
    folder: str,
    profiles: Build,
    found: Finalists | None,
) -> StageResult:
    """Write the winner, the record and the page, say them, and return what the command prints.

    Raises:
        ConfigError: every trial failed.
    """
    storage, sweep_id = workspace.storage, folder.rpartition("/")[2]
    trials = sweep.study.trials()
    trial = tune_best.winner(sweep, found)
    if trial is None:
        sweep.write()
        if sweep.state == FINISHED:
            errors = sorted({each.error for each in trials if each.error})
            raise ConfigError(f"all {len(trials)} trials failed: {'; '.join(errors)}")
        if cfg.dry_run:
            raise ConfigError(f"the defaults failed: {trials[0].error}")
        lines, files, measured = [], [], {}
    else:
        why = tune_best.reasons(sweep_id, trial, sweep, found)
        files = tune_best.write_best(plan, storage, folder, trial, why)
        values = {each.number: each.values for each in trials}
        record = None if found is None else found.record(values=values, seeds=cfg.all_seeds)
        sweep.write(finalists=record, winner=trial.number)
        lines = [*tune_best.trial_table(sweep), *(tune_best.table(found) if found else why)]
        measured = trial.measured.get("objectives", {})
    if cfg.dry_run:
        lines.append(tune_best.estimate(cfg, sweep))
    page = publish(workspace, sweep_id)
    for line in lines:
        log.info("%s", line)
    where = join(cfg.run, folder)
    return StageResult(
        build_ids={"profiles": profiles.build_id},
        metrics={f"val_{name}": point(value) for name, value in measured.items()},
        extra={
            "sweep": where,
            "state": sweep.state,
            "trials": sweep.counts(),
            "best": [join(where, name) for name in files],
            "page": page,
        },
    )
