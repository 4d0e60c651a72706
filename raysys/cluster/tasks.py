"""Independent tasks: a small job's in this process, a large one's on the cluster.

    with task_runner(cfg.ray, size=n_rows) as run:
        for result in run(function, tasks, stage="score"):
            ...

The size of the job decides, not the cluster. A task's input never depends on where it runs.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from raysys import progress
from raysys.cluster.connect import asked, connected, resources_now
from raysys.config import RayConfig
from raysys.errors import BuildError, RaysysError

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

IN_PROCESS_ROWS = 500_000
"""Jobs of up to so many rows (of a log, of vectors, of lists) run where they were started: a
cluster's start and its workers' imports would take longer than they save."""

_IN_FLIGHT_PER_CPU = 2
_WAIT_S = 30.0  # without the end of a task until a line says so


_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Let all tasks of the block run in this process.

    For work that is itself a part of many on the cluster: it holds the CPUs that its tasks would
    wait for.
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


class Run(Protocol):
    """What `task_runner` gives."""

    def __call__(
        self,
        function: Callable[..., R],
        tasks: Sequence[Any],
        *,
        stage: str,
        shared: Sequence[Any] = (),
        rows: Callable[[R], int] | None = None,
        large: bool = False,
    ) -> Iterator[R]:
        """Yield function(task, *shared) of every task, in task order.

        A task may run twice where a worker is lost, so it must write the same files then.

        Args:
            function: importable on the workers (Ray Data tries for ever where it is not).
            tasks: one after another here, one CPU each on the cluster.
            stage: how progress calls the work.
            shared: further arguments, sent once.
            rows: number of rows behind a result, for their rate.
            large: tasks or results are large: only a few tasks are in flight at a time, as Ray
                tasks. Otherwise Ray Data schedules all of them.

        Raises:
            RaysysError: the one that the first of the failed tasks raised; BuildError for an
                OSError of a task.
        """


@contextmanager
def task_runner(cluster: RayConfig, *, size: int) -> Iterator[Run]:
    """Give what runs tasks: this process up to `IN_PROCESS_ROWS` rows, else the cluster.

    Args:
        cluster: joined or started for the block, unless this process is connected already.
        size: rows of the job, of what its tasks take longest over.

    Raises:
        ConfigError: see `connected`.
    """
    if size <= IN_PROCESS_ROWS or _alone.get():
        yield functools.partial(_run, _here)
        return
    with connected(cluster):
        yield functools.partial(_run, _on_cluster)


def distribute(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    stage: str,
    rows: Callable[[R], int] | None = None,
) -> list[R]:
    """Return `Run`'s results of tasks on the cluster that this process is connected to."""
    engine = _here if _alone.get() else _on_cluster
    return list(_run(engine, function, tasks, stage=stage, rows=rows))


Outcomes = Iterator[tuple[int, Any]]  # (number of the task, its result or its RaysysError)


def _run(
    engine: Callable[..., Outcomes],
    function: Callable[..., R],
    tasks: Sequence[Any],
    *,
    stage: str,
    shared: Sequence[Any] = (),
    rows: Callable[[R], int] | None = None,
    large: bool = False,
) -> Iterator[R]:
    """See `Run`; outcomes that come out of order wait for their turn."""
    outcomes: dict[int, Any] = {}
    following = 0
    with (
        progress.stage(stage, total=len(tasks), unit="tasks") as work,
        nullcontext(_Taken()) if engine is _here else _patience(work) as taken,
    ):
        for number, outcome in engine(function, tasks, stage=stage, shared=shared, large=large):
            outcomes[number] = outcome
            if not isinstance(outcome, RaysysError):
                work.add(rows=rows(outcome) if rows else None)
            while following in outcomes:
                result = outcomes.pop(following)
                if isinstance(result, RaysysError):
                    raise result
                following += 1
                taken.is_out = True
                yield result
                taken.is_out, taken.count = False, taken.count + 1


