"""`preset=paper`: how its ways to compare rank what it is to find, and how fast it trains.

    B rows of a batch, D embedding, S = code_dim atoms

Recall over compression is the paper's table: 8 bytes per non-zero against 4 D of float32.
A training step multiplies [B, D] by [D, S] for the pre-activations and [D, B] by [B, S] for the
encoder's gradient; everything else (top-k, the sparse decoder, Adam) is counted as overhead. The
bound is the time of these two products alone, in this process, with the same threads.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysys.bench.vectors import Dataset, exact_top, recall
from raysys.commands.train_compressor import CompressorConfig
from raysys.compressor.model import CompresSAE, CompresSAEConfig
from raysys.compressor.paper_modes import MODES, Sparse, decode, search
from raysys.compressor.task import CompressorTask
from raysys.data.arrays import Floats, unit_rows
from raysys.training.loop import train
from raysys.training.optim import USUAL_BATCH, OptimConfig
from raysys.training.task import Ranks

log = logging.getLogger(__name__)

TOP = 100
COMPRESSIONS = (12, 24, 48)
_BYTES_PER_NON_ZERO = 8  # float32 and int32, as the paper counts
_BLOCK_ROWS = 4096
_EPOCHS = 2  # the first one warms up
_REPEATS = 9


def training_row(data: Dataset, *, seed: int) -> dict[str, Any]:
    """Train two epochs of the paper's autoencoder with the default settings and time the second.

    Take eight batches of rows or more: the loop makes batches smaller on less.
    """
    code_dim, n_active = CompresSAEConfig(preset="paper").sizes(len(data.vectors))
    optim = _optim(epochs=_EPOCHS)
    _, state = _trained(data, {"code_dim": code_dim, "n_active": n_active, "seed": seed}, optim)
    n_items, dim = data.vectors.shape
    rate = n_items / state["history"][-1]["seconds"]
    batch_size = optim.batch_size or USUAL_BATCH
    bound = batch_size / _products_s(batch_size, dim, code_dim)
    row = {
        "engine": "raysys paper training",
        "data": data.name,
        "n_items": n_items,
        "dim": dim,
        "setting": f"code_dim={code_dim} n_active={n_active} batch_size={batch_size}",
        "threads": torch.get_num_threads(),
        "examples_per_s": round(rate, 1),
        "products_examples_per_s": round(bound, 1),
        "times_the_products": round(bound / rate, 2),
        "epoch_s": round(state["history"][-1]["seconds"], 2),
    }
    log.info("bench %s", row)
    return row


def mode_rows(data: Dataset, *, seed: int) -> list[dict[str, Any]]:
    """Return recall@10 and @100 of the modes, one model per compression near 12, 24 and 48 times.

    Codes are not packed (float32 values), the truth is the exact ranking of the dense vectors.
    Narrow vectors have fewer lengths of code to try.
    """
    truth, _ = exact_top(data.queries, data.vectors, TOP)
    n_items, dim = data.vectors.shape
    found = []
    lengths = [max(1, 4 * dim // (_BYTES_PER_NON_ZERO * times)) for times in COMPRESSIONS]
    for length in dict.fromkeys(lengths):
        code_dim, n_active = CompresSAEConfig(preset="paper", n_active=length).sizes(n_items)
        sizes = {"code_dim": code_dim, "n_active": n_active, "seed": seed}
        model, _ = _trained(data, sizes, _optim())
        dictionary = model.dictionary.detach().numpy()
        items, queries = _codes(model, data.vectors), _codes(model, data.queries)
        for mode in (*MODES, "asymmetric"):
            started = time.perf_counter()
            nums: NDArray[Any]
            if mode == "asymmetric":  # the dense query against what the items decode to
                decoded = unit_rows(decode(items, dictionary))
                nums, _ = exact_top(data.queries, decoded, TOP)
            else:
                nums, _ = search(mode, items, queries, dictionary, top_k=TOP)
            row = {
                "engine": f"paper, {mode}",
                "data": data.name,
                "n_items": n_items,
                "compression": round(4 * dim / (_BYTES_PER_NON_ZERO * n_active), 1),
                "setting": f"code_dim={code_dim} n_active={n_active}",
                "recall@10": recall(nums, truth, 10),
                "recall@100": recall(nums, truth, TOP),
                "search_s": round(time.perf_counter() - started, 1),
            }
            log.info("bench %s", row)
            found.append(row)
    return found


def _codes(model: CompresSAE, vectors: Floats) -> Sparse:
    """Return the atoms and values of all rows."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(vectors), _BLOCK_ROWS):
            rows = torch.from_numpy(np.array(vectors[start : start + _BLOCK_ROWS]))
            parts.append([each.numpy() for each in model.encode(rows)])
    return np.concatenate([a for a, _ in parts]), np.concatenate([v for _, v in parts])


def _optim(**changes: Any) -> OptimConfig:
    return dataclasses.replace(CompressorConfig(preset="paper").optim, **changes)


def _trained(
    data: Dataset, sizes: dict[str, Any], optim: OptimConfig
) -> tuple[CompresSAE, dict[str, Any]]:
    """Train in this process; return the model and the state that training ends with."""
    tasks: list[CompressorTask] = []

    def phase() -> CompressorTask:
        tasks.append(CompressorTask(data.vectors, sizes))
        return tasks[0]

    with torch.random.fork_rng():
        state = train([phase], optim, seed=sizes["seed"], ranks=Ranks())
    return tasks[0].module.eval(), state


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
