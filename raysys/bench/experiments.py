"""The experiments suite: how often reports of simulated experiments are wrong, and how late right.

    raysys bench suite=experiments [streams=500] [n_users=4000]

Every stream is a simulated log that goes through what `raysys experiment report` does. In A/A
streams arms are alike, and a report that is read after every user should call a difference in one
of twenty at most. In A/B streams one arm is better: after how many users is that decided, beside
the users that a z-test needs which is read once (80 % power)? The intervals' coverage is counted
against the effect in a population a hundred times as large. At last, users are drawn by other
shares than configured.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from raysys import progress
from raysys.bench.suites import BenchConfig
from raysys.config import require
from raysys.evaluation.anytime import BURN_IN, SPLIT_ALPHA, check_split
from raysys.evaluation.attribution import Attribution, ExperimentUsers
from raysys.evaluation.experiment import OUTCOMES, Assessment, assess
from raysys.simulate.experiment import ExperimentSpec, experiment_tables

_ALPHA, _POWER = 0.05, 0.8
_WINDOW_S = 86_400
_EVER = 1 << 40  # UTC seconds after every simulated event
_POPULATION = 100  # times the users of a stream
_MOST = 4  # times the users of the z-test that an A/B stream is followed
_WEIGHTS = (0.5, 0.1)
_SPLITS = (0.5, 0.51, 0.52, 0.55)
_SPLIT_USERS = 20_000

Row = dict[str, Any]


@dataclasses.dataclass
class ExperimentsBenchConfig(BenchConfig):
    """Settings of the experiments suite.

    Attributes:
        streams: simulated A/A experiments of each kind; twice as many for coverage, a fifth of
            them for each A/B.
        n_users: users of a stream.
        lifts: of the chance to convert, in A/B streams.
    """

    streams: int = 500
    n_users: int = 4000
    lifts: list[float] = dataclasses.field(default_factory=lambda: [0.3, 0.6])

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        require(self.streams >= 5, "streams", self.streams, "5 or more")
        require(self.n_users >= BURN_IN, "n_users", self.n_users, f"{BURN_IN} or more")
        require(all(lift > 0 for lift in self.lifts), "lifts", self.lifts, "above 0 each")


def rows(cfg: ExperimentsBenchConfig) -> list[Row]:
    """Return the rows of all checks."""
    found = [row for weight in _WEIGHTS for row in _alike(cfg, weight)]
    found += [_better(cfg, lift) for lift in cfg.lifts]
    found += _coverage(cfg)
    return found + [_split(cfg, share) for share in _SPLITS]


def _streams(count: int, spec: ExperimentSpec, first: int) -> Iterator[ExperimentUsers]:
    """Yield the users of simulated experiments, each with a seed of its own."""
    with progress.stage("streams", total=count, unit="streams", lines=progress.STEPS) as work:
        for number in range(count):
            yield _users(dataclasses.replace(spec, seed=first + number))
            work.add()


def _users(spec: ExperimentSpec) -> ExperimentUsers:
    events, impressions = experiment_tables(spec)
    columns = ["event_id", "user_id", "item_id", "timestamp"]
    log = Attribution(events.select(columns), window_s=_WINDOW_S, horizon_s=_WINDOW_S)
    log.add(impressions)
    return log.users()


def _assessed(users: ExperimentUsers, outcome: str = OUTCOMES[0]) -> Assessment:
    return assess(users, until=_EVER, horizon_s=_WINDOW_S, outcome=outcome, alpha=_ALPHA)


def _spec(cfg: ExperimentsBenchConfig, weight: float, lift: float, **others: Any) -> ExperimentSpec:
    arms = {"control": (1 - weight, 0.0), "new": (weight, lift)}
    return ExperimentSpec(arms, n_users=cfg.n_users, **others)


def _alike(cfg: ExperimentsBenchConfig, weight: float) -> list[Row]:
    """Count false alarms of one split, for each outcome."""
    alarms, naive = dict.fromkeys(OUTCOMES, 0), dict.fromkeys(OUTCOMES, 0)
    first = cfg.seed * 1_000_000
    for users in _streams(cfg.streams, _spec(cfg, weight, 0.0), first):
        for outcome in OUTCOMES:
            alarms[outcome] += _assessed(users, outcome).comparisons[0].decided_at is not None
            values = users.early > 0 if outcome == OUTCOMES[0] else users.early
            naive[outcome] += _z_alarms(users.arm == users.arms.index("new"), values)
    return [
        {
            "arms": f"alike, {weight:g} of users in one",
            "outcome": outcome,
            "streams": cfg.streams,
            "users": cfg.n_users,
            "alarms": alarms[outcome],
            "allowed": int(_ALPHA * cfg.streams),
            "z_test_alarms": naive[outcome],
        }
        for outcome in OUTCOMES
    ]


def _z_alarms(in_arm: NDArray[np.bool_], values: NDArray[Any]) -> bool:
    """Tell whether a z-test of two means that is read after every user calls a difference."""
    sums = []
    for mask in (in_arm, ~in_arm):
        own = np.where(mask, values, 0).astype(np.float64)
        n = np.maximum(np.cumsum(mask), 1)
        mean = np.cumsum(own) / n
        sums.append((mean, (np.cumsum(own**2) / n - mean**2) / n))
    (one, one_error), (other, other_error) = sums
    error = np.sqrt(np.maximum(one_error + other_error, 1e-300))[BURN_IN - 1 :]
    return bool((np.abs(one - other)[BURN_IN - 1 :] / error > norm.ppf(1 - _ALPHA / 2)).any())


def _better(cfg: ExperimentsBenchConfig, lift: float) -> Row:
    """Count after how many users a better arm is called."""
    whole = _assessed(_users(_population(cfg, _spec(cfg, 0.5, lift))))
    control, new = (arm.outcome.value or 0.0 for arm in whole.arms)
    factor = norm.ppf(1 - _ALPHA / 2) + norm.ppf(_POWER)
    spread = control * (1 - control) + new * (1 - new)
    once = int(2 * factor**2 * spread / (new - control) ** 2)
    spec = dataclasses.replace(_spec(cfg, 0.5, lift), n_users=_MOST * once)
    first, count = cfg.seed * 1_000_000 + 200_000, max(1, cfg.streams // 5)
    found = [_assessed(users).comparisons[0] for users in _streams(count, spec, first)]
    after = [each.decided_at or _EVER for each in found]
    decided = [at for at in after if at < _EVER]
    half = int(statistics.median(after))
    return {
        "arms": f"one is better by {lift:g}",
        "control": round(control, 4),
        "better": round(new, 4),
        "streams": count,
        "decided": len(decided),
        "wrong": sum(each.better == "control" for each in found),
        "median_users": half if half < _EVER else None,
        "decided_at_z_test_users": sum(at <= once for at in decided),
        "z_test_users": once,
    }


def _population(cfg: ExperimentsBenchConfig, spec: ExperimentSpec) -> ExperimentSpec:
    return dataclasses.replace(spec, n_users=_POPULATION * cfg.n_users, seed=cfg.seed + 900_000)


def _coverage(cfg: ExperimentsBenchConfig) -> list[Row]:
    """Count how often intervals hold the population's values; chances do not drift."""
    spec = _spec(cfg, 0.5, 0.3, drift=0.0)
    truth = _assessed(_users(_population(cfg, spec)))
    effect = truth.comparisons[0].outcome.difference or 0.0
    count = 2 * cfg.streams
    held = dict.fromkeys(("share", "ratio", "difference", "lift", "ratio difference", "ever"), 0)
    for users in _streams(count, spec, cfg.seed * 1_000_000 + 400_000):
        found = _assessed(users)
        arm, known = found.arms[1], truth.arms[1]
        own, right = found.comparisons[0], truth.comparisons[0]
        spans = {
            "share": (arm.outcome.low, known.outcome.value, arm.outcome.high),
            "ratio": (arm.per_impression.low, known.per_impression.value, arm.per_impression.high),
            "difference": (own.outcome.low, right.outcome.difference, own.outcome.high),
            "lift": (own.outcome.lift_low, right.outcome.lift, own.outcome.lift_high),
            "ratio difference": (
                own.per_impression.low,
                right.per_impression.difference,
                own.per_impression.high,
            ),
        }
        for name, (low, value, high) in spans.items():
            held[name] += low is not None and high is not None and low <= (value or 0) <= high
        held["ever"] += all(step.low <= effect <= step.high for step in own.steps)
    names = {
        "share": "share of users that converted",
        "ratio": "conversions an impression",
        "difference": "difference of shares",
        "lift": "lift of shares",
        "ratio difference": "difference of conversions an impression",
        "ever": "difference of shares, all looks of the sequence",
    }
    return [
        {"interval": names[name], "streams": count, "users": cfg.n_users, "coverage": n / count}
        for name, n in held.items()
    ]


def _split(cfg: ExperimentsBenchConfig, share: float) -> Row:
    """Count how often the check of the split calls it wrong; half is configured."""
    rng = np.random.default_rng([cfg.seed, 9, int(1000 * share)])
    shares = np.full((_SPLIT_USERS, 2), 0.5)
    any_time, once, often = 0, 0, 0
    n = np.arange(1, _SPLIT_USERS + 1)
    limit = chi2.ppf(1 - SPLIT_ALPHA, 1)
    for _ in range(cfg.streams):
        arm = (rng.random(_SPLIT_USERS) < share).astype(np.int64)
        found = check_split(arm, shares)
        any_time += not found.is_as_configured
        once += found.chi_square <= SPLIT_ALPHA
        statistic = (2 * np.cumsum(arm) - n) ** 2 / n
        often += bool((statistic[BURN_IN - 1 :] > limit).any())
    return {
        "split": f"{share:g} instead of .5",
        "streams": cfg.streams,
        "users": _SPLIT_USERS,
        "called_at_any_time": any_time,
        "chi_square_once": once,
        "chi_square_every_user": often,
    }
