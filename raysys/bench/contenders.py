"""The models that compete in the agreement experiment, fitted in this process.

Different kinds and settings, chosen before any world was looked at. Each is fitted twice: before
the test window, which is what the offline metrics judge, and on the whole log, which is what goes
online. All see who consumed what, and when.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.model import Conv4Rec
from raysys.autoencoder.task import AutoencoderTask
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.data.profiles import Profiles, ProfilesFacts
from raysys.data.schema import RatingLevels, period_windows
from raysys.evaluation import baselines, linear_items
from raysys.evaluation.metrics import top_items
from raysys.scoring.rankings import Ranking
from raysys.simulate.site import Rank, SiteLog
from raysys.store.temporary import prefix
from raysys.training.loop import train
from raysys.training.optim import OptimConfig
from raysys.training.task import Ranks, Task

_OPTIM = OptimConfig(lr=0.02, epochs=20, batch_size=256)
_SHALLOW: dict[str, Callable[[Cells, int], Rank]] = {
    "popularity": baselines.popularity,
    "decayed-30d": lambda cells, n: baselines.decayed(cells, n, half_life_days=30),
    "itemknn-20": lambda cells, n: baselines.itemknn(cells, n, [(20, 0.0)])[0],
    "itemknn-200-shrunk": lambda cells, n: baselines.itemknn(cells, n, [(200, 100.0)])[0],
    "ease-30": lambda cells, n: next(linear_items.ease(cells, n, [30.0])),
    "ease-1000": lambda cells, n: next(linear_items.ease(cells, n, [1000.0])),
}
_DEEP = {
    "conv4rec-cosine": Conv4RecConfig(latent=64),
    "conv4rec-likelihood": Conv4RecConfig(latent=32, consume_loss="likelihood"),
}


def site_recommender(cells: Cells, n_items: int) -> Rank:
    """Fit what the simulated sites show as their own recommendations: one of the contenders."""
    return _SHALLOW["itemknn-20"](cells, n_items)


def fit_all(log: SiteLog, *, seed: int) -> dict[str, tuple[Rank, Rank]]:
    """Fit every contender; return {name: (before the test window, on the whole log)}."""
    fitted = period_windows("temporal", "test").fitted
    before = log.cells.in_windows(fitted)
    found: dict[str, tuple[Rank, Rank]] = {}
    for name, fit in _SHALLOW.items():
        offline = fit(before, log.catalogue["test"])
        found[name] = (offline, fit(log.cells, log.catalogue["all"]))
    with tempfile.TemporaryDirectory(prefix=prefix("bench")) as folder:
        profiles = site_profiles(log, Path(folder))
        for name, cfg in _DEEP.items():
            found[name] = _fit_deep(profiles, cfg, seed=seed)
    return found


def _fit_deep(profiles: Profiles, cfg: Conv4RecConfig, *, seed: int) -> tuple[Rank, Rank]:
    """Train as `raysys train` does: epochs chosen on val, then refits."""
    tasks: list[AutoencoderTask] = []
    fixed: dict[str, Any] = {"cells": profiles.cells(), "seed": seed}

    def phase(period: str) -> Callable[[], Task]:
        def make() -> Task:
            validated = period == "val"
            tasks.append(
                AutoencoderTask(profiles, cfg, period=period, validated=validated, **fixed)
            )
            return tasks[-1]

        return make

    with torch.random.fork_rng():
        train([phase("val"), phase("test"), phase("all")], _OPTIM, seed=seed, ranks=Ranks())
    offline, online = (ranker(task.module) for task in tasks[1:])
    return offline, online


def ranker(module: Any) -> Rank:
    """Return the lists of a trained Conv4Rec, each without the items of its history."""
    model: Conv4Rec = module.eval()

    @torch.inference_mode()
    def rank(history: Cells, top_k: int) -> NDArray[np.int32]:
        known = history.take(history.item_num < model.n_items)
        scores = model.scores(model.encode(ragged(known)), Ranking("consume"))
        lists: NDArray[np.int32] = top_items(scores.numpy(), top_k, exclude=known)
        return lists

    return rank


def site_profiles(log: SiteLog, folder: Path) -> Profiles:
    """Write the log to `folder` as one user shard, and return it as training reads it."""
    path = folder / "shard-00000.parquet"
    pq.write_table(log.cells.to_table(), path)
    return Profiles(
        items=pa.table({"item_num": np.arange(len(log.items), dtype=np.int32)}),
        user_ids=pa.chunked_array([[str(n) for n in log.cells.user_num]]),
        levels=RatingLevels(("click",), (None,), (True,)),
        facts=ProfilesFacts(
            split="temporal",
            n_users=log.cells.n_users,
            n_items=len(log.items),
            catalogue=log.catalogue,
            cutoffs=log.cutoffs,
            has_time=True,
            n_cells={},
        ),
        shard_paths=(path,),
    )
