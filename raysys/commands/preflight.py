"""What a training will need, before it begins: memory of each process, and time.

Letters: N items, U users, M cells, H dims of the consume block, R levels, B users of a batch and W
workers. Sizes are of float32. The parts were compared with what trainings took
(docs/decisions/051-preflight.md); `training/ledger.py` measures the same peak.

    weights     N (H + learned part of the levels)
    epochs      gradients, Adam's two moments; unit vectors and their gradient, or, after a pass,
                the scores of all items for the users that are judged at once
    closed form subspaces of the larger and the smaller side, vectors, such scores; on one worker
    finish      scores that the link to P(i | u) is fitted on; on one worker

A time is work over a rate that is measured here, in a tenth of a second.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from raysys.autoencoder.closed_form import PENALTIES, closed_ranks
from raysys.autoencoder.config import MANY_ITEMS, Conv4RecConfig
from raysys.commands.host import GIB, gib
from raysys.compressor.model import MIN_ITEMS, CompresSAEConfig
from raysys.training.optim import USUAL_BATCH, OptimConfig

_FLOAT = 4
_MOST_BATCH = 8192
_FACTORS = 17  # of an item's ratings and its bias: at most, they are chosen by the data
_PROCESS_BYTES = int(0.6 * GIB)  # of a worker with torch and Ray, before it holds anything
_CELL_BYTES = 90  # columns as read, of the windows that are fitted, and as batches gather them
_SOLVED_CELL_BYTES = 60  # of the sparse matrix, its transpose and what they are made from
_STEP_CELL_FLOATS = 400  # gathered rows of a batch's cells
_UNIT_COPIES = 4.5  # unit vectors of the consume block in a step, and what their gradient needs
_JUDGED = 1 << 25  # scores that are held at once, see validation.few
_CHUNK, _JUDGED_COPIES = 256, 5  # users of a validation's block; their scores, masked and weighed
_LINKED, _LINK_COPIES = 1000, 6  # users that the link to P(i | u) is fitted on
_EXACT = 4096  # users or items up to which a Gram matrix is solved in full
_ITERATIONS = 10  # of a subspace
_OVERSAMPLE = 32
_PRIORS = 9
_SORTED_PER_S = 1.5e8  # scores that a core ranks in a second; bench suite train, one thread
_CELLS_PER_S = 1.5e5  # cells of a batch that a core passes in a second beside its products
_USUAL_EPOCHS = 12  # until patience ends a training; of both phases
_START_S = 15.0  # Ray Train's workers, imports
_SMALL = GIB // 2  # what needs less than that is never refused


@dataclasses.dataclass(frozen=True)
class Size:
    """What a training goes over.

    Attributes:
        n_items: N.
        n_users: U.
        n_cells: M, of all windows.
        n_levels: R.
        n_validated: users of a validation, at most 2000.
    """

    n_items: int
    n_users: int
    n_cells: int
    n_levels: int
    n_validated: int = 2000


@dataclasses.dataclass(frozen=True)
class Need:
    """What a job needs.

    Attributes:
        bytes: of the process that needs most, by part.
        other_bytes: of each further worker.
        seconds: until it is done, about.
    """

    bytes: Mapping[str, int]
    other_bytes: int
    seconds: float

    @property
    def most(self) -> int:
        """Bytes of the process that needs most."""
        return sum(self.bytes.values())

    def of_host(self, n_workers: int, *, concurrent: int = 1) -> int:
        """Return the bytes of a host with so many workers, of so many such jobs at a time."""
        first = min(n_workers, concurrent)
        return first * self.most + (n_workers - first) * self.other_bytes


@dataclasses.dataclass(frozen=True)
class Rates:
    """What one worker does in a second.

    Attributes:
        flops: of a float32 matrix product.
        bytes: moved, of arrays larger than any cache.
    """

    flops: float
    bytes: float

    @classmethod
    def here(cls) -> Rates:
        """Measure this processor, with the threads that torch has here; about 0.1 s."""
        side, size = 384, 1 << 22
        one, large = torch.ones(side, side), torch.ones(size)
        products = _best_of(8, lambda: one @ one)
        moved = _best_of(8, lambda: large + 1.0)
        return cls(2 * side**3 / products, 2 * _FLOAT * size / moved)


NO_RATES = Rates(1e10, 1e10)
"""For where only memory counts."""

MORE_MEMORY = "take a host with more memory, or fewer items (min_item_rows)"
"""Advice where no setting fits."""


def sizes_of(n_items: int, cfg: Conv4RecConfig, optim: OptimConfig) -> tuple[int, int]:
    """Return latent and batch size for a catalogue: those that are set, else what suits it.

    A step goes over all items whatever its batch, so larger catalogues have larger batches.
    """
    batch = optim.batch_size
    if batch is None:
        grown = USUAL_BATCH * 2 ** round(math.log2(max(n_items, MANY_ITEMS) / MANY_ITEMS))
        batch = min(_MOST_BATCH, grown)
    return cfg.latent_of(n_items), batch


def training(
    size: Size,
    cfg: Conv4RecConfig,
    optim: OptimConfig,
    *,
    workers: int,
    rates: Rates,
    phases: int = 2,
) -> Need:
    """Return what the training of an autoencoder needs.

    Args:
        size: of the profiles.
        cfg: the model.
        optim: its training.
        workers: W; 0 trains in the job.
        rates: of a worker.
        phases: fits, 2 where the last one takes more windows.
    """
    latent, batch = sizes_of(size.n_items, cfg, optim)
    world = max(workers, 1)
    learned = latent + (_level_floats(size, cfg) if size.n_levels > 1 else 0)
    held = size.n_levels + 2 * _FACTORS + 4
    if cfg.consume_loss == "likelihood":
        learned += latent
    item = _FLOAT * size.n_items
    weights = item * (learned + held)
    judged = _FLOAT * _JUDGED_COPIES * min(_JUDGED, min(_CHUNK, size.n_validated) * size.n_items)
    users = min(batch, max(1, size.n_users // 8))
    share = max(1, users // world // optim.accumulate) * size.n_cells / max(size.n_users, 1)
    step = int(_UNIT_COPIES * item * latent + _FLOAT * share * _STEP_CELL_FLOATS)
    held_in = {
        "epochs": 3 * item * learned + max(step, item * latent + judged),
        "finish": _FLOAT * _LINK_COPIES * min(_JUDGED, _LINKED * size.n_items),
    }
    ranks = closed_ranks(size.n_users, size.n_items, latent)
    solve_s = 0.0
    if cfg.consume_loss == "cosine" and ranks:
        held_in["closed form"] = _solved_bytes(size, max(ranks)) + judged
        solve_s = _solved_s(size, ranks, rates)
    parts = {"process": _PROCESS_BYTES, "cells": _CELL_BYTES * size.n_cells, "weights": weights}
    other = sum(parts.values()) + held_in["epochs"]
    largest = max(held_in, key=lambda name: held_in[name])
    parts[largest] = held_in[largest]
    seconds = _epoch_s(size, learned, latent, batch, world, rates)
    epochs = phases * min(optim.epochs, _USUAL_EPOCHS)
    return Need(parts, other, _START_S + phases * solve_s + epochs * seconds)


def compressing(n_items: int, dim: int, cfg: CompresSAEConfig, *, rates: Rates) -> Need:
    """Return what fitting a dictionary to vectors [N, dim] and coding them needs, in one process.

    Coding in parts goes on on the cluster; the time is that of one process.
    """
    if n_items < MIN_ITEMS:
        return Need({"process": _PROCESS_BYTES}, 0, 1.0)
    atoms, active = cfg.sizes(n_items)
    rows = min(n_items, 16 * atoms)
    fitted = rows * (2 * _FLOAT * dim + 24 * active) + 17 * n_items
    block = 4096 * atoms * _FLOAT * 4 + atoms * (atoms + dim) * 2 * _FLOAT
    parts = {"process": _PROCESS_BYTES, "rows": fitted, "pursuit": block}
    passed = 8 * rows + n_items
    per_row = 2 * atoms * (dim + active * (active + 1)) / rates.flops
    return Need(parts, _PROCESS_BYTES + block, passed * per_row)


def indexing(n_items: int, dim: int, n_active: int, kind: str, *, rates: Rates) -> Need:
    """Return what an index of codes needs: a sample decoded, lists fitted, items assigned."""
    points = 0 if kind == "flat" else n_items if kind == "graph" else min(n_items, 400_000)
    lists = max(1, n_items // 48) if kind == "ivf" else 0
    parts = {
        "process": _PROCESS_BYTES,
        "codes": n_items * (3 * n_active + 40),
        "points": 2 * points * dim * _FLOAT,
        "lists": 2 * lists * dim * _FLOAT,
        "scores": _FLOAT * 4 * min(_JUDGED, 400 * n_items),
    }
    near = 64 * math.log2(max(lists or points, 2))
    seconds = 2 * (n_items + 8 * points) * near * dim / rates.flops if points else 0.0
    return Need(parts, _PROCESS_BYTES, seconds)


def fitting(
    size: Size,
    cfg: Conv4RecConfig,
    optim: OptimConfig,
    *,
    workers: int,
    room: int,
    here: int,
    concurrent: int = 1,
) -> str | None:
    """Return the largest sizes below those that are set for which a host has room, as settings.

    The consume block is cut first, down to 64 dims; then the level block, which learns from few
    cells an item; then both as far as it takes.

    Args:
        size: of the profiles.
        cfg: the model.
        optim: its training.
        workers: W.
        room: bytes of the host.
        here: workers on it.
        concurrent: such trainings at a time.
    """
    latent = cfg.latent_of(size.n_items)
    coarse = range((latent - 1) // 64 * 64, 0, -64)
    levels = [cfg.level_latent // 2**k for k in range(7) if cfg.level_latent // 2**k >= 4]
    levels = levels or [cfg.level_latent]
    for few in (coarse, [min(latent, n) for n in (32, 16, 8)]):
        for level in levels if size.n_levels > 1 else levels[:1]:
            for dims in few:
                smaller = dataclasses.replace(cfg, latent=dims, level_latent=level)
                need = training(size, smaller, optim, workers=workers, rates=NO_RATES)
                if need.of_host(here, concurrent=concurrent) <= room:
                    text = f"autoencoder.latent={dims}"
                    cut = level != cfg.level_latent
                    return f"{text} autoencoder.level_latent={level}" if cut else text
    return None


def is_over(need: int, room: int, *, processes: int = 1) -> bool:
    """Tell whether processes need more than there is (0: not known); a small need never is."""
    return bool(room) and need > room and need - processes * _PROCESS_BYTES >= _SMALL


def refusal(
    size: Size,
    cfg: Conv4RecConfig,
    optim: OptimConfig,
    *,
    workers: int,
    hosts: Sequence[tuple[str, int, int]],
    concurrent: int = 1,
) -> str | None:
    """Return why a training does not fit, with the setting that would; None: it does.

    Args:
        size: of the profiles.
        cfg: the model.
        optim: its training.
        workers: W; 0 trains in the job.
        hosts: (name, bytes for it, workers on it) of each; 0 bytes: not known.
        concurrent: such trainings at a time.
    """
    need = training(size, cfg, optim, workers=workers, rates=NO_RATES)
    for name, room, here in hosts:
        whole = need.of_host(here, concurrent=concurrent)
        if not is_over(whole, room, processes=here):
            continue
        latent = cfg.latent_of(size.n_items)
        told = f"{gib(need.most)} a worker" if here > 1 else gib(need.most)
        many = f", {gib(whole)} for the {here} there" if here > 1 else ""
        smaller = fitting(
            size, cfg, optim, workers=workers, room=room, here=here, concurrent=concurrent
        )
        fits = [] if smaller is None else [f"{smaller} fits"]
        if here > 1 and need.most <= room:
            fits.append("concurrent=1 fits" if concurrent > 1 else "launch.workers=1 fits")
        advice = " or ".join(fits) or MORE_MEMORY
        return (
            f"autoencoder.latent={latent} over {size.n_items:,} items needs {told}{many}; "
            f"{name} has {gib(room)} for it: {advice}"
        )
    return None


def _level_floats(size: Size, cfg: Conv4RecConfig) -> int:
    return (cfg.channels + cfg.level_channels) * cfg.level_latent + size.n_levels


def _solved_bytes(size: Size, rank: int) -> int:
    few, many = sorted((size.n_users, size.n_items))
    matrix = _SOLVED_CELL_BYTES * size.n_cells
    vectors = 4 * _FLOAT * size.n_items * rank
    if few <= _EXACT:
        return matrix + vectors + 40 * few * few
    width = rank + _OVERSAMPLE
    return matrix + max(_FLOAT * width * (many + 2 * few), vectors + _FLOAT * width * (many + few))


def _solved_s(size: Size, ranks: Sequence[int], rates: Rates) -> float:
    """Return the seconds of a decomposition and of judging it by every rank and penalty."""
    few, rank = min(size.n_users, size.n_items), max(ranks)
    if few <= _EXACT:
        solve = 25.0 * few**3 / rates.flops
    else:
        width = rank + _OVERSAMPLE
        sparse = 2 * size.n_cells * width * 2 * _FLOAT / rates.bytes
        orthonormal = (4 * few * width**2 + 2 * few * width**2 + 30 * width**3) / rates.flops
        solve = _ITERATIONS * (sparse + orthonormal)
    judged = min(size.n_validated, size.n_users) * size.n_items
    one = judged * (2 * rank / rates.flops + _PRIORS / _SORTED_PER_S)
    return solve + len(ranks) * len(PENALTIES) * one


def _epoch_s(size: Size, learned: int, latent: int, batch: int, world: int, rates: Rates) -> float:
    """Return the seconds of one epoch: every step goes over all items, every cell is passed."""
    steps = math.ceil(size.n_users / min(batch, max(1, size.n_users // 8)))
    products = 6.0 * size.n_items * latent**2 / rates.flops
    moved = _FLOAT * size.n_items * (10 * learned + 8 * latent) / rates.bytes
    judged = min(size.n_validated, size.n_users) * size.n_items
    validated = judged * (2 * latent / rates.flops + _PRIORS / _SORTED_PER_S) / world
    return steps * (products + moved) + size.n_cells / _CELLS_PER_S / world + validated


def _best_of(rounds: int, work: Callable[[], object]) -> float:
    """Return the seconds of the quickest of some calls, after one that is not counted."""
    work()
    best = math.inf
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best
