"""Training Conv4Rec on the profiles of a run.

Two phases: the first fits on the FIT window, measures itself on the validation targets and so
chooses each head's epochs, how much the item prior counts and the offsets of levels; the second
fits again on the windows that the wanted period allows, if these are more.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysys import progress
from raysys.autoencoder.calibration import LINK_CHOICES, level_offsets
from raysys.autoencoder.closed_form import PENALTIES, Spectrum, closed_ranks, spectrum
from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.consume_time import Horizon, choose_form, set_form
from raysys.autoencoder.fit_data import fit_data
from raysys.autoencoder.level_init import agreed
from raysys.autoencoder.model import Conv4Rec, left_out
from raysys.autoencoder.ragged_ops import USER_TABLES
from raysys.autoencoder.validation import (
    CHUNK_USERS,
    NLL,
    PRIORS,
    RECALL,
    REPORTED,
    TIMED_PRIORS,
    Quality,
    direction,
    few,
    validation,
    without,
)
from raysys.autoencoder.warm_start import Beginning, begin_at
from raysys.data.batches import Ragged, Resident, ragged
from raysys.data.cells import Cells
from raysys.data.profiles import Profiles
from raysys.data.schema import Window
from raysys.timing.form import TimeForm
from raysys.training.task import Head, Ranks

log = logging.getLogger(__name__)

VALIDATED_USERS = 2000  # at most, of the targets that epochs are chosen by
_LINK_USERS = 1000
_SPREAD_USERS = 256
_MAX_RANKED = 1 << 31  # scores that a validation sorts, over users, items and priors
_WIDER_GAIN = 1.01  # a closed form of more dims is taken for one percent of the metric
_RANK, _PENALTY = "closed_form_rank", "closed_form_penalty"
_USUAL_PENALTY = 400.0  # of a rehearsal where gradient steps made the model
CONSUME_NLL = "consume_nll"  # mean -log P(i | u) of validation targets
_LEVEL_STATE = ("level_in", "level_out", "table_", "level_shift", "level_bias")


class AutoencoderTask:
    """One phase of the autoencoder's training.

    Args:
        profiles: the run's profiles.
        cfg: settings of the model.
        cells: all cells of the profiles; phases of one process share them.
        period: whose windows to fit on.
        seed: seed of the initial weights and of samples.
        validated: measure on the validation targets after every epoch.
        select: metric there that the consume block is chosen by, see `check_metric`.
        horizon_s: how far ahead the final model will look, in seconds; None: as far as the
            validation targets reach.
        measured: metrics of the finished model on the validation users, by name.
        begin: an earlier model of the same log that gradient steps begin at, see `warm_start`.
    """

    def __init__(
        self,
        profiles: Profiles,
        cfg: Conv4RecConfig,
        *,
        cells: Cells,
        period: str,
        seed: int,
        validated: bool,
        select: str = RECALL,
        horizon_s: float | None = None,
        measured: Sequence[str] = REPORTED,
        begin: Beginning | None = None,
    ) -> None:
        self._profiles = profiles
        self._cells, self._horizon_s = cells, horizon_s
        self._data = data = fit_data(profiles, period, cells=cells)
        self._seed = seed
        self._resident: Resident | None = None
        self._nll: float | None = None
        levels = profiles.levels
        counts = np.zeros((data.n_items, levels.n_levels), dtype=np.float32)
        np.add.at(counts, (data.train.item_num, data.train.level), 1.0)
        self._model = Conv4Rec(
            cfg,
            n_items=data.n_items,
            levels=levels,
            counts=torch.from_numpy(counts),
            start=agreed(data.level_start(levels) if _leads() else None, data.n_items, levels),
            seed=seed,
        )
        if begin is not None:
            log.info("begins at an earlier model tensors=%s", begin_at(self._model, begin))
        self.weights = data.train.counts.astype(np.float64)
        names = [*self._model.state_dict()]
        level = tuple(name for name in names if name.startswith(_LEVEL_STATE))
        rest = tuple(name for name in names if name not in (*level, *USER_TABLES))
        self._item_counts = counts.sum(axis=1).astype(np.int64)
        self._quality = Quality(select, self._item_counts)
        self.heads: Sequence[Head] = [Head(select, direction(select) == "min", rest)]
        if levels.n_levels > 1:
            self.heads = [*self.heads, Head(NLL, direction(NLL) == "min", level)]
        users = max(CHUNK_USERS, _MAX_RANKED // (data.n_items * len(self._priors)))
        users = min(users, VALIDATED_USERS)
        self._validation = None
        if validated:
            self._validation = validation(
                profiles, cells=cells, seed=seed, n_users=users, measured=measured
            )
        self._shares = {h: data.log_share(h) for _, h in self._priors}
        self._settled: frozenset[str] = frozenset()

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self._model

    def batch(self, rows: NDArray[np.int64], epoch: int) -> Ragged:
        """Return the profiles of these training users."""
        del epoch
        device = self._model.level_scale.device
        if self._resident is None or self._resident.device != device:
            now = self._data.now
            self._resident = Resident(self._data.train, device, reference_time=now)
            self._resident.left = left_out(self._model, self._resident)
        return self._resident.users(rows)

    def _ragged(self, cells: Cells) -> Ragged:
        batch = ragged(cells, reference_time=self._data.now)
        return batch.to(self._model.level_scale.device)

    def settle(self, metrics: Collection[str]) -> None:
        """Leave out the heads of these metrics from now on."""
        self._settled = frozenset(metrics)
        names = {name for head in self.heads if head.metric in metrics for name in head.names}
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name not in names)

    def validate(self, rank: int, world: int) -> Tensor | None:
        """Return sums: target cells, their -log P(level), the metric's denominator, its numerators.

        There is one numerator for each prior.
        """
        if self._validation is None:
            return None
        with self._model.steady():
            return self._sums(self._validation.chunks(rank, world))

    def _sums(self, chunks: Sequence[tuple[Cells, Cells]]) -> Tensor:
        model = self._model
        sums = torch.zeros(3 + len(self._priors), dtype=torch.float64)
        ranked = self._quality.name not in self._settled
        spread = self._spread() if ranked else torch.zeros(())
        for history, targets in chunks:
            z = model.encode(self._ragged(history))
            if ranked:
                sums[2:] += self._qualities(z, history, targets, spread)
            if model.has_levels and NLL not in self._settled:
                logits, wanted = self._target_logits(z, targets)
                loss = nn.functional.cross_entropy(logits, wanted, reduction="sum")
                sums[:2] += torch.tensor([len(wanted), loss.item()])
        return sums

    def _target_logits(self, z: Tensor, targets: Cells) -> tuple[Tensor, Tensor]:
        """Return the level logits of targets, [M, R], and their levels, [M]."""
        parts = (torch.from_numpy(targets.rows), _long(targets.item_num), _long(targets.level))
        rows, items, level = (part.to(z.device) for part in parts)
        return self._model.level_logits(self._model.split(z)[1][rows], items), level

    def start(self, choices: dict[str, float], ranks: Ranks) -> dict[str, float]:
        """Solve the consume block in closed form: {metric: its value}, or nothing where it cannot.

        Rank and penalty are those that validation prefers, or that an earlier phase chose.
        """
        train, model, latent = self._data.train, self._model, self._model.width
        widths = closed_ranks(train.n_users, self._data.n_items, latent)
        pairs: list[tuple[int, float]] = []
        if _PENALTY in choices:
            pairs = [(int(choices.get(_RANK, latent)), choices[_PENALTY])]
        elif self._validation is not None:
            pairs = [(rank, penalty) for rank in widths for penalty in PENALTIES]
        if model.cfg.consume_loss != "cosine" or not pairs:
            return {}
        solution = None
        name, values = self._quality.name, dict[tuple[int, float], float]()
        with progress.stage(
            "closed form", total=len(pairs), unit="settings", lines=progress.STEPS
        ) as work:
            if ranks.rank == 0:  # the others take what it found
                solution = spectrum(
                    train.rows,
                    train.item_num,
                    n_users=train.n_users,
                    n_items=self._data.n_items,
                    rank=max([*widths, pairs[-1][0]]),  # a cut is closer than a smaller one
                    seed=self._seed,
                )
            for rank, penalty in pairs:
                self._solve(solution, rank, penalty, ranks)
                sums = self.validate(ranks.rank, ranks.world)
                if sums is not None:
                    sums = sums.to(ranks.device)
                    ranks.total(sums)
                value = float("nan") if sums is None else self.metrics(sums)[name]
                values[rank, penalty] = value
                work.add()
                work.say(
                    f"closed form rank={rank} penalty={penalty:g} {name}={value:.5g}",
                    note=f"best {name} {max(values.values()):.4g}",
                )
        best = max(values, key=lambda pair: values[pair] / (_WIDER_GAIN if pair[0] > latent else 1))
        if best != pairs[-1]:
            self._solve(solution, *best, ranks)
        choices[_RANK], choices[_PENALTY] = best
        return {name: values[best]}

    def _solve(self, solution: Spectrum | None, rank: int, penalty: float, ranks: Ranks) -> None:
        """Set the closed form on every rank; rank 0 alone has the solution."""
        model = self._model
        sizes = (model.n_items, rank), model.scales.shape
        parts = [torch.zeros(size, device=ranks.device) for size in sizes]
        if solution is not None:
            found = solution.item_vectors(penalty, rank)
            parts = [torch.from_numpy(part).to(ranks.device) for part in found]
        for part in parts:
            ranks.total(part)
        model.solve_consume(*parts)

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Return the metric with the best prior and, with levels, nll."""
        cells, loss, below, above = [*sums[:3].tolist(), float(sums[3:].max())]
        result = {self._quality.name: above / max(below, 1e-12)}
        if self._model.has_levels:
            result[NLL] = loss / max(cells, 1.0)
        return {name: value for name, value in result.items() if name not in self._settled}

    def finish(self, choices: dict[str, float]) -> dict[str, float]:
        """Set offsets and prior (chosen where there is a validation), fit the link to P(i | u)."""
        self.settle(())
        with self._model.steady():
            return self._finish(choices)

    def _finish(self, choices: dict[str, float]) -> dict[str, float]:
        offsets = self._set_level_offsets(choices) if self._model.has_levels else {}
        if self._model.cfg.consume_loss == "cosine" and self._data.now is not None:
            return self._finish_timed(choices) | offsets
        if self._model.cfg.consume_loss == "cosine":
            sums = self.validate(0, 1)
            if sums is not None:
                weight, days = self._priors[int(sums[3:].argmax())]
                choices = {"prior_weight": weight, "prior_half_life_days": days}
            days = choices.get("prior_half_life_days", 0)
            self._set_prior(choices.get("prior_weight", 0.0), days)
        self._set_mean_level_latent()
        if self._model.cfg.consume_loss != "likelihood":
            self._fit_link_to_cells()
        return choices | offsets

    def _finish_timed(self, choices: dict[str, float]) -> dict[str, float]:
        """Set the form of time and the link, both chosen on what users did next; return them."""
        model, data, found = self._model, self._data, None
        if self._validation is not None:
            found = choose_form(
                model,
                self._cells.in_windows((Window.FIT, Window.VAL)),
                Horizon.of(self._profiles.facts.cutoffs or {}, self._horizon_s),
                rank=int(choices.get(_RANK, model.width)),
                penalty=choices.get(_PENALTY, _USUAL_PENALTY),
                metric=self._quality.name,
                seed=self._seed,
            )
        form = TimeForm.of_choices(choices)[0] if found is None else found.form
        kept = set_form(model, form, data.counters(), self._spread)
        self._set_mean_level_latent()
        if self._validation is None:
            named = [choices[name] for name in LINK_CHOICES if name in choices]
            self._fit_link_to_cells(torch.tensor(named) if named else None)
            return choices | kept
        users = np.arange(min(few(_LINK_USERS, model.n_items), self._validation.history.n_users))
        targets = self._validation.targets.users(users)
        scores = self._scores(self._validation.history.users(users))
        parts = torch.from_numpy(targets.rows), _long(targets.item_num)
        self._nll = model.link.fit(scores, *(part.to(scores.device) for part in parts))
        return (
            choices
            | kept
            | dict(zip(LINK_CHOICES, model.link.parameters_log.tolist(), strict=True))
        )

    def _set_level_offsets(self, choices: dict[str, float]) -> dict[str, float]:
        """Add what validation chose to the level logits of all items; return it."""
        model, names = self._model, [f"level_offset_{name}" for name in self._profiles.levels.names]
        if self._validation is not None:
            chunks = self._validation.chunks(0, 1)
            found = [self._target_logits(model.encode(self._ragged(h)), t) for h, t in chunks]
            user = torch.cat([_long(t.user_num[t.rows]) for _, t in chunks])
            logits, level = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
            offsets, value = level_offsets(logits, level, user)
            log.info("level offsets %s nll=%.5g", offsets.tolist(), value)
            choices = dict(zip(names, offsets.tolist(), strict=True))
        offsets = torch.tensor([choices.get(name, 0.0) for name in names]).to(model.level_bias)
        model.level_bias.data = model.level_bias + offsets
        model.level_offset = offsets
        return {name: choices[name] for name in names if choices.get(name)}

    @property
    def _priors(self) -> list[tuple[float, float]]:
        if self._model.cfg.consume_loss != "cosine":
            return PRIORS[:1]
        return PRIORS if self._data.now is None else TIMED_PRIORS

    def report(self) -> dict[str, float]:
        """Return the evaluator's metrics of the finished model on the validation users."""
        if self._validation is None:
            return {}
        with self._model.steady():
            report = self._validation.report(self._scores, self._item_counts, logits=self._logits)
        return report if self._nll is None else report | {CONSUME_NLL: self._nll}

    def _scores(self, history: Cells) -> Tensor:
        return self._model.consume_scores(self._model.encode(self._ragged(history)))

    def _logits(self, history: Cells, targets: Cells) -> Tensor:
        return self._target_logits(self._model.encode(self._ragged(history)), targets)[0]

    def _qualities(self, z: Tensor, history: Cells, targets: Cells, spread: Tensor) -> Tensor:
        """Return the metric's denominator and, for each prior, its numerator."""
        model = self._model
        scores = model.split(z)[0] @ model.consume_vectors().T
        if model.cfg.consume_loss != "cosine":
            scores = scores + model.consume_prior()
        scores = without(scores, history)
        wanted = torch.zeros(scores.shape, dtype=torch.bool)
        wanted[torch.from_numpy(targets.rows), _long(targets.item_num)] = True
        shares = {h: spread * share.to(z.device) for h, share in self._shares.items()}
        sums = self._quality.sums
        lists = (scores + w * shares[h] for w, h in self._priors)
        return torch.tensor([*sums(lists, wanted)], dtype=torch.float64)

    def _set_prior(self, weight: float, half_life_days: float) -> None:
        if weight == 0:
            return
        share = self._data.log_share(half_life_days).to(self._model.prior.device)
        self._model.prior.copy_(weight * self._spread() * (share - share.max()))

    def _spread(self) -> Tensor:
        """Return the standard deviation of scores over some training users and all items."""
        z = self._model.encode(
            self._ragged(self._data.sample(few(_SPREAD_USERS, self._model.n_items), self._seed))
        )
        return (self._model.split(z)[0] @ self._model.consume_vectors().T).std()

    def _set_mean_level_latent(self) -> None:
        model = self._model
        if model.has_levels:
            z = model.encode(self._ragged(self._data.sample(_LINK_USERS, self._seed)))
            model.mean_level_latent.copy_(model.split(z)[1].mean(dim=0))

    def _fit_link_to_cells(self, logs: Tensor | None = None) -> None:
        """Calibrate P(i | u) on training users, each item predicted from the others.

        With the parameters of an earlier fit, it takes those.
        """
        model = self._model
        batch = self._ragged(self._data.sample(few(_LINK_USERS, model.n_items), self._seed))
        scores = model.consume_scores(model.encode(batch))
        rows, items = batch.rows, batch.item_num
        scores = scores.index_put((rows, items), -model.own_scores(batch), accumulate=True)
        model.link.fit(scores, rows, items, logs=logs)


def _leads() -> bool:
    """Tell whether this process starts a model; the other ranks take over its weights."""
    group = torch.distributed
    return not (group.is_available() and group.is_initialized()) or group.get_rank() == 0


def _long(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
