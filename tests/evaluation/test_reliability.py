"""What is said against what happens: brute force, merging, planted worlds."""

from __future__ import annotations

import numpy as np
import pytest

from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels
from raysys.evaluation.bootstrap import ONE, user_keys
from raysys.evaluation.evaluator import Evaluator
from raysys.evaluation.metric_table import MetricLayout
from raysys.evaluation.metrics import RatingPrediction, rated_distribution
from raysys.evaluation.protocols import Task
from raysys.evaluation.reliability import LOWEST, PER_DECADE, Consumed
from raysys.evaluation.user_sums import UserSums, expect_task

LEVELS = RatingLevels(
    ("1", "2", "3", "unrated"), (1.0, 2.0, 3.0, None), (False, False, True, False)
)
LAYOUT = MetricLayout(levels=LEVELS.names, rating_range=2.0)
N_ITEMS = 300


def evaluator(n_items=N_ITEMS, replicates=0):
    counts = np.ones(n_items, dtype=np.int64)
    return Evaluator(LAYOUT, item_counts=counts, levels=LEVELS, replicates=replicates)


def softmax(scores):
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return log_p.astype(np.float32)


def world(seed=0, n_users=50, spread=3.0):
    """Log P [B, N], histories, and targets that are drawn by P among the other items."""
    rng = np.random.default_rng(seed)
    log_p = softmax(spread * rng.standard_normal((n_users, N_ITEMS)))
    history, targets = [], []
    for row in log_p:
        past = rng.choice(N_ITEMS, 5, replace=False)
        new = np.setdiff1d(np.arange(N_ITEMS), past)
        p = np.exp(row[new].astype(np.float64))
        history.append([(int(i), 0) for i in past])
        drawn = rng.choice(new, rng.integers(1, 9), replace=False, p=p / p.sum())
        targets.append([(int(i), 0) for i in drawn])
    return log_p, Cells.from_lists(history), Cells.from_lists(targets)


def test_bins_of_p_equal_brute_force():
    log_p, history, targets = world()
    found = Consumed()
    found.add(log_p.copy(), history=history, targets=targets)
    bins = {}
    for u, row in enumerate(log_p.astype(np.float64)):
        wanted = set(targets.item_lists[u].tolist())
        for item in set(range(N_ITEMS)) - set(history.item_lists[u].tolist()):
            place = max(int(np.floor((row[item] / np.log(10) + 8) * PER_DECADE)), 0)
            n, mass, hits = bins.get(place, (0, 0.0, 0))
            times = len(wanted)
            bins[place] = (n + times, mass + times * np.exp(row[item]), hits + (item in wanted))
    rows = found.bins()
    assert [row["n"] for row in rows] == [bins[place][0] for place in sorted(bins)]
    for row, place in zip(rows, sorted(bins)):
        n, mass, hits = bins[place]
        assert row["predicted"] == pytest.approx(mass / n, rel=1e-5, abs=2.0**-32)
        assert row["observed"] == pytest.approx(hits / n)
        assert row["low"] == pytest.approx(LOWEST * 10 ** (place / PER_DECADE) if place else 0)
        assert row["low"] <= row["predicted"] <= row["high"]
    assert sum(row["observed"] * row["n"] for row in rows) == pytest.approx(targets.n_cells)


def test_what_is_drawn_by_p_is_calibrated_and_what_is_flat_is_not():
    log_p, history, targets = world(seed=1, n_users=2000, spread=1.5)
    first = targets.take(np.arange(targets.n_cells) == targets.offsets[targets.rows])
    log_p[history.rows, history.item_num] = -np.inf
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))  # among new items
    found = Consumed()
    found.add(log_p.copy(), history=history, targets=first)
    bins = [row for row in found.bins() if row["n"] * row["predicted"] > 20]
    assert len(bins) >= 5
    for row in bins:
        noise = np.sqrt(row["predicted"] / row["n"])
        assert abs(row["observed"] - row["predicted"]) < 4 * noise
    flat = Consumed()
    flat.add(log_p / 3 - 3, history=history, targets=first)
    assert any(
        abs(row["observed"] - row["predicted"]) > 10 * np.sqrt(row["predicted"] / row["n"])
        for row in flat.bins()
    )


