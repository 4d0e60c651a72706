"""The weight of logit P(like) among discover's candidates."""

from __future__ import annotations

import pytest
import torch

from raysys.autoencoder import linear_form
from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.linear_form import candidate_recall, fit_discover_slope
from raysys.autoencoder.model import Conv4Rec
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels
from raysys.scoring.rankings import Ranking

STARS = RatingLevels(tuple("12345"), (1.0, 2.0, 3.0, 4.0, 5.0), (False, False, False, True, True))


def model_and_latents(n_items):
    torch.manual_seed(3)
    cfg = Conv4RecConfig(latent=8, level_latent=4)
    model = Conv4Rec(cfg, n_items=n_items, levels=STARS).requires_grad_(False).eval()
    model.level_out.mul_(30)
    lists = [[(int(i), int(i) % 5) for i in torch.randperm(n_items)[:30]] for _ in range(40)]
    return model, model.encode(ragged(Cells.from_lists(lists)))


@pytest.mark.parametrize("elements", [1, 1 << 23])
def test_the_fitted_weight_holds_most_at_the_gamma_where_it_holds_least(elements, monkeypatch):
    monkeypatch.setattr(linear_form, "_MAX_ELEMENTS", elements)
    model, z = model_and_latents(2000)

    def least(slope):
        model.discover_slope.fill_(slope)
        rankings = [Ranking("discover", gamma) for gamma in linear_form._GAMMAS]
        return min(candidate_recall(model, z, rankings).values())

    every = {slope: least(slope) for slope in linear_form._SLOPES}
    assert max(every.values()) > min(every.values()) + 0.01
    model.discover_slope.fill_(0.1)
    fit_discover_slope(model, z)
    assert every[min(every, key=lambda s: abs(s - float(model.discover_slope)))] == pytest.approx(
        max(every.values()), abs=1e-3
    )


def test_where_candidates_are_everything_the_weight_stays():
    model, z = model_and_latents(200)
    fit_discover_slope(model, z)
    assert float(model.discover_slope) == pytest.approx(0.1)
