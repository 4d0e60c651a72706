"""Tune: sweep settings of prepare, train and index by what the evaluator says of them.

    raysys tune run=R space.optim.lr=[0.01,0.03]           begins a sweep, or goes on with it
    raysys tune status | pause | stop | resume | report run=R [sweep=ID]
    raysys tune add run=R trials=10                        more trials of the same sweep

A trial fits on the FIT window and is judged on the validation targets alone, so the test period
stays unseen. Trials move no current build: train the winner with
`raysys train --config <run>/sweeps/<id>/best.yaml run=<run>`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from raysys.autoencoder.validation import RECALL
from raysys.cluster.train_workers import LaunchConfig
from raysys.commands.index import IndexConfig
from raysys.commands.swept import SCHEMAS, check_swept
from raysys.commands.train import TrainConfig
from raysys.commands.trial import (
    INDEX,
    OF_SERVICE,
    PREPARE,
    TRAIN,
    by_stage,
    chooses_epochs,
    direction,
    is_whole,
    stage_of,
)
from raysys.commands.trial_records import code_version
from raysys.config import (
    JobConfig,
    digest,
    identity,
    local,
    require,
    with_names_of_today,
    with_values,
)
from raysys.errors import ConfigError
from raysys.evaluation.named_metrics import checked
from raysys.prepare.config import PrepareConfig
from raysys.store.builds import Build
from raysys.sweeps.space import Space, choices_of, flatten, typed
from raysys.sweeps.study import GRID, NSGA2, SAMPLERS, TPE, Objective

DEFAULT_METRIC = f"{RECALL}^0.2"  # what picks online winners most often (docs/decisions/016)
DEFAULT_TRIALS = 20
AUTO = "auto"
_MAX_GRID = 100_000


def _default_space() -> dict[str, Any]:
    return {
        "autoencoder": {"profile_exponent": {"low": 0.2, "high": 0.8}},
        "optim": {"lr": {"low": 0.005, "high": 0.05, "log": True}},
    }


@dataclasses.dataclass
class TuneConfig(JobConfig):
    """Settings of the sweep.

    Attributes:
        space: keys of `train`, and of other stages as `index.KEY` and `prepare.KEY`, each a list
            of choices, {low, high[, log]} or {values, if}: `space.autoencoder.dropout=[0.3,0.5]`.
            Default: learning rate and profile exponent.
        metrics: what trials are judged by, the first one leads: recall@K, recall@K^BETA, ndcg@K,
            nll or rmse of the validation targets, `bytes` of an item in the index, `answer_ms` of
            this machine. The default penalises popular items.
        sampler: grid (all combinations of lists), random, tpe or nsga2; auto is grid where all
            are lists, else tpe.
        trials: settings to try beside the defaults, which are trial 0; null: all of a grid, else
            20.
        max_seconds: begin no trial after so many seconds.
        max_worker_seconds: begin no trial after so many seconds of all workers together.
        concurrent: trials at a time.
        stop_early: let a scheduler (ASHA) stop trials that fall behind.
        stop_on: the metric that it looks at after every epoch; null: the first of `metrics` that
            training measures then.
        finalists: best trials that are trained under several seeds and compared with the defaults.
        seeds: how many seeds.
        replicates: bootstrap replicates of that comparison.
        name: what `sweep=` may call the sweep, beside its id.
        dry_run: train the defaults alone, and say how long the sweep would take.
        train, index: settings that all trials share. Trials train in one process each;
            `train.launch.workers=2` lets Ray Train workers do it.
    """

    GONE = {"metric": "write metrics=[METRIC]"}

    space: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: list[str] = dataclasses.field(default_factory=lambda: [DEFAULT_METRIC])
    sampler: str = AUTO
    trials: int | None = local(None)
    max_seconds: float | None = local(None)
    max_worker_seconds: float | None = local(None)
    concurrent: int = local(1)
    stop_early: bool = True
    stop_on: str | None = None
    finalists: int = local(3)
    seeds: int = local(3)
    replicates: int = local(1000)
    name: str | None = local(None)
    dry_run: bool = local(False)
    train: TrainConfig = dataclasses.field(
        default_factory=lambda: TrainConfig(launch=LaunchConfig(workers=0))
    )
    index: IndexConfig = dataclasses.field(default_factory=IndexConfig)

    @classmethod
    def from_old(cls, tree: Any, prefix: str) -> dict[str, Any]:
        """Return the keys of today: `metric` may be said of a single one."""
        today = dict(tree)
        if "metric" in today and "metrics" not in today:
            today["metrics"] = [today.pop("metric")]
        return today

    def __post_init__(self) -> None:
        """Raise ConfigError for a space that cannot be searched."""
        for key, least in (("trials", 1), ("concurrent", 1), ("seeds", 1), ("replicates", 100)):
            value = getattr(self, key)
            require(value is None or value >= least, key, value, f"at least {least}")
        for key in ("max_seconds", "max_worker_seconds"):
            value = getattr(self, key)
            require(value is None or value > 0, key, value, "above 0")
        require(self.finalists >= 0, "finalists", self.finalists, "at least 0")
        require(self.sampler in (AUTO, *SAMPLERS), "sampler", self.sampler, "|".join(SAMPLERS))
        self.metrics = [checked("metrics", name, further=OF_SERVICE) for name in self.metrics]
        once = len(set(self.metrics)) == len(self.metrics) > 0
        require(once, "metrics", self.metrics, "one or more, each once")
        space = flatten(self.space or _default_space())
        space = flatten(_of_today(space))
        require(bool(space), "space", self.space, "a key that is not gone")
        check_swept(space)
        self.space = {key: typed(key, domain, self.read) for key, domain in space.items()}
        epochwise = self.stop_on is None or chooses_epochs(self.stop_on)
        require(epochwise, "stop_on", self.stop_on, "a metric that epochs are chosen by")
        if self.sampler == GRID and not self._is_finite:
            raise ConfigError("sampler='grid' needs lists alone in space: expected no range")
        if self.drawn_by == GRID:
            n_settings = math.prod(len(choices_of(domain) or ()) for domain in self.space.values())
            if n_settings > _MAX_GRID:
                raise ConfigError(
                    f"space is a grid of {n_settings:,} settings: give sampler=random or tpe, or "
                    f"lists of at most {_MAX_GRID:,} combinations"
                )
        several = self.sampler != NSGA2 or len(self.metrics) > 1
        require(several, "sampler", self.sampler, "nsga2 for several metrics only, tpe or random")

    def read(self, key: str, raw: Any) -> Any:
        """Return the raw value of a dotted key as the key's type.

        Raises:
            ConfigError: there is no such key, or it does not take the value.
        """
        prefix, name = stage_of(key)
        found = with_values(self._of_stages[prefix], {name: raw}, prefix=f"space.{prefix}")
        return attrgetter(name)(found)

    @property
    def _of_stages(self) -> dict[str, Any]:
        return {TRAIN: self.train, INDEX: self.index, PREPARE: PrepareConfig()}

    def sought(self, prepared: Mapping[str, Any]) -> Space:
        """Return the space, with the defaults of its keys.

        Args:
            prepared: settings that the profiles were made with.
        """
        return Space.of(self.space, lambda key: self._default(key, prepared))

    def _default(self, key: str, prepared: Mapping[str, Any]) -> Any:
        prefix, name = stage_of(key)
        if prefix == PREPARE and name in prepared:
            return prepared[name]
        return attrgetter(name)(self._of_stages[prefix])

    @property
    def objectives(self) -> list[Objective]:
        """What trials are judged by; the first one leads."""
        return [Objective(name, direction(name)) for name in self.metrics]

    @property
    def is_whole(self) -> bool:
        """Whether trials build a service, as keys or objectives ask for."""
        return is_whole([*self.space], self.metrics)

    @property
    def compared_by(self) -> Objective | None:
        """What finalists are compared by: the first metric that users have; None: there is none."""
        return next((each for each in self.objectives if each.name not in OF_SERVICE), None)

    def expected(self, space: Space) -> int:
        """Return how many settings are tried beside the defaults, before others are added."""
        grid = space.n_settings if self.drawn_by == GRID else None
        if self.trials is None:
            return DEFAULT_TRIALS if grid is None else grid
        return self.trials if grid is None else min(self.trials, grid)

    @property
    def all_seeds(self) -> list[int]:
        """The seeds that finalists are trained with."""
        return [self.seed + number for number in range(self.seeds)]

    @property
    def _is_finite(self) -> bool:
        return Space(self.space, {}).is_finite

    @property
    def drawn_by(self) -> str:
        """The sampler."""
        if self.sampler != AUTO:
            return self.sampler
        return GRID if self._is_finite else TPE

    def sweep_id(self, profiles: Build) -> str:
        """Return what identifies the sweep over these profiles by this version of raysys."""
        return digest([identity(self), profiles.content_id, code_version()])


def _of_today(space: dict[str, Any]) -> dict[str, Any]:
    """Return a flat space with the keys of today."""
    found: dict[str, Any] = {}
    for prefix, own in by_stage(space).items():
        today = flatten(with_names_of_today(SCHEMAS[prefix], own, prefix=f"space.{prefix}"))
        found |= {f"{prefix}{key}": domain for key, domain in today.items()}
    return found
