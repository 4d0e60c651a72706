"""Seconds from profiles to the autoencoder build by default, beside EASE and iALS.

    raysys bench suite=minutes run=runs/bench data=DATA [logs=[demo,sparse]]

Every log is prepared with a split in time; then each engine is fitted for the test period and asked
for the lists of its users. Ray's own start stands apart: of the cluster, and of the workers. EASE
is solved on the side of the users where these are fewer (its dual form, without an items x items
matrix). The peers keep one setting each, ours chooses its own on the validation window.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysys.autoencoder.files import Autoencoder
from raysys.autoencoder.fit_data import fit_data
from raysys.autoencoder.validation import NDCG, RECALL, Validation, few
from raysys.bench.resources import load_average
from raysys.bench.suites import BenchConfig
from raysys.cluster.connect import connected
from raysys.commands.prepare import prepare
from raysys.commands.simulate import SimulateConfig, simulate
from raysys.commands.train import TrainConfig, train
from raysys.config import location, require, require_run
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.data.profiles import Profiles
from raysys.data.schema import period_windows
from raysys.evaluation.presence import presence
from raysys.evaluation.protocols import cutoff_task
from raysys.prepare.config import PrepareConfig
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)

WORLDS: dict[str, dict[str, Any]] = {
    "demo": {},
    "sparse": {"n_users": 1200, "n_items": 20_000, "n_interactions": 75_000},
}
_FILES = ("ml-100k", "ml-1m", "movietweetings-2013", "online-retail")
_PENALTY = 200.0  # of EASE
_FACTORS = 64  # of iALS, as it comes otherwise
_BLOCK = 256

Score = Callable[[Cells], Tensor]


@dataclasses.dataclass
class MinutesBenchConfig(BenchConfig):
    """Settings of the minutes suite.

    Attributes:
        logs: names of simulated worlds (demo, sparse) and of folders in `data`.
        data: folder of <log>/interactions.parquet.
    """

    logs: list[str] = dataclasses.field(default_factory=lambda: [*_FILES, *WORLDS])
    data: str = location("../shared/data")

    def __post_init__(self) -> None:
        """Raise ConfigError where there is no log."""
        require(bool(self.logs), "logs", self.logs, "at least one name")


def rows(cfg: MinutesBenchConfig) -> list[dict[str, Any]]:
    """Return a row per log and engine."""
    require_run(cfg)
    started, found = time.perf_counter(), list[dict[str, Any]]()
    with connected(cfg.ray):
        ray_s = time.perf_counter() - started
        for name in cfg.logs:
            folder = Path(cfg.run) / "bench-minutes" / name
            shutil.rmtree(folder, ignore_errors=True)
            found += _log_rows(cfg, name, str(folder), ray_s)
            shutil.rmtree(folder, ignore_errors=True)
    return found


def _log_rows(cfg: MinutesBenchConfig, name: str, run: str, ray_s: float) -> list[dict[str, Any]]:
    common: dict[str, Any] = {"run": run, "seed": cfg.seed, "ray": cfg.ray}
    source = str(Path(cfg.data) / name / "interactions.parquet")
    if name in WORLDS:
        simulate(SimulateConfig(**common, **WORLDS[name]))
        source = str(Path(run) / "world" / "interactions")
    prepare(PrepareConfig(**common, source=source))
    workspace = Workspace(run)
    profiles = Profiles.open(workspace.current("profiles"))
    cells, split = profiles.cells(), profiles.facts.split
    data = fit_data(profiles, "test", cells=cells)
    task = cutoff_task(cells, period_windows(split, "test"), n_items=data.n_items)
    asked = Validation(task.history, task.targets, few(_BLOCK, data.n_items))
    counts = np.bincount(data.train.item_num, minlength=data.n_items)
    size = {"users": data.train.n_users, "items": data.n_items, "rows": cells.n_cells}
    found = []

    def add(engine: str, seconds: float, score: Score, **more: float) -> None:
        quality = asked.report(score, counts)
        row = {"log": name, "engine": engine, **size, "seconds": round(seconds, 1)}
        row |= {key: round(value, 1) for key, value in more.items()}
        row |= {key: round(quality[key], 4) for key in (RECALL, NDCG)}
        found.append(row | {"load": load_average()})
        log.info("bench minutes %s", found[-1])

    train(TrainConfig(**common, model="autoencoder"))
    build = workspace.current("autoencoder")
    steps = json.loads(Path(run, "autoencoder", build.build_id, "manifest.json").read_text())
    taken = steps["notes"]["seconds"]
    workers_s = taken.pop("workers")
    model = Autoencoder.open(build).model

    @torch.inference_mode()
    def ours(history: Cells) -> Tensor:
        return model.consume_scores(model.encode(ragged(history, reference_time=data.now)))

    add("raysys", sum(taken.values()), ours, ray_s=ray_s + workers_s)
    for engine, fit in {"EASE": ease, "iALS": ials}.items():
        if engine == "iALS" and importlib.util.find_spec("implicit") is None:
            continue
        started = time.perf_counter()
        score = fit(data.train, data.n_items)
        add(engine, time.perf_counter() - started, score)
    return found


def ease(train: Cells, n_items: int, penalty: float = _PENALTY) -> Score:
    """Return the scores of EASE for items outside a history: -(P x)_i / P_ii.

    P = (X'X + c)^-1; where users are fewer than items, (1 - X' (X X' + c)^-1 X) / c.
    """
    x = presence(train, n_items)
    diagonal = np.arange(min(x.shape))
    if x.shape[0] >= n_items:
        gram = (x.T @ x).toarray()
        gram[diagonal, diagonal] += penalty
        inverse = np.linalg.inv(gram)
        weights = -inverse / np.diag(inverse)
        return lambda history: torch.from_numpy(presence(history, n_items) @ weights)
    gram = (x @ x.T).toarray()
    gram[diagonal, diagonal] += penalty
    factor = np.linalg.inv(np.linalg.cholesky(gram)).astype(np.float32)
    half: NDArray[np.float32] = (x.T @ factor.T).T  # [U, N], its columns' squares make P's diagonal
    rest = 1 - np.square(half).sum(axis=0)

    def score(history: Cells) -> Tensor:
        past = presence(history, n_items)
        inside = (past @ half.T) @ half
        return torch.from_numpy((inside - past.toarray()) / rest)

    return score


def ials(train: Cells, n_items: int) -> Score:
    """Return the scores of implicit's alternating least squares."""
    from implicit.cpu.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(factors=_FACTORS, random_state=0)
    model.fit(presence(train, n_items), show_progress=False)

    def score(history: Cells) -> Tensor:
        past = presence(history, n_items)
        users = model.recalculate_user(np.arange(past.shape[0]), past)
        return torch.from_numpy(np.asarray(users @ model.item_factors.T))

    return score
