"""Independent tasks on the cluster, through Ray Data."""

from __future__ import annotations

import logging
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from raysys.errors import BuildError, RaysysError

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_LOG_EVERY_S = 5.0


def distribute(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    stage: str,
    rows: Callable[[R], int] | None = None,
    here: bool = False,
) -> list[R]:
    """Apply `function` to every task, one CPU each, and return the results in task order.

    Ray Data schedules one block per task and tries again when a worker is lost, so a function must
    write the same files when it runs twice. Results should be small: large data goes to files.

    Args:
        function: importable on the workers (Ray Data tries for ever where it is not); sent once,
            through the object store.
        tasks: what it is called with.
        stage: how log lines call the work.
        rows: number of rows behind a result, for the rate in log lines.
        here: few tasks that are not worth a cluster run one by one in this process.

    Raises:
        RaysysError: the one that the first of the failed tasks raised; BuildError for an OSError.
    """
    results: dict[int, R] = {}
    errors: dict[int, RaysysError] = {}
    started = logged = time.perf_counter()
    done_rows = 0
    done = enumerate(map(function, tasks)) if here else _stream(function, tasks, stage)
    for number, result in done:
        if isinstance(result, RaysysError):
            errors[number] = result
            continue
        results[number] = result
        done_rows += rows(result) if rows else 0
        now = time.perf_counter()
        if now - logged > _LOG_EVERY_S or len(results) == len(tasks):
            logged = now
            log.info(
                "%s tasks=%d/%d rows=%d rows_per_s=%.0f seconds=%.1f",
                stage,
                len(results),
                len(tasks),
                done_rows,
                done_rows / max(now - started, 1e-9),
                now - started,
            )
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(tasks))]


def _stream(
    function: Callable[[T], R], tasks: Sequence[T], stage: str
) -> Iterator[tuple[int, R | RaysysError]]:
    """Yield (task number, result) as tasks finish.

    Expected errors travel as results: Ray Data (2.60) drops the cause of what a task raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # raised by Ray Data's own defaults
        import ray.data

        context = ray.data.DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors reach us as exceptions
    context.enable_progress_bars = False
    work = ray.put((function, list(tasks)))

    def run(batch: pa.Table) -> pa.Table:
        call, todo = ray.get(work)
        number = batch["id"][0].as_py()
        try:
            outcome: R | RaysysError = call(todo[number])
        except RaysysError as error:
            outcome = error
        except OSError as error:  # a full disk, a lost mount
            outcome = BuildError(f"{stage}: {error}")
        packed = pa.array([pickle.dumps(outcome)], pa.large_binary())
        return pa.table({"id": [number], "result": packed})

    numbers = ray.data.range(len(tasks), override_num_blocks=len(tasks))
    done: Any = numbers.map_batches(run, batch_size=1, batch_format="pyarrow")
    for row in done.iter_rows():
        yield row["id"], pickle.loads(row["result"])
