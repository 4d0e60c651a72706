"""The model as a serving process has it: latents of profiles, and scores of some items.

Letters: B users, M cells, N items, C candidates, H = Hc + Hl + 1 + F + R of the model's letters.

The formulas are those of `autoencoder/encoder.py` and `autoencoder/model.py`, on the compact rows
of `files.py`: nothing here walks the catalogue but `all_consume_scores`.
"""

from __future__ import annotations

import copy
import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from raysys.data.arrays import Floats, read_only
from raysys.data.cells import Cells
from raysys.scoring.files import Weights
from raysys.scoring.item_scores import ItemScores
from raysys.scoring.kernels import all_products, row_products
from raysys.scoring.rankings import Ranking, rankings_of
from raysys.scoring.steps import consume_scores, item_scores, latents, level_probs_of, linked

Held = tuple[Any, ...]

_DAY_S = 86_400.0
_NO_TIMES: NDArray[np.int64] = np.zeros(0, dtype=np.int64)


class Link:
    """The link of consume scores, see `autoencoder/calibration.py`.

    Args:
        tables: of the model.

    Attributes:
        held: what `steps.linked` reads.
    """

    def __init__(self, tables: Any) -> None:
        self._slope = float(tables["link.typical_slope"])
        parameters = _table(np.exp(tables["link.parameters_log"]))
        self.held: Held = (bool(tables["link.fitted"]), parameters, *tables["link.shift"])

    def __call__(self, scores: Floats) -> Floats:
        """Return unnormalised log probabilities of scores, of their shape."""
        flat = np.ascontiguousarray(scores, dtype=np.float32).reshape(-1)
        return np.asarray(linked(self.held, flat).reshape(scores.shape))

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
        consuming: what `steps.log_z` reads.
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
        self._of_level = _table(np.stack(of_level))
        self.has_levels = "level_in" in rows
        self._weights, self._n_factors, self._size = rows, 0, self.width
        if self.has_levels:
            self._n_factors = rows["loadings"].shape[1]
            self._size += rows["level_in"].shape[2] + self._n_factors + self.levels.n_levels
        self.consuming = self._consuming()

    @cached_property
    def _profiles(self) -> Held:
        """What `latents` reads."""
        tables, rows = self._tables, self._weights
        half_life = tables["profile_half_life_days"] * _DAY_S
        settings = _table(np.array([half_life, tables["exponent"], *tables["query"]]))
        consume = self._encoder, read_only(self._scales[0]), _table(tables["level_scale"]), settings
        if not self.has_levels:
            table, row = _table(np.zeros((0, 1))), _table(np.zeros(0))
            halves = read_only(np.zeros((0, 1), dtype=np.uint16))
            return *consume, halves, table, row, row, table, table, table, row
        level_in = _bits(rows["level_in"])
        residual = read_only(rows["residual"])
        return (
            *(*consume, level_in.reshape(-1, level_in.shape[2])),
            *(_table(tables[name]) for name in ("table_in", "level_shift", "log_overall")),
            residual if self.levels.n_rated > 1 else residual[:0],
            *(read_only(rows[name]) for name in ("loadings", "variance")),
            _table(tables["penalties"]),
        )

    @cached_property
    def _leveled(self) -> Held:
        """What `item_scores` reads."""
        rows, tables = self._weights, self._tables
        if not self.has_levels:
            table, row = _table(np.zeros((0, 1))), _table(np.zeros(0))
            halves = read_only(np.zeros((0, 1, 1), dtype=np.uint16))
            return self._of_level, halves, table, table, row, table, row, row
        names = "factor_channels", "table_out", "table_user", "table_levels"
        return (
            self._of_level,
            _bits(rows["level_out"]),
            *(read_only(rows[name]) for name in ("loadings", "level_bias")),
            *(_table(tables[name]) for name in names),
        )

    def with_prior(self, prior: Floats) -> Scorer:
        """Return the scorer with another prior [N]."""
        moved = copy.copy(self)
        moved.prior = _table(prior)
        moved.consuming = moved._consuming()
        return moved

    def _consuming(self) -> Held:
        return self._rows, read_only(self._scales[1]), self.prior, *self.link.held

    # -- users -----------------------------------------------------------------------------

    def encode(self, history: Cells, fitted_until: int | None) -> Floats:
        """Return the latents [B, H] of profiles of known items; an empty one gets the prior.

        Ages count from the end of the fitted period, or from a user's newest cell if that is
        later; so they depend neither on the clock nor on who else is in the batch.
        """
        z = np.empty((history.n_users, self._size), dtype=np.float32)
        times = _NO_TIMES if fitted_until is None else history.timestamp.astype(np.int64)
        latents(
            self._profiles,
            history.item_num.astype(np.int64),
            history.level.astype(np.int64),
            times,
            history.offsets.astype(np.int64),
            fitted_until or 0,
            z,
        )
        return z

    def query(self, z: Floats, ranking: Ranking) -> tuple[Floats, Floats]:
        """Return queries [B, H] and weights [B, 2] of the linear form of a ranking."""
        consume, like = ranking.linear(self)
        weights = np.array([[consume, like]] * len(z), dtype=np.float32).reshape(-1, 2)
        query = z * np.float32(like)
        np.multiply(z[:, : self.width], np.float32(consume), out=query[:, : self.width])
        return query, weights

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
        out = np.empty(len(nums), dtype=np.float32)
        part = np.ascontiguousarray(z[:, : self.width], dtype=np.float32)
        consume_scores(self.consuming, part, nums.astype(np.int64), offsets, out)
        return out

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
        offsets, single = np.array([0, len(nums)]), np.array([log_z], dtype=np.float32)
        if consume is None:
            consume = self.consume_scores(z, nums)
        return self.score_pairs(z[None], nums, offsets, single, consume)

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
        log_p, probs, sums = self.room(len(nums))
        users = np.ascontiguousarray(z, dtype=np.float32)
        pairs = users, nums.astype(np.int64), offsets
        of_pairs = log_z, np.asarray(consume, dtype=np.float32)
        item_scores(self._leveled, self.link.held, *pairs, *of_pairs, log_p, probs, sums)
        return ItemScores(
            log_p_consume=log_p,
            level_probs=probs,
            p_like=sums[0],
            expected_rating=sums[2] if self.levels.n_rated else None,
            consume_score=consume,
        )

    def room(self, size: int) -> tuple[Floats, Floats, Floats]:
        """Return what `steps.item_scores` writes for so many pairs."""
        log_p, probs = (
            np.empty(size, np.float32),
            np.empty((size, self.levels.n_levels), np.float32),
        )
        return log_p, probs, np.empty((3, size), np.float32)

    @property
    def held(self) -> tuple[Held, Held]:
        """What `steps.consume_scores` and `steps.item_scores` read."""
        return self.consuming, self._leveled

    def level_probs(self, z: Floats, nums: NDArray[Any] | None) -> Floats:
        """Return P(r | i, u) of items [C], [C, R]; None: of an unknown item, [1, R]."""
        if nums is None:
            return self.unknown_level_probs(z[None])
        return self.pair_level_probs(z[None], nums, np.array([0, len(nums)]))

    def pair_level_probs(self, z: Floats, nums: NDArray[Any], offsets: NDArray[np.int64]) -> Floats:
        """Return P(r | i, u) of items for several users, [M, R]; arguments as in `pair_scores`."""
        out = np.empty((len(nums), self.levels.n_levels), dtype=np.float32)
        users = np.ascontiguousarray(z, dtype=np.float32)
        level_probs_of(self._leveled, users, nums.astype(np.int64), offsets, out)
        return out

    def unknown_level_probs(self, z: Floats) -> Floats:
        """Return P(r | u) of an item that the model does not know, [B, R]."""
        if not self.has_levels:
            return np.ones((len(z), 1), dtype=np.float32)
        tables, n_levels = self._tables, self.levels.n_levels
        shifts = z[:, -n_levels:] * tables["table_levels"]
        first = z.shape[1] - n_levels - self._n_factors
        user = z[:, first : first + 1] * tables["table_user"]
        bias = tables["log_overall"] + tables["level_offset"]
        return np.asarray(softmax(bias + shifts + user @ tables["table_out"], axis=1))


def _table(values: NDArray[Any]) -> Floats:
    """Return small values as kernels read them."""
    return read_only(np.ascontiguousarray(values, dtype=np.float32))


def _bits(halves: NDArray[Any]) -> NDArray[np.uint16]:
    return read_only(halves.view(np.uint16))


def at_the_end(history: Cells, until: int) -> Cells:
    """Return profiles with those that reach beyond `until` moved back as a whole, to end there."""
    late = np.zeros(history.n_users, dtype=np.int64)
    some = history.counts > 0
    late[some] = history.timestamp[history.offsets[1:][some] - 1] - until
    moved = history.timestamp - np.repeat(np.maximum(late, 0), history.counts)
    return dataclasses.replace(history, timestamp=moved)
