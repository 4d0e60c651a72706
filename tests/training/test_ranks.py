"""One process against two gloo ranks: the same gradients, the loss going through the wrapper."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raysys.autoencoder.config import CONSUME_LOSSES, Conv4RecConfig
from raysys.autoencoder.level_init import agreed, level_start, no_start
from raysys.autoencoder.model import Conv4Rec
from raysys.cluster.placement import gpu_worker_cpus
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels, default_liked

N_ITEMS = 12
SIZES = (9, 1, 4, 2, 7)  # ragged on purpose: ranks get 20 and 3 cells


def _cells() -> Cells:
    rng = np.random.default_rng(0)
    return Cells.from_lists(
        [[(int(i), int(rng.integers(5))) for i in rng.permutation(N_ITEMS)[:n]] for n in SIZES]
    )


VALUES = (1.0, 2.0, 3.0, 4.0, 5.0)
LEVELS = RatingLevels(tuple("12345"), VALUES, default_liked(VALUES))


def _model(consume_loss: str) -> Conv4Rec:
    levels = LEVELS
    cfg = Conv4RecConfig(
        latent=8, level_latent=4, channels=2, dropout=0.0, consume_loss=consume_loss
    )
    cells = _cells()
    start = level_start(cells.rows, cells.item_num, cells.level, n_items=N_ITEMS, levels=levels)
    return Conv4Rec(cfg, n_items=N_ITEMS, levels=levels, start=start, seed=1)


def _gradients(module: torch.nn.Module, cells: Cells, share: float) -> dict[str, torch.Tensor]:
    (module(ragged(cells))["loss"] * share).backward()
    inner = getattr(module, "module", module)
    return {name: parameter.grad for name, parameter in inner.named_parameters()}


def _rank(rank: int, rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    cells = _cells()
    mine = cells.users(np.arange(len(SIZES))[rank::2])
    share = 2 * mine.n_cells / cells.n_cells
    gradients = {}
    for consume_loss in CONSUME_LOSSES:
        wrapped = torch.nn.parallel.DistributedDataParallel(_model(consume_loss))
        gradients[consume_loss] = _gradients(wrapped, mine, share)
    start = no_start(N_ITEMS, LEVELS, 3) if rank == 0 else None
    assert agreed(start, N_ITEMS, LEVELS).loadings.shape == (N_ITEMS, 1 + 3)
    if rank == 0:
        torch.save(gradients, out)
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_have_the_gradients_of_one(tmp_path):
    out = tmp_path / "gradients.pt"
    mp.spawn(_rank, args=(str(tmp_path / "rendezvous"), str(out)), nprocs=2)
    together = torch.load(out, weights_only=True)
    for consume_loss in CONSUME_LOSSES:
        alone = _gradients(_model(consume_loss), _cells(), 1.0)
        assert alone.keys() == together[consume_loss].keys()
        for name, gradient in alone.items():
            found = together[consume_loss][name]
            torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("nodes", "cpus"),
    [
        ([{"CPU": 16, "GPU": 1}], 8),
        ([{"CPU": 64}, {"CPU": 16, "GPU": 4}, {"CPU": 48, "GPU": 4}], 2),
        ([{"CPU": 2, "GPU": 2}], 1),
        ([{"CPU": 1, "GPU": 2}], 0.4999),
        ([{"CPU": 8}], 1),
    ],
)
def test_a_gpu_worker_has_half_of_its_share_of_the_cpus(nodes, cpus):
    assert gpu_worker_cpus(nodes) == cpus
