"""How far one pass with a zero diagonal is from truly leaving each cell out, on real profiles."""

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.model import Conv4Rec
from raysys.autoencoder.ragged_ops import Pairs
from raysys.data.batches import Ragged, ragged
from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels, default_liked

VALUES = (1.0, 2.0, 3.0, 4.0, 5.0)
LEVELS = RatingLevels(tuple("12345"), VALUES, default_liked(VALUES))
SMALL = {"latent": 32, "level_latent": 16, "dropout": 0.0, "consume_loss": "likelihood"}


def real_cells(data_dir, n_users=1000) -> tuple[Cells, int]:
    table = pq.read_table(data_dir / "ml-1m" / "interactions.parquet")
    user = pc.dictionary_encode(table["user_id"].combine_chunks()).indices.to_numpy()
    item = pc.dictionary_encode(table["item_id"].combine_chunks()).indices.to_numpy()
    level = table["rating"].to_numpy().astype(int) - 1
    lists = [[] for _ in range(user.max() + 1)]
    for u, i, r in zip(user.tolist(), item.tolist(), level.tolist()):
        lists[u].append((i, r))
    return Cells.from_lists(lists[:n_users]), int(item.max()) + 1


def joint(model: Conv4Rec, z: torch.Tensor, item: int, level: int) -> float:
    log_p = model.log_p_consume(z[None])[0, item]
    return float(log_p + model.log_p_levels(z[None], torch.tensor([item]))[0, 0, level])


def one_pass(model: Conv4Rec, batch: Ragged) -> torch.Tensor:
    """Return the training loss's log P(i, r | u) of every cell, [M]."""
    weight = model.cell_weights(batch)
    pairs = Pairs(batch, model.n_items)
    items = model._cell_log_p(batch, weight, pairs)
    levels = model._cell_level_logits(batch, weight, pairs).log_softmax(dim=1)
    cells = torch.arange(len(batch.level))
    return items + levels[cells, batch.level]


@pytest.mark.slow
def test_the_gap_to_exact_leave_one_out_is_small(data_dir):
    cells, n_items = real_cells(data_dir)
    counts = torch.zeros(n_items, 5)
    np.add.at(counts.numpy(), (cells.item_num, cells.level), 1.0)
    model = Conv4Rec(Conv4RecConfig(**SMALL), n_items=n_items, levels=LEVELS, counts=counts)
    optimiser = torch.optim.AdamW(model.parameter_groups(0.01))
    rng = np.random.default_rng(0)
    for _ in range(4):
        for rows in np.array_split(rng.permutation(cells.n_users), 8):
            optimiser.zero_grad()
            model(ragged(cells.users(rows)))["loss"].backward()
            optimiser.step()
    model.eval()
    gaps = []
    with torch.no_grad():
        for user in range(30):
            profile = cells.users(np.array([user]))
            fast = one_pass(model, ragged(profile))
            for at in rng.permutation(profile.n_cells)[:5]:
                left = profile.take(np.arange(profile.n_cells) != at)
                z = model.encode(ragged(left))[0]
                exact = joint(model, z, int(profile.item_num[at]), int(profile.level[at]))
                gaps.append(float(fast[at]) - exact)
    assert abs(np.mean(gaps)) < 0.05
    assert np.mean(np.abs(gaps)) < 0.1
