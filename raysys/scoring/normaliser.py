"""The normaliser of P(consume) from a sample of the catalogue.

    P(i | u) = exp(link(s_ui)) / Z_u        Z_u = sum over all N items of exp(link(s_ui))

Z_u is the sum over the user's own items, which are scored exactly, and over a sample T of all
others, each divided by its chance p_i to be in T. Items lie in the order of their prior and T
takes every point at equal distance along the sums of p (systematic sampling), so every stretch of
the catalogue is there. The best p_i for a sum is in proportion to the root of the mean square of
what an item adds to it; that follows from the mean m_i and deviation d_i of s_ui over users, which
the index build measures, and from the prior as it stands now, by three points of Gauss and Hermite.
Head items have p_i = 1. So T moves with the counters, and nothing is built anew.

The user's own items are those of the profile and the best others by consume score: what no sample
can know, and so the sum is never below what a list shows. Users with long latents z_c, the
twentieth of all beyond a length that the build measures, like few items much more than others do:
they get a larger T.

Rows of T are rounded to 8 bits a dim. Where N is not much more than T, T is everything, and Z exact
but for that; where N is small, nothing is rounded.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import CHUNK_ROWS, Floats
from raysys.data.products import integer_products, rounded
from raysys.scoring.scorer import Scorer
from raysys.scoring.steps import are_long, log_z

N_SAMPLED, N_SAMPLED_LONG = 2048, 16_384
N_BEST = 100  # items outside the profile that are summed exactly
MAX_EXACT = 4096  # items of a catalogue that is scored as a whole
_CHUNK = 1 << 18  # items at once: an array of all of them is 4 bytes each
_AT_ONCE = 64  # users whose scores of T are held
_LISTED = 20  # best items that candidates should hold
_LONG = 0.95  # quantile of lengths beyond which latents are long
_POINTS = ((-(3**0.5), 1 / 6), (0.0, 2 / 3), (3**0.5, 1 / 6))  # of Gauss and Hermite, and weights


class Normaliser:
    """Sums over the catalogue as it stands.

    Args:
        scorer: with the prior of now.
        spread: [2, N] mean and deviation of the items' consume scores over users, without the
            prior; None: the sum is exact.
        length: of z_c beyond which a latent is long.

    Attributes:
        scorer, length: as given.
        exact: whether it is a sum over all items.
    """

    def __init__(self, scorer: Scorer, spread: Floats | None, length: float = np.inf) -> None:
        self.scorer = scorer
        self.length, self.exact = length, spread is None
        if spread is None:
            self._every = scorer.copied(np.arange(scorer.n_items))
        else:
            sizes, order = importance(scorer, spread), np.argsort(scorer.prior, kind="stable")
            self._usual, self._larger = (
                _Sample(scorer, *sample(sizes, order, size)) for size in (N_SAMPLED, N_SAMPLED_LONG)
            )

    def long(self, z: Floats) -> NDArray[np.int64]:
        """Return the rows of latents [B, H] that are long."""
        return np.flatnonzero(are_long(z, self.scorer.width, self.length))

    def of_all(self, z: Floats) -> tuple[Floats, Floats]:
        """Return every item's consume scores [B, N] for users z [B, H], and their log Z [B].

        Only where the sum is exact: N is small then.
        """
        assert self.exact
        scores = self._every.scores(z)
        logs = self.scorer.link(scores)
        top = logs.max(axis=1)
        return scores, np.asarray(top + np.log(np.exp(logs - top[:, None]).sum(axis=1)))

    def sample_scores(self, z: Floats) -> Floats:
        """Return the consume scores of the sample of usual users, [B, T], for users z [B, H]."""
        return self._usual.scores(z)

    def log_z(
        self, z: Floats, own: Sequence[NDArray[Any]], best: NDArray[np.int32] | None = None
    ) -> Floats:
        """Return log Z of users, float32 [B].

        Args:
            z: [B, H] their latents.
            own: per user, items that are summed exactly: those of the profile.
            best: [B, K] others that are: the best; what is no item of the model is left out. None:
                there are none.
        """
        out = np.empty(len(z), dtype=np.float32)
        if self.exact:
            for start in range(0, len(z), _AT_ONCE):
                out[start : start + _AT_ONCE] = self.of_all(z[start : start + _AT_ONCE])[1]
            return out
        if not len(z):
            return out
        offsets = np.array([*itertools.accumulate(map(len, own), initial=0)])
        items = (np.concatenate(own) if len(own) > 1 else own[0]).astype(np.int32)
        best = np.empty((len(z), 0), dtype=np.int32) if best is None else best
        asked = items, offsets, np.ascontiguousarray(best, dtype=np.int32)
        consume = np.ascontiguousarray(z[:, : self.scorer.width])
        every, long = np.arange(len(z)), self.long(z)
        usual = np.setdiff1d(every, long) if len(long) else every
        for users, sampled in ((usual, self._usual), (long, self._larger)):
            for start in range(0, len(users), _AT_ONCE):
                some = users[start : start + _AT_ONCE]
                log_z(self.scorer.consuming, sampled.held, consume, some, *asked, out)
        return out


class _Sample:
    """A sample T, its rows rounded to 8 bits a dim: over a sample the errors of scores cancel.

    Args:
        scorer: of the items.
        nums: T, ascending.
        weights: 1 / p of each.

    Attributes:
        held: what `steps.log_z` reads.
    """

    def __init__(self, scorer: Scorer, nums: NDArray[np.int64], weights: Floats) -> None:
        self._scorer, self._rows = scorer, rounded(scorer.vectors(nums))
        self._prior = scorer.prior[nums]
        self.held = *self._rows, self._prior, np.log(weights), nums

    def scores(self, z: Floats) -> Floats:
        """Return their consume scores [B, T] for users z [B, H]."""
        out = np.empty((len(z), len(self._rows.steps)), dtype=np.float32)
        consume = np.ascontiguousarray(z[:, : self._scorer.width])
        integer_products(self._rows, consume, 1.0, out)
        return out[:, : len(self._prior)] + self._prior


def importance(scorer: Scorer, spread: Floats) -> Floats:
    """Return the root of the mean square of what each item adds to Z, [N], up to a factor."""
    sizes = np.empty(scorer.n_items, dtype=np.float32)
    top = scorer.link(np.asarray((spread[0] + scorer.prior).max(keepdims=True)))[0]
    for start in range(0, len(sizes), _CHUNK):
        part = slice(start, start + _CHUNK)
        middle = spread[0, part] + scorer.prior[part]
        squares = np.zeros(len(middle), dtype=np.float32)
        for point, weight in _POINTS:
            logs = scorer.link(middle + np.float32(point) * spread[1, part]) - top
            squares += np.float32(weight) * np.exp(2 * logs)
        sizes[part] = np.sqrt(squares)
    return sizes


def sample(sizes: Floats, order: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the items of a sample, ascending, and what each stands for, 1 / p.

    Args:
        sizes: [N] what chances are in proportion to.
        order: [N] the items, in the order that every stretch of is to be there.
        size: of the sample; from N on it is everything.
    """
    if size >= len(sizes):
        return np.arange(len(sizes)), np.ones(len(sizes), dtype=np.float32)
    chance = _chances(sizes, size)
    ends = np.cumsum(chance[order], dtype=np.float64)
    at = np.searchsorted(ends, np.arange(0.5, ends[-1]))
    nums = np.unique(order[np.minimum(at, len(order) - 1)])
    return nums.astype(np.int64), (1.0 / chance[nums]).astype(np.float32)


