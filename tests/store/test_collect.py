"""What `gc` removes and what it never does: every state is made by the store itself."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raysys.errors import BuildError
from raysys.reports.refreshes import Decision
from raysys.store import collect, inventory, temporary
from raysys.store.builds import Workspace
from raysys.store.collect import Collector, Policy
from raysys.store.current import aside
from raysys.store.inventory import Inventory
from raysys.store.kinds import Facts
from raysys.store.leases import REFRESH, leased
from raysys.store.pins import pin, unpin
from raysys.store.uses import Use, announced, uses

NOW = Policy(keep=0, older_s=0)


@dataclasses.dataclass(frozen=True)
class Length(Facts):
    length: int


def write(ws, kind, text="x", *, inputs=(), force=False, salt=""):
    def fill(draft):
        draft.path("deep/data.txt").write_text(text + salt)
        return Length(len(text))

    return ws.build(kind, config={"text": text}, inputs=inputs, write=fill, force=force)


@pytest.fixture
def ws(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return Workspace(str(tmp_path / "run"))


def collected(ws, policy=NOW):
    """Remove what nobody needs; return what it was."""
    collector = Collector(ws.storage, policy)
    found = [w for w in collector.found(Inventory(ws.storage)) if collector.remove(w)]
    return sorted((waste.what, waste.place) for waste in found)


def places(ws):
    return {f"{p.parts[-3]}/{p.parts[-2]}" for p in Path(ws.run).glob("*/*/manifest.json")}


def test_what_is_current_stays_with_all_it_was_made_from(ws):
    old = write(ws, "profiles", "old")
    model = write(ws, "autoencoder", "m", inputs=[old])
    new = write(ws, "profiles", "new")
    aside = write(ws, "codes", "was current")
    codes = write(ws, "codes", "is current", inputs=[model])
    assert collected(ws) == [("build", aside.place)]
    assert places(ws) == {b.place for b in (old, model, new, codes)}
    assert ws.before("codes") == []  # nobody can go back to what is gone
    assert collected(ws) == []


@pytest.mark.parametrize(("keep", "left"), [(0, 1), (1, 2), (3, 4)])
def test_builds_of_before_stay_as_many_as_asked(ws, keep, left):
    for number in range(6):
        write(ws, "codes", str(number))
    collected(ws, Policy(keep=keep, older_s=0))
    assert len(places(ws)) == left == 1 + len(ws.before("codes"))


def test_what_is_young_stays_with_its_lineage(ws):
    first = write(ws, "profiles", "a")
    model = write(ws, "autoencoder", "m", inputs=[first])
    write(ws, "profiles", "b")
    write(ws, "autoencoder", "n")
    os.utime(Path(ws.run, first.place, "manifest.json"), (0, 0))
    assert collected(ws, Policy(keep=0, older_s=3600)) == []
    os.utime(Path(ws.run, model.place, "manifest.json"), (0, 0))
    assert collected(ws, Policy(keep=0, older_s=3600)) == [
        ("build", model.place),
        ("build", first.place),
    ]


def test_a_pin_holds_a_build_and_its_lineage_until_it_is_taken_away(ws):
    profiles = write(ws, "profiles", "a")
    model = write(ws, "autoencoder", "m", inputs=[profiles])
    write(ws, "profiles", "b")
    write(ws, "autoencoder", "n")
    pin(ws.storage, "first", model.place)
    assert collected(ws) == []
    assert unpin(ws.storage, "first") == model.place
    assert len(collected(ws)) == 2
    with pytest.raises(BuildError, match=r"unpin='first' is no pin of .*: its pins are none"):
        unpin(ws.storage, "first")


def test_what_a_process_uses_stays_while_it_lives(ws):
    first = write(ws, "codes", "a")
    write(ws, "codes", "b")
    use = Use(ws.storage, "serve")
    use.add(first.place)
    assert collected(ws) == []
    use.close()
    assert collected(ws) == [("build", first.place)]
    assert not Path(ws.run, "uses").exists()


def test_a_command_announces_what_it_opens_and_takes_it_back(ws):
    first = write(ws, "codes", "a")
    with announced("evaluate"):
        Workspace(ws.run).current("codes")
        write(ws, "codes", "b")
        [used] = uses(ws.storage)
        assert (used.what, used.builds, used.lives) == ("evaluate", (first.place,), True)
        assert collected(ws) == []
    assert collected(ws) == [("build", first.place)]


def test_a_process_of_another_host_lives_as_long_as_it_beats(ws, monkeypatch):
    first = write(ws, "codes", "a")
    write(ws, "codes", "b")
    with monkeypatch.context() as far:
        far.setattr("raysys.store.leases._host", lambda: "elsewhere")
        use = Use(ws.storage, "serve")
        use.add(first.place)
        use._stopped.set()
    assert collected(ws) == []
    [file] = Path(ws.run, "uses").iterdir()
    os.utime(file, (0, time.time() - 3600))
    assert ("build", first.place) in collected(ws)


def test_uses_that_cannot_be_written_are_one_line(ws, monkeypatch, caplog):
    build = write(ws, "codes", "a")

    def refused(*_):
        raise OSError("read-only file system")

    monkeypatch.setattr(ws.storage, "write_atomic", refused)
    use = ws.announce("serve")
    use.add("codes/other")
    assert ws.open("codes", build.build_id).content_id == build.content_id
    [line] = [r.getMessage() for r in caplog.records if "gc does not see" in r.getMessage()]
    assert "read-only" in line


KILLED = """
import os, signal, sys, time
from raysys.store.builds import Workspace
from raysys.store import collect
from tests.store.test_collect import write, NOW
ws = Workspace(sys.argv[1])
what = sys.argv[2]
if what == "draft":
    def fill(draft):
        draft.path("half").write_text("h")
        draft.scratch()
        ws.storage.write_atomic(f"training/codes-{draft.build_id}/state", "s")
        from raysys.store.temporary import temporary_folder
        temporary_folder("draft")
        os.kill(os.getpid(), signal.SIGKILL)
    ws.announce("train")
    ws.build("codes", config={"text": "half"}, write=fill)
