"""Runs the jobs of a sweep on Ray Tune: its actors stay warm from one trial to the next.

Who sweeps (a `Director`) says what is tried next and hears of everything; the study is the
director's. Tune places the trials, stops those that fall behind (ASHA) and repeats one whose
process or host is lost; what it writes of its own is thrown away, as the study is all that a sweep
resumes from.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import ray
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from raysys.cluster.connect import asked, resources_now
from raysys.cluster.train_workers import PLACEMENT_GROUP, release
from raysys.errors import ConfigError, find_cause, told
from raysys.store.temporary import prefix

log = logging.getLogger(__name__)

Job = dict[str, Any]
Work = Callable[..., dict[str, Any]]  # (job, report) -> what it came to
Heard = tuple[int, float]  # an epoch and its value

EPOCH, VALUE, SECONDS, RESULT, ERROR = "epoch", "value", "seconds", "result", "error"
DONE: Job = {}
_GRACE_EPOCHS = 3
_WAIT_S = 30.0  # in which no trial has a place until a line says so
_LOST = 2  # times that a trial is repeated whose process or host was lost
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: the study is left to be resumed
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Director(Protocol):
    """Who sweeps."""

    def next(self) -> Job | None:
        """Return what is done next; None: nothing yet; `DONE`: nothing any more."""

    def heard(self, job: Job, epoch: int, value: float, seconds: float) -> None:
        """Learn of an epoch of a job, and how long the job had trained by then."""

    def ended(self, job: Job, result: Mapping[str, Any] | None, error: str | None) -> None:
        """Learn of a job's end; neither a result nor an error: it was stopped as it fell behind."""

    def is_halted(self) -> bool:
        """Tell whether what runs is to be ended now."""


def run_jobs(
    director: Director,
    work: Work,
    *,
    settings: Mapping[str, Any],
    cpus: float,
    concurrent: int,
    direction: str | None,
    epochs: int,
    earlier: Sequence[Sequence[Heard]] = (),
) -> None:
    """Run jobs until the director has no more.

    Args:
        director: who sweeps.
        work: module-level function; `work(job, report, **settings)` returns what the job came to,
            as JSON values. `report(epoch, value, seconds)` tells of an epoch, and does not return
            where the job is stopped.
        settings: further arguments, picklable.
        cpus: of each trial's process; 0: it only waits for others.
        concurrent: jobs at a time.
        direction: max or min: jobs whose value falls behind are stopped, but for those with
            `whole`; None: none is.
        epochs: of a job, at most.
        earlier: (epoch, value) of jobs of an earlier process, in their order; what is stopped
            depends on them.
    """
    os.environ.update({name: text for name, text in _QUIET.items() if name not in os.environ})
    # Tune takes no trial that needs nothing, and a part of a CPU would keep workers from theirs
    needs = {"CPU": cpus} if cpus else {"memory": 1}
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(_trial, work=work, settings=dict(settings)), needs
    )
    scheduler = None if direction is None else _scheduler(direction, epochs, earlier)
    searcher = _Searcher(director)
    with _quiet(), tempfile.TemporaryDirectory(prefix=prefix("sweep")) as scratch:
        ray.tune.Tuner(
            trainable,
            tune_config=ray.tune.TuneConfig(
                num_samples=-1,
                max_concurrent_trials=concurrent,
                search_alg=searcher,
                scheduler=scheduler,
                reuse_actors=bool(cpus),  # workers of one that is stopped end with its process
            ),
            run_config=ray.tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                stop=_Halt(searcher),
                failure_config=ray.tune.FailureConfig(max_failures=_LOST),
                callbacks=[_Patience()],
            ),
        ).fit()
    if searcher.error is not None:
        raise searcher.error


