"""Does the model find the distribution that interactions were drawn from, and what few would find?

    raysys bench suite=recovery run=runs/bench [draws=[5000,20000,100000,500000,2000000]]

First part: worlds whose P*(i, r | u) is known and of low rank; every user's profile is all of the
user's draws, with replacement. The figure of merit is the total variation between P* and the
model's joint P(i, r | u), mean over users, as draws grow. Simpler models of the same draws stand
beside it:
    popularity      P(i, r), the same for everybody
    independent     P(i | u) P(r | u): ratings depend on the user alone
    rating-blind    P(i | u) of an autoencoder that sees no ratings, times P(r | i)
Passes are chosen by the likelihood of a tenth of the draws; then the model is fitted on all.

Second part: a simulated log with exposure by popularity. The truth tells how much users would enjoy
what each ranking lists, and how likely they were to come across it: `discover` should list what is
enjoyed more and exposed less than `consume`.
Writes `recovery.png` and `recovery.json` to `<run>/bench-recovery`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.model import Conv4Rec
from raysys.bench.discover import discover_rows
from raysys.bench.suites import STARS, BenchConfig
from raysys.config import require, require_run
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels
from raysys.reports.plots import Line, Panel, draw
from raysys.training.optim import global_batches

log = logging.getLogger(__name__)

_BLIND = RatingLevels(("any",), (None,), (True,))
_SMOOTHING = 1.0
_HELD_OUT = 10  # one draw of so many
_PATIENCE = 3
_GUIDE_SLOPE = -0.25  # of the plot's guide

Doubles = NDArray[np.float64]


@dataclasses.dataclass
class RecoveryBenchConfig(BenchConfig):
    """Settings of the recovery suite.

    Attributes:
        draws: interactions of each world.
        n_users, n_items, rank: size of the first part's worlds.
        latent: of the autoencoder's two blocks.
        lr, epochs: of its training, at most.
        discover: also run the second part.
        gammas: exponents of the exposure in its discover lists.
    """

    draws: list[int] = dataclasses.field(
        default_factory=lambda: [5_000, 20_000, 100_000, 500_000, 2_000_000]
    )
    n_users: int = 1000
    n_items: int = 300
    rank: int = 4
    latent: int = 32
    lr: float = 0.005
    epochs: int = 60
    discover: bool = True
    gammas: list[float] = dataclasses.field(default_factory=lambda: [0.1, 0.3, 1.0])

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that make no world."""
        require(len(self.draws) >= 2, "draws", self.draws, "two sizes or more")
        for name in ("n_users", "n_items", "rank", "latent", "epochs"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        least = 2 * self.n_users
        require(min(self.draws, default=0) >= least, "draws", self.draws, f"{least} or more each")


def rows(cfg: RecoveryBenchConfig) -> list[dict[str, Any]]:
    """Return a row per size with the total variations, one with the slope, then the lists'."""
    require_run(cfg)
    folder = Path(cfg.run) / "bench-recovery"
    folder.mkdir(parents=True, exist_ok=True)
    truth = _truth(cfg)
    found = [_recover(truth, n_draws, cfg) for n_draws in sorted(cfg.draws)]
    draw([recovery_panel(found)], folder / "recovery.png")
    slope = round(log_slope(found), 4)
    found.append({"part": "slope of log TV over log draws", "model": slope})
    if cfg.discover:
        found += discover_rows(folder, seed=cfg.seed, gammas=cfg.gammas, ray=cfg.ray)
    (folder / "recovery.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    log.info("recovery written path=%s", folder)
    return found


def _truth(cfg: RecoveryBenchConfig) -> Doubles:
    """Return P* [U, N, R]: items by taste and popularity, ratings by another mix of the tastes."""
    rng = np.random.default_rng([cfg.seed, 0x7275])
    users = rng.normal(size=(cfg.n_users, cfg.rank)) / np.sqrt(cfg.rank)
    items = rng.normal(size=(cfg.n_items, cfg.rank)) * 1.5
    likes = rng.normal(size=(cfg.n_items, cfg.rank)) * 1.5
    log_i = users @ items.T + rng.normal(size=cfg.n_items)
    steps = np.linspace(-1, 1, STARS.n_levels)
    mood = users @ likes.T + rng.normal(size=cfg.n_items)
    log_r = mood[:, :, None] * steps - np.square(steps)
    p_i = np.exp(log_i - log_i.max(axis=1, keepdims=True))
    p_r = np.exp(log_r - log_r.max(axis=2, keepdims=True))
    p_i, p_r = p_i / p_i.sum(axis=1, keepdims=True), p_r / p_r.sum(axis=2, keepdims=True)
    return np.asarray(p_i[:, :, None] * p_r)


def _recover(truth: Doubles, n_draws: int, cfg: RecoveryBenchConfig) -> dict[str, Any]:
    n_users, n_items, n_levels = truth.shape
    rng = np.random.default_rng([cfg.seed, n_draws])
    user = np.sort(rng.integers(n_users, size=n_draws))
    counts = np.bincount(user, minlength=n_users)
    cell = np.concatenate(
        [
            rng.choice(n_items * n_levels, size=count, p=truth[u].ravel())
            for u, count in enumerate(counts)
        ]
    )
    item, level = cell // n_levels, cell % n_levels
    cells = _cells(counts, item, level)
    held = np.zeros(n_draws, dtype=bool)
    held[rng.permutation(n_draws)[: n_draws // _HELD_OUT]] = True
    joint, epochs = _fit(cells, held, STARS, cfg)
    blind, _ = _fit(_cells(counts, item, np.zeros_like(level)), held, _BLIND, cfg)
    table = np.zeros((n_items, n_levels))
    np.add.at(table, (item, level), 1)
    per_user = np.zeros((n_users, n_levels))
    np.add.at(per_user, (user, level), 1)
    share = table.sum(axis=0) / table.sum()
    p_r_item = (table + _SMOOTHING * share) / (table.sum(axis=1) + _SMOOTHING)[:, None]
    p_r_user = (per_user + _SMOOTHING * share) / (per_user.sum(axis=1) + _SMOOTHING)[:, None]
    simple = (table + _SMOOTHING / table.size) / (table.sum() + _SMOOTHING)
    p_i = joint.sum(axis=2)
    found: dict[str, Any] = {
        "part": "total variation",
        "draws": n_draws,
        "model": _variation(truth, joint),
        "popularity": _variation(truth, simple[None]),
        "independent": _variation(truth, p_i[:, :, None] * p_r_user[:, None, :]),
        "rating-blind": _variation(truth, blind * p_r_item[None]),
        "epochs": epochs,
    }
    log.info("recovery %s", " ".join(f"{k}={v}" for k, v in found.items()))
    return found


def _cells(counts: NDArray[Any], item: NDArray[Any], level: NDArray[Any]) -> Cells:
    zeros = np.zeros(len(item), dtype=np.int64)
    return Cells(
        user_num=np.arange(len(counts), dtype=np.int32),
        offsets=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
        item_num=item.astype(np.int32),
        level=level.astype(np.uint8),
        timestamp=zeros,
        window=zeros.astype(np.uint8),
    )


def _fit(
    cells: Cells, held: NDArray[np.bool_], levels: RatingLevels, cfg: RecoveryBenchConfig
) -> tuple[Doubles, int]:
    """Return P(i, r | u) [U, N, R] of an autoencoder fitted on all cells, and its passes."""
    train = cells.take(~held)
    found = _passes(train, cells.take(held), levels, cfg, cfg.epochs)
    model, epochs = _passes(cells, None, levels, cfg, found[1])
    with torch.no_grad():
        z = model.encode(ragged(cells))
        log_p = model.log_p_consume(z)[:, :, None] + model.log_p_levels(z)
    return log_p.exp().double().numpy(), epochs


def _passes(
    train: Cells,
    held: Cells | None,
    levels: RatingLevels,
    cfg: RecoveryBenchConfig,
    epochs: int,
) -> tuple[Conv4Rec, int]:
    """Train on cells; return the model and the pass at which held-out cells were likeliest."""
    counts = torch.zeros(cfg.n_items, levels.n_levels)
    cell = torch.from_numpy(train.item_num.astype(np.int64) * levels.n_levels + train.level)
    counts.view(-1).index_add_(0, cell, torch.ones(len(cell)))
    settings = Conv4RecConfig(
        latent=cfg.latent,
        level_latent=cfg.latent,
        consume_loss="likelihood",
        zero_diagonal=False,
        dropout=0.0,
        weight_decay=0.0,
        profile_exponent=1.0,
    )
    model = Conv4Rec(settings, n_items=cfg.n_items, levels=levels, counts=counts, seed=cfg.seed)
    optimiser = torch.optim.AdamW(model.parameter_groups(cfg.lr), fused=True)
    best, best_epoch = float("inf"), 0
    users = np.flatnonzero(train.counts)
    for epoch in range(epochs):
        for picked in global_batches(len(users), max(1, len(users) // 16), (cfg.seed, 0, epoch)):
            optimiser.zero_grad(set_to_none=True)
            model.train()(ragged(train.users(users[picked])))["loss"].backward()
            optimiser.step()
        if held is not None:
            loss = _held_out_loss(model.eval(), train, held)
            if loss < best:
                best, best_epoch = loss, epoch + 1
            if epoch + 1 - best_epoch >= _PATIENCE:
                break
    return model.eval(), best_epoch if held is not None else epochs


@torch.no_grad()
def _held_out_loss(model: Conv4Rec, train: Cells, held: Cells) -> float:
    z = model.encode(ragged(train))
    wanted = ragged(held)
    log_p = model.log_p_consume(z)[wanted.rows, wanted.item_num].sum()
    if model.has_levels:
        logits = model.level_logits(model.split(z)[1][wanted.rows], wanted.item_num)
        log_p = log_p - torch.nn.functional.cross_entropy(logits, wanted.level, reduction="sum")
    return -float(log_p) / max(held.n_cells, 1)


def _variation(truth: Doubles, found: Doubles) -> float:
    """Return half the L1 distance, mean over users."""
    return round(float(np.abs(truth - found).sum(axis=(1, 2)).mean() / 2), 5)


def recovery_panel(rows: list[dict[str, Any]]) -> Panel:
    """Return the panel of the first part: total variation against draws, model by model."""
    draws = [row["draws"] for row in rows]
    slope = log_slope(rows)
    names = {"model": f"autoencoder, slope {slope:.2f}"}
    lines = [
        Line(
            names.get(name, name),
            [(row["draws"], row[name]) for row in rows],
            colour,
            "-" if name == "model" else "--",
        )
        for colour, name in enumerate(("model", "rating-blind", "independent", "popularity"))
    ]
    first = rows[0]["model"]
    guide = [(n, first * (n / draws[0]) ** _GUIDE_SLOPE) for n in draws]
    return Panel(
        title="",
        x="interactions drawn",
        y="total variation to the truth",
        lines=[*lines, Line("slope -1/4", guide, None, ":")],
        log="xy",
    )


def log_slope(rows: list[dict[str, Any]]) -> float:
    """Return the slope of log total variation of the model over log draws."""
    sizes = np.log([row["draws"] for row in rows])
    return float(np.polyfit(sizes, np.log([row["model"] for row in rows]), 1)[0])