@dataclasses.dataclass
class _Taken:
    """Results that the caller has come back from, and whether it works on one now."""

    count: int = 0
    is_out: bool = False


@contextmanager
def _patience(work: progress.Stage) -> Iterator[_Taken]:
    """Say every half minute in which no task ends what the cluster has for them.

    Time in which the caller works on a result is none of waiting.
    """
    done, taken = threading.Event(), _Taken()

    def watch() -> None:
        before, since = (-1.0, 0), time.monotonic()
        while not done.wait(_WAIT_S):
            now = (work.done, taken.count)
            if now != before or taken.is_out:
                before, since = now, time.monotonic()
                continue
            log.info(
                "no task ended stage=%s tasks=%d/%d seconds=%.0f %s",
                work.name,
                *(work.done, work.total or 0, time.monotonic() - since + _WAIT_S),
                asked(resources_now),
            )

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        done.set()
        thread.join()


def _here(
    function: Callable[..., Any], tasks: Sequence[Any], *, stage: str, shared: Any, **_: Any
) -> Outcomes:
    yield from enumerate(_outcome(function, stage, task, *shared) for task in tasks)


def _on_cluster(
    function: Callable[..., Any], tasks: Sequence[Any], *, stage: str, shared: Any, large: bool
) -> Outcomes:
    engine = _few_at_a_time if large else _all_at_once
    yield from engine(function, tasks, stage, shared)


def _few_at_a_time(
    function: Callable[..., Any], tasks: Sequence[Any], stage: str, shared: Sequence[Any]
) -> Outcomes:
    """Yield outcomes in task order, as many tasks in flight as keep every CPU busy."""
    import ray

    remote = ray.remote(num_cpus=1)(_outcome)
    call = ray.put(function)
    references = [ray.put(value) for value in shared]
    ahead = max(1, int(ray.cluster_resources().get("CPU", 1))) * _IN_FLIGHT_PER_CPU
    flying: list[Any] = []
    for number, task in enumerate(tasks):
        flying.append(remote.remote(call, stage, task, *references))
        if len(flying) > ahead:
            yield number - ahead, ray.get(flying.pop(0))
    first = len(tasks) - len(flying)
    for number in range(first, len(tasks)):
        yield number, ray.get(flying.pop(0))


def _all_at_once(
    function: Callable[..., Any], tasks: Sequence[Any], stage: str, shared: Sequence[Any]
) -> Outcomes:
    """Yield outcomes as tasks finish, one block of Ray Data per task."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # raised by Ray Data's own defaults
        import ray.data

        context = ray.data.DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors reach us as exceptions
    context.enable_progress_bars = False
    work = ray.put((function, list(tasks), tuple(shared)))

    def run(batch: pa.Table) -> pa.Table:
        call, todo, further = ray.get(work)
        number = batch["id"][0].as_py()
        packed = pickle.dumps(_outcome(call, stage, todo[number], *further))
        return pa.table({"id": [number], "result": pa.array([packed], pa.large_binary())})

    numbers = ray.data.range(len(tasks), override_num_blocks=len(tasks))
    done: Any = numbers.map_batches(run, batch_size=1, batch_format="pyarrow")
    errors: dict[int, RaysysError] = {}  # come last: no task runs on when one of them is raised
    for row in done.iter_rows():
        outcome = pickle.loads(row["result"])
        if isinstance(outcome, RaysysError):
            errors[row["id"]] = outcome
        else:
            yield row["id"], outcome
    yield from errors.items()


def _outcome(function: Callable[..., R], stage: str, task: Any, *shared: Any) -> R | RaysysError:
    """Return a task's result or its expected error: Ray Data (2.60) drops what a task raises.

    An OSError is one that a user can act upon, here as on the cluster.
    """
    try:
        return function(task, *shared)
    except RaysysError as error:
        return error
    except OSError as error:  # a full disk, a lost mount
        return BuildError(f"{stage}: {error}")
