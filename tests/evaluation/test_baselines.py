"""The baselines reproduce the published figures of the fixed folds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import inv

from raysys.data.cells import Cells
from raysys.data.schema import period_windows
from raysys.evaluation import baselines, linear_items, protocols, rating_baselines
from raysys.evaluation.bootstrap import user_keys
from raysys.evaluation.evaluator import Evaluator
from raysys.evaluation.metric_table import MetricLayout
from raysys.evaluation.metrics import top_items
from raysys.evaluation.presence import item_counts, presence

PROFILES = [[(0, 0), (1, 0)], [(0, 0), (1, 0), (2, 0)], [(0, 0), (3, 0)], [(2, 0), (3, 0)]]


def small() -> Cells:
    return Cells.from_lists(PROFILES)


def test_item_scores_equal_the_full_ranking():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, 30).astype(np.float32)
    history = Cells.from_lists(
        [[(int(i), 0) for i in rng.choice(33, n, replace=False)] for n in (0, 3, 9, 29)]
    )
    expected = top_items(np.tile(scores, (4, 1)), 12, exclude=history)
    np.testing.assert_array_equal(baselines.ItemRanker(scores)(history, 12), expected)


def test_item_scores_keep_places_for_items_that_the_history_does_not_hold():
    lists = baselines.ItemRanker(np.array([3.0, -np.inf, 2.0]))(Cells.from_lists([[]]), 5)
    np.testing.assert_array_equal(lists, [[0, 2, -1, -1, -1]])


def drawn(n_users, n_items=40):
    rng = np.random.default_rng(1)
    return Cells.from_lists(
        [[(int(i), 0) for i in rng.choice(n_items, 7, replace=False)] for _ in range(n_users)]
    )


def item_map(cells, penalty, drop, relaxed, n_items=40):
    """Return the weights by the papers' formulas, in double precision."""
    dense = presence(cells, n_items).toarray().astype(np.float64)
    gram = dense.T @ dense
    extra = penalty + drop / (1 - drop) * np.diag(gram)
    p = inv(gram + np.diag(extra))
    bound = 1 - extra * np.diag(p) > relaxed
    weights = -p * np.where(bound, (1 - relaxed) / np.diag(p), extra)
    np.fill_diagonal(weights, 0)
    return weights


SETTINGS = [(30.0, 0.0, 0.0), (30.0, 0.3, 0.0), (30.0, 0.3, 0.5), (4.0, 0.1, 0.7)]


def test_ease_and_rdlae_equal_the_formula():
    cells = drawn(200)
    expected = [item_map(cells, *settings) for settings in SETTINGS]
    for model, weights in zip(linear_items.rdlae(cells, 40, SETTINGS), expected, strict=True):
        np.testing.assert_allclose(model.weights, weights, atol=1e-5)
    [ease] = linear_items.ease(cells, 40, [30.0])
    np.testing.assert_allclose(ease.weights, expected[0], atol=1e-5)


def test_with_fewer_users_than_items_the_lists_are_the_same(tmp_path):
    cells, others = drawn(25), Cells.from_lists([[(3, 0), (8, 0)], [], [(0, 0)]])
    for settings, model in zip(SETTINGS, linear_items.rdlae(cells, 40, SETTINGS), strict=True):
        assert isinstance(model, linear_items.UserMap)
        weights = item_map(cells, *settings).astype(np.float32)
        for history in (cells, others.users(np.array([0, 2]))):
            lists = linear_items.ItemMap(weights)(history, 10)
            np.testing.assert_array_equal(model(history, 10), lists)
            model.save(tmp_path, "ease")
            np.testing.assert_array_equal(linear_items.load(tmp_path, "ease")(history, 10), lists)


def test_itemknn_is_the_cosine_of_the_nearest():
    model = baselines.itemknn(small(), 4, [(1, 0.0)])[0]
    similarity = model.similarity.toarray()
    np.testing.assert_allclose(similarity[0, 1], 2 / np.sqrt(2 * 3), rtol=1e-6)
    assert np.count_nonzero(similarity, axis=0).max() == 1
    np.testing.assert_array_equal(np.diag(similarity), 0)


def test_recent_window_and_decayed_prefer_what_is_new():
    cells = Cells(
        user_num=np.arange(4, dtype=np.int32),
        offsets=np.arange(0, 5),
        item_num=np.array([0, 0, 0, 1], dtype=np.int32),
        level=np.zeros(4, dtype=np.uint8),
        timestamp=np.array([0, 1, 2, 10 * 86_400]),
        window=np.zeros(4, dtype=np.uint8),
    )
    empty = Cells.from_lists([[]])
    assert baselines.popularity(cells, 2)(empty, 1)[0, 0] == 0
    assert baselines.recent(cells, 2, fraction=0.25)(empty, 1)[0, 0] == 1
    assert baselines.window(cells, 2, days=1)(empty, 1)[0, 0] == 1
    assert baselines.window(cells, 2, days=11)(empty, 1)[0, 0] == 0
    assert baselines.decayed(cells, 2, half_life_days=1)(empty, 1)[0, 0] == 1
    assert baselines.decayed(cells, 2, half_life_days=1000)(empty, 1)[0, 0] == 0


@pytest.mark.parametrize("name", ["popularity", "itemknn"])
def test_saved_rankers_rank_the_same(name, tmp_path):
    model = {
        "popularity": lambda: baselines.popularity(small(), 4),
        "itemknn": lambda: baselines.itemknn(small(), 4, [(2, 1.0)])[0],
    }[name]()
    model.save(tmp_path, name)
    again = type(model).load(tmp_path, name)
    np.testing.assert_array_equal(again(small(), 3), model(small(), 3))


