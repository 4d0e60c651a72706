"""The table of metrics: each is a ratio of two sums over users, and both sums are defined here.

Sums of parts merge by addition, replicates of the bootstrap are ratios of weighted sums. A metric
is a `Ratio` of two columns, whose sums per user stand in `rank_sums` or `RATING_SUMS`. A report's
table shows `headlines.HEADLINES`. What is no ratio (coverage, gini, ece) is the evaluator's.

Letters: B users in a block, N items, M targets.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.cells import Cells
from raysys.evaluation import ranked_users as ranked
from raysys.evaluation.bootstrap import ONE, fixed_point
from raysys.evaluation.ranked_users import (
    LIST_LENGTH,
    POPULARITY_SLICES,
    Counts,
    RankedUsers,
    summed,
)

TOP_K = (*range(1, 11), 15, 20, 25, 50)
BETAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
NDCG_K = (10, 20, 100)
SLICE_K = 20
HORIZONS = (1.0, 7.0, 30.0, 180.0)  # days
DAY_METRICS = (f"recall@{SLICE_K}", "ndcg@100", f"recall@{SLICE_K}^0.3")
DAY_SLICES = {"days_after": ranked.after_cut, "days_away": ranked.last_seen}
_DAY_SUMS: dict[str, Callable[[RankedUsers], Counts]] = {
    "rows": ranked.with_targets,
    "recall": partial(ranked.recall, k=SLICE_K),
    "ndcg": partial(ranked.ndcg, k=100),
    "weight^0.3": partial(ranked.weight_sum, beta=0.3),
    "hits^0.3": partial(ranked.weight_sum, beta=0.3, k=SLICE_K),
}


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
        horizons: edges in days of the slices by days after the cut and since the last visit.
        cut: UTC seconds; days are counted from it.
    """

    top_k: tuple[int, ...] = TOP_K
    betas: tuple[float, ...] = BETAS
    levels: tuple[str, ...] = ()
    rating_range: float = 1.0
    horizons: tuple[float, ...] = ()
    cut: int = 0

    def __post_init__(self) -> None:
        """Sort the grids and keep the cuts and exponents that are always reported."""
        object.__setattr__(self, "top_k", tuple(sorted({*self.top_k, SLICE_K})))
        object.__setattr__(self, "betas", tuple(sorted({*map(float, self.betas), 0.0, 0.3})))
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "horizons", tuple(sorted({*map(float, self.horizons)})))

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
        """Recall@20 by popularity tenth, history, level; `DAY_METRICS` by days."""
        cut = f"recall@{SLICE_K}"
        return (
            *(
                Ratio(f"{cut}|popularity={d}", f"hits|popularity={d}", f"targets|popularity={d}", 1)
                for d in range(1, POPULARITY_SLICES + 1)
            ),
            *(
                Ratio(f"{cut}|history={h}", f"recall|history={h}", f"rows|history={h}")
                for h in ranked.history_names()
            ),
            *(
                Ratio(f"{cut}|level={r}", f"hits|level={r}", f"targets|level={r}", 1)
                for r in self.levels
            ),
            *itertools.chain.from_iterable(
                _by_days(f"{kind}={name}")
                for kind in DAY_SLICES
                for name in ranked.bucket_names(self.horizons)
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
            horizons=tuple(fields.get("horizons", ())),  # files of earlier versions have none
            cut=int(fields.get("cut", 0)),
        )


def _by_days(part: str) -> list[Ratio]:
    """Return `DAY_METRICS` of a bucket of days."""
    recall, ndcg, pooled = (f"{name}|{part}" for name in DAY_METRICS)
    return [
        Ratio(recall, f"recall|{part}", f"rows|{part}"),
        Ratio(ndcg, f"ndcg|{part}", f"rows|{part}"),
        Ratio(pooled, f"hits^0.3|{part}", f"weight^0.3|{part}", scale=1.0),
    ]


def rank_sums(layout: MetricLayout) -> dict[str, Callable[[RankedUsers], Counts]]:
    """Return how each column of ranking metrics is summed, a value per user [B]."""
    cut = SLICE_K
    sums: dict[str, Callable[[RankedUsers], Counts]] = {
        "rows": ranked.with_targets,
        f"listed@{cut}": ranked.listed,
        f"surprise@{cut}": ranked.surprise_sum,
    }
    sums |= {f"recall@{k}": partial(ranked.recall, k=k) for k in layout.top_k}
    sums |= {f"hit@{k}": partial(ranked.hit, k=k) for k in layout.top_k}
    sums |= {f"ndcg@{k}": partial(ranked.ndcg, k=k) for k in NDCG_K}
    for b in layout.betas:
        sums[f"weight^{b:g}"] = partial(ranked.weight_sum, beta=b)
        sums |= {f"hits@{k}^{b:g}": partial(ranked.weight_sum, beta=b, k=k) for k in layout.top_k}
    for tenth in range(POPULARITY_SLICES):
        inside = partial(ranked.in_tenth, tenth=tenth)
        sums[f"targets|popularity={tenth + 1}"] = partial(ranked.target_count, inside=inside)
        sums[f"hits|popularity={tenth + 1}"] = partial(ranked.target_count, inside=inside, k=cut)
    for level, name in enumerate(layout.levels):
        inside = partial(ranked.of_level, level=level)
        sums[f"targets|level={name}"] = partial(ranked.target_count, inside=inside)
        sums[f"hits|level={name}"] = partial(ranked.target_count, inside=inside, k=cut)
    for number, name in enumerate(ranked.history_names()):
        sums[f"rows|history={name}"] = partial(ranked.history_is, number=number)
        sums[f"recall|history={name}"] = partial(ranked.recall_with_history, number=number, k=cut)
    for kind, part in DAY_SLICES.items():
        for number, name in enumerate(ranked.bucket_names(layout.horizons)):
            kept = partial(part, cut=layout.cut, edges=layout.horizons, number=number)
            sums |= {
                f"{column}|{kind}={name}": partial(_of_part, part=kept, of=of)
                for column, of in _DAY_SUMS.items()
            }
    return sums


def _of_part(
    users: RankedUsers,
    part: Callable[[RankedUsers], RankedUsers],
    of: Callable[[RankedUsers], Counts],
) -> Counts:
    return of(part(users))


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
