"""How fast `preset=paper` trains, beside the matrix products that a step cannot do without.

    B rows of a batch, D embedding, S = code_dim atoms

A step multiplies [B, D] by [D, S] for the pre-activations and [D, B] by [B, S] for the encoder's
gradient; everything else (top-k, the sparse decoder, Adam) is counted as overhead. The bound is the
time of these two products alone, in this process, with the same threads.
"""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

import torch

from raysys.bench.vectors import Dataset
from raysys.models.compressae import CompresSAEConfig
from raysys.stages.compress import CompressorConfig
from raysys.training.compressor import CompressorTask
from raysys.training.loop import Ranks, train

log = logging.getLogger(__name__)

_EPOCHS = 2  # the first one warms up
_REPEATS = 9


def training_row(data: Dataset, *, seed: int) -> dict[str, Any]:
    """Train two epochs of the paper's autoencoder with the default settings and time the second.

    Take eight batches of rows or more: the loop makes batches smaller on less.
    """
    code_dim, n_active = CompresSAEConfig(preset="paper").sizes(len(data.vectors))
    optim = CompressorConfig(preset="paper").optim
    optim.epochs = _EPOCHS
    sizes = {"code_dim": code_dim, "n_active": n_active, "seed": seed}
    with torch.random.fork_rng():
        phases = [lambda: CompressorTask(data.vectors, sizes)]
        state = train(phases, optim, seed=seed, ranks=Ranks())
    n_items, dim = data.vectors.shape
    rate = n_items / state["history"][-1]["seconds"]
    bound = optim.batch_size / _products_s(optim.batch_size, dim, code_dim)
    row = {
        "engine": "raysys paper training",
        "data": data.name,
        "n_items": n_items,
        "dim": dim,
        "setting": f"code_dim={code_dim} n_active={n_active} batch_size={optim.batch_size}",
        "threads": torch.get_num_threads(),
        "examples_per_s": round(rate, 1),
        "products_examples_per_s": round(bound, 1),
        "times_the_products": round(bound / rate, 2),
        "epoch_s": round(state["history"][-1]["seconds"], 2),
    }
    log.info("bench %s", row)
    return row


def _products_s(batch: int, dim: int, code_dim: int) -> float:
    """Return the median seconds of the products of one step."""
    x, encoder = torch.randn(batch, dim), torch.randn(dim, code_dim)
    gradient = torch.randn(batch, code_dim)
    forward, backward = torch.empty(batch, code_dim), torch.empty(dim, code_dim)
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        torch.mm(x, encoder, out=forward)
        torch.mm(x.T, gradient, out=backward)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
