"""How much of a ranking's exact top the linear form finds that retrieval searches with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from raysys.autoencoder.linear_form import like_vectors, retrieval_query, retrieval_vectors
from raysys.autoencoder.model import Conv4Rec

TOP_K = 20
N_CANDIDATES = 300
_SLOPES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.4)
_GAMMAS = (0.1, 0.25, 0.5, 1.0)
_MAX_ELEMENTS = 1 << 23  # of a [users, N] block; ten are held


@torch.no_grad()
def candidate_recall(model: Conv4Rec, z: Tensor, *, gamma: float) -> dict[str, float]:
    """Return, for every ranking, the share of the exact top 20 among the 300 best candidates.

    Args:
        model: of N items.
        z: latents [B, H] of some users.
        gamma: of the discover ranking.
    """
    vectors, bias = (torch.from_numpy(part) for part in retrieval_vectors(model))
    found = {}
    for ranking in model.available_rankings:
        queries, weights = retrieval_query(model, z, ranking, gamma)
        linear = queries @ vectors.T + weights @ bias.T
        found[ranking] = _held(model.scores(z, ranking, gamma), [linear])[0]
    return found


@torch.no_grad()
def fit_discover_slope(model: Conv4Rec, z: Tensor) -> None:
    """Set the weight of logit P(like) among the discover ranking's candidates.

    It is the one whose candidates hold most of the exact top 20, at the gamma where it holds least;
    among equals the one nearest to the default. A model without that ranking is left as it is.

    Args:
        model: of N items, with the link fitted.
        z: latents [B, H] of some users, 1 or more.
    """
    if "discover" not in model.available_rankings:
        return
    gradient, bias = like_vectors(model)
    held = torch.zeros(len(_GAMMAS), len(_SLOPES))
    for part in torch.split(z, max(1, _MAX_ELEMENTS // model.n_items)):
        consume, linear = model.consume_scores(part), model.split(part)[1] @ gradient.T + bias
        like, log_p = model.scores(part, "like"), model.log_p_consume(part)
        for row, gamma in enumerate(_GAMMAS):
            unlikely = -gamma * model.link.slope() * consume
            candidates = [unlikely + slope * linear for slope in _SLOPES]
            held[row] += len(part) * torch.tensor(_held(like - gamma * log_p, candidates))
    worst = dict(zip(_SLOPES, (held.amin(dim=0) / len(z)).tolist(), strict=True))
    usual = math.log(float(model.discover_slope))
    best = max(_SLOPES, key=lambda slope: (round(worst[slope], 4), -abs(math.log(slope) - usual)))
    model.discover_slope.fill_(best)


def _held(exact: Tensor, candidates: Sequence[Tensor]) -> list[float]:
    """Return the shares of the top 20 by one score [B, N] among the 300 best by each of others."""
    n_items = exact.shape[1]
    best = exact.topk(min(TOP_K, n_items), dim=1).indices
    found = []
    for scores in candidates:
        marks = torch.zeros_like(scores, dtype=torch.bool)
        marks.scatter_(1, scores.topk(min(N_CANDIDATES, n_items), dim=1).indices, True)
        found.append(float(marks.gather(1, best).float().mean()))
    return found
