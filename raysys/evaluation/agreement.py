"""Does an offline metric pick the model that wins online?

Source: Kasalicky, Alves, Kordik, EvalRS at KDD 2023, arXiv 2308.06885. Model-selection recall is
the share of cells (system, K) in which the model that is best offline is the one that is best
online. Beside it: Kendall's tau-b between the two orders, and regret, the share of the best online
outcome that is lost by following the offline choice.

Input is a table with one row per (system, model): a column of online outcomes (higher is better)
and any number of columns of offline metrics. `recall@20^0.3` and the like are grouped over K: each
(system, K) is one cell. Intervals resample systems, never cells, as the cells of one system share
their models.
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
    """

    metric: str
    cells: int
    picked: float
    selection_recall: dict[str, float | None]
    kendall_tau: dict[str, float | None]
    regret: dict[str, float | None]
    chance: float


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
    seed: int = 0,
    replicates: int = 1000,
) -> list[Agreement]:
    """Compare every offline metric with the online outcome.

    Args:
        table: one row per (system, model).
        online: column of the online outcome; higher is better.
        system: column that tells systems (sites, worlds, weeks) apart; None means one system.
        metrics: offline columns; None takes every other numeric column.
        seed: of the bootstrap over systems.
        replicates: bootstrap replicates; with one system there is no interval.

    Returns:
        One entry per metric, those of one name and several K joined, in column order.

    Raises:
        DataError: a column is missing, not numeric or has gaps, or a system has one model only.
    """
    chosen = metrics or [
        name
        for name, kind in zip(table.column_names, table.schema.types, strict=True)
        if name not in (online, system)
        and (pa.types.is_floating(kind) or pa.types.is_integer(kind))
    ]
    outcome = _numbers(table, online)
    groups = _systems(table, system)
    joined: dict[str, list[str]] = {}
    for name in chosen:
        joined.setdefault(_joined_name(name), []).append(name)
    rng = np.random.default_rng([seed, len(groups)])
    draws = rng.integers(0, len(groups), (replicates if len(groups) > 1 else 0, len(groups)))
    return [
        _agree(name, [_numbers(table, c) for c in columns], outcome, groups, draws)
        for name, columns in joined.items()
    ]


def _agree(
    name: str,
    columns: list[NDArray[np.float64]],
    outcome: NDArray[np.float64],
    groups: list[NDArray[np.int64]],
    draws: NDArray[np.int64],
) -> Agreement:
    cells = np.array(
        [[_cell(values[rows], outcome[rows]) for values in columns] for rows in groups]
    )  # [systems, K, 3]
    sums = np.nansum(cells, axis=1)
    counts = np.isfinite(cells).sum(axis=1)
    values = []
    for part in range(3):
        mean = _ratio(sums[:, part].sum(), counts[:, part].sum())
        drawn = np.array(
            [_ratio(sums[d, part].sum(), counts[d, part].sum()) for d in draws], dtype=np.float64
        )
        low, high = interval(drawn)
        values.append({"mean": mean, "ci_low": low, "ci_high": high})
    return Agreement(
        metric=name,
        cells=cells.shape[0] * cells.shape[1],
        picked=float(sums[:, 0].sum()),
        selection_recall=values[0],
        kendall_tau=values[1],
        regret=values[2],
        chance=float(np.mean([1 / len(rows) for rows in groups])),
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


def _ratio(total: float, count: float) -> float | None:
    return float(total / count) if count else None
