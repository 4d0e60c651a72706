"""A trial of a sweep: one setting, trained and judged on the validation period.

There are two depths. Where metrics of the model decide and no key of the codes or of the index is
swept, a trial fits the model and takes the metrics that the fit measures of its validation users:
no build is written. Otherwise a trial is `train`, `index` and `evaluate period=val via=index`, set
aside in a place of its own: its builds are ordinary ones, none of which becomes current in the run.

Nothing here reads the test period: see `PeriodWindows.used`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from raysys.autoencoder.validation import NLL, check_metric
from raysys.cluster.train_workers import forget
from raysys.commands.evaluate import REPORTS, EvaluateConfig, evaluate, report_name
from raysys.commands.index import IndexConfig, index
from raysys.commands.prepare_profiles import relabelled
from raysys.commands.train import TrainConfig, train_builds
from raysys.commands.trial_answers import answer_ms
from raysys.commands.trial_training import Followed
from raysys.config import with_values
from raysys.data.profiles import ProfilesFacts
from raysys.data.schema import Window, period_windows
from raysys.errors import ConfigError
from raysys.evaluation import named_metrics
from raysys.index.files import IndexFacts
from raysys.store.builds import Workspace
from raysys.store.current import aside
from raysys.store.uses import announced
from raysys.training import ledger
from raysys.training.threads import threads

BYTES, ANSWER_MS = "bytes", "answer_ms"
OF_SERVICE = (BYTES, ANSWER_MS)
"""Objectives that are no metrics: bytes per item of the index's files with the dictionary's share,
and the median time of an answer on this machine, see `answer_ms`."""
TRAIN, INDEX, PREPARE = "", "index.", "prepare."
"""What a swept key begins with, by its stage."""
_WHOLE_KEYS = (INDEX, PREPARE, "compressor.")
_SERVED = ("profiles", "autoencoder", "embeddings", "compressor", "codes", "index")
_ALWAYS = (
    *(f"recall@{k}" for k in (1, 5, 10, 20, 50)),
    *(f"recall@20^{beta:g}" for beta in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)),
    *("ndcg@10", "ndcg@20", "ndcg@100", "rmse", "nll"),
)  # what every trial measures, for a later sweep with other objectives

Epoch = dict[str, float]
Found = tuple[dict[str, float], dict[str, str]]  # metrics by name, build ids by kind


@dataclasses.dataclass(frozen=True)
class TrialPlan:
    """What the trials of a sweep share.

    Attributes:
        run, cache_dir: of the workspace.
        profiles: build_id of the profiles that all trials take.
        train: settings of `train` before a trial's values are put in.
        index: the same of `index`.
        prepare: keys of `prepare` that differ from those that the profiles were made with.
        objectives: names of metrics, `bytes` or `answer_ms`; the first leads.
        stop_on: metric that is reported after every epoch, one that epochs are chosen by; None: the
            first objective that is such a one.
        whole: measure the service, not only the model: see `is_whole`.
        threads: of a trial's process; None: as many as it has.
    """

    run: str
    cache_dir: str | None
    profiles: str
    train: TrainConfig
    objectives: tuple[str, ...]
    index: IndexConfig = dataclasses.field(default_factory=IndexConfig)
    prepare: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stop_on: str | None = None
    whole: bool = False
    threads: int | None = None

    def settings(self, values: Mapping[str, Any], *, seed: int) -> Settings:
        """Put a trial's values in.

        Args:
            values: by dotted key: bare those of `train`, `index.KEY`, `prepare.KEY`.
            seed: of everything that is drawn.

        Raises:
            ConfigError: a key is unknown, or a value is not accepted.
        """
        own = by_stage(values)
        place: dict[str, Any] = {
            "run": self.run,
            "cache_dir": self.cache_dir,
            "seed": seed,
            "force": False,
        }
        select = self.train.select if self.watched == NLL else self.watched
        train = dataclasses.replace(self.train, **place, model="all", refit="none", select=select)
        return Settings(
            train=with_values(train, own[TRAIN]),
            index=with_values(dataclasses.replace(self.index, **place), own[INDEX], prefix=INDEX),
            prepare={**self.prepare, **own[PREPARE]},
        )

    @property
    def watched(self) -> str:
        """The metric that is known after every epoch; epochs are chosen by it."""
        names = self.objectives if self.stop_on is None else (self.stop_on,)
        return next(filter(chooses_epochs, names), self.train.select)

    @property
    def measured(self) -> tuple[str, ...]:
        """The metrics that every trial measures."""
        named = [name for name in self.objectives if name not in OF_SERVICE]
        return tuple(dict.fromkeys((*named, self.watched, *_ALWAYS)))


@dataclasses.dataclass(frozen=True)
class Settings:
    """A trial's settings of each stage; of `prepare` the keys that differ from the run's."""

    train: TrainConfig
    index: IndexConfig
    prepare: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a trial found, as JSON values.

    Attributes:
        metrics: {name: value} of all that was measured, on the validation period.
        objectives: those that the sweep is about.
        epochs: that were trained.
        history: [epoch, value of `TrialPlan.watched`]; epoch 0 is a closed form.
        seconds: of the whole trial; training_seconds: of its training.
        worker_seconds: workers times seconds of the training loop.
        peak_bytes: most memory that one worker held.
        rows_per_s: users that a second of the loop's epochs took in.
        build_ids: {kind: build_id} of what was made or reused.
    """

    metrics: dict[str, float]
    objectives: dict[str, float]
    epochs: int
    history: list[list[float]]
    seconds: float
    training_seconds: float
    worker_seconds: float
    peak_bytes: int
    rows_per_s: float
    build_ids: dict[str, str] = dataclasses.field(default_factory=dict)