def _chances(sizes: Floats, total: int) -> Floats:
    """Return chances in proportion to sizes, none above 1, that add up to `total` below N."""
    sizes = np.maximum(sizes, np.float32(1e-6) * sizes.mean())  # nothing is never there
    certain = np.zeros(len(sizes), dtype=bool)
    while True:
        left = total - int(certain.sum())
        rest = sizes.sum(dtype=np.float64, where=~certain)
        chance = np.where(certain, np.float32(1), sizes * np.float32(left / rest))
        above = ~certain & (chance >= 1.0)
        if not above.any():
            return np.asarray(chance)
        certain |= above


def measured(
    scorer: Scorer,
    z: Floats,
    own: Sequence[NDArray[Any]],
    candidates: NDArray[Any],
) -> tuple[Floats, dict[str, float], float]:
    """Return the spread [2, N] over every second user, and how well the others are answered.

    Args:
        scorer: of N items.
        z: [B, H] latents of users, 1 or more.
        own: per user, the items of the profile.
        candidates: [B, C] other items that the index finds by consume score, the best first,
            padded with -1.

    Returns:
        The spread; the length of long latents, and the median and the 99 % quantile of
        |log P - exact log P| over users, which is that of log Z, in nats; the share of the exact
        best items by consume score that is among the candidates.
    """
    lengths = np.linalg.norm(z[:, : scorer.width], axis=1)
    spread, exact, best = exact_sums(scorer, z[::2], z[1::2], own[1::2])
    normaliser = Normaliser(scorer, spread, float(np.quantile(lengths, _LONG)))
    listed = candidates[1::2, :N_BEST]
    error = np.abs(normaliser.log_z(z[1::2], own[1::2], listed) - exact)
    pairs = zip(best, candidates[1::2], strict=True)
    kept = ((wanted[wanted >= 0], offered) for wanted, offered in pairs)
    found = [np.isin(wanted, offered).mean() for wanted, offered in kept if len(wanted)]
    return (
        spread,
        {
            "long": normaliser.length,
            "n_users": len(error),
            "error_median": float(np.median(error)) if len(error) else 0.0,
            "error_p99": float(np.quantile(error, 0.99)) if len(error) else 0.0,
        },
        float(np.mean(found)) if found else 1.0,
    )


