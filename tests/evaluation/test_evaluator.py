"""The evaluator: brute force, merging, planted worlds, coverage of its intervals."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels
from raysys.evaluation.bootstrap import user_keys
from raysys.evaluation.evaluator import Evaluator
from raysys.evaluation.metric_table import MetricLayout
from raysys.evaluation.metrics import RatingPrediction
from raysys.evaluation.ranked_users import popularity_slice

LEVELS = RatingLevels(
    ("1", "2", "3", "unrated"), (1.0, 2.0, 3.0, None), (False, False, True, False)
)
N_ITEMS = 60
LAYOUT = MetricLayout(levels=LEVELS.names, rating_range=2.0)


def world(seed=0, n_users=40):
    rng = np.random.default_rng(seed)
    picks = [rng.permutation(N_ITEMS) for _ in range(n_users)]
    history = Cells.from_lists([[(int(i), 0) for i in p[: rng.integers(1, 8)]] for p in picks])
    targets = Cells.from_lists(
        [[(int(i), int(rng.integers(4))) for i in p[10 : 11 + rng.integers(30)]] for p in picks]
    )
    lists = np.full((n_users, 100), -1, dtype=np.int32)
    for u, p in enumerate(picks):
        shown = rng.permutation(p[8:])
        lists[u, : len(shown)] = shown
    return history, targets, lists, user_keys(range(n_users))


def evaluator(counts=None, **settings):
    counts = np.arange(1, N_ITEMS + 1) ** 2 if counts is None else counts
    settings = {"levels": LEVELS, "replicates": 40} | settings
    return Evaluator(LAYOUT, item_counts=counts, **settings)


def filled(seed=0, counts=None, **kwargs):
    history, targets, lists, keys = world(seed)
    found = evaluator(counts, **kwargs)
    found.update_ranking(keys, history=history, targets=targets, lists=lists)
    return found


def per_user(targets, lists):
    for u in range(targets.n_users):
        wanted = targets.item_num[targets.offsets[u] : targets.offsets[u + 1]].tolist()
        yield wanted, [int(i) for i in lists[u] if i >= 0]


@pytest.mark.parametrize("k", [1, 5, 20, 50])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_pooled_recall_equals_brute_force(k, beta):
    _, targets, lists, _ = world()
    share = np.arange(1, N_ITEMS + 1) ** 2.0
    found = total = 0.0
    for wanted, shown in per_user(targets, lists):
        total += sum(share[i] ** -beta for i in wanted)
        found += sum(share[i] ** -beta for i in wanted if i in shown[:k])
    assert filled().result()[f"recall@{k}^{beta:g}"]["mean"] == pytest.approx(
        found / total, rel=1e-7
    )


def test_per_user_metrics_equal_brute_force():
    _, targets, lists, _ = world()
    recall, ndcg, hit = [], [], []
    for wanted, shown in per_user(targets, lists):
        places = [shown.index(i) + 1 for i in wanted if i in shown]
        recall.append(sum(p <= 20 for p in places) / min(20, len(wanted)))
        ideal = sum(1 / math.log2(p + 1) for p in range(1, min(100, len(wanted)) + 1))
        ndcg.append(sum(1 / math.log2(p + 1) for p in places if p <= 100) / ideal)
        hit.append(any(p <= 10 for p in places))
    found = filled().result()
    assert found["recall@20"]["mean"] == pytest.approx(np.mean(recall), abs=1e-9)
    assert found["ndcg@100"]["mean"] == pytest.approx(np.mean(ndcg), abs=1e-9)
    assert found["hit@10"]["mean"] == pytest.approx(np.mean(hit), abs=1e-12)


def test_list_metrics_equal_brute_force():
    _, _, lists, _ = world()
    shown = lists[:, :20]
    found = filled().result()
    counts = np.sort(np.bincount(shown[shown >= 0], minlength=N_ITEMS))
    share = np.cumsum(counts) / counts.sum()
    gini = 1 - 2 * share.sum() / N_ITEMS + 1 / N_ITEMS
    p = np.arange(1, N_ITEMS + 1) ** 2 / (np.arange(1, N_ITEMS + 1) ** 2).sum()
    assert found["coverage@20"] == {
        "mean": len(np.unique(shown)) / N_ITEMS,
        "ci_low": None,
        "ci_high": None,
    }
    assert found["gini@20"]["mean"] == pytest.approx(gini)
    assert found["novelty@20"]["mean"] == pytest.approx(-np.log2(p[shown]).mean())


def test_the_scale_of_popularity_changes_nothing():
    counts = np.arange(1, N_ITEMS + 1) ** 2
    one, many = filled(counts=counts).result(), filled(counts=counts * 4096).result()
    assert one == many


def test_without_a_penalty_all_targets_weigh_the_same():
    found = filled().result()
    assert (
        found["recall@20^0"] == filled(counts=np.ones(N_ITEMS, dtype=int)).result()["recall@20^0.5"]
    )


def test_merging_any_partition_in_any_order_gives_the_same_bits():
    history, targets, lists, keys = world()
    rng = np.random.default_rng(5)
    probs = rng.dirichlet(np.ones(4), targets.n_cells)
    expected = rng.uniform(1, 3, targets.n_cells)

    def run(parts):
        whole = None
        for rows in parts:
            wanted = targets.users(rows)
            at = np.concatenate([np.arange(*targets.offsets[[r, r + 1]]) for r in rows])
            part = evaluator()
            part.update_ranking(
                keys[rows], history=history.users(rows), targets=wanted, lists=lists[rows]
            )
            part.update_ratings(
                keys[rows], targets=wanted, prediction=RatingPrediction(expected[at], probs[at])
            )
            whole = part if whole is None else whole.merge(part)
        return whole

    def same(one, other):
        assert one.result() == other.result()
        assert one.slices() == other.slices()
        np.testing.assert_array_equal(one.sums, other.sums)
        np.testing.assert_array_equal(one.gaps, other.gaps)

    whole = run([np.arange(40)])

    @given(st.permutations(range(40)), st.sets(st.integers(1, 39), max_size=6))
    @settings(max_examples=25, deadline=None)
    def check(order, cuts):
        parts = np.split(np.array(order), sorted(cuts))
        same(run(parts), whole)

    check()


def test_only_evaluators_of_the_same_settings_merge():
    with pytest.raises(ValueError, match="same settings"):
        evaluator().merge(evaluator(seed=1))


def test_slices_add_up_to_the_whole():
    found = filled()
    total = found.count("hits@20^0") / (1 << 32)
    by_level = sum(found.count(f"hits|level={name}") for name in LEVELS.names)
    by_tenth = sum(found.count(f"hits|popularity={d}") for d in range(1, 11))
    assert by_level == by_tenth == total
    assert sum(found.count(c) for c in LAYOUT.columns if c.startswith("rows|")) == 40


def test_days_split_targets_and_users_as_brute_force():
    history, targets, lists, keys = world()
    rng = np.random.default_rng(3)
    day, cut = 86_400, 1_000 * 86_400
    ages = np.concatenate([-np.sort(-rng.integers(0, 40, n)) for n in history.counts])
    history = dataclasses.replace(history, timestamp=cut - day * ages)
    targets = dataclasses.replace(
        targets, timestamp=cut + rng.integers(0, 40 * day, targets.n_cells)
    )
    layout = MetricLayout(horizons=(7, 30), cut=cut)
    found = Evaluator(layout, item_counts=np.ones(N_ITEMS, dtype=int), replicates=0)
    found.update_ranking(keys, history=history, targets=targets, lists=lists)
    spans = {"0-7": (0, 7), "7-30": (7, 30), "30+": (30, 99)}
    recall = {name: [] for name in spans} | {f"away {name}": [] for name in spans}
    for u, (_, shown) in enumerate(per_user(targets, lists)):
        own = slice(*targets.offsets[[u, u + 1]])
        after, items = (targets.timestamp[own] - cut) / day, targets.item_num[own]
        away = ages[history.offsets[u + 1] - 1]
        for name, (low, high) in spans.items():
            wanted = items[(low <= after) & (after < high)]
            if len(wanted):
                hits = len({*wanted.tolist()} & {*shown[:20]})
                recall[name].append(hits / min(20, len(wanted)))
            if low <= away < high:
                hits = len({*items.tolist()} & {*shown[:20]})
                recall[f"away {name}"].append(hits / min(20, len(items)))
    slices = found.slices()
    for name in spans:
        after, away = (slices[f"recall@20|days_{x}={name}"]["mean"] for x in ("after", "away"))
        assert after == pytest.approx(np.mean(recall[name]))
        assert away == pytest.approx(np.mean(recall[f"away {name}"]))
    weights = [found.count(f"weight^0.3|days_after={name}") for name in spans]
    assert sum(weights) == found.count("weight^0.3")


def test_popularity_tenths_hold_equal_interactions_most_popular_first():
    counts = np.array([1, 50, 9, 40])
    np.testing.assert_array_equal(popularity_slice(counts), [9, 0, 9, 5])
    np.testing.assert_array_equal(popularity_slice(np.zeros(3, dtype=int)), 0)


def test_a_perfect_and_a_useless_list():
    history, targets, lists, keys = world()
    perfect = np.full_like(lists, -1)
    for u in range(targets.n_users):
        wanted = targets.item_num[targets.offsets[u] : targets.offsets[u + 1]]
        perfect[u, : len(wanted)] = wanted
    best, worst = evaluator(), evaluator()
    best.update_ranking(keys, history=history, targets=targets, lists=perfect)
    worst.update_ranking(keys, history=history, targets=targets, lists=np.full_like(lists, -1))
    for name in ("recall@20", "ndcg@100", "hit@10", "recall@50^0.3"):
        assert best.result()[name]["mean"] == 1
        assert worst.result()[name]["mean"] == 0
    assert "coverage@20" not in worst.result()


def test_rating_metrics_equal_brute_force():
    _, targets, _, keys = world()
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.ones(4), targets.n_cells)
    expected = rng.uniform(1, 3, targets.n_cells)
    found = evaluator()
    found.update_ratings(keys, targets=targets, prediction=RatingPrediction(expected, probs))
    rated = targets.level < 3
    truth = targets.level[rated] + 1.0
    share = probs[rated, :3] / probs[rated, :3].sum(axis=1, keepdims=True)
    error = expected[rated] - truth
    nll = -np.log(share[np.arange(len(truth)), targets.level[rated]])
    result = found.result()
    assert result["rmse"]["mean"] == pytest.approx(np.sqrt((error**2).mean()), abs=1e-8)
    assert result["mae"]["mean"] == pytest.approx(np.abs(error).mean(), abs=1e-8)
    assert result["nll"]["mean"] == pytest.approx(nll.mean(), abs=1e-8)
    assert result["mae"]["ci_low"] < result["mae"]["mean"] < result["mae"]["ci_high"]


def test_calibration_error_equals_exact_equal_mass_bins():
    rng = np.random.default_rng(2)
    n = 30_000
    probs = rng.dirichlet([1, 2, 3], n)
    truth = (probs.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    shifted = probs**1.6 / (probs**1.6).sum(axis=1, keepdims=True)
    targets = Cells.from_lists(
        [[(i, int(t)) for i, t in enumerate(part)] for part in truth.reshape(-1, 30)]
    )
    levels = RatingLevels(("1", "2", "3"), (1.0, 2.0, 3.0), (False, False, True))
    found = {}
    for name, p in (("own", probs), ("shifted", shifted)):
        part = Evaluator(LAYOUT, item_counts=np.ones(60, dtype=int), levels=levels, replicates=200)
        part.update_ratings(
            user_keys(range(1000)),
            targets=targets,
            prediction=RatingPrediction(p @ [1.0, 2.0, 3.0], p),
        )
        found[name] = part.result()["ece"]
    exact = []
    for r in range(3):
        order = np.argsort(shifted[:, r])
        gaps = [abs((shifted[b, r] - (truth[b] == r)).sum()) for b in np.array_split(order, 15)]
        exact.append(sum(gaps) / n)
    assert found["shifted"]["mean"] == pytest.approx(np.mean(exact), abs=1e-3)
    assert found["own"]["mean"] < 0.015 < 0.05 < found["shifted"]["mean"]
    assert found["shifted"]["ci_low"] <= found["shifted"]["mean"] <= found["shifted"]["ci_high"]


def test_nothing_added_gives_no_metrics():
    assert evaluator().result() == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recall@20", "recall@20^0", "recall@20^0.3", "recall@20^0.5"])
def test_intervals_cover_at_the_nominal_rate(name):
    layout = MetricLayout(top_k=(20,), betas=(0.0, 0.3, 0.5))
    n_users, n_items, repeats = 1000, 400, 1000
    counts = np.maximum(3000 / np.arange(1, n_items + 1) ** 0.8, 1).astype(int)
    share = counts / counts.sum()
    skill = 0.15 + 0.5 * share / share.max()  # a target of item i is found with this chance
    beta = float(name.partition("^")[2] or 0)
    weight = share**-beta
    truth = (share * weight * skill).sum() / (share * weight).sum()
    if "^" not in name:
        truth = (share * skill).sum()
    covered = 0
    for repeat in range(repeats):
        rng = np.random.default_rng([7, repeat])
        sizes = rng.integers(1, 12, n_users)
        items = rng.choice(n_items, sizes.sum(), p=share)
        found = rng.random(len(items)) < skill[items]
        rows = np.repeat(np.arange(n_users), sizes)
        part = Evaluator(layout, item_counts=counts, seed=repeat, replicates=400)
        sums = np.zeros((n_users, len(layout.columns)), dtype=np.int64)
        values = part._weights[beta][items]
        index = layout.index
        if "^" in name:
            np.add.at(sums[:, index[f"weight^{beta:g}"]], rows, values)
            np.add.at(sums[:, index[f"hits@20^{beta:g}"]], rows, values * found)
        else:
            hits = np.bincount(rows, weights=found, minlength=n_users)
            sums[:, index["rows"]] = 1
            sums[:, index["recall@20"]] = np.rint(hits / sizes * 2**32).astype(np.int64)
        part._add(user_keys(range(n_users)), sums)
        interval = part.result()[name]
        covered += interval["ci_low"] <= truth <= interval["ci_high"]
    assert abs(covered / repeats - 0.95) <= 0.02


def test_metrics_equal_those_of_trec_eval():
    measures = pytest.importorskip("ir_measures", reason="peer of the metrics: ir-measures")
    history, targets, lists, keys = world(n_users=200)
    wanted, shown = {}, {}
    for u, (items, listed) in enumerate(per_user(targets, lists)):
        wanted[str(u)] = {str(i): 1 for i in items}
        shown[str(u)] = {str(i): 1000.0 - place for place, i in enumerate(listed)}
    theirs = measures.calc_aggregate(
        [measures.nDCG @ 100, measures.nDCG @ 20, measures.Success @ 10, measures.R @ 50],
        wanted,
        shown,
    )
    found = evaluator()
    found.update_ranking(keys, history=history, targets=targets, lists=lists)
    ours = found.result()
    for name, measure in (
        ("ndcg@100", measures.nDCG @ 100),
        ("ndcg@20", measures.nDCG @ 20),
        ("hit@10", measures.Success @ 10),
        ("recall@50", measures.R @ 50),  # no user has more than 50 targets
    ):
        assert ours[name]["mean"] == pytest.approx(theirs[measure], abs=1e-9)