count = int(what)
remove, delete = ws.storage.remove, ws.storage.delete
def counted(real):
    def call(name):
        global count
        if not name.startswith("locks/") and not name.startswith(".now"):
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            count -= 1
        real(name)
    return call
ws.storage.remove, ws.storage.delete = counted(remove), counted(delete)
from tests.store.test_collect import collected
collected(ws)
"""


def killed(ws, what):
    command = [sys.executable, "-c", KILLED, ws.run, what]
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"TMPDIR": str(Path(ws.run).parent / "tmp")}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_what_a_killed_job_left_goes(ws):
    write(ws, "codes", "whole")
    killed(ws, "draft")
    whats = [what for what, _ in collected(ws)]
    assert sorted(set(whats)) == ["draft", "lock", "scratch", "temporary", "use"]
    assert collected(ws) == []
    files = [p for p in Path(ws.run).rglob("*") if p.is_file()]
    assert sorted(p.name for p in files) == ["current.json", "data.txt", "manifest.json"]
    assert not [*Path(ws.run).parent.glob("tmp/*")]


@pytest.mark.parametrize("moment", range(4))
def test_a_collection_that_is_killed_leaves_a_whole_build_or_an_orphan(ws, moment):
    gone = write(ws, "codes", "a")
    stays = write(ws, "codes", "b")
    killed(ws, str(moment))
    if gone.place in places(ws):
        Workspace(ws.run).open("codes", gone.build_id).verify()
    collected(ws)
    assert places(ws) == {stays.place}
    assert not Path(ws.run, gone.place).exists()
    assert ws.current("codes").path("deep/data.txt").read_text() == "b"


def test_a_build_that_is_written_is_left_alone(ws):
    inner = []

    def fill(draft):
        draft.path("data").write_text("d")
        inner.extend(collected(Workspace(ws.run)))
        return Length(1)

    write(ws, "codes", "other")
    ws.build("codes", config={"text": "mine"}, write=fill)
    assert inner == []
    ws.current("codes").verify()


def test_files_of_before_a_forced_build_go_unless_someone_reads_them(ws):
    write(ws, "codes", "a", salt="1")
    use = Use(ws.storage, "train")
    use.add(ws.current("codes").place)
    again = write(ws, "codes", "a", salt="2", force=True)
    assert collected(ws) == []
    use.close()
    assert collected(ws) == [("orphan", again.place)]
    again.verify()


def test_a_reader_waits_for_whoever_is_about_to_remove(ws):
    """A build that was condemned by a collection that died is read again."""
    first = write(ws, "codes", "a")
    ws.storage.write_atomic(f"{first.place}/condemned.json", "{}")
    use = ws.announce("train")
    assert ws.open("codes", first.build_id).content_id == first.content_id
    assert not ws.storage.exists(f"{first.place}/condemned.json")
    use.close()


def test_a_reader_that_came_first_keeps_its_build(ws, monkeypatch):
    """The mark is set, then uses are read: whoever wrote down its use before is seen."""
    first = write(ws, "codes", "a")
    write(ws, "codes", "b")
    collector = Collector(ws.storage, NOW)
    [waste] = collector.found(Inventory(ws.storage))
    use = Use(ws.storage, "train")
    use.add(first.place)
    assert not collector.remove(waste)
    assert sorted(p.name for p in Path(ws.run, first.place).iterdir()) == ["deep", "manifest.json"]
    use.close()


def test_a_lease_that_another_holds_is_left_to_it(ws):
    first = write(ws, "codes", "a")
    write(ws, "codes", "b")
    collector = Collector(ws.storage, NOW)
    [waste] = collector.found(Inventory(ws.storage))
    with leased(ws.storage, first.place):
        assert not collector.remove(waste)
    assert collector.remove(waste)


RACER = """
import sys, time
from raysys.store.builds import Workspace
from raysys.store.uses import announced
from tests.store.test_collect import write, collected
run, what, until = sys.argv[1], sys.argv[2], time.time() + float(sys.argv[3])
n = 0
while time.time() < until:
    if what == "gc":
        n += len(collected(Workspace(run)))
        continue
    with announced("train"):
        ws = Workspace(run)
        profiles = write(ws, "profiles", f"{what}{n % 3}")
        codes = write(ws, "codes", f"{n % 2}", inputs=[profiles])
        for build in (profiles, codes):
            build.verify()
        ws.chain(codes)
        n += 1