def cpus_of_each(concurrent: int, nodes: Mapping[str, Mapping[str, float]]) -> float:
    """Return the most whole CPUs that so many processes can have at a time.

    Args:
        concurrent: processes.
        nodes: {name: resources} of the cluster.

    Raises:
        ConfigError: the nodes do not hold them; the message does the sum.
    """
    held = {name: int(node.get("CPU", 0)) for name, node in nodes.items()}
    most = max(held.values(), default=0)
    for cpus in range(most, 0, -1):
        if sum(n // cpus for n in held.values()) >= concurrent:
            return float(cpus)
    each = ", ".join(f"{name}: {n}" for name, n in held.items())
    raise ConfigError(
        f"concurrent={concurrent} trials need a CPU each; the nodes hold {sum(held.values())} "
        f"({each})"
    )


class Epochs(TuneReportCallback):  # type: ignore[misc]
    """Passes on the epochs of Ray Train workers; made inside a job.

    Args:
        metric: whose value is passed on.
    """

    def __init__(self, metric: str) -> None:
        super().__init__()
        self._metric = metric
        self._started = time.monotonic()

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Pass on a whole epoch; a state that is saved inside one says nothing yet."""
        found = metrics[0]
        if "time" in found and self._metric in found:
            shown = {EPOCH: int(found["epoch"]), VALUE: float(found[self._metric])}
            shown |= {SECONDS: time.monotonic() - self._started}
            shown |= {PLACEMENT_GROUP: found[PLACEMENT_GROUP]}
            super().after_report(run_context, [shown], None)


def _trial(config: Job, *, work: Work, settings: dict[str, Any]) -> None:
    """Do one job inside a Tune trial; an error of its own does not end the actor."""

    def report(epoch: int, value: float, seconds: float) -> None:
        ray.tune.report({EPOCH: epoch, VALUE: value, SECONDS: seconds})

    try:
        found = {RESULT: json.dumps(work(config, report, **settings))}  # Tune flattens mappings
    except Exception as error:
        log.debug("job failed", exc_info=True)
        found = {ERROR: _reason(error)}
    ray.tune.report(found)


def _reason(error: BaseException) -> str:
    known = find_cause(error)
    return told(known) if known is not None else f"{type(error).__name__}: {told(error)}"


class _Asha(ASHAScheduler):  # type: ignore[misc]
    """Stops those that fall behind: none at its last epoch, nor what others are compared with."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(tune_controller, trial, result)
        kept = trial.config.get("whole") or result.get(EPOCH, 0) >= self._max_t - 1
        return self.CONTINUE if kept else action


def _scheduler(direction: str, epochs: int, earlier: Sequence[Sequence[Heard]]) -> ASHAScheduler:
    scheduler = _Asha(
        time_attr=EPOCH,
        metric=VALUE,
        mode=direction,
        max_t=epochs + 1,  # who comes so far ends by itself
        grace_period=min(_GRACE_EPOCHS, epochs),
    )
    for number, history in enumerate(earlier):
        trial = types.SimpleNamespace(trial_id=f"earlier-{number}", config={})
        scheduler.on_trial_add(None, trial)
        for epoch, value in history:
            scheduler.on_trial_result(None, trial, {EPOCH: epoch, VALUE: value})
        scheduler.on_trial_remove(None, trial)
    return scheduler


class _Searcher(Searcher):  # type: ignore[misc]
    """Hands the director's jobs to Tune, and what Tune hears to the director.

    Attributes:
        error: of the director, which ends all; Tune would take it for one of the trial.
    """

    def __init__(self, director: Director) -> None:
        super().__init__()
        self._director = director
        self._jobs: dict[str, Job] = {}
        self._last: dict[str, Mapping[str, Any]] = {}
        self.error: Exception | None = None

    def suggest(self, trial_id: str) -> Any:
        job = self._asked(self._director.next)
        if job is None:
            return Searcher.FINISHED if self.error else None
        if job == DONE:
            return Searcher.FINISHED
        self._jobs[trial_id] = job
        return job

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._last[trial_id] = result
        self._hear(self._jobs.get(trial_id), result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        job = self._jobs.pop(trial_id, None)
        last = self._last.pop(trial_id, {})
        final = result if result and (RESULT in result or ERROR in result) else last
        held = {**last, **(result or {})}.get(PLACEMENT_GROUP)
        if held is not None:
            release(held)  # one that was stopped may still hold its workers
        if job is None or self.is_halted():
            return
        self._hear(job, result or {})  # the epoch that it was stopped at
        found = None if RESULT not in final else json.loads(final[RESULT])
        lost = "its process or host was lost, again and again" if error else None
        reason = final.get(ERROR) or lost
        self._asked(lambda: self._director.ended(job, found, reason))

    def is_halted(self) -> bool:
        """Tell whether what runs is to be ended now."""
        return self.error is not None or bool(self._asked(self._director.is_halted))

    def _hear(self, job: Job | None, result: Mapping[str, Any]) -> None:
        if job is not None and VALUE in result:
            epoch, value = int(result[EPOCH]), float(result[VALUE])
            seconds = float(result[SECONDS])
            self._asked(lambda: self._director.heard(job, epoch, value, seconds))

    def _asked(self, question: Callable[[], Any]) -> Any:
        """Return what the director answers; None after its error."""
        if self.error is not None:
            return None
        try:
            return question()
        except Exception as error:
            self.error = error
            return None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy, from which nothing is ever resumed

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: a sweep resumes from its study."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""


class _Halt(ray.tune.Stopper):  # type: ignore[misc]
    """Ends what runs where the director says so."""

    def __init__(self, searcher: _Searcher) -> None:
        self._searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._searcher.is_halted()


class _Patience(ray.tune.Callback):  # type: ignore[misc]
    """Says every half minute in which trials wait and none has a place what the cluster has."""

    def __init__(self) -> None:
        self._since = self._said = time.monotonic()

    def on_step_end(self, iteration: int, trials: Sequence[Any], **_: Any) -> None:
        """Look at how trials stand; Tune calls it again and again, also while nothing happens."""
        now, states = time.monotonic(), [trial.status for trial in trials]
        if "RUNNING" in states or "PENDING" not in states:
            self._since = self._said = now
        elif now - self._said >= _WAIT_S:
            self._said = now
            log.info(
                "no trial has a place waiting=%d seconds=%.0f %s",
                *(states.count("PENDING"), now - self._since, asked(resources_now)),
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune from telling what the director tells."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
