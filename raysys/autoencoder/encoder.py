"""The encoder of Conv4Rec: profiles -> latents, and the parameters of both directions.

The letters and formulas are those of `autoencoder/model.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysys.autoencoder.calibration import Link
from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.gather import product_sums
from raysys.autoencoder.level_init import LevelStart, no_start
from raysys.autoencoder.ragged_ops import (
    USER_TABLES,
    UserTables,
    at_levels,
    bag,
    bag_channels,
    level_tables,
    newer_cells,
    sum_rows,
    user_levels,
)
from raysys.data.batches import Ragged
from raysys.data.schema import RatingLevels
from raysys.scoring.rankings import rankings_of

_DAY_S = 86_400.0
_START_STD = 0.05
_START_SHARE = 0.5  # of d, and of what f_0 keeps beside it
_FACTOR_SHARE = 0.7  # c


class Encoder(nn.Module):
    """The parameters of the autoencoder, and the latents that it makes of profiles.

    Args:
        cfg: its settings.
        n_items: catalogue size N.
        levels: the interaction levels; with one level there is no level block.
        counts: [N, R] interactions of the fitted period; default none.
        start: of the level block, whose factors it has; default without interactions or factors.
        seed: of the initial weights; None leaves them unset.
    """

    def __init__(
        self,
        cfg: Conv4RecConfig,
        *,
        n_items: int,
        levels: RatingLevels,
        counts: Tensor | None = None,
        start: LevelStart | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        self.cfg, self.levels, self.n_items = cfg, levels, n_items
        self.available_rankings = rankings_of(levels)
        n_levels = levels.n_levels
        counts = torch.zeros(n_items, n_levels) if counts is None else counts.float()
        draw = torch.Generator().manual_seed(seed or 0)

        def normal(*shape: int) -> nn.Parameter:
            values = torch.empty(*shape)
            return nn.Parameter(
                values if seed is None else values.normal_(std=_START_STD, generator=draw)
            )

        latent = cfg.latent_of(n_items)
        self.items = normal(n_items, latent)  # E
        self.level_scale = nn.Parameter(torch.ones(n_levels))  # a
        self.solved: Tensor  # whether the closed form holds: rows of E then keep their length
        self.register_buffer("solved", torch.zeros((), dtype=torch.bool))
        self.scales: Tensor  # of E in the encoder and in the decoder, where it does
        self.register_buffer("scales", torch.ones(2, n_items))
        if cfg.consume_loss == "likelihood":
            self.decoder = normal(n_items, latent)  # g
            self.consume_bias = nn.Parameter((counts.sum(dim=1) + 1).log())
        start = no_start(n_items, levels) if start is None else start
        if n_levels > 1:
            self.level_in = normal(n_items, cfg.channels, cfg.level_latent)  # F
            self.level_out = normal(n_items, cfg.level_channels, cfg.level_latent)  # W
            sizes, first = (cfg.channels, cfg.level_channels), torch.eye(1, cfg.level_channels)[0]
            tables = level_tables(levels, counts.sum(dim=0), *sizes, draw)
            self.table_in, self.table_out = map(nn.Parameter, tables)  # A, T
            self.table_user = nn.Parameter(_START_SHARE * first)  # t
            self.table_levels = nn.Parameter(torch.full((n_levels,), _START_SHARE))  # d
            self.level_shift = nn.Parameter(torch.zeros(cfg.level_latent))  # b
            self.level_bias = nn.Parameter(start.log_shares.clone())
            self.log_overall: Tensor
            self.loadings: Tensor
            self.factor_channels: Tensor  # c
            self.register_buffer("factor_channels", _FACTOR_SHARE * first, persistent=False)
            for name in USER_TABLES:
                self.register_buffer(name, getattr(start, name).clone())
        # `prior` orders items for an empty profile before anything else is known
        popularity = (counts.sum(dim=1) + 0.5).log()
        self.prior: Tensor
        self.register_buffer("prior", 1e-6 * (popularity - popularity.max()))
        self.typical_size: Tensor
        self.register_buffer("typical_size", counts.sum().clamp_min(1) / n_items)
        self.mean_level_latent: Tensor
        size = cfg.level_latent + start.loadings.shape[1] + n_levels
        self.register_buffer("mean_level_latent", torch.zeros(size))
        self.level_offset: Tensor  # what validation added to every item's level_bias
        self.register_buffer("level_offset", torch.zeros(n_levels))
        self.query: Tensor  # length exponent and recency of z_c, see timing/form.py
        self.register_buffer("query", torch.zeros(2))
        self.link = Link()
        self.discover_slope: Tensor  # weight of logit P(like) in discover's linear form
        self.register_buffer("discover_slope", torch.tensor(0.1))
        self._consume: tuple[Tensor, Tensor] | None = None

    @property
    def width(self) -> int:
        """Size Hc of the consume block: `cfg.latent`, but where the closed form took another."""
        return self.items.shape[1]

    @property
    def n_factors(self) -> int:
        """Number F of rating factors."""
        return self.loadings.shape[1] - 1 if self.has_levels else 0

    @property
    def has_levels(self) -> bool:
        """Tell whether there is anything to say about levels."""
        return self.levels.n_levels > 1

    def consume_vectors(self) -> Tensor:
        """Return g, the item vectors of the consume scores, [N, Hc]."""
        return self._consume_blocks()[1]

    def _consume_blocks(self) -> tuple[Tensor, Tensor]:
        """Return the item vectors of the consume block's encoder and decoder, [N, Hc] each."""
        if self._consume is not None:
            return self._consume
        if self.cfg.consume_loss == "likelihood":
            return self.items, self.decoder
        if self.solved:
            return self.items * self.scales[0, :, None], self.items * self.scales[1, :, None]
        unit = F.normalize(self.items, dim=1)
        return unit, unit

    @contextlib.contextmanager
    def steady(self) -> Iterator[None]:
        """Work out the item vectors of the consume block once; no weight changes in the block."""
        before = self._consume
        self._consume = self._consume_blocks()
        try:
            yield
        finally:
            self._consume = before

    @torch.no_grad()
    def solve_consume(self, vectors: Tensor, scales: Tensor) -> None:
        """Take the closed form's vectors A [N, Hc], of any width, and their scales [2, N]."""
        self.items.data, self.scales.data = vectors, scales
        self.level_scale.data = torch.ones_like(self.level_scale)
        self.solved.data = torch.ones_like(self.solved)

    @torch.no_grad()
    def follow_time(self, lift: Tensor, *, length: float, recency: float) -> None:
        """Take the time form's factors of items [N], and its numbers of queries.

        Rows of E keep their length from here on, as those of the closed form do.
        """
        if not self.solved:
            self.items.data = F.normalize(self.items, dim=1)
            self.scales.data = torch.ones_like(self.scales)
            self.solved.data = torch.ones_like(self.solved)
        self.scales.data = torch.stack([self.scales[0], self.scales[1] * lift.to(self.scales)])
        if self._consume is not None:
            one, other = self._consume
            self._consume = one, other * lift.to(other)[:, None]
        self.query.data = torch.tensor([length, recency]).to(self.query)

    def _asked(self, batch: Ragged, length: float, recency: float) -> Tensor:
        """Return what the time form multiplies each cell's weight in z_c by, [M]."""
        factor = batch.counts.clamp_min(1).float().pow(-length)[batch.rows]
        if recency and batch.age is not None:
            factor = factor * torch.exp2(-newer_cells(batch).float() / recency)
        return factor

    def own_scores(self, batch: Ragged) -> Tensor:
        """Return what every cell contributes to the consume score of its own item, [M]."""
        one, other = self._consume_blocks()
        own = product_sums(one, batch.item_num, other, batch.item_num)
        asked = self._asked(batch, *self.query.tolist())
        return self.consume_weights(batch, self.cell_weights(batch)) * asked * own

    def consume_prior(self) -> Tensor:
        """Return the part of the consume scores that no profile changes, [N]."""
        return self.consume_bias if self.cfg.consume_loss == "likelihood" else self.prior

    def encode(self, batch: Ragged) -> Tensor:
        """Return the latents z = [z_c, z_l] of profiles, [B, H]; an empty one gets the prior."""
        weight = self.cell_weights(batch)
        parts = [self.consume_latent(batch, weight, *self.query.tolist())]
        if self.has_levels:
            parts.append(self.level_latent(batch, self.level_weights(batch, weight)))
            parts.append(user_levels(batch, self.user_tables()))
        return torch.cat(parts, dim=1)

    def consume_latent(
        self, batch: Ragged, weight: Tensor, length: float, recency: float
    ) -> Tensor:
        """Return z_c, [B, Hc], by the cells' weights [M] and the time form's numbers of queries."""
        asked = self.consume_weights(batch, weight) * self._asked(batch, length, recency)
        return bag(batch, self._consume_blocks()[0], asked)

    def cell_weights(self, batch: Ragged) -> Tensor:
        """Return each cell's weight in its profile's latent, s included, [M]."""
        half_life, exponent = self.cfg.profile_half_life_days, self.cfg.profile_exponent
        if half_life == 0 or batch.age is None:
            return batch.counts.clamp_min(1).float().pow(-exponent)[batch.rows]
        weight = torch.exp2(-batch.age / (half_life * _DAY_S))
        return weight * sum_rows(weight, batch).clamp_min(1e-6).pow(-exponent)[batch.rows]

    def consume_weights(self, batch: Ragged, weight: Tensor) -> Tensor:
        """Return what z_c counts each cell by, from the cells' weights, [M]."""
        return weight * at_levels(self.level_scale, batch)

    def level_latent(self, batch: Ragged, table: Tensor) -> Tensor:
        """Return the learned part of z_l, [B, Hl], by the cells' weights of channels [M, C]."""
        return bag_channels(batch, self.level_in, table) + self.level_shift

    def level_weights(self, batch: Ragged, weight: Tensor) -> Tensor:
        """Return what z_l counts each cell's channels by, from the cells' weights, [M, C]."""
        return at_levels(self.table_in, batch) * weight[:, None]

    def user_tables(self) -> UserTables:
        """Return what the users' side of the level block follows from; no step changes it."""
        tables = {name: getattr(self, name) for name in USER_TABLES}
        return UserTables(**tables, rated=self.levels.n_rated > 1)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the blocks z_c [B, Hc] and z_l [B, Hl + 1 + F + R] (width 0 without levels)."""
        return z[:, : self.width], z[:, self.width :]

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the optimiser's groups: decay acts on the level block's item vectors only."""
        decayed = [self.level_in, self.level_out] if self.has_levels else []
        user = [self.table_user, self.table_levels] if self.has_levels else []
        fast = [self.level_scale, *user]
        special = {id(p) for p in [*decayed, *fast]}
        rest = [p for p in self.parameters() if id(p) not in special]
        return [
            {"params": rest, "lr": lr, "weight_decay": 0.0},
            {"params": fast, "lr": 10 * lr, "weight_decay": 0.0},
            {"params": decayed, "lr": lr, "weight_decay": self.cfg.weight_decay},
        ]

    def frozen(self) -> Self:
        """Return the model in eval mode, its weights never to change again."""
        self.requires_grad_(False).eval()
        self._consume = self._consume_blocks()
        return self
