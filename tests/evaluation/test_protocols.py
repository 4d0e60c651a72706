"""Histories and targets of the three protocols, against plain loops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data.cells import Cells
from raysys.data.schema import Window, period_windows
from raysys.evaluation import protocols

TEST = period_windows("temporal", "test")


def log(users):
    """Cells from (item, time, window) per user."""
    flat = [row for user in users for row in sorted(user, key=lambda r: (r[1], r[0]))]
    table = np.array(flat, dtype=np.int64).reshape(-1, 3)
    counts = [len(user) for user in users]
    return Cells(
        user_num=np.arange(len(users), dtype=np.int32),
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        item_num=table[:, 0].astype(np.int32),
        level=np.zeros(len(table), dtype=np.uint8),
        timestamp=table[:, 1],
        window=table[:, 2].astype(np.uint8),
    )


def rows_of(task):
    """Return {(user, history, targets)} as sets of items."""
    history, targets = task.history, task.targets
    return [
        (
            int(history.user_num[r]),
            set(history.item_num[history.offsets[r] : history.offsets[r + 1]].tolist()),
            set(targets.item_num[targets.offsets[r] : targets.offsets[r + 1]].tolist()),
        )
        for r in range(history.n_users)
    ]


def test_cutoff_keeps_new_known_targets_once_and_counts_the_rest():
    cells = log(
        [
            [(0, 1, 0), (1, 2, 1), (1, 5, 2), (2, 6, 2), (2, 7, 2), (9, 8, 2)],
            [(3, 5, 2)],
            [(3, 1, 0)],
            [(0, 1, 0), (0, 6, 2)],
            [],
        ]
    )
    task = protocols.cutoff_task(cells, TEST, n_items=5)
    assert rows_of(task) == [(0, {0, 1}, {2})]
    assert task.targets.timestamp.tolist() == [6]
    assert {k: v for k, v in task.dropped.items() if v} == {
        "targets_outside_catalogue": 1,
        "targets_in_history": 2,
        "targets_repeated": 1,
        "users_without_new_target": 1,
        "users_without_history": 1,
    }


def test_cutoff_counts_add_up():
    rng = np.random.default_rng(0)
    users = [
        [(int(rng.integers(20)), t, min(t // 5, 2)) for t in sorted(rng.integers(0, 15, 12))]
        for _ in range(50)
    ]
    cells = log(users)
    task = protocols.cutoff_task(cells, TEST, n_items=15, need_history=False)
    left = sum(v for k, v in task.dropped.items() if k.startswith("targets"))
    assert left + task.targets.n_cells == (cells.window == Window.TEST).sum()


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_leave_one_out_equals_a_loop(seed, last):
    rng = np.random.default_rng(seed)
    users = []
    for _ in range(5):
        times = sorted(rng.integers(0, 12, rng.integers(0, 9)).tolist())
        users.append([(int(rng.integers(8)), t, min(t // 4, 2)) for t in times])
    cells = log(users)
    found = [
        row
        for task in protocols.leave_one_out_tasks(cells, TEST, n_items=6, last=last)
        for row in rows_of(task)
    ]
    expected = []
    for u, user in enumerate(users):
        first = {}
        for item, time, window in sorted(user, key=lambda r: (r[1], r[0])):
            if item < 6:
                first.setdefault(item, (time, window))
        if last:
            for time in sorted({t for t, w in first.values() if w == Window.TEST}):
                past = {i for i, (t, _) in first.items() if t < time}
                new = {i for i, (t, _) in first.items() if t == time}
                expected += [(u, past, new)] if past else []
        else:
            for item, (_, window) in sorted(first.items(), key=lambda r: (r[1][0], r[0])):
                others = set(first) - {item}
                expected += [(u, others, {item})] if window == Window.TEST and others else []
    assert found == expected


def test_tasks_are_bounded(monkeypatch):
    monkeypatch.setattr(protocols, "_MAX_CELLS", 50)
    cells = log([[(i, i, 2 if i > 2 else 0) for i in range(6)] for _ in range(7)])
    tasks = list(protocols.leave_one_out_tasks(cells, TEST, n_items=10, last=True))
    assert len(tasks) == 7
    monkeypatch.undo()
    [whole] = protocols.leave_one_out_tasks(cells, TEST, n_items=10, last=True)
    assert [row for task in tasks for row in rows_of(task)] == rows_of(whole)


@pytest.mark.parametrize("last", [True, False])
def test_no_users_give_no_rows(last):
    assert list(protocols.leave_one_out_tasks(log([]), TEST, n_items=3, last=last)) == []
    [task] = protocols.leave_one_out_tasks(log([[]]), TEST, n_items=3, last=last)
    assert task.history.n_users == 0


def test_windows_of_other_periods_are_left_out():
    cells = log([[(0, 1, 0), (1, 2, 1), (2, 3, 2)]])
    val = period_windows("temporal", "val")
    assert rows_of(protocols.cutoff_task(cells, val, n_items=9)) == [(0, {0}, {1})]
    users = period_windows("users", "test")
    moved = dataclasses.replace(cells, window=np.array([4, 4, 2], dtype=np.uint8))
    assert rows_of(protocols.cutoff_task(moved, users, n_items=9)) == [(0, {0, 1}, {2})]
