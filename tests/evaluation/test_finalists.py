"""Finalists of a sweep: against closed forms, by their errors under no difference, by their words.

Letters: F settings, R seeds, U users.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import studentized_range

from raysys.errors import ConfigError, DataError
from raysys.evaluation.bootstrap import fixed_point
from raysys.evaluation.comparison import compare_users
from raysys.evaluation.finalists import compare_finalists
from raysys.evaluation.metric_table import MetricLayout
from raysys.evaluation.user_sums import LAYOUT_KEY

LAYOUT = MetricLayout(top_k=(20,), betas=(), rating_range=4.0)
USERS = 400


def table(recall, *, ids=None, rows=None, **columns):
    """Users' sums with `recall@20` of each user, and other columns as they are."""
    ids = [f"u{n}" for n in range(len(recall))] if ids is None else ids
    rows = np.ones(len(recall), dtype=np.int64) if rows is None else rows
    sums = {"recall@20": fixed_point(recall * rows), "rows": rows} | columns
    found = pa.table({"user_id": pa.array(ids, pa.string()), **sums})
    return found.replace_schema_metadata({LAYOUT_KEY: LAYOUT.as_json()})


def study(rng, effects, *, seeds=3, mixed=0.1, luck=0.0):
    """Tables of settings whose users differ by `mixed` and whose seeds by `luck`, a mean each."""
    base = rng.beta(0.3, 2, USERS)
    tables = {}
    for number, effect in enumerate(effects):
        own = base + effect + mixed * rng.standard_normal(USERS)
        tables[number] = [table(own + luck * rng.standard_normal()) for _ in range(seeds)]
    return tables


def compared(tables, *, metric="recall@20", direction="max", seed=0, replicates=1000):
    return compare_finalists(
        tables, metric=metric, direction=direction, seed=seed, replicates=replicates
    )


def one_seed(tables, *, seed):
    """The difference of the first two settings as their users alone tell it."""
    pair = tables[1][0], tables[0][0]
    return compare_users(*pair, seed=seed, replicates=400, metrics=["recall@20"])[0]["recall@20"]


def test_values_are_ratios_of_sums_over_the_common_users():
    rng = np.random.default_rng(0)
    rows, squares, rated = (rng.integers(1, 5, 50), rng.random(50), rng.integers(1, 9, 50))
    ids = [f"u{n}" for n in range(50)]
    more = {"square": fixed_point(squares), "rated": rated}
    whole = table(rng.random(50), ids=ids, rows=rows, **more)
    shuffled = whole.take(rng.permutation(50)[:40])
    kept = np.isin(ids, shuffled["user_id"].to_pylist())
    found = compared({0: [whole, shuffled], 4: [shuffled]}, metric="rmse", direction="min")
    rmse = 4 * np.sqrt(squares[kept].sum() / rated[kept].sum())
    assert found.users == 40
    assert [s.by_seed for s in found.settings] == [
        pytest.approx((rmse, rmse)),
        pytest.approx((rmse,)),
    ]
    assert [s.number for s in found.settings] == [0, 4]
    [pair] = found.comparisons
    assert (pair.first, pair.second, pair.difference, pair.p_value) == (4, 0, 0.0, 1.0)


def test_trainings_without_chance_have_the_intervals_of_tukey():
    """Equal variances and no seeds: t of all pairs is the studentized range over sqrt(2)."""
    rng = np.random.default_rng(1)
    mixed = 0.1
    found = compared(study(rng, [0.0] * 4, mixed=mixed), replicates=4000)
    half = np.array([(p.ci_high - p.ci_low) / 2 for p in found.comparisons])
    reach = studentized_range.ppf(0.95, 4, np.inf) / np.sqrt(2) * mixed * np.sqrt(2 / USERS)
    assert len(half) == 6
    np.testing.assert_allclose(half, reach, rtol=0.12)
    assert half.mean() == pytest.approx(reach, rel=0.05)


def test_luck_of_seeds_widens_the_intervals():
    """Three seeds of two settings: between Student's t of 4 degrees of freedom and that of 2."""
    tables = {
        number: [table(np.linspace(0.1, 0.5, USERS) + shift) for shift in (-0.01, 0.0, 0.01)]
        for number in (0, 1)
    }
    found = compared(tables, replicates=4000)
    [pair] = found.comparisons
    half = (pair.ci_high - pair.ci_low) / 2
    error = 0.01 * np.sqrt(2 / 3)
    assert 2.776 * 0.9 * error < half < 4.303 * 1.1 * error


