"""The discover experiment: what each ranking lists, judged by the truth of a simulated world."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysys.autoencoder.files import Autoencoder
from raysys.autoencoder.linear_form import DISCOVER_PURPOSE
from raysys.cluster.connect import connected
from raysys.commands.prepare import prepare
from raysys.commands.simulate import SimulateConfig, simulate
from raysys.commands.train import TrainConfig, train
from raysys.config import RayConfig
from raysys.data.batches import ragged
from raysys.data.profiles import Profiles
from raysys.evaluation.metrics import top_items
from raysys.prepare.config import PrepareConfig
from raysys.scoring.rankings import Ranking
from raysys.simulate.world import World
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)

_TOP_K = 20
_USERS = 1000
_SIZES: dict[str, Any] = {"n_users": 4000, "n_items": 1000, "n_interactions": 240_000}


def discover_rows(
    folder: Path, *, seed: int, gammas: list[float], ray: RayConfig
) -> list[dict[str, Any]]:
    """Simulate, train, and return the true enjoyment and exposure of every ranking's lists.

    Exposure fades with time only where the world says so; here it does not, so that the truth at
    the log's end is the truth of the log. `exposure` is the chance of an item to be the user's next
    one over the mean chance: 1 is what a blind pick gives.

    Args:
        folder: scratch space, emptied first.
        seed: of the world and the training.
        gammas: weight of -log P(i | u) in the discover lists.
        ray: cluster.
    """
    run = folder / "discover"
    shutil.rmtree(run, ignore_errors=True)
    common: dict[str, Any] = {"run": str(run), "seed": seed, "ray": ray}
    with connected(ray):
        simulate(SimulateConfig(**common, **_SIZES, drift=0.0))
        source = str(run / "world" / "interactions")
        prepare(PrepareConfig(**common, source=source, split="users"))
        train(TrainConfig(**common, model="autoencoder", refit="all"))
    workspace = Workspace(str(run))
    model = Autoencoder.open(workspace.current("autoencoder")).model
    profiles = Profiles.open(workspace.current("profiles"))
    cells = profiles.cells()
    rng = np.random.default_rng([seed, DISCOVER_PURPOSE])
    some = np.sort(rng.permutation(cells.n_users)[:_USERS])
    cells = cells.users(some)
    users = [profiles.user_ids[int(n)].as_py() for n in cells.user_num]
    items = profiles.items["item_id"].to_pylist()
    world = World.load(run / "world")
    place = {name: n for n, name in enumerate(world.item_ids())}
    order = np.array([place[name] for name in items])
    enjoyment = np.stack([world.enjoyment(user)[order] for user in users])
    exposure = np.stack([world.consumption(user)[order] for user in users])
    exposure = exposure * world.spec.n_items
    with torch.no_grad():
        z = model.encode(ragged(cells))
    rankings = [Ranking("consume"), Ranking("like"), *(Ranking("discover", g) for g in gammas)]
    rows = []
    for ranking in rankings:
        lists = top_items(model.scores(z, ranking).numpy(), _TOP_K, exclude=cells)
        row = {"part": "lists", "ranking": str(ranking)}
        rows.append(row | _judge(lists, enjoyment, exposure))
    whole = np.arange(len(items))[None].repeat(len(users), axis=0)
    rows.append({"part": "lists", "ranking": "all items"} | _judge(whole, enjoyment, exposure))
    return rows


def _judge(
    lists: NDArray[np.integer[Any]], enjoyment: NDArray[np.float64], exposure: NDArray[np.float64]
) -> dict[str, float]:
    """Return means over users, with 95 % intervals of the enjoyment."""
    rows = np.arange(len(lists))[:, None]
    per_user = enjoyment[rows, lists].mean(axis=1)
    half = 1.96 * per_user.std() / np.sqrt(len(per_user))
    return {
        "enjoyment": round(float(per_user.mean()), 4),
        "enjoyment_half_interval": round(float(half), 4),
        "exposure": round(float(exposure[rows, lists].mean()), 4),
    }
