"""Finished trials, `<run>/sweeps/trials/<digest>.json`: shared by all sweeps of a run.

A digest names what decides a trial: the version of the code, the profiles, the settings of every
stage that takes part, the seed. Objectives are no part of it: a record holds all that was measured,
and serves any sweep whose objectives are among that.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import platform
from collections.abc import Mapping
from typing import Any

from raysys.commands.trial import ANSWER_MS, Measured, TrialPlan
from raysys.config import digest, identity
from raysys.errors import CorruptBuildError
from raysys.store.builds import Workspace
from raysys.store.kinds import KINDS
from raysys.store.manifests import difference, notes
from raysys.store.storage import Storage

log = logging.getLogger(__name__)

TRIALS = "sweeps/trials"


@functools.cache
def code_version() -> str:
    """Return the version of the package, in a checkout with its commit and what differs from it."""
    found = notes()
    version = str(found["versions"]["raysys"])
    if not found["git_revision"]:
        return version
    changes = difference()
    edited = f"-{digest(changes)[:8]}" if changes else ""
    return f"{version}+{found['git_revision'][:12]}{edited}"


def trial_digest(plan: TrialPlan, values: Mapping[str, Any], *, seed: int) -> str:
    """Return what names a trial: two of one digest measure the same.

    Raises:
        ConfigError: see `TrialPlan.settings`. BuildError: the profiles are gone.
    """
    settings = plan.settings(values, seed=seed)
    workspace = Workspace(plan.run, cache_dir=plan.cache_dir)
    stages = {"train": identity(settings.train), "prepare": dict(settings.prepare)}
    stages["train"]["keep"] = settings.train.compressor.keep
    if plan.whole:
        stages["index"] = identity(settings.index)
    else:
        del stages["train"]["compressor"], stages["train"]["keep"]
    return digest(
        {
            "code": code_version(),
            "kinds": {kind.name: kind.version for kind in KINDS.values()},
            "profiles": workspace.open("profiles", plan.profiles).content_id,
            "stages": json.loads(json.dumps(stages)),
            "seed": seed,
            "host": platform.node() if ANSWER_MS in plan.objectives else None,
        }
    )


def trial_folder(name: str) -> str:
    """Return the place in a run of the trial with this digest."""
    return f"{TRIALS}/{name}"


def recorded(storage: Storage, name: str, *, objectives: tuple[str, ...]) -> Measured | None:
    """Return what a finished trial measured; None: there is none, or it lacks an objective.

    Args:
        storage: of the run.
        name: the digest.
        objectives: that are asked for.
    """
    try:
        found = storage.read_json(f"{TRIALS}/{name}.json")
        measured = None if found is None else Measured(**found)
    except (CorruptBuildError, TypeError) as error:
        log.warning("trial is measured anew digest=%s: %s", name, error)
        return None
    if measured is None or not set(objectives) <= measured.metrics.keys():
        return None
    asked = {objective: measured.metrics[objective] for objective in objectives}
    return dataclasses.replace(measured, objectives=asked)


def record(storage: Storage, name: str, measured: Measured) -> None:
    """Keep what a trial measured, in one write, beside what was measured of it before."""
    before = recorded(storage, name, objectives=())
    if before is not None:
        metrics = {**before.metrics, **measured.metrics}
        measured = dataclasses.replace(measured, metrics=metrics)
    content = json.dumps(dataclasses.asdict(measured), sort_keys=True) + "\n"
    storage.write_atomic(f"{TRIALS}/{name}.json", content)