def stage_of(key: str) -> tuple[str, str]:
    """Return what a swept key begins with, and its name in that stage."""
    prefix = next((each for each in (INDEX, PREPARE) if key.startswith(each)), TRAIN)
    return prefix, key.removeprefix(prefix)


def by_stage(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return {what keys of a stage begin with: {name in that stage: value}}, of all stages."""
    found: dict[str, dict[str, Any]] = {INDEX: {}, PREPARE: {}, TRAIN: {}}
    for key, value in values.items():
        prefix, name = stage_of(key)
        found[prefix][name] = value
    return found


def chooses_epochs(name: str) -> bool:
    """Tell whether a metric is one that epochs are chosen by, so that it is known after each."""
    try:
        check_metric("objective", name)
    except ConfigError:
        return name == NLL
    return True


def direction(name: str) -> Literal["max", "min"]:
    """Return whether `max` or `min` is the better end of an objective."""
    lower = name in OF_SERVICE or named_metrics.is_minimised(name)
    return "min" if lower else "max"


def is_whole(keys: Collection[str], objectives: Collection[str]) -> bool:
    """Tell whether a sweep of these keys for these objectives needs the whole service."""
    service = any(name in OF_SERVICE for name in objectives)
    return service or any(key.startswith(_WHOLE_KEYS) for key in keys)


def measure(
    plan: TrialPlan,
    values: Mapping[str, Any],
    *,
    seed: int,
    folder: str,
    on_epoch: Callable[[Epoch], None],
    callbacks: Sequence[Any] = (),
) -> Measured:
    """Train one setting and measure it on the validation period.

    The same values, seed and profiles give the same metrics, digit for digit, where the training is
    in this process (`launch.workers=0`) on as many threads.

    Args:
        plan: what all trials share.
        values: of this one, see `TrialPlan.settings`.
        seed: of everything that is drawn.
        folder: the trial's place in the run.
        on_epoch: called with `epoch` and what is known after it, with `launch.workers=0`. What it
            raises ends the trial, which then leaves nothing behind.
        callbacks: Ray Train callbacks, with `launch.workers` of 1 or more.

    Raises:
        ConfigError: a value is not accepted, or the log cannot give an objective.
    """
    settings = plan.settings(values, seed=seed)
    training = Followed(plan.watched, on_epoch, callbacks)
    started = time.perf_counter()
    with _place(plan, folder) as workspace, threads(plan.threads):
        measured = _whole if plan.whole else _fitted
        metrics, build_ids = measured(plan, settings, workspace, training, folder)
    missing = [name for name in plan.objectives if name not in metrics]
    if missing:
        raise ConfigError(f"objective {missing[0]!r}: this log has nothing to measure it by")
    return Measured(
        metrics=metrics,
        objectives={name: metrics[name] for name in plan.objectives},
        seconds=round(time.perf_counter() - started, 3),
        build_ids=build_ids,
        **training.found(),
    )


def finalist(
    plan: TrialPlan, values: Mapping[str, Any], *, seed: int, folder: str
) -> dict[str, Any]:
    """Build and evaluate one setting so that it can be compared user by user.

    Args:
        plan: what all trials share.
        values: of this one.
        seed: of everything that is drawn.
        folder: the place in the run, of its own for every setting and seed.

    Returns:
        `users`: the report in the run and its method, which `comparison.users_of_report` takes;
        and the totals of `ledger` over its trainings, those that were there already included.
    """
    settings = plan.settings(values, seed=seed)
    if not plan.whole:
        settings = dataclasses.replace(
            settings, train=dataclasses.replace(settings.train, model="autoencoder")
        )
    with _place(plan, folder) as workspace, threads(plan.threads):
        _take_profiles(plan, settings, workspace)
        builds = train_builds(settings.train, workspace)
        if plan.whole:
            index(settings.index, windows=_windows(workspace))
        via = "index" if plan.whole else "model"
        asked = _asked(plan, settings, via)
        evaluate(asked, shown=False)
        notes = [build.manifest.notes for build in builds]
        took = ledger.totals(each["training"] for each in notes if "training" in each)
        return {"users": [workspace.path(f"{REPORTS}/{report_name(asked)}"), via], **took}


def training_name(folder: str) -> str:
    """Return the name under which a trial's training keeps its states, with workers of its own."""
    return f"trial-{folder.rpartition('/')[2]}"


def _fitted(
    plan: TrialPlan, settings: Settings, workspace: Workspace, training: Followed, folder: str
) -> Found:
    """Fit the model alone and return its metrics on the validation users."""
    profiles, name = workspace.open("profiles", plan.profiles), training_name(folder)
    state = training.fit(settings.train, workspace, profiles, name=name, measured=plan.measured)
    if settings.train.launch.most:
        forget(workspace.storage, name)
    metrics = {metric: float(value) for metric, value in sorted(state["metrics"].items())}
    return metrics, {profiles.kind: profiles.build_id}


def _whole(
    plan: TrialPlan, settings: Settings, workspace: Workspace, training: Followed, folder: str
) -> Found:
    """Build the service, evaluate it where an objective is a metric, and return what it is."""
    del folder
    _take_profiles(plan, settings, workspace)
    train_builds(settings.train, workspace, fitted=training.fit)
    index(settings.index, windows=_windows(workspace))
    served = {kind: workspace.current(kind) for kind in _SERVED}
    metrics = {BYTES: IndexFacts.of(served["index"]).bytes_per_item_with_dictionary}
    if ANSWER_MS in plan.objectives:
        metrics[ANSWER_MS] = answer_ms(workspace, seed=settings.train.seed)
    if not set(plan.objectives) <= set(OF_SERVICE):
        report = evaluate(_asked(plan, settings, "index"), shown=False).metrics
        means = {name: report[name]["mean"] for name in plan.measured if name in report}
        metrics |= {name: float(mean) for name, mean in means.items() if mean is not None}
    return metrics, {kind: build.build_id for kind, build in served.items()}


def _take_profiles(plan: TrialPlan, settings: Settings, workspace: Workspace) -> None:
    """Make the profiles current that the plan names, whatever the run's are by now."""
    profiles = workspace.open("profiles", plan.profiles)
    if settings.prepare:
        relabelled(workspace, profiles, settings.prepare)
    else:
        workspace.go_back(profiles)


def _windows(workspace: Workspace) -> frozenset[Window]:
    """Return the windows that the validation period uses."""
    facts = ProfilesFacts.of(workspace.current("profiles"))
    return period_windows(facts.split, "val").used


def _asked(plan: TrialPlan, settings: Settings, via: str) -> EvaluateConfig:
    """Return the evaluation of the current builds on the validation period, without baselines."""
    layout = named_metrics.layout_of(plan.measured)
    return EvaluateConfig(
        run=plan.run,
        cache_dir=plan.cache_dir,
        seed=settings.train.seed,
        ray=settings.train.ray,
        period="val",
        via=via,
        top_k=list(layout.top_k),
        betas=list(layout.betas),
        baselines=[],
        replicates=0,
    )


@contextmanager
def _place(plan: TrialPlan, folder: str) -> Iterator[Workspace]:
    """Give the run as it is seen from a trial's place, which goes where the block fails."""
    with aside(folder), announced("trial"):
        workspace = Workspace(plan.run, cache_dir=plan.cache_dir)
        try:
            yield workspace
        except BaseException:
            workspace.storage.delete(folder)
            workspace.storage.prune(folder.rpartition("/")[0])
            raise
