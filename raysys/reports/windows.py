"""A backtest's verdict: the model against the best baseline, window by window.

A single cut decides nothing, so the unit is the window. Per metric of `DAY_METRICS` and window the
difference is the model's test figure minus that of the best baseline, and "best" is said in two
ways:

    chosen    per window, the baseline whose validation figure is highest, known before the test
              window is opened: what one would have run instead of the model
    on mean   the one baseline whose test figure is highest on the mean over windows, known only
              afterwards, which favours it

The interval of a mean difference is a paired t interval over the n windows, mean +- t(.975, n - 1)
sd / sqrt(n). Windows share users and follow each other, so it is an interval of the log's own past,
not of other logs.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from raysys.evaluation.metric_table import DAY_METRICS
from raysys.reports.tables import aligned

_COVERAGE = 0.975

Figures = Mapping[str, Mapping[str, Mapping[str, float | None]]]


@dataclasses.dataclass(frozen=True)
class Window:
    """What one window says.

    Attributes:
        model: {metric: {"mean"}} on test.
        baselines: {name: {metric: {"mean"}}} on test.
        validation: {name: {metric: value}} of those baselines that rank, on val.
    """

    model: Mapping[str, Mapping[str, float | None]]
    baselines: Figures
    validation: Mapping[str, Mapping[str, float]]


def differences(windows: Sequence[Window]) -> dict[str, dict[str, Any]]:
    """Return {metric: {"model", "chosen", "on_mean", "left_out"}}; metrics that lack data are out.

    Baselines that lack a figure in some window are left out of all, and named. `chosen` and
    `on_mean` hold the baselines' mean figure, the mean difference with its interval (None with one
    window), the windows in which the model is ahead, and the difference of each.
    """
    found = {}
    for metric in DAY_METRICS:
        own = [_mean(window.model, metric) for window in windows]
        names = [
            name
            for name in windows[0].validation
            if all(_mean(w.baselines.get(name, {}), metric) is not None for w in windows)
            and all(metric in w.validation.get(name, {}) for w in windows)
        ]
        if not names or any(value is None for value in own):
            continue
        model = np.array(own, dtype=np.float64)
        figures = {
            name: np.array([_mean(w.baselines[name], metric) for w in windows], dtype=np.float64)
            for name in names
        }
        chosen = [max(names, key=lambda n: w.validation[n][metric]) for w in windows]
        on_mean = max(names, key=lambda n: float(figures[n].mean()))
        picked = np.array([figures[name][at] for at, name in enumerate(chosen)])
        found[metric] = {
            "model": float(model.mean()),
            "chosen": {"baselines": chosen} | _paired(model, picked),
            "on_mean": {"baselines": [on_mean]} | _paired(model, figures[on_mean]),
            "left_out": sorted({name for w in windows for name in w.validation} - set(names)),
        }
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lay out a line a metric and way to say which baseline is best."""
    rows = [["metric", "model", "best baseline", "", "difference", "95 % over windows", "ahead"]]
    for metric, entry in found.items():
        for way, name in (("chosen", "on validation"), ("on_mean", "on the mean of test")):
            values = entry[way]
            low, high = values["ci_low"], values["ci_high"]
            who = ", ".join(
                f"{baseline} x{n}" if n > 1 else baseline
                for baseline, n in Counter(values["baselines"]).most_common()
            )
            rows.append(
                [
                    metric,
                    f"{entry['model']:.4f}",
                    f"{name}: {who}",
                    f"{values['mean']:.4f}",
                    f"{values['difference']:+.4f}",
                    "-" if low is None else f"{low:+.4f}..{high:+.4f}",
                    f"{values['ahead']} of {len(values['differences'])}",
                ]
            )
    left_out = sorted({name for entry in found.values() for name in entry["left_out"]})
    note = [f"without a figure in some window, left out: {', '.join(left_out)}"]
    return aligned(rows, left=(0, 2)) + (note if left_out else [])


def _paired(model: Any, baseline: Any) -> dict[str, Any]:
    gaps = model - baseline
    mean, count = float(gaps.mean()), len(gaps)
    half = None
    if count > 1:
        half = float(student.ppf(_COVERAGE, count - 1) * gaps.std(ddof=1) / math.sqrt(count))
    return {
        "mean": float(baseline.mean()),
        "difference": mean,
        "ci_low": None if half is None else mean - half,
        "ci_high": None if half is None else mean + half,
        "ahead": int((gaps > 0).sum()),
        "differences": [float(gap) for gap in gaps],
    }


def _mean(figures: Mapping[str, Mapping[str, float | None]], metric: str) -> float | None:
    return figures.get(metric, {}).get("mean")
