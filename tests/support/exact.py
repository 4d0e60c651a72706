"""What a model says of some items, by its own formulas for the whole catalogue."""

from __future__ import annotations

import numpy as np
import torch

from raysys.autoencoder.model import CatalogueScores, Conv4Rec
from raysys.scoring.item_scores import ItemScores


@torch.no_grad()
def rounded(model: Conv4Rec) -> Conv4Rec:
    """Return a frozen model of the cosine loss with its rows as a service has them: float16."""
    parts = []
    for vectors in model._consume_blocks():
        length = vectors.norm(dim=1, keepdim=True)
        parts.append((vectors / length).half().float() * length)
    model._consume = parts[0], parts[1]
    if model.has_levels:
        model.level_in.data = model.level_in.half().float()
        model.level_out.data = model.level_out.half().float()
    return model


@torch.no_grad()
def model_scores(model: Conv4Rec, z: torch.Tensor, nums: np.ndarray) -> ItemScores:
    """Return the scores of items [C] for the user z [H]."""
    values = CatalogueScores(model, z[None])
    rating = values.expected_rating[0, nums].numpy() if model.levels.n_rated else None
    return ItemScores(
        log_p_consume=values.log_p_consume[0, nums].numpy(),
        level_probs=model.log_p_levels(z[None])[0, nums].exp().numpy(),
        p_like=values.log_p_like[0, nums].exp().numpy(),
        expected_rating=rating,
        consume_score=values.consume_score[0, nums].numpy(),
    )
