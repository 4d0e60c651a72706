"""The normaliser of P(consume) from a sample of the catalogue.

    P(i | u) = exp(link(s_ui)) / Z_u        Z_u = sum over all N items of exp(link(s_ui))

Z_u is the sum over the profile's own items, which are scored exactly, and over a sample T of all
others, each divided by its chance p_i to be in T. Items lie in the order of their prior and T takes
every point at equal distance along the sums of p (systematic sampling), so every stretch of the
catalogue is there. The best p_i for a sum is in proportion to the root of the mean square of what
an item adds to it; that follows from the mean m_i and deviation d_i of s_ui over users, which the
index build measures, and from the prior as it stands now, by three points of Gauss and Hermite.
Head items have p_i = 1. So T moves with the counters, and nothing is built anew.

Where N is not much more than T, T is everything and Z exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import CHUNK_ROWS, Floats
from raysys.scoring.scorer import Scorer

N_SAMPLED = 1024
MAX_EXACT = 2048  # items of a catalogue that is summed over as a whole
_POINTS = ((-(3**0.5), 1 / 6), (0.0, 2 / 3), (3**0.5, 1 / 6))  # of Gauss and Hermite, and weights


class Normaliser:
    """Sums over the catalogue as it stands.

    Args:
        scorer: with the prior of now.
        spread: [2, N] mean and deviation of the items' consume scores over users, without the
            prior; None: the sum is exact.
        n_sampled: size of T.

    Attributes:
        scorer: as given.
        nums, weights: items of T, ascending, and what each stands for, 1 / p.
    """

    def __init__(
        self, scorer: Scorer, spread: Floats | None, *, n_sampled: int = N_SAMPLED
    ) -> None:
        self.scorer = scorer
        if spread is None:
            self.nums = np.arange(scorer.n_items)
            self.weights = np.ones(scorer.n_items, dtype=np.float32)
        else:
            self.nums, self.weights = sample(scorer, spread, n_sampled)
        self._sampled = scorer.copied(self.nums)
        self._log_weights = np.log(self.weights)

    def log_z(self, z: Floats, own: Sequence[NDArray[Any]]) -> Floats:
        """Return log Z of users, float32 [B].

        Args:
            z: [B, H] their latents.
            own: per user, the items of the profile.
        """
        out = np.empty(len(z), dtype=np.float32)
        for row, items in enumerate(own):
            mine = np.unique(items)
            logs = self.scorer.link(self._sampled.scores(z[row])) + self._log_weights
            logs[_places(self.nums, mine)] = -np.inf
            exact = self.scorer.link(self.scorer.consume_scores(z[row], mine))
            top = max(logs.max(), exact.max(initial=-np.inf))
            out[row] = top + np.log(np.exp(logs - top).sum() + np.exp(exact - top).sum())
        return out


def sample(scorer: Scorer, spread: Floats, size: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the items of T, ascending, and what each stands for, 1 / p."""
    moments = np.zeros(scorer.n_items, dtype=np.float64)
    middle = spread[0] + scorer.prior
    first = scorer.link(middle)
    for point, weight in _POINTS:
        logs = scorer.link(middle + np.float32(point) * spread[1]) - first.max()
        moments += weight * np.exp(2.0 * logs.astype(np.float64))
    chance = _chances(np.sqrt(moments), size)
    order = np.argsort(scorer.prior, kind="stable")
    ends = np.cumsum(chance[order])
    at = np.searchsorted(ends, np.arange(0.5, ends[-1]))
    nums = np.unique(order[np.minimum(at, len(order) - 1)])
    return nums.astype(np.int64), (1.0 / chance[nums]).astype(np.float32)


def _chances(sizes: NDArray[np.float64], total: int) -> NDArray[np.float64]:
    """Return chances in proportion to sizes, none above 1, that add up to `total` below N."""
    sizes = np.maximum(sizes, 1e-6 * sizes.mean())  # nothing is never there
    certain = np.zeros(len(sizes), dtype=bool)
    while True:
        left = total - int(certain.sum())
        chance = np.where(certain, 1.0, sizes * (left / sizes[~certain].sum()))
        above = ~certain & (chance >= 1.0)
        if not above.any():
            return chance
        certain |= above


def _places(ordered: NDArray[np.int64], wanted: NDArray[Any]) -> NDArray[np.int64]:
    """Return where those of `wanted` that are in `ordered` stand there; both ascend."""
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.asarray(at[ordered[at] == wanted])


def measured(
    scorer: Scorer, z: Floats, own: Sequence[NDArray[Any]]
) -> tuple[Floats, dict[str, float]]:
    """Return the spread [2, N] over every second user, and how well the others' log Z is met.

    Args:
        scorer: of N items.
        z: [B, H] latents of users, 1 or more.
        own: per user, the items of the profile.

    Returns:
        The spread; the size of the sample, and the median and the 99 % quantile of
        |log P - exact log P| over users, which is that of log Z, in nats.
    """
    spread, exact = exact_sums(scorer, z[::2], z[1::2])
    normaliser = Normaliser(scorer, spread)
    error = np.abs(normaliser.log_z(z[1::2], own[1::2]) - exact)
    return spread, {
        "n_sampled": len(normaliser.nums),
        "n_users": len(error),
        "error_median": float(np.median(error)) if len(error) else 0.0,
        "error_p99": float(np.quantile(error, 0.99)) if len(error) else 0.0,
    }


def exact_sums(
    scorer: Scorer, users: Floats, held_out: Floats
) -> tuple[Floats, NDArray[np.float64]]:
    """Return the spread [2, N] of scores over users, and the exact log Z [B] of others.

    Args:
        scorer: of N items.
        users: [A, H] latents, A 1 or more.
        held_out: [B, H] latents.
    """
    users, held_out = users[:, : scorer.width], held_out[:, : scorer.width]
    spread = np.empty((2, scorer.n_items), dtype=np.float32)
    log_z = np.full(len(held_out), -np.inf)
    for start in range(0, scorer.n_items, CHUNK_ROWS):
        nums = np.arange(start, min(start + CHUNK_ROWS, scorer.n_items))
        vectors = scorer.vectors(nums)
        scores = vectors @ users.T
        spread[0, nums], spread[1, nums] = scores.mean(axis=1), scores.std(axis=1)
        logs = scorer.link(held_out @ vectors.T + scorer.prior[nums]).astype(np.float64)
        log_z = np.logaddexp(log_z, _log_sum(logs))
    return spread, log_z


def _log_sum(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    if not logs.size:
        return np.full(len(logs), -np.inf)
    top = logs.max(axis=1)
    return np.asarray(top + np.log(np.exp(logs - top[:, None]).sum(axis=1)))
