"""The choice of the form, on planted users whose taste, lists and cuts are known."""

import dataclasses

import numpy as np
import pytest

from raysys.data.cells import Cells
from raysys.timing.choice import METRICS, choose
from raysys.timing.counters import Counters
from raysys.timing.form import LIST_WEIGHT, TimeForm
from raysys.timing.kernels import LISTED, list_gains
from raysys.timing.windows import window_of

DAY = 86_400
N_ITEMS = 300


def log_of(seed, *, fashion, n_users=400, days=60):
    """Users take items of their own tenth of the catalogue, or what is in fashion that day."""
    rng = np.random.default_rng(seed)
    profiles, times = [], []
    for user in range(n_users):
        when = np.sort(rng.integers(0, days * DAY, 25))
        items = []
        for time in when:
            if rng.random() < fashion:
                items.append((int(time // DAY) * 4 + int(rng.integers(0, 12))) % N_ITEMS)
            else:
                items.append((user % 10) * 30 + int(rng.integers(0, 30)))
        profiles.append([(item, 0) for item in items])
        times += when.tolist()
    cells = Cells.from_lists(profiles)
    return dataclasses.replace(cells, timestamp=np.array(times, dtype=np.int64))


def taste(cells, recency):
    """Scores of someone who knows everybody's tenth."""
    del recency
    return (np.arange(N_ITEMS) // 30 == cells.user_num[:, None] % 10).astype(np.float32)


def nothing(cells, recency):
    del recency
    rng = np.random.default_rng(1)
    return rng.normal(size=(cells.n_users, N_ITEMS)).astype(np.float32)


def windows(cells, personal, days=(50, 40)):
    return [
        window_of(
            personal,
            cells,
            start=start * DAY,
            stop=(start + 10) * DAY,
            n_items=N_ITEMS,
            pooled=0.3,
            seed=0,
        )
        for start in days
    ]


def test_gains_are_those_of_sorted_lists():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, N_ITEMS)).astype(np.float32)
    lift, bias = rng.random((2, N_ITEMS)).astype(np.float32)
    seen = [rng.choice(N_ITEMS, size, replace=False).astype(np.int32) for size in (0, 5, 40)]
    wanted = [rng.choice(np.setdiff1d(np.arange(N_ITEMS), s), 30, False) for s in seen]
    weights, factor = rng.random(N_ITEMS), np.array([1, 2, 0.5], dtype=np.float32)
    gains = np.empty((3, 3))
    offsets = [np.cumsum([0, *map(len, part)]) for part in (seen, wanted)]
    flat = [np.concatenate(part).astype(np.int32) for part in (seen, wanted)]
    list_gains(scores, factor, lift, bias, offsets[0], flat[0], offsets[1], flat[1], weights, gains)
    for user in range(3):
        value = factor[user] * scores[user] * lift + bias
        value[seen[user]] = -np.inf
        top = np.argsort(-value)[:LISTED]
        hit = np.isin(top, wanted[user])
        gain = (hit / np.log2(np.arange(2, 2 + LISTED))).sum()
        ideal = (1 / np.log2(np.arange(2, 32))).sum()
        first = top[:20][hit[:20]]
        assert gains[user] == pytest.approx([len(first) / 20, gain / ideal, weights[first].sum()])


@pytest.mark.parametrize("metric", ["recall@20", "ndcg@100", "recall@20^0.5"])
def test_a_choice_is_no_worse_than_its_start_by_the_wanted_metric(metric):
    found = windows(log_of(0, fashion=0.5), taste)
    column = METRICS.index(metric if "^" not in metric else "recall@20^BETA")
    plain = choose(found, metric=metric, rich=False)
    rich = choose(found, metric=metric, rich=True)
    assert plain.reason == "plain"
    assert plain.form.lift == 0
    assert sum(share > 0 for share in plain.form.shares) == 1
    means = [found[0].gains(c.form)[:, column].mean() for c in (plain, rich)]
    assert means[1] >= 0.98 * means[0]
    assert rich.n_tried > plain.n_tried


def test_a_list_that_is_better_alone_is_taken():
    choice = choose(windows(log_of(1, fashion=1.0), nothing), metric="recall@20", rich=False)
    strong = TimeForm.single(LIST_WEIGHT, 1.0)
    [newest] = windows(log_of(1, fashion=1.0), nothing, days=(50,))
    mine, list_alone = (newest.gains(form)[:, 0].mean() for form in (choice.form, strong))
    assert mine >= 0.95 * list_alone
    assert choice.form.weight >= 3


def test_few_users_keep_the_plain_form():
    cells = log_of(2, fashion=0.3, n_users=12)
    plain, rich = (choose(windows(cells, taste), metric="recall@20", rich=r) for r in (False, True))
    assert rich.form == plain.form


def test_a_window_without_targets_is_none():
    cells = log_of(3, fashion=0.3, n_users=5)
    late = {"start": 70 * DAY, "stop": 80 * DAY, "n_items": N_ITEMS, "pooled": 0.3, "seed": 0}
    assert window_of(taste, cells, **late) is None


def test_targets_are_new_and_counters_end_at_the_start():
    cells = log_of(4, fashion=0.3)
    [window] = windows(cells, taste, days=(50,))
    before = cells.timestamp < 50 * DAY
    wanted = Counters.of(
        cells.item_num[before], cells.timestamp[before], n_items=N_ITEMS, time=50 * DAY
    )
    np.testing.assert_array_equal(window.counters.values, wanted.values)
    everything = window.gains(TimeForm())
    assert (everything[:, 0] <= 1).all()
    assert window.n_users > 300
