"""The per-worker training loop of both models. It knows ranks but not Ray.

The global batch and its order follow from (seed, phase, epoch) alone and ranks deal its rows out
among them, so a batch is the same whatever the number of ranks. A row's share of the loss is its
weight divided by the weight of the whole global batch, so gradients are too.

A model has heads: blocks that share no parameters, each judged by a metric of its own. Training
goes in phases: the first one is validated and chooses the number of epochs of each head; later ones
(a refit on more data) run that many epochs without looking. A head keeps the weights of its epoch.
A head whose patience or epochs are over is settled: no step computes its loss any more. A solution
in closed form is a head's candidate of epoch 0: the head is settled when that is out of reach.
A saved state holds weights, optimiser, what was found so far and the position (phase, epoch, step);
a run that is resumed there, on any number of ranks, continues as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysys import progress
from raysys.errors import ConfigError
from raysys.training.history import headline, timed
from raysys.training.ledger import worst
from raysys.training.notice import Notice
from raysys.training.optim import OptimConfig, adamw, global_batches, rank_rows, step_seed
from raysys.training.task import Head, Ranks, State, Task, Validated
from raysys.training.weights import assign, kept_weights, weights

log = logging.getLogger(__name__)

_LEAST_GAIN = 1e-3  # relative gain of a metric that patience counts

Sums = dict[str, Any]  # floats in a state, else float64 tensors on the device: none waits for it


def train(
    phases: Sequence[Callable[[], Task]], optim: OptimConfig, *, seed: int, ranks: Ranks
) -> State:
    """Run all phases.

    Returns:
        State with `model` (the last task's own weights), `epochs` ({metric: epochs}), `metrics`
        ({metric: value} at these epochs), `choices` (what phases decided), `history` (one
        record per epoch), `seconds` ({step: of this rank}) and `rows` that were passed (those of
        lost workers are in neither), `peaks` of memory, see `ledger`, and `world` (of ranks).

    Raises:
        ConfigError: the loss is no longer finite; raised on all ranks before the update.
    """
    state: State = {
        "phase": 0,
        "epoch": 0,
        "step": 0,
        "sums": {},
        "history": [],
        "best": {},
        "epochs": {},
        "metrics": {},
        "choices": {},
        "seconds": {},
        "rows": 0,
        "peaks": {},
    } | (ranks.restored or {})
    for phase in range(state["phase"], len(phases)):
        torch.manual_seed(seed)
        with timed(state["seconds"], "start"), progress.stage("start", lines=progress.NONE):
            task = phases[phase]()
        _run_phase(phase, task, state, optim=optim, seed=seed, ranks=ranks)
        if phase + 1 < len(phases):
            state |= {"phase": phase + 1, "epoch": 0, "best": {}, "model": None}
    state["rows"] = state["rows"] or len(task.weights)
    state |= {"peaks": worst(ranks), "world": ranks.world}
    return state


def _run_phase(
    phase: int, task: Task, state: State, *, optim: OptimConfig, seed: int, ranks: Ranks
) -> None:
    """Train one phase; afterwards `state["model"]` holds its weights."""
    if state.get("model") is not None:
        assign(task.module, state["model"])
    wrapped = ranks.wrap(task.module)
    module: nn.Module = getattr(wrapped, "module", wrapped)
    optimiser = adamw(module, optim)
    if state.get("optimiser") is not None:
        optimiser.load_state_dict(state["optimiser"])
    state |= {"model": None, "optimiser": None}
    last = max(state["epochs"].values(), default=optim.epochs)
    if not (state["epoch"] or state["step"]):  # else what was solved is in the state
        with timed(state["seconds"], "closed form"):
            state["best"] |= (solved := _solve(task, module, state, phase, ranks))
        if solved and phase == 0:
            values = {name: best["value"] for name, best in solved.items()}
            ranks.save({"phase": phase, "epoch": 0, **values}, None)
    name = "refit" if phase else "fit"
    with (
        timed(state["seconds"], "epochs"),
        progress.stage(name, total=last, unit="epochs") as work,
    ):
        run = _Run(task, wrapped, module, optimiser, state, optim, seed, ranks, work)
        del wrapped
        run.epochs(last)
    state["rows"] += run.rows
    optimiser.zero_grad()
    del optimiser, run  # three quarters of the memory of a training
    for best in state["best"].values():
        assign(module, best["weights"])
    ranks.share(module)
    if phase == 0:
        state["epochs"] = {name: best["epoch"] for name, best in state["best"].items()}
        state["metrics"] = {name: best["value"] for name, best in state["best"].items()}
    module.eval()
    if isinstance(task, Validated) and ranks.rank == 0:  # whose state is the one that is kept
        with (
            torch.no_grad(),
            timed(state["seconds"], "finish"),
            progress.stage("finish", lines=progress.STEPS),
        ):
            state["choices"] |= task.finish(state["choices"])
            state["metrics"] |= task.report()
    state["model"] = weights(module)


def _heads(task: Task) -> Sequence[Head]:
    return task.heads if isinstance(task, Validated) else ()


def _solve(
    task: Task, module: nn.Module, state: State, phase: int, ranks: Ranks
) -> dict[str, dict[str, Any]]:
    """Return the heads that need no training as candidates of epoch 0; the model stays as it was.

    A later phase solves those alone for which the first one chose that.
    """
    if not isinstance(task, Validated) or (phase > 0 and 0 not in state["epochs"].values()):
        return {}
    before = module.state_dict()
    module.eval()
    with torch.no_grad():
        values = task.start(state["choices"], ranks)
    wanted = [h for h in task.heads if h.metric in values]
    if phase > 0:
        wanted = [h for h in wanted if state["epochs"].get(h.metric) == 0]
    solved: dict[str, dict[str, Any]] = {}
    for head in wanted:
        log.info("solved phase=%d %s=%.5g", phase, head.metric, values[head.metric])
        kept, value = kept_weights(module, head.names, ranks.rank), values[head.metric]
        solved[head.metric] = {"epoch": 0, "gained": 0, "value": value, "weights": kept}
    assign(module, before)
    return solved


def _improves(head: Head, value: float, old: dict[str, Any] | None) -> bool:
    """Tell whether a value of the head's metric is better than the candidate kept so far."""
    if old is None:
        return True
    return bool(value < old["value"] if head.minimise else value > old["value"])


def _keep_best(
    task: Task,
    module: nn.Module,
    state: State,
    record: dict[str, float],
    epoch: int,
    *,
    validated: bool,
    ranks: Ranks,
) -> None:
    """Keep the weights of every head whose metric is at its best, or whose epoch has come."""
    for head in _heads(task):
        old = state["best"].get(head.metric)
        if validated:
            value = record.get(head.metric, float("nan"))  # none of a head that is settled
            better = _improves(head, value, old)
        else:
            value, better = 0.0, state["epochs"].get(head.metric) == epoch
        if better:
            kept = kept_weights(module, head.names, ranks.rank)
            gained = epoch
            if old and old["epoch"] and abs(value - old["value"]) < _LEAST_GAIN * abs(old["value"]):
                gained = old["gained"]  # better, but not by enough to wait for more
            state["best"][head.metric] = {
                "epoch": epoch,
                "gained": gained,
                "value": value,
                "weights": kept,
            }


@dataclasses.dataclass
class _Run:
    """One phase's steps; `state` is brought up to date wherever it is saved."""

    task: Task
    wrapped: nn.Module
    module: nn.Module
    optimiser: torch.optim.Optimizer
    state: State
    optim: OptimConfig
    seed: int
    ranks: Ranks
    work: progress.Stage
    unsaved: int = 0
    rows: int = 0
    left_out: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        self.notice = Notice(self.ranks, wanted=bool(self.optim.checkpoint_steps))

    def epochs(self, last: int) -> None:
        """Train until epoch `last`, or until the first phase's patience is over."""
        state, phase, task = self.state, self.state["phase"], self.task
        self.work.skip(state["epoch"])
        self.settled()
        while state["epoch"] < last:
            record = self.epoch()
            values = _validate(self.module, task, self.ranks) if phase == 0 else None
            record |= values or {}
            state["epoch"] = epoch = state["epoch"] + 1
            kept: dict[str, Any] = {"validated": values is not None, "ranks": self.ranks}
            _keep_best(task, self.module, state, record, epoch, **kept)
            record |= {"phase": phase, "epoch": epoch, "time": time.time()}
            state["history"].append(record)
            line = " ".join(f"{k}={v:.5g}" for k, v in record.items() if k != "time")
            self.work.say(f"trained {line}", note=headline(record, state["best"]))
            for head in _heads(task) if phase == 0 else ():
                if self._lags(head):
                    state["best"][head.metric]["lags"] = True
            if self.settled():
                break
            self.report(record, due=self.due() and epoch < last)

    def settled(self) -> bool:
        """Leave out the heads that are done from now on; tell whether all are."""
        heads = {head.metric: head for head in _heads(self.task)}
        done = {name for name in heads if self._is_done(name)}
        if done == self.left_out or not isinstance(self.task, Validated):
            return bool(heads) and done == heads.keys()
        self.left_out = done
        self.task.settle(done)
        self.optimiser.zero_grad()
        self.wrapped = nn.Identity()  # lets go of the parameters before they are wrapped anew
        if done != heads.keys():
            self.wrapped = self.ranks.wrap(self.module)
        return done == heads.keys()

    def _is_done(self, name: str) -> bool:
        """Tell whether a head's epochs (of a later phase) or its patience are over."""
        epoch, best = self.state["epoch"], self.state["best"].get(name)
        if self.state["phase"] > 0:
            return name in self.state["epochs"] and epoch >= self.state["epochs"][name]
        patience = self.optim.patience
        if not patience or not best:
            return False
        if best["epoch"] == 0:
            return bool(best.get("lags"))
        return bool(epoch - best["gained"] >= patience)

    def _lags(self, head: Head) -> bool:
        """Tell whether a head's solution is out of its reach.

        That is more than `patience` epochs away at the pace of the last two; gains become smaller
        from epoch to epoch, so it is not reached later either.
        """
        best, records = self.state["best"].get(head.metric), self.state["history"]
        if not best or best["epoch"] or len(records) < 3 or head.metric not in records[-1]:
            return False
        before, value = records[-3][head.metric], records[-1][head.metric]
        return not _improves(head, value + self.optim.patience * (value - before) / 2, best)

    def epoch(self) -> dict[str, float]:
        """Make the rest of a pass; return weighted means of the losses over all ranks and rates.

        `examples_per_s` counts rows of all ranks, `waiting` is this rank's share of the time that
        went into making batches; in a phase's first epoch, what a task makes once is in it.
        """
        self.wrapped.train()
        state, n_rows = self.state, len(self.task.weights)
        key = (self.seed, state["phase"], state["epoch"])
        batches = global_batches(n_rows, self.optim.batch_rows(n_rows), key)
        sums: Sums = state["sums"] if self.ranks.rank == 0 else {}
        started, waited, rows = time.perf_counter(), 0.0, 0
        self.work.skip(state["step"] / len(batches))
        for step in range(state["step"], len(batches)):
            factor = self.optim.lr_factor(key[2] + step / len(batches))
            for group in self.optimiser.param_groups:
                group["lr"] = group["initial_lr"] * factor
            torch.manual_seed(step_seed(key, step, self.ranks.rank))
            waited += self._step(batches[step], key[2], sums)
            rows += len(batches[step])
            self.work.add(1 / len(batches), rows=len(batches[step]))
            self.unsaved += 1
            self.notice.after_step()
            if self.due() and step + 1 < len(batches):
                sums = self._totals(sums)
                state |= {"step": step + 1, "sums": sums}
                self.report({"phase": key[1], "epoch": key[2]}, due=True)
                sums = sums if self.ranks.rank == 0 else {}
        state |= {"step": 0, "sums": {}}
        self.rows += rows
        seconds = time.perf_counter() - started
        weight = max(float(self.task.weights.sum()), 1e-12)
        record = {name: value / weight for name, value in self._totals(sums).items()}
        return record | {
            "seconds": seconds,
            "examples_per_s": rows / max(seconds, 1e-9),
            "waiting": waited / max(seconds, 1e-9),
        }

    def due(self) -> bool:
        """Tell whether it is time to save."""
        every = self.optim.checkpoint_steps
        return self.notice.pending or (bool(every) and self.unsaved >= every)

    def report(self, record: dict[str, Any], *, due: bool) -> None:
        """Report a record, with the state where it is due: the trained tensors themselves."""
        if due:
            self.unsaved, self.notice.pending = 0, False
            if self.ranks.rank == 0:
                self.state["model"] = weights(self.module)
                self.state["optimiser"] = self.optimiser.state_dict()
        self.ranks.save(record, self.state if due else None)
        self.state |= {"model": None, "optimiser": None}

    def _step(self, rows: NDArray[np.int64], epoch: int, sums: Sums) -> float:
        """Make one step on this rank's share of a global batch; return the seconds of its batches.

        Adds the losses and the gradient's norm to `sums`, weighted.
        """
        task, ranks = self.task, self.ranks
        mine = rank_rows(rows, task.weights, ranks.rank, ranks.world)
        whole = max(float(task.weights[rows].sum()), 1e-12)
        parts = [p for p in np.array_split(mine, self.optim.accumulate) if len(p)] or [mine]
        self.optimiser.zero_grad(set_to_none=True)
        cuda, waited = ranks.device.type == "cuda", 0.0
        for part in parts:
            started = time.perf_counter()
            batch = task.batch(part, epoch)
            waited += time.perf_counter() - started
            weight = float(task.weights[part].sum())
            with self._in_step(last=part is parts[-1]):
                with torch.autocast(ranks.device.type, torch.bfloat16, enabled=cuda):
                    losses = self.wrapped(batch)
                (losses["loss"] * (weight / whole * ranks.world)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + weight * value.detach().double()
        grads = [p.grad for p in self.wrapped.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if not torch.isfinite(norm):
            raise ConfigError(
                f"the loss is not finite in epoch {epoch + 1}: lower optim.lr={self.optim.lr}"
            )
        module: Any = self.module
        if hasattr(module, "before_step"):
            module.before_step()
        self.optimiser.step()
        if hasattr(module, "after_step"):
            module.after_step()
        share = float(task.weights[mine].sum())
        sums["gradient_norm"] = sums.get("gradient_norm", 0.0) + share * norm.double()
        return waited

    def _in_step(self, *, last: bool) -> AbstractContextManager[Any]:
        """Keep gradients on this rank until the last part of a batch."""
        wrapped: Any = self.wrapped
        return nullcontext() if last or not hasattr(wrapped, "no_sync") else wrapped.no_sync()

    def _totals(self, sums: Sums) -> dict[str, float]:
        """Return the sums over all ranks."""
        names, device = sorted(sums), self.ranks.device
        total = torch.zeros(len(names), dtype=torch.float64, device=device)
        for place, name in enumerate(names):
            total[place] = sums[name]
        self.ranks.total(total)
        return dict(zip(names, total.tolist(), strict=True))


def _validate(module: nn.Module, task: Task, ranks: Ranks) -> dict[str, float] | None:
    """Return the task's metrics over all ranks; None: it has nothing to be judged by."""
    if not isinstance(task, Validated):
        return None
    module.eval()
    with torch.no_grad():
        sums = task.validate(ranks.rank, ranks.world)
    if sums is None:
        return None
    sums = sums.to(ranks.device, torch.float64)
    ranks.total(sums)
    return task.metrics(sums)
