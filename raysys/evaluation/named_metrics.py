"""Metrics by name: which layout of the evaluator gives them, and which end of each is better.

`recall@K` is the mean over users of hits / min(K, targets); `recall@K^BETA` is pooled, and popular
targets count less in it. `rmse` and `nll` are of the levels of rated targets.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from raysys.config import require
from raysys.evaluation.metric_table import NDCG_K, MetricLayout

_RECALL = re.compile(r"recall@([1-9]\d{0,2})(?:\^(\d(?:\.\d+)?))?")
_MAX_BETA = 2.0
_LOWER = ("rmse", "nll")
KNOWN = (
    f"recall@K, recall@K^BETA with BETA from 0 to {_MAX_BETA:g}, "
    f"{', '.join(f'ndcg@{k}' for k in NDCG_K)}, {', '.join(_LOWER)}"
)


def checked(key: str, name: str, *, further: Collection[str] = ()) -> str:
    """Return a metric's name as reports spell it: recall@20^0.20 is recall@20^0.2.

    Args:
        key: what the name was given for.
        name: as it was given.
        further: names that are accepted too.

    Raises:
        ConfigError: there is no such metric.
    """
    recall = _RECALL.fullmatch(name)
    beta = float(recall[2] or 0) if recall else 0.0
    plain = name in (*_LOWER, *further, *(f"ndcg@{k}" for k in NDCG_K))
    accepted = ", ".join((KNOWN, *further))
    require(plain or (recall is not None and beta <= _MAX_BETA), key, name, accepted)
    return f"recall@{recall[1]}^{beta:g}" if recall and recall[2] else name


def is_minimised(name: str) -> bool:
    """Tell whether less of a metric is better."""
    return name in _LOWER


def layout_of(
    names: Iterable[str], *, levels: Collection[str] = (), rating_range: float = 1.0
) -> MetricLayout:
    """Return the smallest layout that gives these metrics."""
    found = [match for match in map(_RECALL.fullmatch, names) if match]
    return MetricLayout(
        top_k=tuple(int(match[1]) for match in found),
        betas=tuple(float(match[2]) for match in found if match[2]),
        levels=tuple(levels),
        rating_range=rating_range,
    )
