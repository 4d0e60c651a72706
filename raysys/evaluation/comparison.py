"""What the users' sums of an evaluation say later: paired differences, means over several runs.

Letters: U common users, C columns of sums, B bootstrap replicates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys import progress
from raysys.errors import DataError
from raysys.evaluation.bootstrap import interval, poisson_weights, user_keys, weighted_sums
from raysys.evaluation.metric_table import MetricLayout, Ratio
from raysys.evaluation.user_sums import LAYOUT_KEY
from raysys.store.storage import Storage

_BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class Difference:
    """One metric of two evaluations.

    Attributes:
        mean, other: the metric on the common users.
        difference: mean - other, with its 95 % interval; users are drawn in pairs.
        better, worse: share of the common users for whom the first is strictly better or worse,
            among those for whom both are defined.
    """

    mean: float
    other: float
    difference: float
    ci_low: float | None
    ci_high: float | None
    better: float
    worse: float


def read_users(path: Path) -> pa.Table:
    """Read the users' sums of one method.

    Raises:
        DataError: the file is not what evaluate writes.
    """
    table = pq.read_table(path)
    if LAYOUT_KEY not in (table.schema.metadata or {}):
        raise DataError(f"{path} does not hold the per-user sums of an evaluation")
    return table


def users_of_report(storage: Storage, report: str, method: str) -> pa.Table:
    """Read the users' sums of one method of the report at `<report>.json`.

    Raises:
        DataError: there is no such report.
    """
    record = storage.read_json(f"{report}.json")
    if record is None:
        raise DataError(f"{storage.root} holds no {report}.json")
    name = f"{report}/{record['report_id']}/{method}.parquet"
    return read_users(storage.fetch(name, cache_key=name))


def replicated(table: pa.Table, *, seed: int, replicates: int) -> dict[str, NDArray[np.float64]]:
    """Return {metric: [1 + B]} its value and its bootstrap replicates, where it has data.

    A user's weights depend on the seed and the user alone, so replicates of several tables go
    together: their means, like their differences, have honest intervals.
    """
    layout = MetricLayout.from_json(table.schema.metadata[LAYOUT_KEY])
    columns = list(layout.columns)
    sums = column_matrix(table, columns)
    keys = user_keys(table["user_id"].to_pylist())
    [weighted] = replicated_sums([sums], keys, seed=seed, replicates=replicates)
    every = np.concatenate((sums.sum(axis=0)[None], weighted))
    return {
        ratio.name: ratio.of(every[:, layout.index[ratio.num]], every[:, layout.index[ratio.den]])
        for ratio in layout.ratios
        if every[0, layout.index[ratio.den]] > 0
    }


def compare_users(
    one: pa.Table,
    other: pa.Table,
    *,
    seed: int,
    replicates: int,
    metrics: Collection[str] | None = None,
) -> tuple[dict[str, Difference], int]:
    """Compare two tables of `UserSums.table` on their common users.

    Args:
        one: the first table.
        other: the second.
        seed: of the bootstrap over users.
        replicates: of the bootstrap.
        metrics: compared; None: all.

    Returns:
        {metric: Difference} of the metrics that both can give, and the number of common users.

    Raises:
        DataError: no user stands in both.
    """
    layout, theirs = (MetricLayout.from_json(t.schema.metadata[LAYOUT_KEY]) for t in (one, other))
    ids, rows, other_rows = np.intersect1d(
        one["user_id"].to_numpy().astype(str),
        other["user_id"].to_numpy().astype(str),
        return_indices=True,
    )
    if not len(ids):
        raise DataError("the two evaluations have no user in common")
    known = {ratio.name: ratio for ratio in theirs.ratios}
    ratios = [
        r
        for r in layout.ratios
        if known.get(r.name) == r and (metrics is None or r.name in metrics)
    ]
    if not ratios:
        return {}, len(ids)
    columns = list(dict.fromkeys(name for r in ratios for name in (r.den, r.num)))
    sums = [column_matrix(one, columns)[rows], column_matrix(other, columns)[other_rows]]
    weighted = replicated_sums(sums, user_keys(ids), seed=seed, replicates=replicates)
    index = {name: number for number, name in enumerate(columns)}
    found = {
        ratio.name: _difference(ratio, index, sums, weighted)
        for ratio in ratios
        if all(values[:, index[ratio.den]].any() for values in sums)
    }
    return found, len(ids)


def replicated_sums(
    sums: list[NDArray[np.int64]], keys: NDArray[np.uint64], *, seed: int, replicates: int
) -> list[NDArray[np.int64]]:
    """Return the replicates of the column sums [B, C] of several matrices of the same users.

    Args:
        sums: each [U, C], of the same users in the same order.
        keys: [U] `user_keys`.
        seed: of the weights of users, which all matrices share.
        replicates: B.
    """
    weighted = [np.zeros((replicates, values.shape[1]), dtype=np.int64) for values in sums]
    with progress.stage("bootstrap", total=len(keys), unit="users", lines=progress.NONE) as work:
        for start in range(0, len(keys) if replicates else 0, _BLOCK):
            part = slice(start, start + _BLOCK)
            weights = poisson_weights(keys[part], seed=seed, replicates=replicates)
            for total, values in zip(weighted, sums, strict=True):
                total += weighted_sums(weights, values[part])
            work.add(len(weights))
    return weighted


def column_matrix(table: pa.Table, columns: list[str]) -> NDArray[np.int64]:
    """Return columns of users' sums, int64 [U, C]."""
    return np.stack([table[name].to_numpy() for name in columns], axis=1)


def _difference(
    ratio: Ratio,
    index: dict[str, int],
    sums: list[NDArray[np.int64]],
    weighted: list[NDArray[np.int64]],
) -> Difference:
    at = [index[ratio.num], index[ratio.den]]
    mean, other = (float(ratio.of(*s[:, at].sum(axis=0)[:, None])[0]) for s in sums)
    replicates = [ratio.of(*w[:, at].T) for w in weighted]
    low, high = interval(replicates[0] - replicates[1])
    users = [ratio.of(*s[:, at].T) for s in sums]
    sign = 1 if ratio.higher_is_better else -1
    gap = sign * (users[0] - users[1])
    gap = gap[np.isfinite(gap)]
    count = max(len(gap), 1)
    return Difference(
        mean=mean,
        other=other,
        difference=mean - other,
        ci_low=low,
        ci_high=high,
        better=float((gap > 0).sum() / count),
        worse=float((gap < 0).sum() / count),
    )
