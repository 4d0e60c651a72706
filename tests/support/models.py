"""A small Conv4Rec and profiles for it."""

import numpy as np
import torch

from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.level_init import no_start
from raysys.autoencoder.model import Conv4Rec
from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels, default_liked

N_ITEMS, N_FACTORS = 9, 3
SMALL = {"latent": 6, "level_latent": 5, "channels": 3, "level_channels": 2, "dropout": 0.0}
EVENTS = RatingLevels(("view", "buy"), (None, None), (False, True))
ONE = RatingLevels(("seen",), (None,), (True,))
REPEATED = [[(0, 1), (3, 0), (3, 1)], [(5, 0)], [], [(8, 1), (2, 0), (2, 1), (4, 1)]]


def stars(n_levels: int = 5) -> RatingLevels:
    values = tuple(float(v) for v in range(1, n_levels + 1))
    return RatingLevels(tuple(f"{v:g}" for v in values), values, default_liked(values))


def random_cells(seed: int, n_levels: int, sizes=(3, 1, 5, 4)) -> Cells:
    rng = np.random.default_rng(seed)
    return Cells.from_lists(
        [
            [(int(i), int(rng.integers(n_levels))) for i in rng.permutation(N_ITEMS)[:size]]
            for size in sizes
        ]
    )


def make(levels=None, seed: int = 0, **changes) -> Conv4Rec:
    """Return a model whose weights are all far from their starting values."""
    cfg = Conv4RecConfig(**(SMALL | changes))
    levels = levels or stars()
    start = no_start(N_ITEMS, levels, N_FACTORS)
    model = Conv4Rec(cfg, n_items=N_ITEMS, levels=levels, start=start, seed=seed)
    draw = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=draw))
        if model.has_levels:
            model.loadings[:, 1:] = torch.randn(N_ITEMS, N_FACTORS, generator=draw)
            model.loading_variance[:, 1:] = torch.rand(N_ITEMS, N_FACTORS, generator=draw)
    return model
