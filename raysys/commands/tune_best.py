"""The end of a sweep: finalists against the defaults, and the winner as a file of settings.

best.yaml            what `train --config` takes, the reasons as comments
best.index.yaml      what `index --config` takes, where the winner sets such keys
best.prepare.yaml    what `prepare` takes beside its source, likewise
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from raysys.commands.index import IndexConfig
from raysys.commands.train import TrainConfig
from raysys.commands.trial import INDEX, PREPARE, TRAIN, TrialPlan, by_stage
from raysys.commands.tune import TuneConfig
from raysys.commands.tune_sweep import Sweep
from raysys.config import flat, identity
from raysys.errors import RaysysError
from raysys.evaluation.comparison import users_of_report
from raysys.evaluation.finalists import Finalists, compare_finalists
from raysys.reports.tables import aligned
from raysys.store.storage import Storage
from raysys.sweeps import outcome
from raysys.sweeps.study import Trial

log = logging.getLogger(__name__)


def compared(cfg: TuneConfig, sweep: Sweep, storage: Storage) -> Finalists | None:
    """Compare the finalists with the defaults and with each other; None where there are none.

    A setting that failed under a seed is left out, with a warning.
    """
    leading = cfg.compared_by
    if leading is None:
        return None
    tables = {}
    for trial in sweep.compared():
        notes = [sweep.study.finalist(trial.number, seed) or {} for seed in cfg.all_seeds]
        try:
            tables[trial.number] = [users_of_report(storage, *note["users"]) for note in notes]
        except (RaysysError, KeyError) as error:  # one of its trainings failed
            log.warning("finalist left out id=%d: %s", trial.number, error)
    if 0 not in tables or len(tables) < 2:
        return None
    return compare_finalists(
        tables,
        metric=leading.name,
        direction=leading.direction,
        seed=cfg.seed,
        replicates=cfg.replicates,
    )


def winner(sweep: Sweep, found: Finalists | None) -> Trial | None:
    """Return the trial to train: that of the comparison, else the best one; None of no trial."""
    trials = sweep.study.trials()
    if found is not None:
        return trials[found.best]
    best = outcome.ranked(trials, sweep.study.objectives[0])
    return best[0] if best else None


def write_best(
    plan: TrialPlan, storage: Storage, folder: str, trial: Trial, reasons: Sequence[str]
) -> list[str]:
    """Write the winner's settings and return the names of the files in the sweep's folder."""
    shared = {
        TRAIN: _changed(plan.settings({}, seed=plan.train.seed).train, refit=plan.train.refit),
        INDEX: _differing(identity(plan.index), identity(IndexConfig())),
    }
    own = by_stage(trial.values)
    names = []
    for prefix in (TRAIN, INDEX, PREPARE):
        values = shared.get(prefix, {}) | own[prefix]
        if not values and prefix != TRAIN:
            continue
        stage, name = prefix.rstrip(".") or "train", f"best.{prefix}yaml"
        text = "".join(f"# {line}\n" for line in [f"For `raysys {stage}`.", *reasons])
        text += yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=True) if values else "{}\n"
        storage.write_atomic(f"{folder}/{name}", text)
        names.append(name)
    return names


def reasons(sweep_id: str, trial: Trial, sweep: Sweep, found: Finalists | None) -> list[str]:
    """Return why a trial is the winner, a sentence a line."""
    measured = trial.measured.get("objectives", {})
    shown = ", ".join(f"{name} {value:.5g}" for name, value in measured.items())
    what = "the defaults" if trial.number == 0 else f"trial {trial.number}"
    n_trials = len(sweep.study.trials())
    of_all = f", of {n_trials} trials" if n_trials > 1 else ""
    lines = [f"Sweep {sweep_id}: {what}{of_all}, with {shown}."]
    lines.append("All trials, the defaults too, chose their epochs by what `select` says.")
    if found is None:
        return [*lines, "Not compared under several seeds."]
    n_seeds = len(found.settings[0].by_seed)
    lines.append(f"{found.verdict[:1].upper()}{found.verdict[1:]}.")
    for pair in found.comparisons:
        if trial.number in (pair.first, pair.second):
            lines.append(
                f"{found.metric} of {_name(pair.first)} minus {_name(pair.second)}: "
                f"{pair.difference:+.5f} ({pair.ci_low:+.5f}..{pair.ci_high:+.5f}), "
                f"p {pair.p_value:.3g}, {found.users} users, {n_seeds} seeds."
            )
    return lines


def table(found: Finalists) -> list[str]:
    """Return the comparison as lines."""
    rows = [[found.metric, "mean", "by seed"]]
    for setting in found.settings:
        by_seed = " ".join(f"{value:.5f}" for value in setting.by_seed)
        rows.append([_name(setting.number), f"{setting.mean:.5f}", by_seed])
    pairs = [["", "difference", "95 % of all at once", "p"]]
    for pair in found.comparisons:
        pairs.append(
            [
                f"{_name(pair.first)} minus {_name(pair.second)}",
                f"{pair.difference:+.5f}",
                f"{pair.ci_low:+.5f}..{pair.ci_high:+.5f}",
                f"{pair.p_value:.3g}",
            ]
        )
    return [*aligned(rows), *aligned(pairs), found.verdict]


def trial_table(sweep: Sweep) -> list[str]:
    """Return all trials as lines, best first, those that were not measured last."""
    objectives = sweep.study.objectives
    trials = sweep.study.trials()
    order = outcome.ranked(trials, objectives[0])
    order += [trial for trial in trials if trial not in order]
    rows = [["trial", *(each.name for each in objectives), "epochs", "seconds", "", "values"]]
    for trial in order:
        found = trial.measured.get("objectives") or {}
        shown = [f"{found[o.name]:.5g}" if o.name in found else "-" for o in objectives]
        rest = [trial.measured.get("epochs"), trial.measured.get("seconds")]
        values = "defaults" if trial.number == 0 else json.dumps(trial.values)
        rows.append(
            [
                str(trial.number),
                *shown,
                *("-" if value is None else f"{value:g}" for value in rest),
                trial.state,
                values,
            ]
        )
    return aligned(rows, left=(len(rows[0]) - 2, len(rows[0]) - 1))


def estimate(cfg: TuneConfig, sweep: Sweep) -> str:
    """Say how long the sweep would take, by its first trial."""
    first = sweep.study.trials()[0]
    seconds = float(first.measured.get("seconds") or 0.0)
    compared = cfg.finalists and cfg.compared_by is not None
    n_finalists = (1 + min(cfg.finalists, sweep.n_trials - 1)) * cfg.seeds if compared else 0
    jobs = sweep.n_trials - 1 + n_finalists
    total = seconds * jobs / cfg.concurrent
    finalists = f" and {n_finalists} trainings of finalists" if n_finalists else ""
    return (
        f"{sweep.n_trials} trials, the first took {seconds:.1f} s: about {total:.0f} s for the "
        f"{sweep.n_trials - 1} others{finalists}"
    )


def _name(number: int) -> str:
    return "defaults" if number == 0 else f"trial {number}"


def _changed(cfg: TrainConfig, *, refit: str) -> dict[str, Any]:
    """Return the settings of all trials that are not `train`'s defaults, but for the refit."""
    plain = TrainConfig()
    own = identity(cfg) | {"refit": refit}
    found = _differing(own, identity(plain))
    kept = cfg.compressor.keep  # no part of a training's identity, yet of what was judged
    return found | ({} if kept == plain.compressor.keep else {"compressor.keep": kept})


def _differing(own: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by dotted key that are not those of the defaults."""
    defaults = flat(plain)
    return {key: value for key, value in flat(own).items() if value != defaults[key]}
