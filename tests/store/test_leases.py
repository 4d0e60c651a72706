import contextlib
import dataclasses
import threading

import pytest

from raysys.errors import BuildError
from raysys.store import leases
from raysys.store.leases import Lease, Owner, leased
from raysys.store.storage import Storage


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    monkeypatch.setattr(leases, "DEAD_S", 0.3)
    monkeypatch.setattr(leases, "_POLL_S", 0.01)
    return Storage(str(tmp_path / "run"))


def from_afar(storage, name, number):
    """Write the ticket of a job on another host, which this one cannot look at."""
    owner = dataclasses.replace(Owner.here(), name="afar pid 7", host="another boot")
    path = f"locks/{name}/{number:09d}-00c0ffee.json"
    storage.write_atomic(f"locks/{name}/beat-00c0ffee", b"")
    storage.write_atomic(path, owner.text())
    return path


@contextlib.contextmanager
def beating(storage, name):
    """Let the job of `from_afar` beat during the block."""
    stopped = threading.Event()

    def beat():
        while not stopped.wait(0.01):
            storage.write_atomic(f"locks/{name}/beat-00c0ffee", b"")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def test_many_threads_hold_a_lease_one_at_a_time(storage):
    inside, most, count = [], [], []

    def work():
        with leased(storage, "codes/x"):
            inside.append(1)
            most.append(len(inside))
            count.append(1)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(count), set(most)) == (12, {1})
    assert storage.files("locks") == {}


def test_a_waiting_job_says_for_whom(storage, caplog):
    caplog.set_level("INFO", "raysys.store.leases")
    path = from_afar(storage, "codes/x", 1)
    with leased(storage, "codes/x"):
        assert not storage.exists(path)
    assert "waiting for=codes/x owner=afar pid 7" in caplog.text
    assert "lease of a dead job removed" in caplog.text


def test_a_job_of_another_host_that_beats_is_waited_for(storage):
    path = from_afar(storage, "codes/x", 1)
    order = []

    def work():
        with leased(storage, "codes/x"):
            order.append("work")

    with beating(storage, "codes/x"):
        worker = threading.Thread(target=work)
        worker.start()
        worker.join(timeout=4 * leases.DEAD_S)
        assert worker.is_alive()
        order.append("released")
        storage.remove(path)
        worker.join()
    assert order == ["released", "work"]


def test_a_job_that_was_taken_over_is_told_before_it_publishes(storage):
    lease = Lease(storage, "codes/x")
    lease.acquire()
    lease.confirm()
    [ticket] = (name for name in storage.files("locks") if name.endswith(".json"))
    storage.remove(f"locks/{ticket}")
    with pytest.raises(BuildError, match="another job took over codes/x"):
        lease.confirm()
    lease.release()


def test_who_holds_a_lease_is_seen_from_outside(storage):
    assert leases.holder(storage, "sweeps/x") is None
    with leased(storage, "sweeps/x"):
        assert leases.holder(storage, "sweeps/x") == Owner.here()
    path = from_afar(storage, "sweeps/x", 1)
    assert leases.holder(storage, "sweeps/x") is None  # its host is gone: no beat
    with beating(storage, "sweeps/x"):
        assert leases.holder(storage, "sweeps/x").name == "afar pid 7"
    gone = dataclasses.replace(Owner.here(), started=1)
    storage.write_atomic(path, gone.text())
    assert leases.holder(storage, "sweeps/x") is None
