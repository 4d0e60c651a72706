"""The rankings of Conv4Rec as dot products: what an index stores of items, and what it is asked.

How much of a ranking's exact top the dot products find is measured here too.

Letters: B users, N items, R levels, K output channels,
D = Hc + Hl + 1 + F + R of the model's letters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysys.autoencoder.level_values import liked_levels
from raysys.autoencoder.model import Conv4Rec
from raysys.scoring.rankings import N_CANDIDATES, RANKINGS, Needs, Ranking, meets

DISCOVER_PURPOSE = 0xD15C  # seeds the draw of users that `discover` is fitted or judged on
_TOP_K = 20
_DISCOVER = "discover"
_SLOPES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.4)
_GAMMAS = (0.1, 0.25, 0.5, 1.0)
_MAX_ELEMENTS = 1 << 23  # of a [users, N] block; ten are held


@torch.no_grad()
def retrieval_vectors(model: Conv4Rec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return vectors [N, D] = [g_i, l_i] and biases [N, 2] of log P(i|u), logit P(like|i,u).

    l_i is the gradient of logit P(like | i, u) with respect to z_l at the mean training latent.
    """
    parts, like_bias = [model.consume_vectors()], torch.zeros(model.n_items)
    if meets(model.levels, Needs.LIKED):
        gradient, like_bias = like_vectors(model)
        parts.append(gradient)
    elif model.has_levels:
        parts.append(torch.zeros(model.n_items, len(model.mean_level_latent)))
    bias = torch.stack([model.consume_prior(), like_bias], dim=1)
    return torch.cat(parts, dim=1).numpy().copy(), bias.numpy().copy()


@torch.no_grad()
def like_vectors(model: Conv4Rec) -> tuple[Tensor, Tensor]:
    """Return the part l [N, Hl + 1 + F + R] of the vectors and its bias [N]."""
    mean, items = model.mean_level_latent, torch.arange(model.n_items)
    logits = model.level_logits(mean.expand(model.n_items, -1), items)
    user = model.factor_channels[:, None] * model.loadings[:, None, :]
    user[:, :, 0] = model.table_user
    tables = (model.table_out, model.level_out, user, model.table_levels)
    value, gradient = like_expansion(logits, liked_levels(model.levels), *tables)
    return gradient, value - gradient @ mean


@torch.no_grad()
def retrieval_query(model: Conv4Rec, z: Tensor, ranking: Ranking) -> tuple[Tensor, Tensor]:
    """Return queries [B, D] and weights [B, 2] of the linear form of a ranking."""
    consume, like = ranking.linear(model)
    z_c, z_l = model.split(z)
    weights = torch.tensor([consume, like], device=z.device).expand(len(z), 2)
    return torch.cat([consume * z_c, like * z_l], dim=1), weights


def like_expansion(
    logits: Tensor, liked: Tensor, table: Tensor, vectors: Tensor, user: Tensor, shares: Tensor
) -> tuple[Tensor, Tensor]:
    """Return logit P(like) [N] and its gradient with respect to z_l, [N, Hl + 1 + F + R].

    The logit orders items as P does and is closer to linear in the latent than log P, which
    saturates: at the mean latent it holds the order far from it too.

    Args:
        logits: [N, R] level logits of all items at one latent.
        liked: int64 numbers of the liked levels.
        table: [K, R], from output channels to levels.
        vectors: [N, K, Hl], from the latent to output channels.
        user: [N, K, 1 + F], from the user's factors to output channels.
        shares: [R], what the user's log shares count.
    """
    chosen = torch.zeros(logits.shape[1], dtype=torch.bool)
    chosen[liked] = True
    above, below = (logits[:, part].logsumexp(dim=1) for part in (chosen, ~chosen))
    slope = torch.where(chosen, logits - above[:, None], logits - below[:, None]).exp()
    slope = torch.where(chosen, slope, -slope)  # [N, R]
    channels = (slope @ table.T)[:, :, None]  # [N, K, 1]
    latent, factors = ((channels * part).sum(dim=1) for part in (vectors, user))
    return above - below, torch.cat([latent, factors, slope * shares], dim=1)


class _Values(NamedTuple):
    """What discover's exact score is made of, [B, N] each."""

    log_p_like: Tensor
    log_p_consume: Tensor
    consume_score: Tensor
    expected_rating: None = None


@torch.no_grad()
def candidate_recall(model: Conv4Rec, z: Tensor, rankings: Sequence[Ranking]) -> dict[str, float]:
    """Return, by ranking, the share of the exact top 20 among the 300 best candidates.

    Args:
        model: of N items.
        z: latents [B, H] of some users.
        rankings: what the model can give.
    """
    vectors, bias = (torch.from_numpy(part) for part in retrieval_vectors(model))
    recall = {}
    for ranking in rankings:
        queries, weights = retrieval_query(model, z, ranking)
        linear = queries @ vectors.T + weights @ bias.T
        recall[str(ranking)] = _held(model.scores(z, ranking), [linear])[0]
    return recall


@torch.no_grad()
def fit_discover_slope(model: Conv4Rec, z: Tensor) -> None:
    """Set the weight of logit P(like) among the discover ranking's candidates.

    It is the one whose candidates hold most of the exact top 20, at the gamma where it holds least;
    among equals the one nearest to the default. A model without that ranking is left as it is.

    Args:
        model: of N items, with the link fitted.
        z: latents [B, H] of some users, 1 or more.
    """
    if not meets(model.levels, RANKINGS[_DISCOVER].needs):
        return
    gradient, bias = like_vectors(model)
    held = torch.zeros(len(_GAMMAS), len(_SLOPES))
    for part in torch.split(z, max(1, _MAX_ELEMENTS // model.n_items)):
        consume, linear = model.consume_scores(part), model.split(part)[1] @ gradient.T + bias
        values = _Values(model.scores(part, Ranking("like")), model.log_p_consume(part), consume)
        for row, gamma in enumerate(_GAMMAS):
            ranking = Ranking(_DISCOVER, gamma)
            unlikely = ranking.linear(model)[0] * consume
            candidates = [unlikely + slope * linear for slope in _SLOPES]
            held[row] += len(part) * torch.tensor(_held(ranking.exact(values), candidates))
    worst = dict(zip(_SLOPES, (held.amin(dim=0) / len(z)).tolist(), strict=True))
    usual = math.log(float(model.discover_slope))
    best = max(_SLOPES, key=lambda slope: (round(worst[slope], 4), -abs(math.log(slope) - usual)))
    model.discover_slope.fill_(best)


def _held(exact: Tensor, candidates: Sequence[Tensor]) -> list[float]:
    """Return the shares of the top 20 by one score [B, N] among the 300 best by each of others."""
    n_items = exact.shape[1]
    best = exact.topk(min(_TOP_K, n_items), dim=1).indices
    found = []
    for scores in candidates:
        marks = torch.zeros_like(scores, dtype=torch.bool)
        marks.scatter_(1, scores.topk(min(N_CANDIDATES, n_items), dim=1).indices, True)
        found.append(float(marks.gather(1, best).float().mean()))
    return found
