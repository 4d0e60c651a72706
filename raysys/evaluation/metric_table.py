"""The table of metrics: each is a ratio of two sums over users, and both sums are defined here.

Sums of parts merge by addition, replicates of the bootstrap are ratios of weighted sums. A metric
is a `Ratio` of two columns, whose sums per user stand in `rank_sums` or `RATING_SUMS`. A report's
table shows `HEADLINES`. What is no ratio (coverage, gini, ece) is the evaluator's.

Letters: B users in a block, N items, M targets.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.cells import Cells
from raysys.evaluation import metrics
from raysys.evaluation.bootstrap import ONE, fixed_point

TOP_K = (*range(1, 11), 15, 20, 25, 50)
BETAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
NDCG_K = (10, 20, 100)
LIST_LENGTH = 100
SLICE_K = 20
POPULARITY_SLICES = 10
HISTORY_EDGES = (1, 5, 10, 20, 50, 100, 200, 500)
NO_HISTORY = "0"
HEADLINES = (
    "recall@20",
    "recall@50",
    "recall@20^0",
    "recall@20^0.3",
    "recall@20^0.5",
    "ndcg@100",
    "hit@10",
    "coverage@20",
    "gini@20",
    "novelty@20",
    "rmse",
    "mae",
    "nll",
    "ece",
)

Counts = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One metric: scale * sum of `num` / sum of `den`, its square root where `root`."""

    name: str
    num: str
    den: str
    scale: float = 1.0 / ONE
    root: bool = False
    higher_is_better: bool = True

    def of(self, num: NDArray[np.int64], den: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the metric of each pair of sums, NaN where there is nothing to average."""
        nothing = np.full(np.shape(num), np.nan)
        value = np.divide(num, den, out=nothing, where=den > 0) * self.scale
        root: NDArray[np.float64] = np.sqrt(value) if self.root else value
        return root


@dataclasses.dataclass(frozen=True)
class MetricLayout:
    """The columns of sums for one set of settings.

    Attributes:
        top_k: list cuts K; 20 is always among them.
        betas: exponents of the popularity penalty.
        levels: names of the levels, for the slices.
        rating_range: largest minus smallest rating value; errors are stored in units of it.
    """

    top_k: tuple[int, ...] = TOP_K
    betas: tuple[float, ...] = BETAS
    levels: tuple[str, ...] = ()
    rating_range: float = 1.0

    def __post_init__(self) -> None:
        """Sort the grids and keep the cuts and exponents that are always reported."""
        object.__setattr__(self, "top_k", tuple(sorted({*self.top_k, SLICE_K})))
        object.__setattr__(self, "betas", tuple(sorted({*map(float, self.betas), 0.0, 0.3})))
        object.__setattr__(self, "levels", tuple(self.levels))

    @property
    def list_length(self) -> int:
        """Length of the lists that the metrics need."""
        return max(LIST_LENGTH, *self.top_k)

    @functools.cached_property
    def ratios(self) -> tuple[Ratio, ...]:
        """The metrics of whole reports, in the order in which they are printed."""
        cuts, betas = self.top_k, self.betas
        pooled = [
            Ratio(f"recall@{k}^{b:g}", f"hits@{k}^{b:g}", f"weight^{b:g}", scale=1.0)
            for k in cuts
            for b in betas
        ]
        by_range = self.rating_range / ONE
        return (
            *(Ratio(f"recall@{k}", f"recall@{k}", "rows") for k in cuts),
            *pooled,
            *(Ratio(f"ndcg@{k}", f"ndcg@{k}", "rows") for k in NDCG_K),
            *(Ratio(f"hit@{k}", f"hit@{k}", "rows", scale=1.0) for k in cuts),
            Ratio(f"novelty@{SLICE_K}", f"surprise@{SLICE_K}", f"listed@{SLICE_K}"),
            Ratio(
                "rmse",
                "square",
                "rated",
                scale=self.rating_range**2 / ONE,
                root=True,
                higher_is_better=False,
            ),
            Ratio("mae", "absolute", "rated", scale=by_range, higher_is_better=False),
            Ratio("nll", "surprisal", "with_probs", higher_is_better=False),
        )

    @functools.cached_property
    def slices(self) -> tuple[Ratio, ...]:
        """Recall@20 by popularity tenth, length of history and level."""
        cut = f"recall@{SLICE_K}"
        return (
            *(
                Ratio(f"{cut}|popularity={d}", f"hits|popularity={d}", f"targets|popularity={d}", 1)
                for d in range(1, POPULARITY_SLICES + 1)
            ),
            *(
                Ratio(f"{cut}|history={h}", f"recall|history={h}", f"rows|history={h}")
                for h in history_names()
            ),
            *(
                Ratio(f"{cut}|level={r}", f"hits|level={r}", f"targets|level={r}", 1)
                for r in self.levels
            ),
        )

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the sums, each once."""
        names = [name for r in (*self.ratios, *self.slices) for name in (r.den, r.num)]
        return tuple(dict.fromkeys(names))

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Column number of each sum."""
        return {name: number for number, name in enumerate(self.columns)}

    @functools.cached_property
    def rank_sums(self) -> dict[str, Callable[[RankedUsers], Counts]]:
        """How each column is summed from the lists of B users, [B]."""
        return rank_sums(self)

    def as_json(self) -> str:
        """Return the settings as JSON, kept in the metadata of per-user files."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> MetricLayout:
        """Read what `as_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        return cls(
            top_k=tuple(fields["top_k"]),
            betas=tuple(fields["betas"]),
            levels=tuple(fields["levels"]),
            rating_range=float(fields["rating_range"]),
        )


@dataclasses.dataclass(frozen=True)
class RankedUsers:
    """B users with their targets and lists.

    Attributes:
        history: what the ranker saw.
        targets: M new items, each once per user.
        ranks: [M] position of each target in its user's list, 1 is the best, 0 not listed.
        lists: [B, SLICE_K] items best first, -1 padded.
        weights: {beta: [N]} weight of each item, in fixed point.
        surprise: [N] -log2 of each item's share of the training interactions, in fixed point.
        tenths: [N] popularity slice of each item.
    """

    history: Cells
    targets: Cells
    ranks: NDArray[np.int32]
    lists: NDArray[np.int32]
    weights: Mapping[float, Counts]
    surprise: Counts
    tenths: Counts

    def hits(self, k: int) -> NDArray[np.bool_]:
        """Tell which targets [M] stand among the first k."""
        return np.asarray((self.ranks > 0) & (self.ranks <= k))

    def total(self, values: NDArray[Any]) -> Counts:
        """Return the sums [B] of values per target [M], exactly."""
        return summed(self.targets, values)


def rank_sums(layout: MetricLayout) -> dict[str, Callable[[RankedUsers], Counts]]:
    """Return how each column of ranking metrics is summed, a value per user [B]."""
    cut = SLICE_K
    sums: dict[str, Callable[[RankedUsers], Counts]] = {
        "rows": _row,
        f"listed@{cut}": _listed,
        f"surprise@{cut}": _surprise,
    }
    sums |= {f"recall@{k}": partial(_recall, k=k) for k in layout.top_k}
    sums |= {f"hit@{k}": partial(_hit, k=k) for k in layout.top_k}
    sums |= {f"ndcg@{k}": partial(_ndcg, k=k) for k in NDCG_K}
    for beta in layout.betas:
        sums[f"weight^{beta:g}"] = partial(_weight, beta=beta)
        sums |= {f"hits@{k}^{beta:g}": partial(_weight, beta=beta, k=k) for k in layout.top_k}
    for tenth in range(POPULARITY_SLICES):
        inside = partial(_in_tenth, tenth=tenth)
        sums[f"targets|popularity={tenth + 1}"] = partial(_targets, inside=inside)
        sums[f"hits|popularity={tenth + 1}"] = partial(_targets, inside=inside, k=cut)
    for level, name in enumerate(layout.levels):
        inside = partial(_of_level, level=level)
        sums[f"targets|level={name}"] = partial(_targets, inside=inside)
        sums[f"hits|level={name}"] = partial(_targets, inside=inside, k=cut)
    for number, name in enumerate(history_names()):
        sums[f"rows|history={name}"] = partial(_with_history, number=number)
        sums[f"recall|history={name}"] = partial(_recall_with_history, number=number, k=cut)
    return sums


def _row(users: RankedUsers) -> Counts:
    return np.ones(len(users.lists), dtype=np.int64)


def _listed(users: RankedUsers) -> Counts:
    return np.asarray((users.lists >= 0).sum(axis=1))


def _recall(users: RankedUsers, k: int) -> Counts:
    possible = np.maximum(users.targets.counts, 1)
    return fixed_point(users.total(users.hits(k)) / np.minimum(possible, k))


def _hit(users: RankedUsers, k: int) -> Counts:
    return np.asarray(users.total(users.hits(k)) > 0, dtype=np.int64)


def _ndcg(users: RankedUsers, k: int) -> Counts:
    gains = np.concatenate(([0.0], metrics.discounts(LIST_LENGTH)))
    gain = gains[np.where(users.ranks <= k, users.ranks, 0)]
    dcg = np.bincount(users.targets.rows, weights=gain, minlength=len(users.lists))
    possible = np.minimum(np.maximum(users.targets.counts, 1), k)
    return fixed_point(dcg / np.cumsum(gains)[possible])


def _weight(users: RankedUsers, beta: float, k: int | None = None) -> Counts:
    """Sum the weights of targets, of those among the first k where that is given."""
    weights = users.weights[beta][users.targets.item_num]
    return users.total(weights if k is None else np.where(users.hits(k), weights, 0))


def _surprise(users: RankedUsers) -> Counts:
    lists = users.lists
    return np.asarray(np.where(lists >= 0, users.surprise[np.maximum(lists, 0)], 0).sum(axis=1))


def _targets(
    users: RankedUsers, inside: Callable[[RankedUsers], NDArray[np.bool_]], k: int | None = None
) -> Counts:
    """Count the targets of a slice, those among the first k where that is given."""
    counted = inside(users)
    return users.total(counted if k is None else counted & users.hits(k))


def _in_tenth(users: RankedUsers, tenth: int) -> NDArray[np.bool_]:
    return np.asarray(users.tenths[users.targets.item_num] == tenth)


def _of_level(users: RankedUsers, level: int) -> NDArray[np.bool_]:
    return np.asarray(users.targets.level == level)


def _with_history(users: RankedUsers, number: int) -> Counts:
    return np.asarray(history_slice(users.history.counts) == number, dtype=np.int64)


def _recall_with_history(users: RankedUsers, number: int, k: int) -> Counts:
    return _recall(users, k) * _with_history(users, number)


@dataclasses.dataclass(frozen=True)
class RatedUsers:
    """B users with predictions of their rated targets.

    Attributes:
        targets: M rated cells.
        error: [M] predicted minus given rating, in units of the rating range.
        surprisal: [M] -log of the given rating's probability, None for point predictions.
    """

    targets: Cells
    error: NDArray[np.float64]
    surprisal: NDArray[np.float64] | None

    def total(self, values: NDArray[Any]) -> Counts:
        """Return the sums [B] of values per target [M], exactly."""
        return summed(self.targets, values)


RATING_SUMS: dict[str, Callable[[RatedUsers], Counts]] = {
    "rated": lambda users: users.targets.counts,
    "square": lambda users: users.total(fixed_point(users.error**2)),
    "absolute": lambda users: users.total(fixed_point(np.abs(users.error))),
    "surprisal": lambda users: users.total(fixed_point(_or_zero(users))),
    "with_probs": lambda users: users.targets.counts * (users.surprisal is not None),
}
"""How each column of rating metrics is summed, a value per user [B]."""


def _or_zero(users: RatedUsers) -> NDArray[np.float64]:
    return np.zeros(users.targets.n_cells) if users.surprisal is None else users.surprisal


def summed(targets: Cells, values: NDArray[Any]) -> Counts:
    """Return the sums [B] of values per target [M], exactly."""
    total = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
    sums: Counts = total[targets.offsets[1:]] - total[targets.offsets[:-1]]
    return sums


def history_names() -> list[str]:
    """Return the names of the history slices: "0", "1-4", "5-9" ... "500+"."""
    edges = HISTORY_EDGES
    names = [f"{a}-{b - 1}" for a, b in itertools.pairwise(edges)]
    return [NO_HISTORY, *names, f"{edges[-1]}+"]


def history_slice(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position in `history_names` of each history length."""
    return np.searchsorted(np.array(HISTORY_EDGES), lengths, side="right")


def popularity_slice(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0 .. 9 per item: tenths of the interactions, the most popular items first.

    Args:
        counts: [N] training interactions per item.
    """
    order = np.lexsort((np.arange(len(counts)), -counts))
    before = np.cumsum(counts[order]) - counts[order]
    tenth = before * POPULARITY_SLICES // max(int(counts.sum()), 1)
    slices = np.empty(len(counts), dtype=np.int64)
    slices[order] = np.minimum(tenth, POPULARITY_SLICES - 1)
    return slices
