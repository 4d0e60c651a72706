"""Two jobs that write one build, step by step: every order of their accesses, a kill at each.

Writers are threads that stop before each access to the storage until the test lets them go on. A
killed one makes no further access, as a process that is no more; the other one is told that it
ended, as /proc would.
"""

import dataclasses
import itertools
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raysys.store.storage
from raysys.errors import BuildError
from raysys.store import leases
from raysys.store.builds import Workspace
from raysys.store.kinds import Facts
from raysys.store.storage import Storage

ACCESSES = (
    *("read", "write_atomic", "exists", "remove", "prune"),
    *("files", "sha256", "upload", "delete", "has_folder", "rename"),
)
MOST_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class By(Facts):
    by: int


class Killed(BaseException):
    """The process is no more."""


class Writer(threading.Thread):
    """One job: builds, and stops before every access to the storage."""

    def __init__(self, number, run, force=False, fails=False):
        super().__init__(daemon=True)
        self.number, self.run_uri, self.force, self.fails = number, run, force, fails
        self.goes, self.stops = threading.Semaphore(0), threading.Semaphore(0)
        self.dead = self.over = self.inside = False
        self.fills = 0
        self.steps = 0
        self.outcome = None
        self.start()

    def step(self):
        """Let it go on until its next access; tell whether there is one."""
        if not self.over:
            self.steps += 1
            self.goes.release()
            self.stops.acquire()
        return not self.over

    def finish(self):
        while self.step():
            assert self.steps < MOST_STEPS, "waits for ever"

    def kill(self):
        self.dead = True
        while not self.over:
            self.goes.release()
            self.stops.acquire()

    def gate(self):
        if self.dead:
            raise Killed
        self.stops.release()
        self.goes.acquire()
        if self.dead:
            raise Killed

    def fill(self, draft):
        self.fills += 1
        self.inside = True
        draft.path("deep/data.txt").write_text(f"by {self.number}")
        self.gate()
        if self.fails:
            self.inside = False
            raise BuildError("boom")
        draft.path("more.txt").write_text(f"more by {self.number}")
        self.gate()
        self.inside = False
        return By(self.number)

    def run(self):
        self.goes.acquire()
        try:
            workspace = Workspace(self.run_uri)
            self.outcome = workspace.build("codes", config={}, write=self.fill, force=self.force)
        except (BuildError, Killed) as error:
            self.outcome = error
        self.inside = False
        self.over = True
        self.stops.release()


@pytest.fixture
def stepped(monkeypatch):
    """Let writers stop before each access, beat never, and know who was killed."""

    def gate():
        thread = threading.current_thread()
        if isinstance(thread, Writer):
            thread.gate()

    def gated(name):
        access = getattr(Storage, name)

        def call(self, *args, **settings):
            gate()
            return access(self, *args, **settings)

        return call

    for name in ACCESSES:
        monkeypatch.setattr(Storage, name, gated(name))
    fsync = raysys.store.storage.os.fsync
    monkeypatch.setattr(raysys.store.storage.os, "fsync", lambda handle: (gate(), fsync(handle)))
    here = leases.Owner.here()

    def owner():
        thread = threading.current_thread()
        return dataclasses.replace(here, pid=getattr(thread, "number", 0))

    dead = set()
    monkeypatch.setattr(leases.Owner, "here", staticmethod(owner))
    monkeypatch.setattr(leases.Owner, "is_gone", lambda self: self.pid in dead)
    monkeypatch.setattr(leases.Lease, "_beat", lambda self: None)
    monkeypatch.setattr(leases, "sleep", lambda seconds: gate())
    return dead


class World:
    """Two writers of one run, and what must hold at every moment."""

    def __init__(self, run, dead, *, forces=(False, False), fails=(False, False), every_step=True):
        self.run, self.dead, self.every_step = run, dead, every_step
        dead.clear()
        self.workspace = Workspace(run)
        pairs = zip(forces, fails, strict=True)
        self.writers = [Writer(n, run, *pair) for n, pair in enumerate(pairs, start=1)]
        self.finished = False

    def step(self, number):
        self.writers[number].step()
        if self.every_step:
            self.check()

    def kill(self, number):
        self.writers[number].kill()
        self.dead.add(self.writers[number].number)

    def check(self):
        """What a reader sees at any moment: whole builds, never fewer than before."""
        assert sum(w.inside and not w.dead for w in self.writers) <= 1, "both write"
        record = self.workspace.storage.read_json("codes/current.json")
        if record is not None:
            self.finished = True
            build = self.workspace.current("codes")
            build.verify()
            by = By.of(build).by
            assert build.path("deep/data.txt").read_text() == f"by {by}"
            assert build.path("more.txt").read_text() == f"more by {by}"
        assert record is not None or not self.finished, "a finished build is gone"

    def end(self):
        """Let the living finish, then a third job, and look at what is left."""
        alive = [w for w in self.writers if not w.dead]
        while any(not w.over for w in alive):
            for writer in alive:
                writer.step()
                assert writer.steps < MOST_STEPS, "waits for ever"
        self.check()
        for writer in alive:
            if writer.fails and writer.fills:
                assert isinstance(writer.outcome, BuildError)
            else:
                writer.outcome.verify()
        third = Writer(3, self.run)
        third.finish()
        third.outcome.verify()
        assert third.outcome.content_id == self.workspace.current("codes").content_id
        storage = self.workspace.storage
        tickets = [name for name in storage.files("locks") if name.endswith(".json")]
        owners = [leases.Owner.read(storage, f"locks/{name}").pid for name in tickets]
        assert set(owners) <= self.dead, "a living job leaves its ticket"
        return third


