"""Which setting of a sweep is best: users and seeds are drawn again, all pairs are held at once.

A difference of two settings is uncertain for two reasons: other users, and other seeds. Users are
drawn by the bootstrap of an evaluation, with the same weights for every setting and seed. A few
seeds cannot be drawn again in that way: three of them drawn with replacement vary by 2/3 of their
variance, and not at all in one draw of nine. So the seeds of a setting are a normal sample whose
variance is drawn too (the parametric bootstrap for unequal variances of Krishnamoorthy, Lu, Mathew,
Computational Statistics & Data Analysis 51, 2007):

    t_p = difference_p / sqrt(u_p + v_a + v_b)      pair p of settings a, b
    u_p: bootstrap variance over users, v_a: variance of a's seeds / its number of seeds
    null: t_p of users drawn + N(0, v_a) - N(0, v_b), divided with v_a chi^2(df) / df for v_a

The 95 % point of the largest |t| over all pairs makes the intervals, and its distribution the
p-values: single-step max-|t| (Westfall, Young, Resampling-Based Multiple Testing, 1993).

Three deviations, each on the wide side. Three seeds that agree by luck would make a variance far
too small, so v is at least that of all settings pooled; trainings without chance keep 0. Where the
seeds of one setting alone vary, there is nothing to pool: its luck is drawn from Student's t (the
Behrens-Fisher interval). What users and seeds vary by together counts in both u and v.

Letters: F settings, U common users, B replicates, P pairs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.errors import ConfigError, DataError
from raysys.evaluation.bootstrap import user_keys
from raysys.evaluation.comparison import column_matrix, replicated_sums
from raysys.evaluation.metric_table import MetricLayout, Ratio
from raysys.evaluation.user_sums import LAYOUT_KEY

DEFAULTS = 0  # number of the trial that changes nothing
MIN_REPLICATES = 100
_LEVEL = 0.05
_PURPOSE = 0x5EED5  # of the draws of seeds, beside the seed of users' weights

Direction = Literal["max", "min"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: its metric on the common users with each seed, and their mean."""

    number: int
    by_seed: tuple[float, ...]
    mean: float


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two settings: first - second, with a 95 % interval and p-value that hold for all pairs."""

    first: int
    second: int
    difference: float
    ci_low: float
    ci_high: float
    p_value: float


@dataclasses.dataclass(frozen=True)
class Finalists:
    """What the finalists of a sweep are worth.

    Attributes:
        metric, direction: compared, and whether "max" or "min" is better.
        replicates: of the bootstrap.
        users: common to all settings and seeds.
        settings: by number, the defaults first.
        comparisons: of all pairs; `second` is the lower number.
        best: number of the setting to take: among those better than the defaults beyond noise, the
            one of the best mean; the defaults where there is none.
        verdict: the same in words.
    """

    metric: str
    direction: Direction
    replicates: int
    users: int
    settings: tuple[Setting, ...]
    comparisons: tuple[Pair, ...]
    best: int
    verdict: str

    def record(
        self, *, values: Mapping[int, Mapping[str, Any]], seeds: Sequence[int]
    ) -> dict[str, Any]:
        """Return JSON values.

        Args:
            values: by number, what each setting changes; the defaults change nothing.
            seeds: that the trainings had.
        """
        record = dataclasses.asdict(self) | {"seeds": list(seeds)}
        record["settings"] = [
            {**dataclasses.asdict(s), "values": dict(values.get(s.number, {}))}
            for s in self.settings
        ]
        return record


def compare_finalists(
    tables: Mapping[int, Sequence[pa.Table]],
    *,
    metric: str,
    direction: Direction,
    seed: int,
    replicates: int,
) -> Finalists:
    """Compare settings that were trained with several seeds, all pairs at once.

    Args:
        tables: by number of a trial, one table of `UserSums.table` a seed; 0 is the defaults. With
            one seed a setting takes the largest variance of the others: its own is unknown.
        metric: any ratio of users' sums, such as recall@20^0.2 or nll.
        direction: whether "max" or "min" is better.
        seed: of the bootstrap.
        replicates: B, 100 or more.

    Raises:
        ConfigError: too few replicates.
        DataError: no defaults, no users in common, or a metric that is not kept per user.
    """
    if replicates < MIN_REPLICATES:
        raise ConfigError(
            f"replicates={replicates} cannot compare finalists: give {MIN_REPLICATES} or more"
        )
    if DEFAULTS not in tables or not all(tables.values()):
        raise DataError(
            f"finalists need the defaults (trial {DEFAULTS}) and an evaluation of every setting"
        )
    numbers = sorted(tables)
    values, users = _values(
        [table for number in numbers for table in tables[number]],
        metric=metric,
        seed=seed,
        replicates=replicates,
    )
    ends = np.cumsum([len(tables[number]) for number in numbers])
    by_setting = np.split(values, ends[:-1])  # each [seeds, 1 + B]
    settings = tuple(
        Setting(number, tuple(map(float, runs[:, 0])), float(runs[:, 0].mean()))
        for number, runs in zip(numbers, by_setting, strict=True)
    )
    pairs = _pairs(numbers, by_setting, rng=np.random.default_rng([seed, _PURPOSE]))
    best, verdict = _verdict(settings, pairs, metric=metric, sign=1 if direction == "max" else -1)
    return Finalists(metric, direction, replicates, users, settings, pairs, best, verdict)


def _values(
    tables: Sequence[pa.Table], *, metric: str, seed: int, replicates: int
) -> tuple[NDArray[np.float64], int]:
    """Return the metric of each table and its replicates [tables, 1 + B], and the common users."""
    ratio = _ratio(tables, metric)
    ids_of = [table["user_id"].to_numpy(zero_copy_only=False).astype(str) for table in tables]
    ids = reduce(np.intersect1d, ids_of)
    if len(ids) < 2:
        raise DataError(
            f"the finalists' evaluations have {len(ids)} users in common: 2 or more are compared"
        )
    columns = [ratio.num, ratio.den]
    sums = [
        column_matrix(table, columns)[np.argsort(own)[np.searchsorted(np.sort(own), ids)]]
        for table, own in zip(tables, ids_of, strict=True)
    ]
    drawn = replicated_sums(sums, user_keys(ids), seed=seed, replicates=replicates)
    every = [np.concatenate((s.sum(axis=0)[None], d)) for s, d in zip(sums, drawn, strict=True)]
    values = np.stack([ratio.of(each[:, 0], each[:, 1]) for each in every])
    if not np.isfinite(values[:, 0]).all():
        raise DataError(f"metric={metric} has no data among the {len(ids)} users of all finalists")
    return values[:, np.isfinite(values).all(axis=0)], len(ids)


def _ratio(tables: Sequence[pa.Table], metric: str) -> Ratio:
    """Return the one ratio that a metric is in all tables."""
    layouts = [MetricLayout.from_json(t.schema.metadata[LAYOUT_KEY]) for t in tables]
    ratios = [{r.name: r for r in (*own.ratios, *own.slices)} for own in layouts]
    first = ratios[0].get(metric)
    if first is None or any(own.get(metric) != first for own in ratios):
        raise DataError(
            f"metric={metric} is not kept per user by all evaluations of the finalists: expected "
            f"one such as {', '.join(r.name for r in layouts[0].ratios[:3])}, ndcg@100, rmse, nll"
        )
    return first


def _pairs(
    numbers: Sequence[int], values: Sequence[NDArray[np.float64]], *, rng: np.random.Generator
) -> tuple[Pair, ...]:
    """Compare all pairs at once; `values` are [seeds, 1 + B] of each setting."""
    if len(numbers) < 2:
        return ()
    means = np.stack([runs.mean(axis=0) for runs in values])  # [F, 1 + B]
    luck, freedom = _luck(values)
    b, a = np.array(list(itertools.combinations(range(len(numbers)), 2))).T
    gaps = means[a] - means[b]  # [P, 1 + B]
    moves = gaps[:, 1:] - gaps[:, 1:].mean(axis=1, keepdims=True)
    users = moves.var(axis=1, keepdims=True)
    shape = (len(numbers), moves.shape[1])
    if np.count_nonzero(luck) == 1:
        drawn, estimated = np.sqrt(luck) * rng.standard_t(freedom, shape), luck
    else:
        drawn = np.sqrt(luck) * rng.standard_normal(shape)
        estimated = luck * rng.chisquare(freedom, shape) / freedom
    null = _over(np.abs(moves + drawn[a] - drawn[b]), np.sqrt(users + estimated[a] + estimated[b]))
    largest = np.sort(null.max(axis=0))
    error = np.sqrt(users + luck[a] + luck[b])[:, 0]
    observed = _over(np.abs(gaps[:, 0]), error)
    p_values = (1 + (largest >= observed[:, None]).sum(axis=1)) / (1 + len(largest))
    rank = min(int(np.ceil((1 - _LEVEL) * (1 + len(largest)))), len(largest))
    reach = error * largest[rank - 1]
    return tuple(
        Pair(numbers[i], numbers[j], float(gap), float(gap - half), float(gap + half), float(p))
        for i, j, gap, half, p in zip(a, b, gaps[:, 0], reach, p_values, strict=True)
    )


def _luck(
    values: Sequence[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the variance of each setting's mean over seeds and its degrees of freedom, [F, 1]."""
    by_seed = [replicates[:, 0] for replicates in values]
    counts = np.array([len(runs) for runs in by_seed])
    spread = np.array([runs.var(ddof=1) if np.ptp(runs) > 0 else 0.0 for runs in by_seed])
    varies = spread > 0
    if not varies.any():
        return np.zeros((len(values), 1)), np.ones((len(values), 1))
    pooled = np.average(spread[varies], weights=counts[varies] - 1)
    widest = int(np.argmax(spread))
    alone = counts == 1
    spread = np.where(alone, spread[widest], np.where(varies, np.maximum(spread, pooled), 0.0))
    freedom = np.where(alone, counts[widest], counts) - 1.0
    return (spread / counts)[:, None], freedom[:, None]


