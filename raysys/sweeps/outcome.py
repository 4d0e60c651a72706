"""What a sweep came to: its best trial, the Pareto front, and the record that the run keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raysys.sweeps.study import Objective, Study, Trial

_COLUMNS = (
    "objectives",
    "metrics",
    "epochs",
    "history",
    "seconds",
    "training_seconds",
    "worker_seconds",
    "peak_bytes",
    "rows_per_s",
    "build_ids",
    "digest",
)


def ranked(trials: Sequence[Trial], objective: Objective) -> list[Trial]:
    """Return the measured trials, best first; of equals the earlier one."""
    measured = [trial for trial in trials if trial.is_measured]
    return sorted(measured, key=lambda t: (-objective.sign * _value(t, objective.name), t.number))


def front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Return the measured trials that no other one is better than in everything, by number.

    Of trials that are equal in all objectives the first one stays.
    """
    measured = [trial for trial in trials if trial.is_measured]
    points = [_point(trial, objectives) for trial in measured]
    kept = []
    for at, (trial, own) in enumerate(zip(measured, points, strict=True)):
        beaten = any(
            all(a >= b for a, b in zip(other, own, strict=True)) and (other != own or place < at)
            for place, other in enumerate(points)
            if place != at
        )
        if not beaten:
            kept.append(trial)
    return kept


def finalists(trials: Sequence[Trial], objectives: Sequence[Objective], n: int) -> list[Trial]:
    """Return the trials that are worth a second look: the best of the front, then of the rest.

    Trial 0, the defaults, is not among them: everything is compared with it anyway.
    """
    best = ranked(trials, objectives[0])
    if len(objectives) > 1:
        kept = {trial.number for trial in front(trials, objectives)}
        best.sort(key=lambda trial: trial.number not in kept)
    return [trial for trial in best if trial.number][:n]


def hypervolumes(
    trials: Sequence[Trial], objectives: Sequence[Objective], reference: Sequence[float]
) -> list[float]:
    """Return the area that the first 1, 2, ... trials dominate, of two objectives.

    Args:
        trials: of a sweep, by number; one that was not measured adds nothing.
        objectives: two.
        reference: the corner where the area begins, in the objectives' own units.
    """
    signs = [objective.sign for objective in objectives]
    corner = [sign * value for sign, value in zip(signs, reference, strict=True)]
    points: list[tuple[float, ...]] = []
    found = []
    for trial in trials:
        if trial.is_measured:
            points.append(_point(trial, objectives))
        found.append(_area(points, corner))
    return found


def worst(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[float] | None:
    """Return the worst value of each objective, a corner for `hypervolumes`; None of no trial."""
    measured = [trial for trial in trials if trial.is_measured]
    if not measured:
        return None
    return [
        (min if each.sign > 0 else max)(_value(trial, each.name) for trial in measured)
        for each in objectives
    ]


def record(study: Study, running: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a sweep found so far, as JSON values.

    Args:
        study: of the sweep.
        running: {number: what is known of a trial that runs}.
    """
    trials = study.trials()
    objectives = study.objectives
    best = ranked(trials, objectives[0])
    several = len(objectives) > 1
    return {
        "objectives": [{"name": o.name, "direction": o.direction} for o in objectives],
        "trials": [_row(trial, running.get(trial.number, {})) for trial in trials],
        "best": best[0].number if best else None,
        "front": [trial.number for trial in front(trials, objectives)] if several else [],
        "importance": study.importance(),
        "hypervolume": _areas(trials, None, objectives),
    }


def trials_of(record: Mapping[str, Any]) -> list[Trial]:
    """Return the trials of a record, as far as `front` and others look at them."""
    return [
        Trial(
            row["number"],
            row["values"],
            row["state"],
            {"objectives": row["objectives"]} if row["objectives"] else {},
            row["error"],
        )
        for row in record["trials"]
    ]


def beside(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the areas of a sweep and of another one, from one corner; None: of no two objectives.

    Args:
        own: record of a sweep.
        other: of another one of the same space and objectives.
    """
    objectives = [Objective(**entry) for entry in own["objectives"]]
    return _areas(trials_of(own), trials_of(other), objectives)


def counts(states: Iterable[str]) -> dict[str, int]:
    """Return {state: trials}, in the order in which states come first."""
    return dict(Counter(states))


def _areas(
    trials: Sequence[Trial], others: Sequence[Trial] | None, objectives: Sequence[Objective]
) -> dict[str, Any] | None:
    """Return `hypervolumes` of trials and of those of random search, from one corner.

    None: there are not two objectives, or no trial was measured.
    """
    corner = worst([*trials, *(others or ())], objectives) if len(objectives) == 2 else None
    if corner is None:
        return None
    random = None if others is None else hypervolumes(others, objectives, corner)
    found = hypervolumes(trials, objectives, corner)
    return {"reference": corner, "found": found, "random": random}


def _row(trial: Trial, known: Mapping[str, Any]) -> dict[str, Any]:
    measured = {**known, **trial.measured}
    row = {"number": trial.number, "values": trial.values, "state": trial.state}
    row |= {name: measured.get(name) for name in _COLUMNS}
    return row | {"objectives": measured.get("objectives") or {}, "error": trial.error}


def _value(trial: Trial, name: str) -> float:
    return float(trial.measured["objectives"][name])


def _point(trial: Trial, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Return the objectives of a trial, more is better."""
    return tuple(each.sign * _value(trial, each.name) for each in objectives)


def _area(points: Sequence[tuple[float, ...]], corner: Sequence[float]) -> float:
    """Return the area between points and a corner that is worse than they are."""
    area, reached = 0.0, corner[1]
    for x, y in sorted(points, reverse=True):
        if y > reached:
            area += (x - corner[0]) * (y - reached)
            reached = y
    return area
