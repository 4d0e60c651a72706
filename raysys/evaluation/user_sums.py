"""Evaluates one user shard with one method, block by block.

Rankers see fixed blocks of users, the last one padded with empty histories, so that the number of
users in a chunk cannot change a score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys import progress
from raysys.data.cells import Cells, concat
from raysys.evaluation.evaluator import Evaluator
from raysys.evaluation.metric_table import MetricLayout
from raysys.evaluation.metrics import Expecter, Ranker, Rater, RatingPrediction
from raysys.evaluation.protocols import Task

LAYOUT_KEY = b"raysys.layout"


@dataclasses.dataclass
class UserSums:
    """Per-user sums of a shard, int64 [U, C], filled block by block.

    Attributes:
        keys: uint64 [U] bootstrap keys of all the shard's users.
        first_user: user_num of the first of them; numbers are contiguous.
        sums: int64 [U, C].
        seen: [U] whether the user has any row.
    """

    keys: NDArray[np.uint64]
    first_user: int
    sums: NDArray[np.int64]
    seen: NDArray[np.bool_]

    @classmethod
    def empty(cls, keys: NDArray[np.uint64], *, first_user: int, layout: MetricLayout) -> UserSums:
        """Return zero sums for every user."""
        sums = np.zeros((len(keys), len(layout.columns)), dtype=np.int64)
        return cls(keys, first_user, sums, np.zeros(len(keys), dtype=bool))

    def add(self, user_num: NDArray[np.int32], sums: NDArray[np.int64]) -> None:
        """Add rows; a user may have several."""
        rows = user_num - self.first_user
        np.add.at(self.sums, rows, sums)
        self.seen[rows] = True

    def keys_of(self, user_num: NDArray[np.int32]) -> NDArray[np.uint64]:
        """Return the bootstrap keys of rows."""
        keys: NDArray[np.uint64] = self.keys[user_num - self.first_user]
        return keys

    def table(self, user_ids: Sequence[str], layout: MetricLayout) -> pa.Table:
        """Return user_id and the sums of the users that were evaluated.

        Args:
            user_ids: [U] ids of all the shard's users.
            layout: names the columns; kept in the metadata.
        """
        rows = np.flatnonzero(self.seen)
        columns = {"user_id": pa.array([user_ids[int(r)] for r in rows], pa.string())}
        for name, number in layout.index.items():
            columns[name] = pa.array(self.sums[rows, number])
        return pa.table(columns).replace_schema_metadata({LAYOUT_KEY: layout.as_json()})


def rank_task(
    evaluator: Evaluator,
    task: Task,
    rank: Ranker,
    *,
    users: UserSums,
    block: int,
    name: str = "users",
) -> None:
    """Rank every row of a task and add its sums; `name` is what progress calls the ranker."""
    length = evaluator.layout.list_length
    n_users = task.history.n_users
    with progress.stage(f"rank {name}", total=n_users, unit="users", lines=progress.NONE) as work:
        for start in range(0, n_users, block):
            rows = np.arange(start, min(start + block, n_users))
            history = task.history.users(rows)
            lists = rank(_padded(history, block), length)[: len(rows)]
            sums = evaluator.update_ranking(
                users.keys_of(history.user_num),
                history=history,
                targets=task.targets.users(rows),
                lists=lists,
            )
            users.add(history.user_num, sums)
            work.add(len(rows))


def expect_task(
    evaluator: Evaluator,
    task: Task,
    expect: Expecter,
    *,
    users: UserSums,
    block: int,
    share: float,
    name: str = "users",
) -> None:
    """Compare P(i | u) with what was consumed, for a share of the users that their keys choose."""
    rows = np.flatnonzero(users.keys_of(task.history.user_num) * 2.0**-64 <= share)
    label = f"expect {name}"
    with progress.stage(label, total=len(rows), unit="users", lines=progress.NONE) as work:
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            history = task.history.users(part)
            log_p = expect(_padded(history, block))[: len(part)]
            evaluator.consumed.add(log_p, history=history, targets=task.targets.users(part))
            work.add(len(part))


def rate_cells(
    evaluator: Evaluator,
    history: Cells,
    targets: Cells,
    rate: Rater,
    *,
    users: UserSums,
    block: int,
    name: str = "users",
) -> None:
    """Predict the rated targets of users and add their sums; `name` as in `rank_task`."""
    assert evaluator.levels is not None
    targets = targets.take(evaluator.levels.rated[targets.level])
    kept = np.flatnonzero(targets.counts)
    with progress.stage(f"rate {name}", total=len(kept), unit="users", lines=progress.NONE) as work:
        for start in range(0, len(kept), block):
            rows = kept[start : start + block]
            past, wanted = _padded(history.users(rows), block), targets.users(rows)
            prediction: RatingPrediction = rate(past, _padded(wanted, block))
            sums = evaluator.update_ratings(
                users.keys_of(wanted.user_num), targets=wanted, prediction=prediction
            )
            users.add(wanted.user_num, sums)
            work.add(len(rows))


def _padded(cells: Cells, n_users: int) -> Cells:
    """Append users without cells up to `n_users`."""
    missing = n_users - cells.n_users
    if missing <= 0:
        return cells
    empty = Cells(
        user_num=np.full(missing, -1, dtype=np.int32),
        offsets=np.zeros(missing + 1, dtype=np.int64),
        item_num=np.zeros(0, dtype=np.int32),
        level=np.zeros(0, dtype=np.uint8),
        timestamp=np.zeros(0, dtype=np.int64),
        window=np.zeros(0, dtype=np.uint8),
    )
    return concat([cells, empty])
