"""The model as a serving process has it: latents of profiles, and scores of some items.

Letters: B users, M cells, N items, C candidates, H = Hc + Hl + 1 + F + R of the model's letters.

The formulas are those of `autoencoder/encoder.py` and `autoencoder/model.py`, on the compact rows
of `files.py`: nothing here walks the catalogue but `all_consume_scores`.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from raysys.data.arrays import Floats, read_only
from raysys.data.cells import Cells
from raysys.scoring.files import Weights
from raysys.scoring.item_scores import ItemScores
from raysys.scoring.kernels import (
    add_rows,
    all_products,
    curve,
    level_probs,
    level_sums,
    row_products,
    user_factors,
)
from raysys.scoring.rankings import Ranking, rankings_of

_DAY_S = 86_400.0
USER_PSEUDO_CELLS = 10.0  # pull a user's distribution over levels to the overall one


class Link:
    """The link of consume scores, see `autoencoder/calibration.py`.

    Args:
        tables: of the model.
    """

    def __init__(self, tables: Any) -> None:
        self._fitted = bool(tables["link.fitted"])
        self._parameters = np.exp(tables["link.parameters_log"])
        self._mean, self._spread = tables["link.shift"]
        self._slope = float(tables["link.typical_slope"])

    def __call__(self, scores: Floats) -> Floats:
        """Return unnormalised log probabilities of scores, of their shape."""
        if not self._fitted:
            return scores
        points = np.ascontiguousarray((scores - self._mean) / self._spread, dtype=np.float32)
        out: Floats = np.empty_like(points)
        curve(points.reshape(-1), self._parameters, out.reshape(-1))
        return out

    def slope(self) -> float:
        """Return d log P / d score at the scores of consumed items, on average."""
        return self._slope


@dataclasses.dataclass(frozen=True)
class SomeItems:
    """What consume scores of some items are made of.

    Attributes:
        rows: [C, Hc] uint16, bits of float16.
        lengths, prior: float32 [C].
    """

    rows: NDArray[np.uint16]
    lengths: Floats
    prior: Floats

    def scores(self, z: Floats) -> Floats:
        """Return their consume scores [B, C] for users z [B, H]."""
        out = np.empty((len(z), len(self.rows)), dtype=np.float32)
        width = self.rows.shape[1]
        if len(z) == 1:
            places, whole = np.arange(len(self.rows)), np.array([0, len(self.rows)])
            vector = np.ascontiguousarray(z[:, :width])
            row_products(read_only(self.rows), places, whole, vector, out[0])
        else:
            all_products(read_only(self.rows), np.ascontiguousarray(z[:, :width]), out)
        return np.asarray(out * self.lengths + self.prior)


class Scorer:
    """A model's encoder and scores, without its training.

    Args:
        weights: of N items.

    Attributes:
        levels: R levels.
        n_items: N.
        width: Hc.
        available_rankings: that it can give, the default first.
        prior: [N] the part of the consume scores that no profile changes.
        link, discover_slope: what linear forms of rankings need.
    """

    def __init__(self, weights: Weights) -> None:
        self.levels = weights.levels
        rows, self._tables = weights.rows, weights.tables
        self._rows = _bits(rows["rows"])
        self._encoder = _bits(rows["encoder"]) if "encoder" in rows else self._rows
        self._scales = rows["scales"]
        self.prior: Floats = read_only(rows["prior"])
        self.n_items, self.width = self._rows.shape
        self.available_rankings = rankings_of(self.levels)
        self.link = Link(self._tables)
        self.discover_slope = float(self._tables["discover_slope"])
        values = np.nan_to_num(self.levels.value_array())
        of_level = self.levels.liked_array(), self.levels.rated, values
        self._of_level = np.ascontiguousarray(np.stack(of_level), dtype=np.float32)
        self.has_levels = "level_in" in rows
        if self.has_levels:
            level_in, self._level_out = _bits(rows["level_in"]), _bits(rows["level_out"])
            self._level_in = level_in.reshape(-1, level_in.shape[2])
            names = ("level_bias", "residual", "loadings", "variance")
            self._bias, self._residual, self._loadings, self._variance = (
                read_only(rows[name]) for name in names
            )

    def with_prior(self, prior: Floats) -> Scorer:
        """Return the scorer with another prior [N]."""
        moved = copy.copy(self)
        moved.prior = read_only(np.ascontiguousarray(prior, dtype=np.float32))
        return moved

    # -- users -----------------------------------------------------------------------------

    def encode(self, history: Cells, fitted_until: int | None) -> Floats:
        """Return the latents [B, H] of profiles of known items; an empty one gets the prior.

        Ages count from the end of the fitted period, or from a user's newest cell if that is
        later; so they depend neither on the clock nor on who else is in the batch.
        """
        age = None if fitted_until is None else _ages(history, fitted_until)
        items, level = history.item_num, history.level.astype(np.int64)
        offsets, counts = np.asarray(history.offsets, dtype=np.int64), history.counts
        rows = np.repeat(np.arange(history.n_users), counts)
        weight = self._cell_weights(counts, rows, age)
        asked = self._asked(history, counts, rows, age)
        consume = weight * asked * self._tables["level_scale"][level]
        parts = [np.zeros((history.n_users, self.width), dtype=np.float32)]
        places = items.astype(np.int64)
        consume = (consume * self._scales[0][items]).astype(np.float32)
        add_rows(self._encoder, places, consume, offsets, parts[0])
        if self.has_levels:
            parts += self._level_latents(offsets, rows, places, level, weight)
        return np.concatenate(parts, axis=1)

    def _cell_weights(
        self, counts: NDArray[np.int64], rows: NDArray[np.int64], age: Floats | None
    ) -> Floats:
        half_life, exponent = self._tables["profile_half_life_days"], self._tables["exponent"]
        if half_life == 0 or age is None:
            return _power(counts, -float(exponent))[rows]
        weight = np.exp2(-age / np.float32(half_life * _DAY_S))
        total = np.bincount(rows, weight, minlength=len(counts))
        shares = np.maximum(total, 1e-6) ** -float(exponent)
        return np.asarray(weight * shares[rows].astype(np.float32))

    def _asked(
        self,
        history: Cells,
        counts: NDArray[np.int64],
        rows: NDArray[np.int64],
        age: Floats | None,
    ) -> Floats:
        """Return what the time form multiplies each cell's weight in z_c by, [M]."""
        length, recency = self._tables["query"]
        factor = _power(counts, -float(length))[rows]
        if recency and age is not None:
            newer = _newer_cells(history, rows, age).astype(np.float32)
            factor = factor * np.exp2(-newer / recency)
        return factor

    def _level_latents(
        self,
        offsets: NDArray[np.int64],
        rows: NDArray[np.int64],
        items: NDArray[np.int64],
        level: NDArray[np.int64],
        weight: Floats,
    ) -> list[Floats]:
        """Return the learned part of z_l [B, Hl], the factors [B, 1 + F] and h [B, R]."""
        tables, n_users = self._tables, len(offsets) - 1
        n_channels = tables["table_in"].shape[1]
        table = (tables["table_in"][level] * weight[:, None]).astype(np.float32)
        places = items[:, None] * n_channels + np.arange(n_channels)
        latent = np.tile(tables["level_shift"], (n_users, 1))
        flat = places.reshape(-1), table.reshape(-1), offsets * n_channels
        add_rows(self._level_in, *flat, latent)
        factors = np.zeros((n_users, self._loadings.shape[1]), dtype=np.float32)
        if self.levels.n_rated > 1:
            value = self._residual[items, level]
            rated = np.isfinite(value)
            user_factors(
                *(self._loadings, self._variance, tables["penalties"]),
                *(items, value, rated, offsets, factors),
            )
        n_levels = self.levels.n_levels
        counts = np.bincount(rows * n_levels + level, minlength=n_users * n_levels)
        counts = counts.reshape(n_users, n_levels)
        overall = tables["log_overall"]
        cells = counts.sum(axis=1, keepdims=True) + USER_PSEUDO_CELLS
        shares = np.log((counts + USER_PSEUDO_CELLS * np.exp(overall)) / cells) - overall
        return [latent, factors, shares.astype(np.float32)]

    def query(self, z: Floats, ranking: Ranking) -> tuple[Floats, Floats]:
        """Return queries [B, H] and weights [B, 2] of the linear form of a ranking."""
        consume, like = (np.float32(weight) for weight in ranking.linear(self))
        scale = np.full(z.shape[1], like, dtype=np.float32)
        scale[: self.width] = consume
        weights = np.tile(np.array([consume, like], dtype=np.float32), (len(z), 1))
        return z * scale, weights

    # -- items -----------------------------------------------------------------------------

    def consume_scores(self, z: Floats, nums: NDArray[Any]) -> Floats:
        """Return what the consume ranking sorts by, [C], for the user z [H]."""
        return self.pair_scores(z[None], np.asarray(nums), np.array([0, len(nums)]))

    def pair_scores(self, z: Floats, nums: NDArray[Any], offsets: NDArray[np.int64]) -> Floats:
        """Return the consume scores [M] of items for several users.

        Args:
            z: [B, H] latents.
            nums: [M] items, user by user.
            offsets: [B + 1] items of each user.
        """
        out, nums = np.empty(len(nums), dtype=np.float32), nums.astype(np.int64, copy=False)
        row_products(self._rows, nums, offsets, np.ascontiguousarray(z[:, : self.width]), out)
        return np.asarray(out * self._scales[1][nums] + self.prior[nums])

    def all_consume_scores(self, z: Floats) -> Floats:
        """Return the consume scores of every item, [N]."""
        return self.consume_scores(z, np.arange(self.n_items))

    def copied(self, nums: NDArray[Any]) -> SomeItems:
        """Return copies of the consume rows of items [C], one after the other in memory."""
        return SomeItems(self._rows[nums], self._scales[1][nums], self.prior[nums])

    def vectors(self, nums: NDArray[Any]) -> Floats:
        """Return g of some items, [C, Hc]."""
        rows = self._rows[nums].view(np.float16).astype(np.float32)
        return np.asarray(rows * self._scales[1][nums][:, None])

    def score(
        self, z: Floats, nums: NDArray[Any], log_z: float, consume: Floats | None = None
    ) -> ItemScores:
        """Return what the model says of some items.

        Args:
            z: [H] latent of the user.
            nums: [C] items.
            log_z: log of the sum over all items of what P(i | u) is in proportion to.
            consume: consume scores [C] of the items, where they are at hand.
        """
        offsets = np.array([0, len(nums)])
        if consume is None:
            consume = self.consume_scores(z, nums)
        return self.score_pairs(
            z[None], nums, offsets, np.array([log_z], dtype=np.float32), consume
        )

    def score_pairs(
        self,
        z: Floats,
        nums: NDArray[Any],
        offsets: NDArray[np.int64],
        log_z: Floats,
        consume: Floats,
    ) -> ItemScores:
        """Return what the model says of items for several users, M values each; see `score`.

        Args:
            z: [B, H] latents.
            nums: [M] items, user by user.
            offsets: [B + 1] items of each user.
            log_z: [B].
            consume: consume scores [M].
        """
        probs = self.pair_level_probs(z, nums, offsets)
        sums = np.empty((3, len(nums)), dtype=np.float32)
        level_sums(probs, self._of_level, sums)
        rating: Floats | None = None
        if self.levels.n_rated:
            rating = sums[2] / np.maximum(sums[1], np.float32(1e-30))
        return ItemScores(
            log_p_consume=self.link(consume) - np.repeat(log_z, np.diff(offsets)),
            level_probs=probs,
            p_like=sums[0],
            expected_rating=rating,
            consume_score=consume,
        )

    def level_probs(self, z: Floats, nums: NDArray[Any] | None) -> Floats:
        """Return P(r | i, u) of items [C], [C, R]; None: of an unknown item, [1, R]."""
        if nums is None:
            return self.unknown_level_probs(z[None])
        return self.pair_level_probs(z[None], nums, np.array([0, len(nums)]))

    def pair_level_probs(self, z: Floats, nums: NDArray[Any], offsets: NDArray[np.int64]) -> Floats:
        """Return P(r | i, u) of items for several users, [M, R]; arguments as in `pair_scores`."""
        if not self.has_levels:
            return np.ones((len(nums), 1), dtype=np.float32)
        latents, factors, shifts = self._of_levels(z)
        out: Floats = np.empty((len(nums), self.levels.n_levels), dtype=np.float32)
        level_probs(
            *(self._level_out, self._loadings, self._bias),
            *(nums.astype(np.int64, copy=False), offsets),
            *(latents, factors, shifts),
            *(self._tables["factor_channels"], self._tables["table_out"], out),
        )
        return out

    def unknown_level_probs(self, z: Floats) -> Floats:
        """Return P(r | u) of an item that the model does not know, [B, R]."""
        if not self.has_levels:
            return np.ones((len(z), 1), dtype=np.float32)
        tables, n_levels = self._tables, self.levels.n_levels
        _, _, shifts = self._of_levels(z)
        bias = tables["log_overall"] + tables["level_offset"]
        logits = bias + shifts[:, :n_levels] + shifts[:, n_levels:] @ tables["table_out"]
        return np.asarray(softmax(logits, axis=1))

    def _of_levels(self, z: Floats) -> tuple[Floats, Floats, Floats]:
        """Return of latents [B, H] what levels take: [B, Hl], [B, 1 + F] and [B, R + K]."""
        tables = self._tables
        ends = self.width + np.cumsum([self._level_out.shape[2], self._loadings.shape[1]])
        latents, factors = z[:, self.width : ends[0]], z[:, ends[0] : ends[1]]
        user = factors[:, :1] * tables["table_user"]
        shifts = np.concatenate([z[:, ends[1] :] * tables["table_levels"], user], axis=1)
        latents, factors, shifts = (
            np.ascontiguousarray(part, dtype=np.float32) for part in (latents, factors, shifts)
        )
        return latents, factors, shifts