def test_no_difference_is_seldom_found_though_seeds_differ():
    """Family-wise error of six pairs at 5 %; users of one seed alone would find too many."""
    rng = np.random.default_rng(2)
    n, false, naive = 120, 0, 0
    for luck in (0.0, 0.015):
        wrong = 0
        for number in range(n):
            tables = study(rng, [0.0] * 4, luck=luck)
            found = compared(tables, seed=number, replicates=400)
            wrong += any(p.p_value <= 0.05 for p in found.comparisons)
            assert all((p.p_value <= 0.05) == (p.ci_low * p.ci_high > 0) for p in found.comparisons)
            if luck:
                one = one_seed(tables, seed=number)
                naive += one.ci_low * one.ci_high > 0
        false = max(false, wrong)
    assert false <= 0.12 * n  # 5 % and three and a half standard errors
    assert naive > 0.3 * n


@pytest.mark.parametrize(("luck", "effect"), [(0.0, 0.035), (0.004, 0.05)])
def test_a_true_difference_is_found(luck, effect):
    rng = np.random.default_rng(3)
    found = [
        compared(study(rng, [0.0, 0.0, effect, 0.0], luck=luck), seed=number, replicates=400)
        for number in range(40)
    ]
    assert sum(f.best == 2 for f in found) >= 0.8 * 40
    assert all(p.ci_low <= p.ci_high for f in found for p in f.comparisons)


def test_a_setting_with_one_seed_takes_the_luck_of_the_others():
    values = np.linspace(0.1, 0.5, USERS)
    runs = [table(values + shift) for shift in (-0.02, 0.0, 0.02)]
    wide = compared({0: runs, 1: [table(values + 0.01)]}).comparisons[0]
    sure = compared({0: runs[:1] * 3, 1: [table(values + 0.03)]}).comparisons[0]
    assert wide.p_value > 0.2
    assert sure.difference == pytest.approx(0.05)
    assert sure.p_value < 0.01


def test_the_verdict_prefers_the_defaults_until_something_beats_them():
    rng = np.random.default_rng(4)
    same = compared(study(rng, [0.0, 0.0, 0.0]))
    assert same.best == 0
    assert same.verdict.startswith("no better than the defaults within noise: trial ")
    ties = compared(study(rng, [0.0, 0.1, 0.1001]))
    leader = max(ties.settings, key=lambda s: s.mean).number
    assert ties.best == leader
    assert ties.verdict.startswith(f"trial {leader} is better than the defaults: ")
    assert f"within noise of it: {3 - leader}" in ties.verdict
    worse = compared(study(rng, [0.0, 0.1, 0.0]), direction="min")
    assert worse.best == 0
    alone = compared({0: [table(rng.random(9))]})
    assert (alone.best, alone.comparisons) == (0, ())


def test_a_better_mean_of_lucky_seeds_does_not_win():
    values = np.linspace(0.1, 0.5, USERS)
    noisy = [table(values + shift) for shift in (-0.05, 0.02, 0.15)]
    steady = [table(values + shift) for shift in (0.029, 0.03, 0.031)]
    found = compared({0: [table(values)] * 3, 5: noisy, 7: steady})
    assert found.best == 0  # 7 seems steady, but its three seeds count as the others' do
    found = compared({0: [table(values + s) for s in (-1e-3, 0, 1e-3)], 7: steady})
    assert found.best == 7


def test_the_record_is_json():
    rng = np.random.default_rng(5)
    found = compared(study(rng, [0.0, 0.05]))
    record = json.loads(json.dumps(found.record(values={1: {"optim.lr": 0.1}}, seeds=[0, 1, 2])))
    assert record["settings"][0]["values"] == {}
    assert record["settings"][1]["values"] == {"optim.lr": 0.1}
    assert len(record["settings"][1]["by_seed"]) == 3
    assert record["seeds"] == [0, 1, 2]
    assert set(record["comparisons"][0]) == {
        "first",
        "second",
        "difference",
        "ci_low",
        "ci_high",
        "p_value",
    }
    assert {"metric", "replicates", "users", "verdict"} <= set(record)
    again = compared(study(np.random.default_rng(5), [0.0, 0.05]))
    assert again == found


def test_what_cannot_be_compared_is_named():
    one = table(np.linspace(0, 1, 30))
    with pytest.raises(DataError, match="metric=ece is not kept per user"):
        compared({0: [one], 1: [one]}, metric="ece")
    with pytest.raises(DataError, match="trial 0"):
        compared({1: [one]})
    other = table(np.linspace(0, 1, 30), ids=[f"v{n}" for n in range(30)])
    with pytest.raises(DataError, match="0 users in common"):
        compared({0: [one], 1: [other]})
    with pytest.raises(ConfigError, match="replicates=10 "):
        compared({0: [one]}, replicates=10)
    nobody = table(np.zeros(30), rows=np.zeros(30, dtype=np.int64))
    with pytest.raises(DataError, match="recall@20 has no data"):
        compared({0: [nobody], 1: [nobody]})
