"""Does an offline metric pick the model that wins online?

Source: Kasalicky, Alves, Kordik, EvalRS at KDD 2023, arXiv 2308.06885. Model-selection recall is
the share of cells (system, K) in which the model that is best offline is the one that is best
online. Beside it: Kendall's tau-b between the two orders, and regret, the share of the best online
outcome that is lost by following the offline choice.

Input is a table with one row per (system, model): a column of online outcomes (higher is better)
and any number of columns of offline metrics. `recall@20^0.3` and the like are grouped over K: each
(system, K) is one cell. Intervals resample systems, never cells, as the cells of one system share
their models; differences between metrics are paired: both are read off the same resampled systems.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import kendalltau

from raysys.errors import DataError
from raysys.evaluation.bootstrap import interval

_AT_K = re.compile(r"^(?P<head>.*)@(?P<k>\d+)(?P<tail>.*)$")
_EXPONENT = re.compile(r"^(?P<head>.*)\^(?P<beta>\d+(\.\d+)?)$")


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How one offline metric agrees with the online outcome; each value {mean, ci_low, ci_high}.

    Attributes:
        metric: its name, `@K` standing for all its list cuts.
        cells: number of (system, K) cells.
        picked: number of cells in which the offline winner is the online winner; ties among the
            offline winners count in parts.
        selection_recall: picked / cells.
        kendall_tau: tau-b between offline and online order, mean over cells where it is defined.
        regret: 1 - online outcome of the offline winner / best online outcome, mean over cells.
        chance: selection recall of a random choice.
        gain: selection recall minus that of the reference metric, None without one.
    """

    metric: str
    cells: int
    picked: float
    selection_recall: dict[str, float | None]
    kendall_tau: dict[str, float | None]
    regret: dict[str, float | None]
    chance: float
    gain: dict[str, float | None] | None = None


@dataclasses.dataclass(frozen=True)
class BestExponent:
    """The popularity penalty of one family `head^beta` that picks best.

    Attributes:
        family: the metric's name without its exponent.
        beta: of the highest selection recall; the smallest of equals.
        as_good: smallest and largest beta whose selection recall is not clearly below the best:
            the paired 95 % interval of the difference reaches 0.
        drawn: 95 % interval of the best beta over resampled systems.
    """

    family: str
    beta: float
    as_good: tuple[float, float]
    drawn: tuple[float | None, float | None]