def exact_sums(
    scorer: Scorer, users: Floats, held_out: Floats, own: Sequence[NDArray[Any]] = ()
) -> tuple[Floats, NDArray[np.float64], NDArray[np.int64]]:
    """Return the spread [2, N] of scores over users, and sums and lists of others.

    Args:
        scorer: of N items.
        users: [A, H] latents, A 1 or more.
        held_out: [B, H] latents.
        own: per held-out user, items that a list leaves out; empty: none.

    Returns:
        The spread; the exact log Z [B] of those held out; their best 20 items [B, 20] by consume
        score, in no order, padded with -1.
    """
    users, held_out = users[:, : scorer.width], held_out[:, : scorer.width]
    spread = np.empty((2, scorer.n_items), dtype=np.float32)
    log_z = np.full(len(held_out), -np.inf)
    best = np.full((len(held_out), _LISTED), -1, dtype=np.int64)
    held = np.full(best.shape, -np.inf, dtype=np.float32)
    for start in range(0, scorer.n_items, CHUNK_ROWS):
        nums = np.arange(start, min(start + CHUNK_ROWS, scorer.n_items))
        vectors = scorer.vectors(nums)
        scores = vectors @ users.T
        spread[0, nums], spread[1, nums] = scores.mean(axis=1), scores.std(axis=1)
        scores = held_out @ vectors.T + scorer.prior[nums]
        log_z = np.logaddexp(log_z, _log_sum(scorer.link(scores).astype(np.float64)))
        for row, items in enumerate(own):
            here = items[(items >= start) & (items < start + len(nums))] - start
            scores[row, here] = -np.inf
        held = np.concatenate([held, scores], axis=1)
        both = np.concatenate([best, np.tile(nums, (len(held), 1))], axis=1)
        top = np.argpartition(-held, _LISTED - 1, axis=1)[:, :_LISTED]
        held, best = np.take_along_axis(held, top, 1), np.take_along_axis(both, top, 1)
    return spread, log_z, np.where(np.isfinite(held), best, -1)


def _log_sum(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    if not logs.size:
        return np.full(len(logs), -np.inf)
    top = logs.max(axis=1)
    return np.asarray(top + np.log(np.exp(logs - top[:, None]).sum(axis=1)))
