"""How much of a ranking's exact top the linear form finds that retrieval searches with."""

from __future__ import annotations

import torch
from torch import Tensor

from raysys.models.conv4rec import Conv4Rec
from raysys.models.linear_form import retrieval_query, retrieval_vectors

TOP_K = 20
N_CANDIDATES = 300
_SLOPES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.4)
_GAMMAS = (0.1, 0.25, 0.5, 1.0)


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
        found[ranking] = _held(model.scores(z, ranking, gamma), linear)
    return found


@torch.no_grad()
def fit_discover_slope(model: Conv4Rec, z: Tensor) -> None:
    """Set the weight of logit P(like) among the discover ranking's candidates.

    It is the one whose candidates hold most of the exact top 20, at the gamma where it holds least.

    Args:
        model: of N items, with the link fitted.
        z: latents [B, H] of some users.
    """
    if "discover" not in model.available_rankings:
        return
    vectors, bias = (torch.from_numpy(part).to(z.device) for part in retrieval_vectors(model))
    linear = {}
    for ranking in ("consume", "like"):
        queries, weights = retrieval_query(model, z, ranking, 0.0)
        linear[ranking] = queries @ vectors.T + weights @ bias.T
    like, log_p = model.scores(z, "like"), model.log_p_consume(z)
    worst = dict.fromkeys(_SLOPES, 1.0)
    for gamma in _GAMMAS:
        exact, unlikely = like - gamma * log_p, -gamma * model.link.slope() * linear["consume"]
        for slope in _SLOPES:
            held = _held(exact, unlikely + slope * linear["like"])
            worst[slope] = min(worst[slope], held)
    model.discover_slope.fill_(max(worst, key=worst.__getitem__))


def _held(exact: Tensor, linear: Tensor) -> float:
    """Return the share of the top 20 by one score [B, N] among the 300 best by another."""
    n_items = exact.shape[1]
    candidates = linear.topk(min(N_CANDIDATES, n_items), dim=1).indices
    best = exact.topk(min(TOP_K, n_items), dim=1).indices
    marks = torch.zeros_like(exact, dtype=torch.bool).scatter_(1, candidates, True)
    return float(marks.gather(1, best).float().mean())