def test_unknown_items_of_a_history_do_not_count():
    log_p, history, targets = world(n_users=3)
    known, more = Consumed(), Consumed()
    known.add(log_p.copy(), history=history, targets=targets)
    strange = [[*((int(i), 0) for i in items), (N_ITEMS, 0)] for items in history.item_lists]
    more.add(log_p.copy(), history=Cells.from_lists(strange), targets=targets)
    np.testing.assert_array_equal(known.table, more.table)


def expected(parts, *, share=1.0, block=16):
    """An evaluator per part of the users, merged."""
    log_p, history, targets = world()
    keys = user_keys(range(50))
    merged = None
    for rows in parts:
        one = evaluator()
        task = Task(history.users(rows), targets.users(rows), {})
        users = UserSums.empty(keys, first_user=0, layout=LAYOUT)

        def say(past):
            assert past.n_users == block  # the last block is filled up
            return np.concatenate((log_p, log_p[:1]))[past.user_num]

        expect_task(one, task, say, users=users, block=block, share=share)
        merged = one if merged is None else merged.merge(one)
    return merged.consumed.table


def test_any_partition_of_the_users_gives_the_same_bits():
    whole = expected([np.arange(50)])
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(whole, expected([order[:7], order[7:30], order[30:]]))
    some = expected([np.arange(50)], share=0.4)
    np.testing.assert_array_equal(some, expected([order[30:], order[:30]], share=0.4))
    assert 0 < some[0].sum() < whole[0].sum()
    assert not expected([np.arange(50)], share=0.0).any()
    assert whole[1].sum() < whole[0].sum() * ONE


def rated(seed=0, n_users=80):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, n_users)
    rows = [[(item, int(rng.integers(4))) for item in range(size)] for size in sizes]
    targets = Cells.from_lists(rows)
    return targets, rng.dirichlet(np.ones(4), targets.n_cells)


def said(parts=None, replicates=0):
    targets, probs = rated()
    merged = None
    for rows in parts or [np.arange(targets.n_users)]:
        one = evaluator(replicates=replicates)
        kept = np.concatenate([np.arange(*targets.offsets[[u, u + 1]]) for u in rows])
        prediction = RatingPrediction(np.zeros(len(kept)), probs[kept])
        one.update_ratings(user_keys(rows), targets=targets.users(rows), prediction=prediction)
        merged = one if merged is None else merged.merge(one)
    return merged


def test_levels_equal_brute_force():
    targets, probs = rated()
    mask = targets.level < 3  # unrated targets say nothing
    given, shares = targets.level[mask], rated_distribution(probs[mask], LEVELS.rated)
    figures = said().figures()
    counts = np.zeros((3, 3), dtype=int)
    for level, row in zip(given, shares):
        counts[level, int(np.argmax(row))] += 1
    assert figures["confusion"] == {"levels": ["1", "2", "3"], "counts": counts.tolist()}
    curves = figures["calibration"]["levels"]
    assert list(curves) == ["1", "2", "3"]
    for level, bins in enumerate(curves.values()):
        assert sum(row["n"] for row in bins) == mask.sum()
        for row in bins:
            inside = (shares[:, level] >= row["low"]) & (shares[:, level] < row["high"])
            assert row["n"] == inside.sum()
            assert row["predicted"] == pytest.approx(shares[inside, level].mean(), abs=1e-5)
            assert row["observed"] == pytest.approx((given[inside] == level).mean())


def test_the_curves_are_those_of_the_calibration_error():
    found = said()
    curves = found.figures()["calibration"]["levels"].values()
    gaps = [row["n"] * abs(row["predicted"] - row["observed"]) for bins in curves for row in bins]
    n_rated = found.count("rated")
    assert found.result()["ece"]["mean"] == pytest.approx(sum(gaps) / n_rated / 3, rel=1e-6)


def test_levels_of_parts_merge():
    order = np.random.default_rng(1).permutation(80)
    assert said([order[:11], order[11:]], replicates=8).figures() == said().figures()


def test_nothing_is_said_where_there_is_nothing():
    assert evaluator().figures() == {}
    one = evaluator()
    targets = rated()[0]
    point = RatingPrediction(np.zeros(targets.n_cells), None)
    one.update_ratings(user_keys(range(80)), targets=targets, prediction=point)
    assert one.figures() == {}
