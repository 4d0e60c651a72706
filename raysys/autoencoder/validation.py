"""What training is judged by: users of the validation period and a metric of their lists.

The metric that chooses epochs, penalties and priors is computed on the model's own device and for
many item priors at once; `Quality` is that fast form of the evaluator's metric of the same name,
and `report` is the evaluator itself, for the model that was chosen.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysys.config import require
from raysys.data.cells import Cells
from raysys.data.compiled import compiled_with
from raysys.data.profiles import Profiles
from raysys.data.schema import RatingLevels, period_windows
from raysys.evaluation.bootstrap import user_keys
from raysys.evaluation.evaluator import Evaluator
from raysys.evaluation.metrics import RatingPrediction, top_items
from raysys.evaluation.named_metrics import layout_of
from raysys.evaluation.protocols import first_appearances, pair_keys
from raysys.evaluation.rating_baselines import mean_rating
from raysys.evaluation.row_kernels import best_of_row
from raysys.training.threads import follow_torch

TOP_K, NDCG_K = 20, 100
RECALL, NDCG, NLL = f"recall@{TOP_K}", f"ndcg@{NDCG_K}", "nll"
CHUNK_USERS = 256
POOLED = f"{RECALL}^BETA"  # BETA from 0 to 1
OBJECTIVES = {RECALL: "max", NDCG: "max", POOLED: "max", NLL: "min"}
"""What validation measures, and which way is better; nll judges levels, the others lists."""
REPORTED = (RECALL, NDCG, f"{RECALL}^0.3")
# (weight, half-life in days, 0 never forgets) of the item prior: the log share of an item in the
# training cells beside its score, in standard deviations of scores; validation picks one
PRIORS = [(0.0, 0.0)] + [(w, 0.0) for w in (0.03, 0.1, 0.3, 1.0, 3.0)]
# with time: enough to compare epochs and penalties by; what enters in the end is the time form's
TIMED_PRIORS = [(0.0, 0.0), (0.3, 0.0), (1.0, 0.0), (1.0, 7.0), (3.0, 7.0), (10.0, 7.0)]
TIMED_PRIORS += [(1.0, 30.0), (3.0, 1.0), (10.0, 1.0)]

_MAX_ELEMENTS = 1 << 25  # of a users x N matrix
_POOLED = re.compile(rf"recall@{TOP_K}\^(0(\.\d+)?|1(\.0+)?)")


def check_metric(key: str, name: str) -> None:
    """Raise ConfigError unless the consume block can be chosen by the metric."""
    known = _objective(name) in OBJECTIVES and name != NLL
    require(known, key, name, f"{RECALL}, {NDCG} or {POOLED} with BETA from 0 to 1")


def direction(name: str) -> str:
    """Return whether `max` or `min` is the better end of one of `OBJECTIVES`."""
    return OBJECTIVES[_objective(name)]


def best_value(name: str, values: Iterable[float]) -> float | None:
    """Return the best of the values of one of `OBJECTIVES`; None of none."""
    return (min if direction(name) == "min" else max)(values, default=None)


def _objective(name: str) -> str:
    return POOLED if _POOLED.fullmatch(name) else name


class Quality:
    """A metric as two sums over users.

    Args:
        name: `recall@20`, `ndcg@100`, or pooled `recall@20^BETA`.
        item_counts: int [N] training interactions, which the penalty BETA counts.
        device: of the scores to come.
    """

    def __init__(
        self, name: str, item_counts: NDArray[np.integer], device: torch.device | None = None
    ) -> None:
        check_metric("metric", name)
        self.name = name
        self._weights: Tensor | None = None
        if "^" in name:
            share = np.maximum(item_counts, 1) / np.maximum(item_counts, 1).max()
            weights = share ** -float(name.partition("^")[2])
            self._weights = torch.from_numpy(weights).double()

    def sums(self, lists: Iterable[Tensor], wanted: Tensor) -> Iterator[float]:
        """Yield what a block of users adds to the denominator, then to the numerator by each list.

        Args:
            lists: scores [B, N] of each, minus infinity where an item is not to be listed.
            wanted: bool [B, N] on the CPU; every row has some.
        """
        size = min(NDCG_K if self.name == NDCG else TOP_K, wanted.shape[1])
        targets = wanted.sum(dim=1)
        gains = 1 / torch.arange(2, 2 + NDCG_K, dtype=torch.float64).log2()
        ideal = gains.cumsum(0)[targets.clamp(1, NDCG_K) - 1]
        weights = self._weights
        yield len(wanted) if weights is None else float(wanted.sum(dim=0).double() @ weights)
        for scores in lists:
            top = best_items(scores, size)
            hits = wanted.gather(1, top).double()
            if weights is not None:
                yield float((hits * weights[top]).sum())
            elif self.name == NDCG:
                yield float(((hits * gains[:size]).sum(dim=1) / ideal).sum())
            else:
                yield float((hits.sum(dim=1) / targets.clamp(1, TOP_K)).sum())


def best_items(scores: Tensor, top_k: int) -> Tensor:
    """Return the best items of each row, best first, int64 [B, top_k] on the CPU.

    On a processor `topk` sorts parts of every row, and a validation makes dozens of lists a user.
    """
    if scores.is_cuda:
        return scores.topk(top_k, dim=1).indices.cpu()
    follow_torch()
    found = np.empty((len(scores), top_k), dtype=np.int64)
    _best_items(scores.float().contiguous().numpy(), found)
    return torch.from_numpy(found)


@compiled_with(parallel=True)
def _best_items(scores: Any, found: Any) -> None:
    """Write the best items of each row of scores [B, N] into found [B, K]; the first of equals."""
    for user in numba.prange(len(scores)):
        best_of_row(scores[user], np.empty(found.shape[1], dtype=np.float32), found[user])


@dataclasses.dataclass(frozen=True)
class Validation:
    """History and targets of the validation users, row by row.

    Attributes:
        history: what the model sees of them.
        targets: new items of the catalogue.
        chunk_users: users that are judged at once.
        measured: metrics of the finished model, by name.
        levels: the log's; None leaves metrics of ratings out.
    """

    history: Cells
    targets: Cells
    chunk_users: int
    measured: Sequence[str] = REPORTED
    levels: RatingLevels | None = None

    def chunks(self, rank: int, world: int) -> list[tuple[Cells, Cells]]:
        """Return this rank's users in chunks."""
        rows = np.arange(self.history.n_users)[rank::world]
        size = self.chunk_users
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return [(self.history.users(part), self.targets.users(part)) for part in parts]

    def report(
        self,
        score: Callable[[Cells], Tensor],
        item_counts: NDArray[np.int64],
        *,
        logits: Callable[[Cells, Cells], Tensor] | None = None,
    ) -> dict[str, float]:
        """Return the evaluator's values of `measured`; those without data are left out.

        Args:
            score: the consume scores [B, N] after histories.
            item_counts: [N] training interactions.
            logits: the level logits [M, R] of targets after histories; None as for `levels`.
        """
        levels = self.levels
        if logits is None or levels is None or levels.n_rated < 2:
            levels = None
        values = np.zeros(1, dtype=np.float32) if levels is None else levels.value_array()
        spread = float(np.nanmax(values) - np.nanmin(values)) or 1.0
        evaluator = Evaluator(
            layout_of(self.measured, rating_range=spread),
            item_counts=item_counts,
            levels=levels,
            replicates=0,
        )
        for history, targets in self.chunks(0, 1):
            length = evaluator.layout.list_length
            lists = top_items(score(history).cpu().numpy(), length, exclude=history)
            keys = user_keys(map(int, history.user_num))
            once = first_appearances(targets)
            evaluator.update_ranking(keys, history=history, targets=once, lists=lists)
            if levels is not None and logits is not None:
                probs = torch.softmax(logits(history, once).double(), dim=1).cpu().numpy()
                prediction = RatingPrediction(mean_rating(probs, values), probs)
                evaluator.update_ratings(keys, targets=once, prediction=prediction)
        found = evaluator.result()
        return {name: float(found[name]["mean"] or 0.0) for name in self.measured if name in found}


