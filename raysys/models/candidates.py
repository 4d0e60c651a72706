"""How much of a ranking's exact top the linear form finds that retrieval searches with."""

from __future__ import annotations

import torch
from torch import Tensor

from raysys.models.conv4rec import Conv4Rec
from raysys.models.linear_form import retrieval_query, retrieval_vectors

TOP_K = 20
N_CANDIDATES = 300


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
        candidates = linear.topk(min(N_CANDIDATES, model.n_items), dim=1).indices
        exact = model.scores(z, ranking, gamma).topk(min(TOP_K, model.n_items), dim=1).indices
        hit = (exact[:, :, None] == candidates[:, None, :]).any(dim=2)
        found[ranking] = float(hit.float().mean())
    return found
