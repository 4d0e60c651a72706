"""Training: the sparse path against the dense textbook form, and what a second worker gives.

    raysys bench suite=train run=runs/bench [n_items=20000]

First part, one thread, a process per engine, the same profiles and sizes (bench/steps.py). Where
this process has a GPU, the same engines on it, at larger sizes too, against what its memory and its
matrix units allow.
Second part, on the processor: epochs of the default model on a simulated log, by Ray Train with one
and two workers, and by two processes that train on batches of half the size without a word to each
other (all three while Ray is up).
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import shutil
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from raysys.autoencoder.config import Conv4RecConfig
from raysys.bench.steps import ENGINES, Sizes, gpu_rows, step_seconds
from raysys.bench.suites import BenchConfig
from raysys.cluster.connect import connected
from raysys.cluster.train_workers import LaunchConfig, forget
from raysys.commands.prepare import prepare
from raysys.commands.simulate import SimulateConfig, simulate
from raysys.commands.train import TrainConfig, fit
from raysys.commands.train_phases import autoencoder_phases
from raysys.config import require, require_run
from raysys.prepare.config import PrepareConfig
from raysys.store.builds import Workspace
from raysys.training.loop import train
from raysys.training.optim import USUAL_BATCH, OptimConfig
from raysys.training.task import Ranks

log = logging.getLogger(__name__)

# (items, profiles of a step) on a GPU beside the suite's own
_GPU_SIZES = ((20_000, 4096), (1_000_000, 4096))


@dataclasses.dataclass
class TrainBenchConfig(BenchConfig):
    """Settings of the train suite.

    Attributes:
        n_items: catalogue of the first part.
        batch: profiles of a step there; the default is what `raysys train` takes.
        profile: cells of a profile, on average.
        latent: of every latent.
        steps: timed steps; the first two of each process are not.
        workers: also run the second part.
        epochs: of its trainings.
        rounds: of one worker, two workers and two lone processes in turn; the fastest of each
            counts, as other work on the machine only slows down.
        n_users, n_catalogue, n_interactions: size of the log of the second part.
    """

    n_items: int = 20_000
    batch: int = 512
    profile: int = 100
    latent: int = 64
    steps: int = 10
    workers: bool = True
    epochs: int = 4
    rounds: int = 3
    n_users: int = 6000
    n_catalogue: int = 4000
    n_interactions: int = 1_000_000

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that nothing can be measured with."""
        for name in ("n_items", "batch", "profile", "latent", "steps", "rounds"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        fits = self.profile <= self.n_items / 4
        require(fits, "profile", self.profile, "at most n_items / 4")
        require(self.epochs >= 2, "epochs", self.epochs, "2 or more: the first one is not timed")

    def sizes(self, n_items: int | None = None, batch: int | None = None) -> Sizes:
        """Return the sizes of the first part, some of them others."""
        n_items, batch = n_items or self.n_items, batch or self.batch
        return Sizes(n_items, batch, self.profile, self.latent, self.steps, self.seed)


def rows(cfg: TrainBenchConfig) -> list[dict[str, Any]]:
    """Return a row per engine, then a row per way to use two cores."""
    require_run(cfg)
    found: list[dict[str, Any]] = []
    for engine in ENGINES:
        measured = _alone(step_seconds, engine, cfg.sizes(), torch.device("cpu"))
        row = {
            "engine": engine,
            "profiles_per_s": round(cfg.batch / measured.seconds, 1),
            "peak_mb": measured.peak >> 20,
        }
        if found:
            row["rate_of_textbook"] = round(row["profiles_per_s"] / found[0]["profiles_per_s"], 2)
            row["memory_below_textbook"] = round(found[0]["peak_mb"] / max(row["peak_mb"], 1), 2)
        found.append(row)
        log.info("bench train %s", row)
    if torch.cuda.is_available():
        found += gpu_rows([cfg.sizes(), *(cfg.sizes(*size) for size in _GPU_SIZES)])
    return found + (_worker_rows(cfg) if cfg.workers else [])


def _alone(work: Callable[..., Any], *args: Any) -> Any:
    """Run a function in a new process with one thread."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_one_thread) as pool:
        return pool.submit(work, *args).result()


def _one_thread() -> None:
    torch.set_num_threads(1)


def _worker_rows(cfg: TrainBenchConfig) -> list[dict[str, Any]]:
    """Time epochs of the default model: Ray Train with 1 and 2 workers, two lone processes."""
    run = Path(cfg.run) / "bench-train"
    shutil.rmtree(run, ignore_errors=True)
    common: dict[str, Any] = {"run": str(run), "seed": cfg.seed, "ray": cfg.ray}
    optim = OptimConfig(batch_size=512, epochs=cfg.epochs, patience=0)
    with connected(cfg.ray):
        sizes: dict[str, Any] = {"n_users": cfg.n_users, "n_items": cfg.n_catalogue}
        simulate(SimulateConfig(**common, **sizes, n_interactions=cfg.n_interactions))
        prepare(PrepareConfig(**common, source=str(run / "world" / "interactions"), split="users"))
        workspace = Workspace(str(run))
        profiles = workspace.current("profiles")
        rates: dict[str, list[tuple[float, float]]] = {}
        for round_ in range(cfg.rounds):
            for workers in (1, 2):
                job = TrainConfig(
                    **common,
                    optim=optim,
                    refit="none",
                    launch=LaunchConfig(workers=workers, gpu=False),
                )
                name = f"bench-{workers}-{round_}"
                state = fit(job, workspace, profiles, name=name)
                forget(workspace.storage, name)
                rates.setdefault(f"Ray Train, {workers}", []).append(_rate(state["history"]))
            lone = _two_alone(str(run), profiles.build_id, cfg.seed, optim)
            rates.setdefault("two processes, no communication", []).append(lone)
    shutil.rmtree(run, ignore_errors=True)
    best = {engine: max(found) for engine, found in rates.items()}
    lone_rate, one = best["two processes, no communication"][0], best["Ray Train, 1"][0]
    return [
        {
            "engine": engine,
            "profiles_per_s": round(rate, 1),
            "of_two_processes": round(rate / lone_rate, 3),
            "of_one_worker": round(rate / one, 3),
            "waiting_for_data": round(waiting, 4),
        }
        for engine, (rate, waiting) in best.items()
    ]


def _two_alone(run: str, profiles: str, seed: int, optim: OptimConfig) -> tuple[float, float]:
    """Return the summed rate of two processes that train at the same time, and their waiting."""
    half = dataclasses.replace(optim, batch_size=(optim.batch_size or USUAL_BATCH) // 2)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(_alone, _lone, run, profiles, seed, half) for _ in range(2)]
        results = [one.result() for one in both]
    return sum(rate for rate, _ in results), max(waiting for _, waiting in results)


def _lone(run: str, profiles: str, seed: int, optim: OptimConfig) -> tuple[float, float]:
    """Train in this process, with batches of the size that one of two workers gets."""
    settings = dataclasses.asdict(Conv4RecConfig())
    phases = autoencoder_phases(run, None, profiles, settings, seed, "none")
    return _rate(train(phases, optim, seed=seed, ranks=Ranks())["history"])


def _rate(history: list[dict[str, Any]]) -> tuple[float, float]:
    """Return profiles per second and the share of waiting, medians without the first epoch."""
    later = history[1:]
    return (
        statistics.median(record["examples_per_s"] for record in later),
        statistics.median(record["waiting"] for record in later),
    )
