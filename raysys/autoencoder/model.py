"""Conv4Rec: a rating-aware autoencoder over ragged profiles.

Source: Ledent, Kasalicky, Alves, Lauw, "Conv4Rec: A 1-by-1 Convolutional AutoEncoder for User
Profiling through Joint Analysis of Implicit and Explicit Feedbacks", IEEE TNNLS 36(12), 2025;
arXiv 2509.07499. Layer sizes and losses are this project's own construction.

    B users, N items, R levels, C input and K output channels, M observed cells (i, r) of a batch
    Hc, Hl sizes of the latent's two blocks: what will be consumed, and at which level

    1x1 convolution over levels, then an embedding bag over the profile (s = |profile|^-1/2):
        z_c = s * sum a[r] E_i            z_l = s * sum_c A[r, c] F[i, c] + b, then f and h
    joint likelihood, factored so that levels are computed at observed cells only:
        P(i, r | u) = P(i | u) P(r | i, u)
        P(i | u) = softmax_i link(g_i . z_c + prior_i)
        P(r | i, u) = softmax_r (bias[i, r] + sum_k T[k, r] hidden[k] + d[r] h[r])
        hidden[k] = W[i, k] . z_l + t[k] f_0 + (c v_i . f where k = 0)

f_0 and f [F] are how far the user rates above the items' means, and what factors v_i of the items
make of it: a ridge regression on the profile (models/rating_factors.py). h [R] is the log of how
often the user gives each level over how often all do, shrunk where there are few. Neither is
trained, nor is c (but T[0], which both pass, is): factors know the ratings that training predicts,
so c would grow without end. Biases start from models/level_start.py; validation may shift levels.

Zero diagonal: in training, what an item itself put into the latent is taken out of its own scores,
so every observed cell is predicted from the rest of the profile (exact for its own logits).

`consume_loss=likelihood` trains P(i | u) by its exact log-likelihood (g free, link the identity),
on large catalogues by that of a sample (models/consume_loss.py).
`cosine` (default) trains unit vectors g_i = E_i by 1 - cos(x, y) between the profile's 0/1 row x
and its scores y, as ELSA does (Vancura et al., RecSys 2022) but linear; then |y|^2 needs only the
Gram matrix of g, never a B x N matrix. Where validation prefers it, the closed form takes its place
(models/closed_form.py). A monotone link, fitted afterwards, makes P(i | u) of the scores.
The blocks share no parameters, so no weight between their losses changes either optimum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from raysys.autoencoder.calibration import Link
from raysys.autoencoder.config import LEVEL_WEIGHT, Conv4RecConfig
from raysys.autoencoder.gather import of_rows, product_sums
from raysys.autoencoder.item_scores import (
    CatalogueScores,
    ItemScores,
    expected_rating,
    log_p_like,
)
from raysys.autoencoder.level_init import LevelStart, no_start
from raysys.autoencoder.losses import cosine_loss, log_normalisers, sampled_log_normalisers
from raysys.autoencoder.ragged_ops import (
    USER_TABLES,
    Pairs,
    UserTables,
    at_levels,
    bag,
    bag_channels,
    factors_at,
    factors_left_out,
    level_products,
    level_tables,
    shares_left_out,
    sum_rows,
    user_levels,
)
from raysys.autoencoder.rankings import Needs, Ranking, rankings_of
from raysys.autoencoder.rating_factors import N_FACTORS
from raysys.data.batches import Ragged
from raysys.data.schema import RatingLevels

_DAY_S = 86_400.0
_MAX_ELEMENTS = 1 << 24  # of a [rows, N, R] block
_START_STD = 0.05
_START_SHARE = 0.5  # of d, and of what f_0 keeps beside it
_FACTOR_SHARE = 0.7  # c


class Conv4Rec(nn.Module):
    """The autoencoder; `forward` returns the losses.

    Args:
        cfg: its settings.
        n_items: catalogue size N.
        levels: the interaction levels; with one level there is no level block.
        counts: [N, R] interactions of the fitted period; default none.
        start: of the level block; default without interactions.
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

        self.items = normal(n_items, cfg.latent)  # E
        self.level_scale = nn.Parameter(torch.ones(n_levels))  # a
        self.solved: Tensor  # whether the closed form holds: rows of E then keep their length
        self.register_buffer("solved", torch.zeros((), dtype=torch.bool))
        self.scales: Tensor  # of E in the encoder and in the decoder, where it does
        self.register_buffer("scales", torch.ones(2, n_items))
        if cfg.consume_loss == "likelihood":
            self.decoder = normal(n_items, cfg.latent)  # g
            self.consume_bias = nn.Parameter((counts.sum(dim=1) + 1).log())
        if n_levels > 1:
            self.level_in = normal(n_items, cfg.channels, cfg.level_latent)  # F
            self.level_out = normal(n_items, cfg.level_channels, cfg.level_latent)  # W
            sizes, first = (cfg.channels, cfg.level_channels), torch.eye(1, cfg.level_channels)[0]
            tables = level_tables(levels, counts.sum(dim=0), *sizes, draw)
            self.table_in, self.table_out = map(nn.Parameter, tables)  # A, T
            self.table_user = nn.Parameter(_START_SHARE * first)  # t
            self.table_levels = nn.Parameter(torch.full((n_levels,), _START_SHARE))  # d
            self.level_shift = nn.Parameter(torch.zeros(cfg.level_latent))  # b
            start = no_start(n_items, levels) if start is None else start
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
        size = cfg.level_latent + 1 + N_FACTORS + n_levels
        self.register_buffer("mean_level_latent", torch.zeros(size))
        self.level_offset: Tensor  # what validation added to every item's level_bias
        self.register_buffer("level_offset", torch.zeros(n_levels))
        self.link = Link()
        self.discover_slope: Tensor  # weight of logit P(like) in discover's linear form
        self.register_buffer("discover_slope", torch.tensor(0.1))
        self._consume: tuple[Tensor, Tensor] | None = None

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

    @torch.no_grad()
    def solve_consume(self, vectors: Tensor, scales: Tensor) -> None:
        """Take the closed form's vectors A [N, Hc], of any width, and their scales [2, N]."""
        self.items.data, self.scales.data = vectors, scales
        self.level_scale.data = torch.ones_like(self.level_scale)
        self.solved.data = torch.ones_like(self.solved)

    def own_scores(self, batch: Ragged) -> Tensor:
        """Return what every cell contributes to the consume score of its own item, [M]."""
        one, other = self._consume_blocks()
        own = product_sums(one, batch.item_num, other, batch.item_num)
        return self.consume_weights(batch, self.cell_weights(batch)) * own

    def consume_prior(self) -> Tensor:
        """Return the part of the consume scores that no profile changes, [N]."""
        return self.consume_bias if self.cfg.consume_loss == "likelihood" else self.prior

    def encode(self, batch: Ragged) -> Tensor:
        """Return the latents z = [z_c, z_l] of profiles, [B, H]; an empty one gets the prior."""
        weight = self.cell_weights(batch)
        parts = [bag(batch, self._consume_blocks()[0], self.consume_weights(batch, weight))]
        if self.has_levels:
            parts.append(self._level_latent(batch, self._level_weights(batch, weight)))
            parts.append(user_levels(batch, self.user_tables()))
        return torch.cat(parts, dim=1)

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

    def _level_latent(self, batch: Ragged, table: Tensor) -> Tensor:
        """Return the learned part of z_l, [B, Hl], by the cells' weights of channels [M, C]."""
        return bag_channels(batch, self.level_in, table) + self.level_shift

    def _level_weights(self, batch: Ragged, weight: Tensor) -> Tensor:
        """Return what z_l counts each cell's channels by, from the cells' weights, [M, C]."""
        return at_levels(self.table_in, batch) * weight[:, None]

    def user_tables(self) -> UserTables:
        """Return what the users' side of the level block follows from; no step changes it."""
        tables = {name: getattr(self, name) for name in USER_TABLES}
        return UserTables(**tables, rated=self.levels.n_rated > 1)

    def level_logits(self, z_l: Tensor, items: Tensor | None) -> Tensor:
        """Return the level logits of pairs: z_l [M, Hl + 1 + F + R], item_nums [M] -> [M, R].

        Items None: those of an item that nothing is known of.
        """
        latent, factors, shares = self._level_parts(z_l)
        if items is None:
            bias, hidden = self.log_overall + self.level_offset, factors[:, :1] * self.table_user
            return bias + hidden @ self.table_out + shares * self.table_levels
        learned = level_products(latent, self.level_out[items])
        left = factors_at(factors, self.loadings[items])
        return self._item_logits(learned, left, shares, items)

    def _item_logits(self, learned: Tensor, left: Tensor, shares: Tensor, items: Tensor) -> Tensor:
        """Return level logits [M, R] from W z_l [M, K], f_0 and v_i . f [M, 2], and h [M, R]."""
        factor, liking = left[:, :1], left[:, 1:]
        hidden = factor * self.table_user + learned + liking * self.factor_channels
        bias = of_rows(lambda rows: rows, [self.level_bias], [items])
        with torch.autocast(bias.device.type, enabled=False):  # products of R and K are no work
            return bias + hidden @ self.table_out + shares * self.table_levels

    def _level_parts(self, z_l: Tensor) -> tuple[Tensor, ...]:
        """Return the learned latent [B, Hl], the factors [B, 1 + F] and h [B, R]."""
        return z_l.tensor_split([self.cfg.level_latent, self.cfg.level_latent + 1 + N_FACTORS], 1)

    def forward(self, batch: Ragged) -> dict[str, Tensor]:
        """Return `loss` and its parts, each a sum over the batch divided by its M cells.

        Weighted by M, the losses of the parts of a batch add up to the loss of the whole.
        """
        weight = self.cell_weights(batch)
        pairs = Pairs(batch, self.n_items)
        size = max(len(batch.item_num), 1)
        if self.cfg.consume_loss == "cosine":
            scaled, g = self.consume_weights(batch, weight), self.consume_vectors()
            z = bag(batch, g, scaled)
            own = pairs.total(scaled) if self.cfg.zero_diagonal else None  # as g has unit rows
            consume = self.typical_size * cosine_loss(z, g, batch, pairs, own) / size
        else:
            consume = -self._cell_log_p(batch, weight, pairs).sum() / size
        losses = {"loss": consume, "consume_loss": consume}
        if self.has_levels:
            logits = self._cell_level_logits(batch, weight, pairs)
            level = F.cross_entropy(logits, batch.level, reduction="sum") / size
            losses |= {"loss": consume + LEVEL_WEIGHT * level, "level_loss": level}
        return losses

    def _cell_log_p(self, batch: Ragged, weight: Tensor, pairs: Pairs) -> Tensor:
        """Return log P(i | u) of the cells, [M], without the items' own share."""
        z = bag(batch, self.items, self.consume_weights(batch, weight))
        g, bias, at = self.decoder, self.consume_bias, (pairs.row, pairs.item)
        scores = product_sums(z, pairs.row, g, pairs.item) + bias[pairs.item]
        own = pairs.total(self.own_scores(batch)) if self.cfg.zero_diagonal else None
        scores = scores if own is None else scores - own
        if self.cfg.sampled(self.n_items):
            whole = sampled_log_normalisers(z, g, bias, at, scores, n_sampled=self.cfg.negatives)
        else:
            whole = log_normalisers(z, g, bias, at, own)
        return pairs.at_cells(scores - whole[pairs.row])

    def _cell_level_logits(self, batch: Ragged, weight: Tensor, pairs: Pairs) -> Tensor:
        """Return logits of P(r | i, u) at the cells, [M, R], without the items' own share."""
        table, known = self._level_weights(batch, weight), self.user_tables()
        z = self._level_latent(batch, table)
        keep = F.dropout(torch.ones_like(z), self.cfg.dropout, self.training)
        tables = [z * keep, self.level_out]
        places: list[Tensor | None] = [batch.rows, batch.item_num]
        if self.cfg.zero_diagonal:
            tables += [keep, pairs.at_cells(pairs.total(table)), self.level_in]
            places += [batch.rows, None, batch.item_num]
            left = factors_left_out(batch, pairs, known) if batch.left is None else batch.left
            shares = shares_left_out(batch, pairs, known)
        else:
            user = user_levels(batch, known)[batch.rows]
            factors, shares = user.tensor_split([1 + N_FACTORS], dim=1)
            left = factors_at(factors, self.loadings[batch.item_num])
        learned = of_rows(level_products, tables, places)
        return self._item_logits(learned, left, shares, batch.item_num)

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

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the blocks z_c [B, Hc] and z_l [B, Hl + 1 + F + R] (width 0 without levels)."""
        width = self.items.shape[1]  # not `cfg.latent` where the closed form was just taken
        return z[:, :width], z[:, width:]

    def consume_scores(self, z: Tensor) -> Tensor:
        """Return what the consume ranking sorts by, [B, N]."""
        return torch.addmm(self.consume_prior(), self.split(z)[0], self.consume_vectors().T)

    def log_p_consume(self, z: Tensor) -> Tensor:
        """Return log P(i | u), [B, N]."""
        return F.log_softmax(self.link(self.consume_scores(z)), dim=1)

    def log_p_levels(self, z: Tensor, items: Tensor | None = None) -> Tensor:
        """Return log P(r | i, u) of items [C] (default all) for every user, [B, C, R]."""
        items = torch.arange(self.n_items, device=z.device) if items is None else items
        if not self.has_levels:
            return torch.zeros(len(z), len(items), 1, device=z.device)
        latent, factors, shares = self._level_parts(self.split(z)[1])
        hidden = torch.einsum("bh,ckh->bck", latent, self.level_out[items])
        hidden = hidden + (factors[:, :1] * self.table_user)[:, None, :]
        liking = factors[:, 1:] @ self.loadings[items, 1:].T  # [B, C]
        hidden = hidden + liking[:, :, None] * self.factor_channels
        user = (shares * self.table_levels)[:, None, :]
        return F.log_softmax(self.level_bias[items] + hidden @ self.table_out + user, dim=2)

    @torch.no_grad()
    def scores(self, z: Tensor, ranking: Ranking) -> Tensor:
        """Return the exact scores of a ranking, [B, N]; higher is better."""
        if ranking.rule.needs is Needs.NOTHING:
            scores: Tensor = ranking.exact(CatalogueScores(self, z))
            return scores
        rows = max(1, _MAX_ELEMENTS // (self.n_items * self.levels.n_levels))
        parts = torch.split(z, rows)
        return torch.cat([ranking.exact(CatalogueScores(self, part)) for part in parts])

    @torch.no_grad()
    def score_items(self, z: Tensor, item_nums: NDArray[np.integer[Any]]) -> ItemScores:
        """Return probabilities and the expected rating of items [C] for the user z [H]."""
        items = torch.from_numpy(np.asarray(item_nums, dtype=np.int64)).to(z.device)
        log_p = self.log_p_levels(z[None], items)
        rating = expected_rating(log_p[0], self.levels).numpy() if self.levels.n_rated else None
        scores = self.consume_scores(z[None])
        return ItemScores(
            log_p_consume=F.log_softmax(self.link(scores), dim=1)[0, items].numpy(),
            level_probs=log_p[0].exp().numpy(),
            p_like=log_p_like(log_p[0], self.levels).exp().numpy(),
            expected_rating=rating,
            consume_score=scores[0, items].numpy(),
        )

    def frozen(self) -> Conv4Rec:
        """Return the model in eval mode, its weights never to change again."""
        self.requires_grad_(False).eval()
        self._consume = self._consume_blocks()
        return self
