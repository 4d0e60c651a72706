"""A trial that ended as a run of MLflow, below that of its sweep."""

from __future__ import annotations

import dataclasses

from raysys.commands.trial import TrialPlan
from raysys.commands.tune import TuneConfig
from raysys.sweeps.study import Trial
from raysys.tracking import tracked


def track(cfg: TuneConfig, plan: TrialPlan, trial: Trial) -> None:
    """Keep a record of a trial that ended, below the sweep's own."""
    if cfg.tracking is None:
        return
    settings = plan.settings(trial.values, seed=cfg.seed).train
    own = dataclasses.replace(settings, run=cfg.run, tracking=cfg.tracking)
    with tracked(own, name=f"trial {trial.number}") as record:
        record.params({f"space.{key}": value for key, value in trial.values.items()})
        record.tags({"state": trial.state} | ({"error": trial.error} if trial.error else {}))
        record.failed = trial.error is not None
        history = trial.measured.get("history") or ()
        for epoch, value in history:
            record.metrics({f"val_{plan.watched}": value}, step=int(epoch))
        last = 1 + max((int(epoch) for epoch, _ in history), default=0)  # what MLflow shows
        found = trial.measured.get("metrics") or {}
        record.metrics({f"val_{name}": value for name, value in found.items()}, step=last)
        names = ("seconds", "worker_seconds", "peak_bytes", "rows_per_s")
        record.metrics({n: trial.measured[n] for n in names if n in trial.measured})