def validation(
    profiles: Profiles,
    *,
    cells: Cells,
    seed: int,
    n_users: int,
    measured: Sequence[str] = REPORTED,
) -> Validation | None:
    """Return at most so many users with history and new targets in the val catalogue.

    Args:
        profiles: the run's profiles.
        cells: all their cells.
        seed: picks the users.
        n_users: at most so many.
        measured: metrics of the finished model, by name.
    """
    windows = period_windows(profiles.facts.split, "val")
    n_items = profiles.facts.catalogue["val"]
    cells = cells.take(cells.item_num < n_items)
    history, targets = cells.in_windows(windows.history), cells.in_windows(windows.targets)
    targets = targets.take(~np.isin(pair_keys(targets), pair_keys(history)))
    rows = np.flatnonzero((history.counts > 0) & (targets.counts > 0))
    if len(rows) == 0:
        return None
    rng = np.random.default_rng([seed, 0x22])
    rows = np.sort(rng.permutation(rows)[:n_users])
    return Validation(
        history.users(rows),
        targets.users(rows),
        few(CHUNK_USERS, n_items),
        measured,
        None if {"rmse", "nll"}.isdisjoint(measured) else profiles.levels,
    )


def few(n_users: int, n_items: int) -> int:
    """Return how many users' scores of all items to hold at once."""
    return max(1, min(n_users, _MAX_ELEMENTS // n_items))


def without(scores: Tensor, history: Cells) -> Tensor:
    """Return scores [B, N] with the history's items at minus infinity."""
    rows = torch.from_numpy(history.rows).to(scores.device)
    items = torch.from_numpy(history.item_num.astype(np.int64)).to(scores.device)
    blocked = torch.tensor(-torch.inf, device=scores.device)
    return scores.index_put((rows, items), blocked)
