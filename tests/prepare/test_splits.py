import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data.cells import Cells
from raysys.data.schema import INTERACTION_SCHEMA, Window
from raysys.errors import DataError
from raysys.prepare.catalogue import (
    catalogue_sizes,
    merge_items,
    number_items,
    number_part,
    rare_items,
    statistics,
)
from raysys.prepare.clean import LogTraits
from raysys.prepare.cutoffs import backtest_cutoffs, cutoffs_of_folds, resolve_cutoffs
from raysys.prepare.hashing import combine, hash_ids, unit
from raysys.prepare.levels import build_levels
from raysys.prepare.merge import merge
from raysys.prepare.splits import SplitPlan, audit
from raysys.prepare.tasks import read_rows

TRAITS = LogTraits(has_ratings=True, has_events=False, has_time=True, has_folds=False)
PLANS = {
    "temporal": SplitPlan(split="temporal", cutoffs=(60, 80)),
    "users": SplitPlan(split="users", val_share=0.3, test_share=0.3),
    "ratings": SplitPlan(split="ratings", val_share=0.3, test_share=0.3),
}


def write_log(path, rows):
    names = ("user_id", "item_id", "rating", "timestamp")
    table = pa.Table.from_pylist(
        [dict(zip(names, row, strict=True)) for row in rows], schema=INTERACTION_SCHEMA
    )
    merged = merge([table], traits=TRAITS, keep="first")
    pq.write_table(merged.rows, path)
    return merged


def split_log(path, plan, *, min_item_rows=1):
    rows = read_rows(str(path))
    counted = statistics(rows, plan, has_time=True)
    merged = merge_items([counted.items])
    items = number_items(merged, excluded=rare_items(merged, min_item_rows=min_item_rows))
    levels = build_levels(counted.levels) if counted.levels.ratings else None
    if levels is None:
        return counted, items, None
    part = number_part(
        rows, plan, item_ids=items["item_id"].combine_chunks(), levels=levels, first_user=0
    )
    return counted, items, part


LOGS = st.lists(
    st.tuples(
        st.integers(0, 11).map(str),
        st.integers(0, 9).map(str),
        st.sampled_from([1.0, 2.0, 5.0]),
        st.integers(0, 100),
    ),
    min_size=5,
    max_size=120,
)


@pytest.mark.parametrize("split", PLANS)
@settings(max_examples=25, deadline=None)
@given(rows=LOGS)
def test_no_future_leak_and_nothing_lost(tmp_path_factory, split, rows):
    path = tmp_path_factory.mktemp("log") / "part.parquet"
    merged = write_log(path, rows)
    plan = PLANS[split]
    counted, items, part = split_log(path, plan)
    if part is None:
        return
    cells = part.cells
    assert cells.n_cells + counted.n_dropped + part.n_rare + part.n_unknown_level == len(
        merged.rows
    )
    sizes = catalogue_sizes(items)
    audit(cells, split=split, cutoffs=plan.cutoffs, n_fit_items=sizes["val"])
    fit = cells.window == Window.FIT
    fitted_items = np.unique(cells.item_num[fit])
    np.testing.assert_array_equal(fitted_items, np.arange(sizes["val"]))
    np.testing.assert_array_equal(
        np.bincount(cells.item_num[fit], minlength=len(items)), items["n_fit"].to_numpy()
    )
    if split == "temporal":
        assert cells.timestamp[fit].max(initial=-1) < 60
        assert cells.timestamp[cells.window == Window.TEST].min(initial=99) >= 80
        first = np.full(len(items), 1000)
        np.minimum.at(first, cells.item_num, cells.timestamp)
        np.testing.assert_array_equal(first, items["first_seen"].to_numpy())
        assert np.all(np.diff(first) >= 0)
        assert sizes["test"] == (first < 80).sum()
    if split == "users":
        user = cells.rows
        for window, history in ((Window.VAL, Window.VAL_IN), (Window.TEST, Window.TEST_IN)):
            targets = np.unique(user[cells.window == window])
            assert np.isin(targets, user[cells.window == history]).all()
            assert not np.isin(targets, user[fit]).any()


@settings(max_examples=20, deadline=None)
@given(rows=LOGS, later=LOGS)
def test_a_longer_log_does_not_renumber_the_items_known_before(tmp_path_factory, rows, later):
    folder = tmp_path_factory.mktemp("log")
    write_log(folder / "a.parquet", rows)
    later = [(u, f"new{i}", r, t + 101) for u, i, r, t in later]
    write_log(folder / "b.parquet", rows + later)
    plan = PLANS["temporal"]
    _, before, _ = split_log(folder / "a.parquet", plan)
    _, after, _ = split_log(folder / "b.parquet", plan)
    assert after["item_id"].to_pylist()[: len(before)] == before["item_id"].to_pylist()


def test_a_fifth_of_a_held_out_users_items_are_targets(tmp_path):
    rows = [(f"u{u}", f"i{i}", 1.0, i) for u in range(200) for i in range(20)]
    write_log(tmp_path / "log.parquet", rows)
    _, _, part = split_log(tmp_path / "log.parquet", SplitPlan(split="users"))
    counts = np.bincount(part.cells.window, minlength=5)
    assert counts[Window.VAL] * 4 == counts[Window.VAL_IN]
    assert counts[Window.TEST] * 4 == counts[Window.TEST_IN]
    held = (counts[Window.VAL_IN] + counts[Window.VAL]) / 20
    assert 8 <= held <= 35


