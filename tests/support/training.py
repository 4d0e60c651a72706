"""A run with two planted tastes that a training of seconds learns."""

import dataclasses

import numpy as np

from raysys.commands.train import TrainConfig
from raysys.config import load
from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels, Window
from raysys.store.builds import Workspace
from tests.support.planting import plant_profiles

LEVELS = RatingLevels(("1", "2", "3"), (1.0, 2.0, 3.0), (False, False, True))
N_USERS, N_ITEMS = 80, 50
CUTOFFS = {"val": 800, "test": 900}
CATALOGUE = {"val": 40, "test": 45, "all": 50}  # items 40..44 come in val, the rest in test
QUICK = (
    "autoencoder.latent=8",
    "autoencoder.level_latent=4",
    "autoencoder.dropout=0",
    "optim.epochs=3",
    "optim.batch_size=16",
)


def planted_cells() -> Cells:
    """Users like items of their own parity best, and mostly consume these."""
    rng = np.random.default_rng(0)
    lists, times, windows = [], [], []
    for user in range(N_USERS):
        own = [i for i in range(N_ITEMS) if i % 2 == user % 2]
        other = [i for i in range(N_ITEMS) if i % 2 != user % 2]
        items = rng.permutation([*rng.choice(own, 12, False), *rng.choice(other, 4, False)])
        first = np.where(items >= 40, 800 + 20 * (items - 40), 0)
        order = np.argsort(time := rng.integers(first, 1000))
        window = np.select([time < 800, time < 900], [Window.FIT, Window.VAL], Window.TEST)
        lists.append([(int(i), 2 if i % 2 == user % 2 else 0) for i in items[order]])
        times += time[order].tolist()
        windows += window[order].tolist()
    cells = Cells.from_lists(lists)
    return dataclasses.replace(
        cells,
        timestamp=np.array(times, dtype=np.int64),
        window=np.array(windows, dtype=np.uint8),
    )


def planted_run(path, *, cells=None, cache_dir=None) -> Workspace:
    """Return a run with the profiles of these cells, in two shards."""
    workspace = Workspace(str(path), cache_dir=cache_dir)
    cells = planted_cells() if cells is None else cells
    items = {
        "item_id": [f"i{n}" for n in range(N_ITEMS)],
        "title": [f"Item {n}" for n in range(N_ITEMS)],
        "first_seen": [n if n < 40 else 800 + 20 * (n - 40) for n in range(N_ITEMS)],
        "n_fit": np.bincount(cells.in_windows([Window.FIT]).item_num, minlength=N_ITEMS),
    }
    temporal = {"split": "temporal", "catalogue": CATALOGUE, "cutoffs": CUTOFFS}
    plant_profiles(workspace, cells, LEVELS, items, has_time=True, **temporal)
    return workspace


def config(workspace, *words):
    return load(TrainConfig, [f"run={workspace.run}", "launch.workers=0", *QUICK, *words])