def ranking_figures(fold, protocol, fit):
    """Return (recall@20, recall@50, ndcg@100, pooled recall@20^0.3) on the test period."""
    windows = period_windows(protocol, "test")
    n_items = fold.catalogue["test"]
    train = fold.cells.in_windows(windows.fitted)
    task = protocols.cutoff_task(fold.cells, windows, n_items=n_items)
    evaluator = Evaluator(MetricLayout(), item_counts=item_counts(train, n_items), replicates=0)
    lists = fit(train, n_items)(task.history, 100)
    keys = user_keys(task.history.user_num)
    evaluator.update_ranking(keys, history=task.history, targets=task.targets, lists=lists)
    found = evaluator.result()
    names = ("recall@20", "recall@50", "ndcg@100", "recall@20^0.3")
    return [found[name]["mean"] for name in names]


def popularity(train, n_items):
    return baselines.popularity(train, n_items)


def recent(fraction):
    return lambda train, n_items: baselines.recent(train, n_items, fraction=fraction)


def itemknn(k, shrink):
    return lambda train, n_items: baselines.itemknn(train, n_items, [(k, shrink)])[0]


def ease(penalty):
    return lambda train, n_items: next(linear_items.ease(train, n_items, [penalty]))


PUBLISHED = [
    ("ml-1m-S", "users", popularity, [0.2018, 0.2265, 0.2248, None]),
    ("ml-1m-S", "users", recent(0.4), [0.1894, 0.2253, 0.2221, None]),
    ("ml-1m-S", "users", itemknn(50, 0), [0.3589, 0.4270, 0.4061, None]),
    ("ml-1m-S", "users", ease(600), [0.4339, 0.5060, 0.4806, None]),
    ("ml-1m-T", "temporal", popularity, [0.2323, None, 0.2361, 0.0311]),
    ("ml-1m-T", "temporal", recent(0.1), [0.2531, None, 0.2533, 0.0337]),
    ("ml-1m-T", "temporal", itemknn(200, 100), [0.2326, None, 0.2435, 0.0339]),
    ("ml-1m-T", "temporal", ease(1200), [0.2437, None, 0.2574, 0.0367]),
    ("movietweetings-2013-T", "temporal", popularity, [0.1470, None, 0.1465, 0.0506]),
    ("movietweetings-2013-T", "temporal", recent(0.05), [0.2789, None, 0.2551, 0.0995]),
    ("movietweetings-2013-T", "temporal", itemknn(200, 100), [0.1501, None, 0.1418, 0.0569]),
    ("movietweetings-2013-S", "users", itemknn(50, 20), [0.2715, 0.4048, 0.2336, None]),
    ("movietweetings-2013-S", "users", recent(0.4), [0.1946, 0.3077, 0.1617, None]),
    ("online-retail-T", "temporal", popularity, [0.0443, None, 0.0748, 0.0175]),
    ("online-retail-T", "temporal", recent(0.05), [0.1090, None, 0.1445, 0.0549]),
    ("online-retail-T", "temporal", ease(400), [0.1240, None, 0.1544, 0.0480]),
    ("online-retail-S", "users", itemknn(10, 0), [0.3049, 0.4276, 0.3564, None]),
    ("online-retail-S", "users", ease(150), [0.3448, 0.4397, 0.3729, None]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "protocol", "fit", "published"), PUBLISHED)
def test_rankings_reproduce_the_published_figures(fold, name, protocol, fit, published):
    found = ranking_figures(fold(name), protocol, fit)
    for value, expected in zip(found, published, strict=True):
        if expected is not None:
            assert value == pytest.approx(expected, abs=1e-3)


RATED = [
    ("ml-1m-E", "marginal", {}, [1.1191, 0.9358, 1.4580]),
    ("ml-1m-E", "histogram", {"smoothing": 10}, [0.9809, 0.7856, 1.3233]),
    ("ml-1m-E", "bias", {"user_penalty": 5, "item_penalty": 3}, [0.9077, 0.7182, None]),
    ("movietweetings-2013-E", "marginal", {}, [1.8883, 1.4621, 1.9568]),
    ("movietweetings-2013-E", "histogram", {"smoothing": 20}, [1.7217, 1.2914, 1.8451]),
    ("movietweetings-2013-E", "bias", {"user_penalty": 3, "item_penalty": 3}, [1.5251, 1.1232]),
    ("ml-100k-E", "histogram", {"smoothing": 10}, [1.0244, 0.8209, 1.3736]),
    ("ml-100k-E", "bias", {"user_penalty": 5, "item_penalty": 3}, [0.9372, 0.7408]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "settings", "published"), RATED)
def test_ratings_reproduce_the_published_figures(fold, name, kind, settings, published):
    data = fold(name)
    windows = period_windows("ratings", "test")
    n_items = data.catalogue["test"]
    train = data.cells.in_windows(windows.fitted)
    model = getattr(rating_baselines, kind)(train, n_items, data.levels, **settings)
    targets = data.cells.in_windows(windows.targets)
    values = [v for v in data.levels.values if v is not None]
    layout = MetricLayout(rating_range=max(values) - min(values))
    counts = item_counts(train, n_items)
    evaluator = Evaluator(layout, item_counts=counts, levels=data.levels, replicates=0)
    keys = user_keys(data.user_ids)
    evaluator.update_ratings(keys, targets=targets, prediction=model(train, targets))
    found = evaluator.result()
    for metric, expected in zip(("rmse", "mae", "nll"), published, strict=False):
        if expected is not None:
            assert found[metric]["mean"] == pytest.approx(expected, abs=1e-3)
    assert ("nll" in found) == (kind != "bias")
