"""The verdict over a backtest's windows, against the formula."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from raysys.reports.windows import Window, differences, table


def figures(value):
    return {"recall@20": {"mean": value, "ci_low": None, "ci_high": None}}


def windows(model, baselines, validation):
    return [
        Window(
            figures(model[at]),
            {name: figures(values[at]) for name, values in baselines.items()},
            {name: {"recall@20": values[at]} for name, values in validation.items()},
        )
        for at in range(len(model))
    ]


def test_the_best_baseline_is_known_before_a_window_or_after_all_of_them():
    model = [0.30, 0.32, 0.31, 0.36]
    baselines = {"a": [0.25, 0.40, 0.20, 0.30], "b": [0.28, 0.30, 0.29, 0.31]}
    validation = {"a": [0.5, 0.1, 0.1, 0.1], "b": [0.1, 0.5, 0.5, 0.5]}
    entry = differences(windows(model, baselines, validation))["recall@20"]
    assert entry["chosen"]["baselines"] == ["a", "b", "b", "b"]
    assert entry["on_mean"]["baselines"] == ["b"]
    picked = np.array([0.25, 0.30, 0.29, 0.31])
    expected = ttest_rel(model, picked).confidence_interval(0.95)
    chosen = entry["chosen"]
    assert chosen["difference"] == pytest.approx(np.mean(model - picked))
    assert (chosen["ci_low"], chosen["ci_high"]) == pytest.approx((expected.low, expected.high))
    assert chosen["ahead"] == 4
    assert entry["model"] == pytest.approx(np.mean(model))
    lines = table({"recall@20": entry})
    assert "on validation: b x3, a" in lines[1]
    assert "on the mean of test: b" in lines[2]


def test_one_window_has_no_interval():
    entry = differences(windows([0.3], {"a": [0.4]}, {"a": [0.4]}))["recall@20"]
    assert entry["chosen"]["ci_low"] is None
    assert entry["chosen"]["difference"] == pytest.approx(-0.1)


def test_a_baseline_that_a_window_lacks_is_not_asked():
    both = windows([0.3, 0.3], {"a": [0.4, 0.4], "b": [0.5, 0.5]}, {"a": [0.4, 0.4]})
    both[0].validation["b"] = {"recall@20": 0.9}
    assert differences(both)["recall@20"]["chosen"]["baselines"] == ["a", "a"]
    assert differences(windows([0.3], {}, {})) == {}