def read_table(path: Path) -> pa.Table:
    """Read a CSV or Parquet table of models and outcomes.

    Raises:
        DataError: there is no such file, or it is neither.
    """
    readers = {".csv": pc.read_csv, ".parquet": pq.read_table}
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a .csv or .parquet table of models and outcomes")
    try:
        table: pa.Table = readers[path.suffix](path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return table


def agreement(
    table: pa.Table,
    *,
    online: str,
    system: str | None = None,
    metrics: list[str] | None = None,
    reference: str | None = None,
    seed: int = 0,
    replicates: int = 1000,
) -> list[Agreement]:
    """Compare every offline metric with the online outcome.

    Args:
        table: one row per (system, model).
        online: column of the online outcome; higher is better.
        system: column that tells systems (sites, worlds, weeks) apart; None means one system.
        metrics: offline columns; None takes every other numeric column.
        reference: a metric, `@K` for its list cuts, that the others' `gain` is counted from.
        seed: of the bootstrap over systems.
        replicates: bootstrap replicates; with one system there is no interval.

    Returns:
        One entry per metric, those of one name and several K joined, in column order.

    Raises:
        DataError: a column is missing, not numeric or has gaps, or a system has one model only.
    """
    groups = _systems(table, system)
    names, cells = _all_cells(table, online, system, metrics, groups)
    draws = _draws(len(groups), seed, replicates)
    chance = float(np.mean([1 / len(rows) for rows in groups]))
    base = None
    if reference is not None:
        if reference not in names:
            raise DataError(f"no metric {reference!r} among {', '.join(names)}")
        base = _means(cells[names.index(reference)], 0, draws)
    return [
        _agree(name, part, base, draws, chance) for name, part in zip(names, cells, strict=True)
    ]


def best_exponents(
    table: pa.Table,
    *,
    online: str,
    system: str | None = None,
    metrics: list[str] | None = None,
    seed: int = 0,
    replicates: int = 1000,
) -> list[BestExponent]:
    """Return the best beta of every family of metrics `head^beta`; arguments of `agreement`."""
    groups = _systems(table, system)
    names, cells = _all_cells(table, online, system, metrics, groups)
    draws = _draws(len(groups), seed, replicates)
    families: dict[str, list[tuple[float, NDArray[np.float64]]]] = {}
    for name, part in zip(names, cells, strict=True):
        match = _EXPONENT.match(name)
        if match:
            means = _means(part, 0, draws)
            families.setdefault(match["head"], []).append((float(match["beta"]), means))
    found = []
    for head, members in families.items():
        members.sort(key=lambda member: member[0])
        betas = np.array([beta for beta, _ in members])
        recalls = np.stack([means for _, means in members])  # [betas, 1 + draws]
        best = int(np.argmax(recalls[:, 0]))
        highs = [interval(row)[1] for row in recalls[:, 1:] - recalls[best, 1:]]
        good = betas[[high is None or high >= 0 for high in highs]]
        drawn = interval(betas[np.argmax(recalls[:, 1:], axis=0)])
        found.append(
            BestExponent(head, float(betas[best]), (float(good.min()), float(good.max())), drawn)
        )
    return found


def _all_cells(
    table: pa.Table,
    online: str,
    system: str | None,
    metrics: list[str] | None,
    groups: list[NDArray[np.int64]],
) -> tuple[list[str], list[NDArray[np.float64]]]:
    """Return the joined metrics and, for each, picked, tau and regret, [systems, K, 3]."""
    chosen = metrics or [
        name
        for name, kind in zip(table.column_names, table.schema.types, strict=True)
        if name not in (online, system)
        and (pa.types.is_floating(kind) or pa.types.is_integer(kind))
    ]
    outcome = _numbers(table, online)
    joined: dict[str, list[str]] = {}
    for name in chosen:
        joined.setdefault(_joined_name(name), []).append(name)
    cells = []
    for columns in joined.values():
        values = [_numbers(table, column) for column in columns]
        cells.append(np.array([[_cell(v[rows], outcome[rows]) for v in values] for rows in groups]))
    return list(joined), cells


def _draws(n_systems: int, seed: int, replicates: int) -> NDArray[np.int64]:
    rng = np.random.default_rng([seed, n_systems])
    return rng.integers(0, n_systems, (replicates if n_systems > 1 else 0, n_systems))


def _means(cells: NDArray[np.float64], part: int, draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean of one part over all cells, then over each draw of systems, [1 + draws]."""
    sums = np.nansum(cells[:, :, part], axis=1)
    counts = np.isfinite(cells[:, :, part]).sum(axis=1)
    every = np.concatenate(([sums.sum()], sums[draws].sum(axis=1)))
    of = np.concatenate(([counts.sum()], counts[draws].sum(axis=1))).astype(np.float64)
    means: NDArray[np.float64] = np.divide(every, of, out=np.full(len(of), np.nan), where=of > 0)
    return means


def _summary(means: NDArray[np.float64]) -> dict[str, float | None]:
    low, high = interval(means[1:])
    mean = float(means[0]) if np.isfinite(means[0]) else None
    return {"mean": mean, "ci_low": low, "ci_high": high}


def _agree(
    name: str,
    cells: NDArray[np.float64],
    reference: NDArray[np.float64] | None,
    draws: NDArray[np.int64],
    chance: float,
) -> Agreement:
    picked, tau, regret = (_means(cells, part, draws) for part in range(3))
    return Agreement(
        metric=name,
        cells=cells.shape[0] * cells.shape[1],
        picked=float(np.nansum(cells[:, :, 0])),
        selection_recall=_summary(picked),
        kendall_tau=_summary(tau),
        regret=_summary(regret),
        chance=chance,
        gain=None if reference is None else _summary(picked - reference),
    )


def _cell(offline: NDArray[np.float64], online: NDArray[np.float64]) -> list[float]:
    """Return picked (0..1), tau-b (NaN where one order is constant) and regret of one cell."""
    winners = np.flatnonzero(offline == offline.max())
    best = online.max()
    picked = float((online[winners] == best).mean())
    constant = np.ptp(offline) == 0 or np.ptp(online) == 0
    tau = np.nan if constant else float(kendalltau(offline, online).statistic)
    regret = float(1 - online[winners].mean() / best) if best > 0 else np.nan
    return [picked, tau, regret]


def _systems(table: pa.Table, system: str | None) -> list[NDArray[np.int64]]:
    if system is None:
        groups = [np.arange(table.num_rows)]
    else:
        names = _column(table, system).to_numpy(zero_copy_only=False).astype(str)
        groups = [np.flatnonzero(names == name) for name in dict.fromkeys(names)]
    for rows in groups:
        if len(rows) < 2:
            where = "the table" if system is None else f"{system}={str(names[rows[0]])!r}"
            raise DataError(f"{where} holds {len(rows)} model: at least 2 are needed to choose")
    return groups


def _numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    column = _column(table, name)
    try:
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise DataError(f"column {name!r} is not numeric: {error}") from error
    gaps = np.flatnonzero(~np.isfinite(values))
    if len(gaps):
        raise DataError(f"column {name!r} has no number in row {gaps[0]}")
    return np.asarray(values, dtype=np.float64)


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        raise DataError(f"no column {name!r} among {', '.join(table.column_names)}")
    return table[name].combine_chunks()


def _joined_name(name: str) -> str:
    match = _AT_K.match(name)
    return f"{match['head']}@K{match['tail']}" if match else name
