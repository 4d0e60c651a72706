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
make of it: a ridge regression on the profile (rating_factors.py). h [R] is the log of how
often the user gives each level over how often all do, shrunk where there are few. Neither is
trained, nor is c (but T[0], which both pass, is): factors know the ratings that training predicts,
so c would grow without end. Biases start from level_init.py; validation may shift levels.

Zero diagonal: in training, what an item itself put into the latent is taken out of its own scores,
so every observed cell is predicted from the rest of the profile (exact for its own logits).

`consume_loss=likelihood` trains P(i | u) by its exact log-likelihood (g free, link the identity),
on large catalogues by that of a sample (losses.py).
`cosine` (default) trains unit vectors g_i = E_i by 1 - cos(x, y) between the profile's 0/1 row x
and its scores y, as ELSA does (Vancura et al., RecSys 2022) but linear; then |y|^2 needs only the
Gram matrix of g, never a B x N matrix. Where validation prefers it, the closed form takes its place
(closed_form.py). A monotone link, fitted afterwards, makes P(i | u) of the scores.
The blocks share no parameters, so no weight between their losses changes either optimum.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raysys.autoencoder.config import LEVEL_WEIGHT, Conv4RecConfig
from raysys.autoencoder.encoder import Encoder
from raysys.autoencoder.gather import of_rows, product_sums
from raysys.autoencoder.level_init import no_start
from raysys.autoencoder.level_values import expected_rating, log_p_like
from raysys.autoencoder.losses import cosine_loss, log_normalisers, sampled_log_normalisers
from raysys.autoencoder.ragged_ops import (
    Pairs,
    bag,
    factors_at,
    factors_left_out,
    level_products,
    shares_left_out,
    user_levels,
)
from raysys.data.batches import Ragged, Resident
from raysys.data.schema import RatingLevels
from raysys.scoring.rankings import Needs, Ranking

_MAX_ELEMENTS = 1 << 24  # of a [rows, N, R] block
_LEFT_OUT_USERS = 1000


class Conv4Rec(Encoder):
    """The autoencoder; `forward` returns the losses. Its arguments are those of `Encoder`."""

    @classmethod
    def restored(cls, state: dict[str, Tensor], cfg: Conv4RecConfig, levels: RatingLevels) -> Self:
        """Return the model whose state this is; its own sizes are those of the state."""
        n_items, width = state["items"].shape
        cfg = dataclasses.replace(cfg, latent=width)
        size = len(state["mean_level_latent"]) - cfg.level_latent - levels.n_levels
        start = no_start(n_items, levels, size - 1)
        model = cls(cfg, n_items=n_items, levels=levels, start=start, seed=None)
        model.load_state_dict(state, assign=True)
        return model

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
        learned = self.cfg.level_latent
        return z_l.tensor_split([learned, learned + 1 + self.n_factors], 1)

    def forward(self, batch: Ragged) -> dict[str, Tensor]:
        """Return `loss` and its parts, each a sum over the batch divided by its M cells.

        Weighted by M, the losses of the parts of a batch add up to the loss of the whole. A part
        whose parameters need no gradients is left out.
        """
        weight = self.cell_weights(batch)
        pairs = Pairs(batch, self.n_items)
        size = max(len(batch.item_num), 1)
        losses: dict[str, Tensor] = {}
        if self.items.requires_grad or not self.training:
            consume = self._consume_loss(batch, weight, pairs) / size
            losses |= {"loss": consume, "consume_loss": consume}
        if self.has_levels and (self.level_out.requires_grad or not self.training):
            logits = self._cell_level_logits(batch, weight, pairs)
            level = F.cross_entropy(logits, batch.level, reduction="sum") / size
            losses |= {"loss": losses.get("loss", 0.0) + LEVEL_WEIGHT * level, "level_loss": level}
        return losses

    def _consume_loss(self, batch: Ragged, weight: Tensor, pairs: Pairs) -> Tensor:
        """Return the consume block's loss, summed over the batch."""
        if self.cfg.consume_loss != "cosine":
            return -self._cell_log_p(batch, weight, pairs).sum()
        scaled, g = self.consume_weights(batch, weight), self.consume_vectors()
        z = bag(batch, g, scaled)
        own = pairs.total(scaled) if self.cfg.zero_diagonal else None  # as g has unit rows
        return self.typical_size * cosine_loss(z, g, batch, pairs, own)

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
        table, known = self.level_weights(batch, weight), self.user_tables()
        z = self.level_latent(batch, table)
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
            factors, shares = user.tensor_split([1 + self.n_factors], dim=1)
            left = factors_at(factors, self.loadings[batch.item_num])
        learned = of_rows(level_products, tables, places)
        return self._item_logits(learned, left, shares, batch.item_num)

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


class CatalogueScores:
    """What the model says of all items, [B, N] each, worked out when it is first asked for.

    Args:
        model: of N items.
        z: latents [B, H].
    """

    def __init__(self, model: Conv4Rec, z: Tensor) -> None:
        self._model = model
        self._z = z

    @functools.cached_property
    def consume_score(self) -> Tensor:
        """What the consume ranking sorts by."""
        return self._model.consume_scores(self._z)

    @functools.cached_property
    def log_p_consume(self) -> Tensor:
        """Log P(i | u)."""
        return self._model.log_p_consume(self._z)

    @functools.cached_property
    def _log_p_levels(self) -> Tensor:
        return self._model.log_p_levels(self._z)

    @property
    def log_p_like(self) -> Tensor:
        """Log P(a liked level | i, u)."""
        return log_p_like(self._log_p_levels, self._model.levels)

    @property
    def expected_rating(self) -> Tensor:
        """E[rating | i, u] in rating units."""
        return expected_rating(self._log_p_levels, self._model.levels)


def left_out(model: Conv4Rec, resident: Resident) -> Tensor | None:
    """Return `factors_left_out` of all cells, [M, 2], where the model has a use for it."""
    if model.levels.n_rated < 2 or not model.cfg.zero_diagonal:
        return None
    users = np.arange(resident.n_users)
    parts = np.array_split(users, max(1, len(users) // _LEFT_OUT_USERS))
    batches = (resident.users(part) for part in parts)
    tables, n_items = model.user_tables(), model.n_items
    return torch.cat([factors_left_out(b, Pairs(b, n_items), tables) for b in batches])
