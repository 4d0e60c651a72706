"""The phases of the autoencoder's training, as every worker makes them for itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.consume_time import DAY_S
from raysys.autoencoder.task import AutoencoderTask
from raysys.autoencoder.validation import RECALL, REPORTED
from raysys.autoencoder.warm_start import Beginning
from raysys.data.profiles import Profiles
from raysys.data.schema import Window, period_windows
from raysys.store.builds import Workspace
from raysys.training.task import Task


def autoencoder_phases(
    run: str,
    cache_dir: str | None,
    profiles: str,
    cfg: dict[str, Any],
    seed: int,
    refit: str,
    select: str = RECALL,
    horizon_days: float | None = None,
    measured: Sequence[str] = REPORTED,
    begin: str | None = None,
) -> Sequence[Callable[[], Task]]:
    """Return the phases of the autoencoder, as each Ray Train worker calls it.

    Args:
        run: the workspace.
        cache_dir: its cache.
        profiles: build_id of the profiles.
        cfg: fields of `Conv4RecConfig`.
        seed: seed of everything.
        refit: `none`, `val` or `all`: which windows the second phase adds.
        select: metric that the consume block is chosen by.
        horizon_days: how far ahead the final model will look; None: to the end of the log where
            that is left to test on, else as far as the validation targets reach.
        measured: metrics of the finished model on the validation users, by name.
        begin: build_id of an earlier model of the same log, see `warm_start`.
    """
    workspace = Workspace(run, cache_dir=cache_dir)
    loaded = Profiles.open(workspace.open("profiles", profiles))
    last = last_period(loaded.facts.split, refit)
    cells = loaded.cells(windows_of(loaded, last))
    cutoffs = loaded.facts.cutoffs
    horizon_s = None if horizon_days is None else horizon_days * DAY_S
    if horizon_s is None and last == "test" and cutoffs is not None:
        horizon_s = max(1.0, float(cells.end - cutoffs["test"]))
    task = functools.partial(
        AutoencoderTask,
        loaded,
        Conv4RecConfig(**cfg),
        cells=cells,
        seed=seed,
        select=select,
        horizon_s=horizon_s,
        measured=measured,
        begin=None if begin is None else Beginning.of(workspace.open("autoencoder", begin)),
    )
    phases = [functools.partial(task, period="val", validated=True)]
    if last != "val":
        phases.append(functools.partial(task, period=last, validated=False))
    return phases


def windows_of(profiles: Profiles, last: str) -> Collection[Window] | None:
    """Return the windows that a training may read whose final model is of period `last`.

    None: all, for a horizon that ends with the log. The test period stays unread until then.
    """
    return period_windows(profiles.facts.split, "val").used if last == "val" else None


def last_period(split: str, refit: str) -> str:
    """Return the period whose windows the final model is fitted on."""
    if refit == "all":
        return "all"
    return "test" if refit == "val" and split == "temporal" else "val"
