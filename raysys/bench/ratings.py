"""Ratings: how well they are predicted on random splits of a log, and on logs of known factors.

    raysys bench suite=ratings run=runs/bench source=ml-1m/interactions.parquet data=ml-1m \
        held_out=0.1 splits=5

Every split holds out a share of the ratings; a twentieth of the others is the validation that
training chooses by, and is not fitted to. The consume block plays no part in the figures, so it is
small. Where the literature knows figures of the same protocol (its splits are random too, not the
same), they stand beside, with their source.

The planted logs have ratings 1..10 from a number of factors of equal strength. `floor` is the RMSE
of who knows the truth: what noise and rounding leave.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.files import Autoencoder
from raysys.bench.suites import BenchConfig
from raysys.cluster.connect import connected
from raysys.cluster.train_workers import LaunchConfig
from raysys.commands.evaluate import EvaluateConfig, evaluate
from raysys.commands.prepare import prepare
from raysys.commands.train import TrainConfig, train
from raysys.config import location, require, require_run
from raysys.evaluation.evaluator import Metrics
from raysys.prepare.config import PrepareConfig
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)

_PURPOSE = 0x5A71
_VALIDATION = 0.05
_LATENT = 8
_BASELINE = "bias"
_USERS, _ITEMS, _PER_USER, _PLANTED_OUT = 1500, 800, 300, 0.1
_NOISE = 0.8  # of a planted rating
# what others report for such splits: (data, held out) -> method, RMSE, source
_KNOWN = {
    ("ml-1m", 0.1): (
        ("GLocal-K", 0.8227, "Han et al., GLocal-K, CIKM 2021"),
        ("I-AutoRec", 0.831, "Sedhain et al., AutoRec, WWW 2015"),
    ),
}


@dataclasses.dataclass
class RatingsBenchConfig(BenchConfig):
    """Settings of the ratings suite.

    Attributes:
        source: Parquet log with ratings whose random splits are measured; none: planted logs alone.
        data: the name that its rows have.
        held_out: share of the ratings that each split tests on.
        splits: how many.
        factors: numbers of factors of the planted logs; [] for none.
    """

    source: str | None = location(None)
    data: str = ""
    held_out: float = 0.1
    splits: int = 5
    factors: list[int] = dataclasses.field(default_factory=lambda: [5, 50, 100])

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that make no log."""
        require(0 < self.held_out < 0.9, "held_out", self.held_out, "a share below 0.9")
        require(self.splits >= 1, "splits", self.splits, "at least 1")
        least = min(self.factors, default=0)
        require(least >= 0, "factors", self.factors, "0 or more each")


def rows(cfg: RatingsBenchConfig) -> list[dict[str, Any]]:
    """Return a row a split and method, their means, and a row a planted log."""
    require_run(cfg)
    folder = Path(cfg.run) / "bench-ratings"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found: list[dict[str, Any]] = []
    with connected(cfg.ray):
        for n_factors in cfg.factors:
            ratings, floor = planted(n_factors, cfg.seed)
            own, peer = _measured(ratings, _PLANTED_OUT, 0, folder, cfg)
            row = {"planted": n_factors, "chosen": own["factors"], "rmse": own["rmse"]}
            found.append(row | {"bias": peer["rmse"], "floor": floor, "nll": own["nll"]})
        if cfg.source:
            found += _splits(cfg, folder)
    return found


def _splits(cfg: RatingsBenchConfig, folder: Path) -> list[dict[str, Any]]:
    ratings = pq.read_table(cfg.source, columns=["user_id", "item_id", "rating", "timestamp"])
    names = {"data": cfg.data, "held_out": cfg.held_out}
    found: list[dict[str, Any]] = []
    for split in range(cfg.splits):
        pair = _measured(ratings, cfg.held_out, split, folder, cfg)
        found += [names | {"split": str(split + 1)} | row for row in pair]
    for method in dict.fromkeys(row["method"] for row in found):
        own = [row for row in found if row["method"] == method]
        values = [row["rmse"] for row in own]
        mean = {"method": method, "rmse": round(float(np.mean(values)), 4)}
        spread = {"spread": round(float(np.std(values)), 4)}
        found.append(names | {"split": f"mean of {len(own)}"} | mean | spread)
    for method, rmse, source in _KNOWN.get((cfg.data, cfg.held_out), ()):
        known = {"method": method, "rmse": rmse, "from": source}
        found.append(names | {"split": "of the literature"} | known)
    return found