def test_short_and_long_users_and_rare_items_are_dropped_by_fit_counts(tmp_path):
    rows = [("few", "a", 1.0, 1), ("late", "a", 1.0, 90), ("late", "new", 1.0, 95)]
    rows += [("ok", i, 1.0, 2) for i in "abc"] + [("also", i, 2.0, 3) for i in "ab"]
    rows += [("bot", f"b{i}", 1.0, 4) for i in range(20)]
    write_log(tmp_path / "log.parquet", rows)
    plan = dataclasses.replace(PLANS["temporal"], min_user_rows=2, max_user_rows=10)
    counted, items, part = split_log(tmp_path / "log.parquet", plan, min_item_rows=2)
    assert sorted(counted.users.to_pylist()) == ["also", "late", "ok"]
    assert counted.n_dropped == 21
    assert items["item_id"].to_pylist() == ["a", "b", "new"]
    assert part.n_rare == 1


def cells_of(user_num, counts, item_num, timestamp, window):
    return Cells(
        user_num=np.array(user_num, dtype=np.int32),
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        item_num=np.array(item_num, dtype=np.int32),
        level=np.zeros(len(item_num), dtype=np.uint8),
        timestamp=np.array(timestamp, dtype=np.int64),
        window=np.array(window, dtype=np.uint8),
    )


@pytest.mark.parametrize(
    ("split", "cells", "message"),
    [
        ("temporal", cells_of([0], [1], [0], [70], [0]), "wrong side of a cut.*timestamp 70"),
        ("temporal", cells_of([0], [1], [0], [50], [2]), "wrong side of a cut"),
        ("temporal", cells_of([0], [2], [0, 1], [5, 4], [0, 0]), "not in time order"),
        ("temporal", cells_of([0], [1], [9], [5], [0]), "outside the catalogue"),
        ("ratings", cells_of([3], [2], [1, 1], [0, 0], [0, 2]), "in two windows.*user 3 item 1"),
        ("users", cells_of([0], [2], [1, 2], [0, 0], [0, 2]), "both fitted and held out"),
        ("users", cells_of([4, 4], [1, 1], [1, 2], [0, 0], [0, 0]), "two rows"),
    ],
)
def test_the_audit_names_what_leaks(split, cells, message):
    with pytest.raises(DataError, match=message):
        audit(cells, split=split, cutoffs=(60, 80), n_fit_items=5)


@settings(max_examples=30, deadline=None)
@given(
    times=st.lists(st.integers(0, 2**40), min_size=10, max_size=60, unique=True),
    cut=st.floats(0.1, 0.7),
)
def test_cuts_are_exact_order_statistics(tmp_path_factory, times, cut):
    folder = tmp_path_factory.mktemp("parts")
    uris = []
    for number, part in enumerate(np.array_split(np.array(times), 3)):
        uris.append(str(folder / f"{number}.parquet"))
        pq.write_table(pa.table({"timestamp": part}), uris[-1])
    ranked = sorted(times)
    expected = ranked[int(cut * len(times))], ranked[int(0.85 * len(times))]
    arguments = {"time_range": (ranked[0], ranked[-1]), "n_rows": len(times)}
    if ranked[0] < expected[0] < expected[1]:
        assert resolve_cutoffs(uris, (cut, 0.85), **arguments) == expected
        assert resolve_cutoffs(uris, expected, **arguments) == expected
    else:
        with pytest.raises(DataError, match="empty window"):
            resolve_cutoffs(uris, (cut, 0.85), **arguments)


@pytest.mark.parametrize(
    ("folds", "message"),
    [(["train", "test", "val"], "after the first"), (["train", "val", "val"], "'test'")],
)
def test_folds_that_contradict_time_are_refused(tmp_path, folds, message):
    table = pa.table({"timestamp": [1, 2, 3], "fold": folds})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(DataError, match=message):
        cutoffs_of_folds([str(tmp_path / "p.parquet")])


def test_hashes_are_uniform_keyed_and_mix_pairs():
    ids = pa.array([str(n) for n in range(2000)])
    users, items = hash_ids(ids, key="a"), hash_ids(ids, key="b")
    assert not np.array_equal(users, items)
    np.testing.assert_array_equal(users[:5], hash_ids(ids.slice(0, 5), key="a"))
    draw = unit(combine(users[:, None], items[None, :300]))
    assert abs(draw.mean() - 0.5) < 0.002
    # A linear hash leaves rectangles: h(u,i) ^ h(u,j) ^ h(v,i) ^ h(v,j) = 0.
    held = draw < 0.1
    together = (held[:-1] & held[1:]).mean()
    assert abs(together - 0.01) < 0.001
    assert (held.mean(axis=0).std() < 0.015) & (held.mean(axis=1).std() < 0.03)


def test_backtest_cutoffs_roll_to_the_end_of_the_log():
    assert backtest_cutoffs((0, 99), n_folds=3, step_s=10) == [
        (60, 70, 80),
        (70, 80, 90),
        (80, 90, 100),
    ]
    with pytest.raises(DataError, match="nothing to fit"):
        backtest_cutoffs((0, 99), n_folds=9, step_s=10)
