import os
import time

import pytest
import ray

from raysys.cluster import sweep_runner
from raysys.cluster.sweep_runner import DONE, cpus_of_each, run_jobs
from raysys.errors import BuildError, ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Director:
    """Gives out jobs in turn, the next one when the one before it ended."""

    def __init__(self, jobs, *, halts_at=None):
        self.jobs = list(jobs)
        self.halts_at = halts_at
        self.epochs = {}
        self.ends = {}
        self.running = None

    def next(self):
        if self.running is not None:
            return None
        self.running = self.jobs.pop(0) if self.jobs else DONE
        return self.running

    def heard(self, job, epoch, value, seconds):
        self.epochs.setdefault(job["name"], []).append((epoch, value))

    def ended(self, job, result, error):
        self.ends[job["name"]] = (result, error)
        self.running = None

    def is_halted(self):
        return any((self.halts_at, 2) == (n, e[-1][0]) for n, e in self.epochs.items())


def job(name, **settings):
    return {"name": name, **settings}


def work(job, report, *, scratch):
    if job.get("dies"):
        mark = scratch / "died"
        if not mark.exists():
            mark.touch()
            os._exit(1)
    if job.get("fails"):
        raise ConfigError("optim.lr=-1 is not accepted")
    if job.get("breaks"):
        return {}["missing"]
    for epoch in range(1, job.get("epochs", 0) + 1):
        report(epoch, job["value"] + epoch / 100, 0.5 * epoch)
        if job.get("waits"):
            time.sleep(0.5)
    return {"pid": os.getpid(), "list": [1, [2, 3]]}


def run(director, tmp_path, **settings):
    defaults = {"cpus": 1, "concurrent": 1, "direction": None, "epochs": 5}
    run_jobs(director, work, settings={"scratch": tmp_path}, **{**defaults, **settings})


def test_jobs_share_a_process_and_what_goes_wrong_ends_no_sweep(ray_cluster, tmp_path):
    director = Director(
        [
            job("one"),
            job("fails", fails=True),
            job("breaks", breaks=True),
            job("two"),
            job("dies", dies=True),
            job("three"),
        ]
    )
    run(director, tmp_path)
    ends = director.ends
    assert [*ends] == ["one", "fails", "breaks", "two", "dies", "three"]
    assert ends["fails"] == (None, "optim.lr=-1 is not accepted")
    assert ends["breaks"] == (None, "KeyError: 'missing'")
    assert ends["one"] == ends["two"]
    assert ends["one"][0]["list"] == [1, [2, 3]]
    assert ends["dies"][0]["pid"] not in (os.getpid(), ends["one"][0]["pid"])
    assert ends["three"] == ends["dies"]


def test_jobs_that_fall_behind_are_stopped_also_behind_those_of_before(ray_cluster, tmp_path):
    values = [5, 3, 9, 1]
    whole = Director([job(str(v), value=v, epochs=5) for v in values])
    run(whole, tmp_path, direction="max")
    stopped = [name for name, (result, _) in whole.ends.items() if result is None]
    assert stopped == ["3", "1"]
    assert [len(whole.epochs[name]) for name in ("5", "3", "9", "1")] == [5, 3, 5, 3]
    rest = Director([job(str(v), value=v, epochs=5) for v in values[2:]])
    run(rest, tmp_path, direction="max", earlier=[whole.epochs["5"], whole.epochs["3"]])
    assert {name: end[0] is None for name, end in rest.ends.items()} == {"9": False, "1": True}
    kept = Director([job(str(v), value=v, epochs=5, whole=v == 3) for v in values[:2]])
    run(kept, tmp_path, direction="max")
    assert [len(kept.epochs[name]) for name in ("5", "3")] == [5, 5]  # compared with, so kept
    late = Director([job(str(v), value=v, epochs=3) for v in values[:2]])
    run(late, tmp_path, direction="max", epochs=3)
    assert all(result for result, _ in late.ends.values())  # nothing is saved at the last epoch
    halted = Director([job("one", value=1, epochs=50, waits=True), job("two")], halts_at="one")
    run(halted, tmp_path)
    assert (halted.ends, len(halted.epochs["one"])) == ({}, 2)


def test_an_error_of_the_director_ends_the_sweep_and_is_told(ray_cluster, tmp_path):
    class Broken(Director):
        def ended(self, job, result, error):
            raise BuildError("no space left on device")

    director = Broken([job("one"), job("two")])
    with pytest.raises(BuildError, match="no space left on device"):
        run(director, tmp_path)
    assert [each["name"] for each in director.jobs] == ["two"]  # and no other one began


def test_trials_share_the_cpus_of_nodes():
    nodes = {"a": {"CPU": 8.0}, "b": {"CPU": 3.0, "GPU": 1.0}, "c": {"memory": 1e9}}
    assert [cpus_of_each(n, nodes) for n in (1, 2, 3, 4, 11)] == [8.0, 4.0, 3.0, 2.0, 1.0]
    with pytest.raises(
        ConfigError, match=r"concurrent=12 .* the nodes hold 11 \(a: 8, b: 3, c: 0\)"
    ):
        cpus_of_each(12, nodes)


def test_trials_without_a_place_are_told_of(ray_cluster, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sweep_runner, "_WAIT_S", 0.5)

    @ray.remote(num_cpus=2)
    class Other:
        def ready(self):
            return True

    other = Other.remote()
    assert ray.get(other.ready.remote())

    class Patient(Director):
        def is_halted(self):
            if "no trial has a place" in caplog.text:
                ray.kill(other)
            return False

    director = Patient([job("one")])
    with caplog.at_level("INFO"):
        run(director, tmp_path)
    lines = [line for line in caplog.messages if line.startswith("no trial has a place")]
    assert lines[0].startswith("no trial has a place waiting=1 seconds=")
    assert lines[0].endswith("cpus=2 free=0")
    assert director.ends["one"][1] is None
