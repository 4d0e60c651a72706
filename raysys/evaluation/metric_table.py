"""Which sums are kept per user, and which metrics are read off them.

Every metric is a ratio of two sums over users, so sums of parts merge by addition, replicates of
the bootstrap are ratios of weighted sums, and a metric is defined in this file alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.evaluation.bootstrap import ONE

TOP_K = (*range(1, 11), 15, 20, 25, 50)
BETAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
NDCG_K = (10, 20, 100)
LIST_LENGTH = 100
SLICE_K = 20
POPULARITY_SLICES = 10
HISTORY_EDGES = (1, 5, 10, 20, 50, 100, 200, 500)
NO_HISTORY = "0"


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
class Layout:
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

    def as_json(self) -> str:
        """Return the settings as JSON, kept in the metadata of per-user files."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Layout:
        """Read what `as_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        return cls(
            top_k=tuple(fields["top_k"]),
            betas=tuple(fields["betas"]),
            levels=tuple(fields["levels"]),
            rating_range=float(fields["rating_range"]),
        )


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