def _bits(halves: NDArray[Any]) -> NDArray[np.uint16]:
    return read_only(halves.view(np.uint16))


def _power(counts: NDArray[np.int64], exponent: float) -> Floats:
    return np.asarray(np.maximum(counts, 1).astype(np.float32) ** np.float32(exponent))


def at_the_end(history: Cells, until: int) -> Cells:
    """Return profiles with those that reach beyond `until` moved back as a whole, to end there."""
    late = np.zeros(history.n_users, dtype=np.int64)
    some = history.counts > 0
    late[some] = history.timestamp[history.offsets[1:][some] - 1] - until
    moved = history.timestamp - np.repeat(np.maximum(late, 0), history.counts)
    return dataclasses.replace(history, timestamp=moved)


def _ages(history: Cells, until: int) -> Floats:
    """Return seconds before `until`, or before a user's newest cell if that is later, [M]."""
    return np.maximum(until - at_the_end(history, until).timestamp, 0).astype(np.float32)


def _newer_cells(history: Cells, rows: NDArray[np.int64], age: Floats) -> NDArray[np.int64]:
    """Return how many cells of its profile are newer than each cell, [M]; equal ages are not."""
    if not len(age):
        return np.zeros(0, dtype=np.int64)
    last = np.append((age[1:] != age[:-1]) | (rows[1:] != rows[:-1]), True)
    run = np.cumsum(last) - last
    return np.asarray(history.offsets[1:][rows] - 1 - np.flatnonzero(last)[run])
