"""What an evaluation comes down to: does the model lead, by how much, over whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from raysys.reports.html.content import BAD, EVEN, GOOD
from raysys.reports.html.text import ends, number, signed, span
from raysys.reports.page import LEAD

ORDER = (LEAD, "recall@20^0.3", "recall@20", "ndcg@100", "rmse", "nll")  # which is asked first
LOWER = frozenset({"rmse", "mae", "nll", "ece"})  # lower is better
WORDS = {
    LEAD: "pooled recall in the first 20, popular items counted less",
    "recall@20^0.3": "pooled recall in the first 20, popular items counted less still",
    "recall@20": "mean recall in the first 20",
    "ndcg@100": "gain of the first 100 places, early ones counted more",
    "rmse": "error of the expected rating; lower is better",
    "nll": "surprise at the observed level; lower is better",
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A sentence and how it is shown.

    Attributes:
        text: the sentence.
        tone: good, even or bad.
        metric: that it speaks of; None: there is none.
    """

    text: str
    tone: str
    metric: str | None


def subject(record: Mapping[str, Any]) -> str:
    """Return what an evaluation was of, as the subject of a sentence."""
    names = {"model": "The model", "codes": "The compressed model", "index": "The served list"}
    return names.get(str(record.get("via")), f"{record.get('via')}")


def gain(entry: Mapping[str, Any], metric: str) -> tuple[float, float | None, float | None]:
    """Return by how much better the model is, with the ends of the interval."""
    low, high = ends(entry)
    if metric not in LOWER:
        return entry["mean"], low, high
    return -entry["mean"], None if high is None else -high, None if low is None else -low


def gains(
    record: Mapping[str, Any],
) -> Iterator[tuple[str, dict[str, tuple[float, float | None, float | None]]]]:
    """Yield each metric that is compared, the leading first, with {baseline: gain}."""
    differences = record.get("differences") or {}
    for metric in ORDER:
        found = {
            name: gain(entry[metric], metric)
            for name, entry in differences.items()
            if (entry.get(metric) or {}).get("mean") is not None
        }
        if found:
            yield metric, found


def verdict(record: Mapping[str, Any]) -> Verdict:
    """Return the sentence of an evaluation.

    The model leads where its gain over every baseline has an interval above zero. The one that is
    named is the nearest, so nobody is chosen in the model's favour.
    """
    metric, found = next(gains(record), (None, {}))
    who = subject(record)
    if metric is None:
        return _alone(record, who)
    name = min(found, key=lambda each: found[each][0])
    mean, low, high = found[name]
    by = f"{signed(mean)} ({span(low, high)})" if low is not None else signed(mean)
    level = [each for each, (_, begin, _) in found.items() if begin is not None and begin <= 0]
    if low is None:
        word = "leads" if mean > 0 else "does not lead"
        return Verdict(
            f"{who} {word} every baseline in {metric}: {by} against {name}, without an interval",
            GOOD if mean > 0 else EVEN,
            metric,
        )
    if not level:
        return Verdict(f"{who} leads every baseline in {metric}: {by} over {name}", GOOD, metric)
    if high is not None and high < 0:
        back = f"{signed(-mean)} ({span(-high, -low)})"
        return Verdict(f"{name} leads {who[0].lower()}{who[1:]} in {metric}: {back}", BAD, metric)
    names = " and ".join(level) if len(level) < 3 else f"{len(level)} of {len(found)} baselines"
    return Verdict(f"{who} and {names} do not differ beyond noise in {metric}: {by}", EVEN, metric)


def _alone(record: Mapping[str, Any], who: str) -> Verdict:
    """Return the sentence of an evaluation without baselines."""
    metrics = (record.get("methods") or {}).get(record.get("via"), {}).get("metrics") or {}
    metric = next((name for name in ORDER if name in metrics), None)
    if metric is None:
        return Verdict("Nothing was measured that this page knows", EVEN, None)
    entry = metrics[metric]
    low, high = ends(entry)
    between = f" ({span(low, high, sign=False)})" if low is not None else ""
    text = f"{who} has {metric} {number(entry.get('mean'))}{between}; no baseline beside it"
    return Verdict(text, EVEN, metric)