def _over(gap: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide; what differs by the same for all users and seeds is beyond any noise."""
    certain = np.where(gap > 0, np.inf, 0.0)
    t: NDArray[np.float64] = np.divide(gap, error, out=certain, where=error > 0)
    return t


def _verdict(
    settings: Sequence[Setting], pairs: Sequence[Pair], *, metric: str, sign: int
) -> tuple[int, str]:
    """Return the setting to take and why; `sign` is 1 where larger is better."""
    if len(settings) < 2:
        return DEFAULTS, "the defaults are the only setting"
    means = {s.number: sign * s.mean for s in settings}
    top = max(means, key=lambda number: (means[number], -number))
    against = {p.first: p for p in pairs if p.second == DEFAULTS}
    better = [n for n, p in against.items() if p.p_value <= _LEVEL and sign * p.difference > 0]
    if not better:
        leader = max(against, key=lambda number: (means[number], -number))
        return DEFAULTS, (
            f"no better than the defaults within noise: {_told(against[leader], metric)}; "
            "the defaults stay"
        )
    best = max(better, key=lambda number: (means[number], -number))
    text = f"trial {best} is better than the defaults: {_told(against[best], metric)}"
    ties = sorted(
        p.second if p.first == best else p.first
        for p in pairs
        if best in (p.first, p.second) and p.second != DEFAULTS and p.p_value > _LEVEL
    )
    if ties:
        names = ", ".join(map(str, ties))
        text += f"; within noise of it: {names}; it has the best mean of those that beat them"
    if top != best:
        text += f"; trial {top} has a better mean, but is not beyond noise of the defaults"
    return best, text


def _told(pair: Pair, metric: str) -> str:
    return (
        f"trial {pair.first} {pair.difference:+.4g} {metric} "
        f"({pair.ci_low:+.4g} to {pair.ci_high:+.4g}, p = {pair.p_value:.2g})"
    )