print(n)
"""


def test_jobs_and_two_collections_at_once_spoil_nothing(ws):
    root = Path(__file__).resolve().parents[2]
    words = [[sys.executable, "-c", RACER, ws.run, what, "6"] for what in ("a", "b", "gc", "gc")]
    jobs = [subprocess.Popen(w, cwd=root, stdout=-1, stderr=-1, text=True) for w in words]
    answers = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 4, answers
    counts = [int(out) for out, _ in answers]
    assert min(counts[:2]) > 1, counts
    assert sum(counts[2:]) > 0, counts
    ws.chain(ws.current("codes"))
    ws.current("codes").verify()
    collected(ws)
    assert places(ws) == {ws.current("profiles").place} | {
        build.place for build in ws.chain(ws.current("codes")).values()
    }


def test_a_trial_goes_when_no_sweep_runs(ws, monkeypatch):
    monkeypatch.setattr(collect, "_SETTLED_S", 0.0)
    folder = "sweeps/trials/0123456789abcdef"
    ws.storage.write_atomic(f"{folder}.json", "{}")
    ws.storage.write_atomic(f"{folder}/reports/a.json", "{}")
    with leased(ws.storage, "sweeps/first"):
        assert collected(ws) == []
    assert collected(ws) == [("trial", folder)]
    assert [p.name for p in Path(ws.run, "sweeps/trials").iterdir()] == ["0123456789abcdef.json"]


def test_what_a_killed_refresh_was_about_to_publish_stays_until_it_is_completed(ws):
    old = write(ws, "codes", "before")
    with aside(inventory.WORK):
        new = write(Workspace(ws.run), "codes", "after")
    work = Path(ws.run, "refresh/work/codes/current.json")
    os.utime(work, (0, 0))
    ids = {"before": {"codes": old.build_id}, "after": {"codes": new.build_id}}
    decision = Decision(1, "", "published", "", state="publishing", **ids)
    decision.write(ws.storage)
    write(ws, "codes", "another is current")
    assert collected(ws) == []
    dataclasses.replace(decision, state="done").write(ws.storage)
    with leased(ws.storage, REFRESH):  # a refresh works
        assert collected(ws) == [("build", old.place)]
    assert collected(ws) == [("build", new.place), ("work", "refresh/work")]
    assert not work.exists()


def test_temporary_folders_of_living_processes_stay(ws, tmp_path):
    mine = temporary.temporary_folder("draft")
    old = tmp_path / "tmp" / "raysys-abcd1234"
    old.mkdir()
    assert collected(ws) == []
    (old / "file").write_text("written just now")
    os.utime(old, (0, 0))
    assert collected(ws) == []
    (old / "file").unlink()
    os.utime(old, (0, 0))
    assert collected(ws) == [("temporary", str(old))]
    assert mine.is_dir()
