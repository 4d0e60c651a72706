import time

import pytest
import ray

from raysys.cluster import tasks
from raysys.cluster.tasks import distribute, task_runner
from raysys.config import RayConfig
from raysys.errors import BuildError, DataError


def checked(task, *shared):
    if task == "full":
        raise OSError("no space")
    if isinstance(task, str):
        raise DataError(task)
    return task * sum(shared)


@pytest.fixture
def ran(monkeypatch):
    """Return what tasks note of themselves; nothing may reach a cluster."""
    monkeypatch.setattr(tasks, "connected", None)
    return []


def test_a_small_job_runs_here_in_order(ran):
    def note(task):
        ran.append(task)
        return task + 1

    with task_runner(RayConfig(), size=tasks.IN_PROCESS_ROWS) as run:
        results = run(note, [3, 1, 2], stage="test")
        assert next(results) == 4
        assert ran == [3]  # results are taken as they come
        assert list(results) == [2, 3]


def test_the_first_error_ends_a_job_here(ran):
    with task_runner(RayConfig(), size=0) as run:
        results = run(checked, [1, "second", 3], shared=[5, 6], stage="test")
        assert next(results) == 11
        with pytest.raises(DataError, match="second"):
            next(results)


def test_a_full_disk_is_one_line_here_too(ran):
    with (
        task_runner(RayConfig(), size=0) as run,
        pytest.raises(BuildError, match=r"^test: no space$"),
    ):
        list(run(checked, ["full"], stage="test"))


def test_tasks_that_wait_for_a_cpu_are_told_of(monkeypatch, caplog):
    def stuck(function, todo, **_):
        yield 0, function(todo[0])
        until = time.monotonic() + 10
        while "no task ended" not in caplog.text and time.monotonic() < until:
            time.sleep(0.01)
        yield 1, function(todo[1])

    monkeypatch.setattr(tasks, "_WAIT_S", 0.02)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr(ray, "available_resources", dict)
    with caplog.at_level("INFO"):
        assert list(tasks._run(stuck, abs, [-1, -2], stage="count")) == [1, 2]
    assert "no task ended stage=count tasks=1/2 seconds=0 cpus=3 free=0" in caplog.messages


def test_a_caller_that_works_on_a_result_waits_for_no_task(monkeypatch, caplog):
    def away():
        raise ray.exceptions.RpcError("no head")

    def ready(function, todo, **_):
        yield from enumerate(map(function, todo))
        time.sleep(0.1)

    monkeypatch.setattr(tasks, "_WAIT_S", 0.02)
    monkeypatch.setattr(ray, "cluster_resources", away)
    with caplog.at_level("INFO"):
        for _ in tasks._run(ready, abs, [-1, -2], stage="count"):
            time.sleep(0.1)
            assert "no task ended" not in caplog.text
    assert "the cluster does not say what it has: RpcError" in caplog.text


@pytest.mark.ray
@pytest.mark.parametrize("large", [False, True])
def test_a_large_job_runs_on_the_cluster(ray_cluster, large):
    numbers = list(range(40))
    with task_runner(RayConfig(), size=tasks.IN_PROCESS_ROWS + 1) as run:
        results = run(checked, numbers, shared=[2, 3], stage="test", large=large)
        assert list(results) == [5 * number for number in numbers]
        with pytest.raises(DataError, match=r"^first$"):
            list(run(checked, [1, "first", 2, "last"], stage="test", large=large))
        with pytest.raises(BuildError, match="test: no space"):
            list(run(checked, ["full"], stage="test", large=large))


@pytest.mark.ray
def test_errors_of_tasks_come_back_as_they_were_raised(ray_cluster):
    with pytest.raises(DataError, match=r"^bad$"):
        distribute(checked, [1, 2, "bad"], stage="test")
    assert distribute(str, [3, 1, 2], stage="test") == ["3", "1", "2"]