def kinds_of_run(request, tmp_path, number):
    """Return a fresh run on the storage that the test is parametrised with."""
    if request.param == "folder":
        return str(tmp_path / f"run-{number}")
    bucket = request.getfixturevalue("s3_bucket")
    return f"{bucket}/{tmp_path.name}/run-{number}"


@pytest.fixture(params=["folder", "s3"])
def new_run(request, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    numbers = itertools.count()
    return lambda: kinds_of_run(request, tmp_path, next(numbers))


def steps_alone(run, dead):
    world = World(run, dead)
    world.writers[0].finish()
    world.writers[1].finish()
    assert world.end().fills == 0
    return world.writers[0].steps


def test_a_kill_at_every_step_leaves_the_other_job_its_work(new_run, stepped):
    for after in range(steps_alone(new_run(), stepped) + 1):
        world = World(new_run(), stepped, every_step=False)
        for _ in range(after):
            world.step(0)
        world.kill(0)
        third = world.end()
        assert third.fills == 0
        build = world.workspace.current("codes")
        data = [n for n in world.workspace.storage.files("codes") if n.endswith("more.txt")]
        assert data == [build.url("more.txt").split("/codes/")[1]], "a dead job's files stay"


def test_a_forced_job_killed_at_every_step_leaves_the_build_that_was_there(new_run, stepped):
    run = new_run()
    World(run, stepped).end()
    before = Workspace(run).current("codes")
    world = World(run, stepped, forces=(True, False))
    world.writers[0].finish()
    steps = world.writers[0].steps
    world.end()
    for after in range(0, steps, 1 if Workspace(run).storage.is_local else 4):
        world = World(run, stepped, forces=(True, False))
        for _ in range(after):
            world.step(0)
        world.kill(0)
        world.check()
        world.end()
        before.verify()  # a reader that opened the first one still has all its files


def test_every_place_where_one_job_overtakes_the_other(tmp_path, stepped, monkeypatch):
    """The first runs `i` steps, the second `j`, then both in turns: for all i and some j."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    steps = steps_alone(str(tmp_path / "alone"), stepped)
    for i in range(steps):
        for j in range(i % 9, steps, 9):
            world = World(str(tmp_path / f"{i}-{j}"), stepped)
            for number, count in ((0, i), (1, j)):
                for _ in range(count):
                    world.step(number)
            world.end()
            assert sum(writer.fills for writer in world.writers) == 1
            first, second = (writer.outcome for writer in world.writers)
            assert first.content_id == second.content_id


ORDERS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 12)), max_size=14)


def play(new_run, dead, order, killed, forces, fails, **how):
    world = World(new_run(), dead, forces=forces, fails=fails, **how)
    steps = [number for number, count in order for _ in range(count)]
    for at, number in enumerate(steps):
        if killed is not None and at == killed[1]:
            world.kill(killed[0])
        if not world.writers[number].dead:
            world.step(number)
    third = world.end()
    if not any(fails) and killed is None and not any(forces):
        assert sum(writer.fills for writer in world.writers) == 1
    return third


PAIRS = st.tuples(st.booleans(), st.booleans())
KILLS = st.none() | st.tuples(st.integers(0, 1), st.integers(0, 90))
ONE_FIXTURE = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


@settings(ONE_FIXTURE, max_examples=25)
@given(order=ORDERS, killed=KILLS, forces=PAIRS, fails=PAIRS)
def test_any_order_with_force_failures_and_kills(new_run, stepped, order, killed, forces, fails):
    every_step = "://" not in new_run()
    play(new_run, stepped, order, killed, forces, fails, every_step=every_step)
