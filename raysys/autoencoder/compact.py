"""The weights of a model as a serving process reads them, see `scoring/files.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raysys.autoencoder.model import Conv4Rec
from raysys.scoring.files import LEVEL_TABLES, Weights

_TINY = 1e-30


@torch.no_grad()
def weights_of(model: Conv4Rec) -> Weights:
    """Return the weights of a model that does not change any more, those of rows in float32."""
    scales = torch.ones(2, model.n_items)
    rows: dict[str, Tensor] = {"rows": model.items}
    if model.cfg.consume_loss == "likelihood":
        rows = {"rows": model.decoder, "encoder": model.items}
        scales = torch.stack([model.items.norm(dim=1), model.decoder.norm(dim=1)])
    elif model.solved:
        scales = model.scales * model.items.norm(dim=1)
    rows = {name: F.normalize(part, dim=1, eps=_TINY) for name, part in rows.items()}
    rows |= {"scales": scales, "prior": model.consume_prior()}
    half_life, exponent = model.cfg.profile_half_life_days, model.cfg.profile_exponent
    tables: dict[str, Tensor] = {
        "profile_half_life_days": torch.tensor(half_life),
        "exponent": torch.tensor(exponent),
        "level_scale": model.level_scale,
        "query": model.query,
        "discover_slope": model.discover_slope,
    }
    link = model.link
    tables |= {f"link.{name}": value for name, value in link.state_dict().items()}
    if model.has_levels:
        names = ("level_in", "level_out", "level_bias", "residual", "loadings")
        rows |= {name: getattr(model, name) for name in names}
        rows["variance"] = model.user_tables().loading_variance
        tables |= {name: getattr(model, name) for name in LEVEL_TABLES}
    return Weights(
        rows={name: part.detach().numpy() for name, part in rows.items()},
        tables={name: part.detach().float().numpy() for name, part in tables.items()},
        levels=model.levels,
    )