def planted(n_factors: int, seed: int) -> tuple[pa.Table, float]:
    """Return a log of ratings 1..10 from so many factors, and the RMSE of who knows the truth."""
    rng = np.random.default_rng([seed, _PURPOSE, n_factors])
    likes = rng.normal(size=(_USERS, n_factors)) * 1.7 / np.sqrt(max(n_factors, 1))
    traits = rng.normal(size=(_ITEMS, n_factors))
    user = np.repeat(np.arange(_USERS), _PER_USER)
    item = np.concatenate([rng.permutation(_ITEMS)[:_PER_USER] for _ in range(_USERS)])
    truth = 6 + np.einsum("mf,mf->m", likes[user], traits[item])
    truth += 0.8 * rng.normal(size=_ITEMS)[item] + 0.6 * rng.normal(size=_USERS)[user]
    rating = np.clip(np.round(truth + _NOISE * rng.normal(size=len(user))), 1, 10)
    floor = float(np.sqrt(np.mean(np.square(np.clip(truth, 1, 10) - rating))))
    table = {
        "user_id": pc.cast(pa.array(user), pa.string()),
        "item_id": pc.cast(pa.array(item), pa.string()),
        "rating": pa.array(rating.astype(np.float32)),
        "timestamp": pa.array(np.arange(len(user))),
    }
    return pa.table(table), round(floor, 4)


def folds(n_rows: int, held_out: float, seed: tuple[int, ...]) -> NDArray[np.str_]:
    """Draw a row's fold, [M]: test, val, or train."""
    draw = np.random.default_rng([*seed, _PURPOSE]).random(n_rows)
    last = held_out + (1 - held_out) * _VALIDATION
    return np.where(draw < held_out, "test", np.where(draw < last, "val", "train"))


def _measured(
    ratings: pa.Table, held_out: float, split: int, folder: Path, cfg: RatingsBenchConfig
) -> list[dict[str, Any]]:
    """Return a row for the model and one for the bias baseline."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    column = pa.array(folds(len(ratings), held_out, (cfg.seed, split)))
    path = folder / "folds.parquet"
    pq.write_table(ratings.append_column("fold", column), path)
    common: dict[str, Any] = {"run": str(run), "seed": cfg.seed, "ray": cfg.ray}
    prepare(PrepareConfig(**common, folds=str(path), split="ratings"))
    begin = time.perf_counter()
    model = Conv4RecConfig(latent=_LATENT)
    workers = LaunchConfig(workers=0)
    train(TrainConfig(**common, model="autoencoder", autoencoder=model, launch=workers))
    seconds = round(time.perf_counter() - begin)
    result = evaluate(EvaluateConfig(**common, baselines=[_BASELINE], replicates=0))
    opened = Autoencoder.open(Workspace(str(run)).current("autoencoder")).model
    own, peer = result.metrics, result.extra["baselines"][_BASELINE]
    ours = {
        "method": "raysys",
        "rmse": _mean(own, "rmse"),
        "nll": _mean(own, "nll"),
        "factors": opened.n_factors,
        "train_s": seconds,
    }
    log.info("ratings split=%d %s", split, ours)
    return [ours, {"method": _BASELINE, "rmse": _mean(peer, "rmse")}]


def _mean(metrics: Metrics, name: str) -> float:
    value = metrics[name]["mean"]
    assert value is not None, "every split has test ratings"
    return round(value, 4)
