"""The rankings of Conv4Rec as dot products: what an index stores of items, and what it is asked.

Letters: B users, N items, R levels, K output channels,
D = Hc + Hl + 1 + F + R of the model's letters.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysys.autoencoder.item_scores import liked_levels
from raysys.autoencoder.model import Conv4Rec


@torch.no_grad()
def retrieval_vectors(model: Conv4Rec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return vectors [N, D] = [g_i, l_i] and biases [N, 2] of log P(i|u), logit P(like|i,u).

    l_i is the gradient of logit P(like | i, u) with respect to z_l at the mean training latent.
    """
    parts, like_bias = [model.consume_vectors()], torch.zeros(model.n_items)
    if "like" in model.available_rankings:
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
def retrieval_query(
    model: Conv4Rec, z: Tensor, ranking: str, gamma: float
) -> tuple[Tensor, Tensor]:
    """Return queries [B, D] and weights [B, 2] of the linear form of a ranking."""
    discover = (-gamma * model.link.slope(), float(model.discover_slope))
    consume, like = {"consume": (1.0, 0.0), "discover": discover}.get(ranking, (0.0, 1.0))
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
