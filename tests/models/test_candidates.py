"""The weight of logit P(like) among discover's candidates."""

from __future__ import annotations

import torch

from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels
from raysys.models import candidates
from raysys.models.candidates import candidate_recall, fit_discover_slope
from raysys.models.conv4rec import Conv4Rec, Conv4RecConfig

N_ITEMS = 2000
STARS = RatingLevels(tuple("12345"), (1.0, 2.0, 3.0, 4.0, 5.0), (False, False, False, True, True))


def test_the_fitted_weight_holds_at_least_what_any_other_holds(monkeypatch):
    torch.manual_seed(3)
    cfg = Conv4RecConfig(latent=8, level_latent=4)
    model = Conv4Rec(cfg, n_items=N_ITEMS, levels=STARS).requires_grad_(False).eval()
    model.level_out.mul_(30)
    lists = [[(int(i), int(i) % 5) for i in torch.randperm(N_ITEMS)[:30]] for _ in range(40)]
    z = model.encode(ragged(Cells.from_lists(lists)))
    monkeypatch.setattr(candidates, "_GAMMAS", (0.5,))

    def held(slope):
        model.discover_slope.fill_(slope)
        return candidate_recall(model, z, gamma=0.5)["discover"]

    every = {slope: held(slope) for slope in candidates._SLOPES}
    assert max(every.values()) > min(every.values())
    fit_discover_slope(model, z)
    assert held(float(model.discover_slope)) == max(every.values())
