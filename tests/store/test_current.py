"""What is current: of the run, and of work that is set aside."""

from pathlib import Path

from raysys.store.builds import Workspace
from raysys.store.current import aside
from raysys.store.kinds import Facts

PLACE = "sweeps/trials/0a"


def write(ws, kind, text, *, inputs=()):
    def fill(draft):
        draft.path("data").write_text(text)
        return Facts()

    return ws.build(kind, config={"text": text}, inputs=inputs, write=fill)


def names(run):
    """Return {path: content} of what names builds, in the run itself."""
    return {path: path.read_bytes() for path in sorted(Path(run).glob("*/current.json"))}


def test_work_that_is_set_aside_reads_the_run_and_names_its_own_builds(tmp_path):
    run = Workspace(str(tmp_path))
    old = write(run, "codes", "old")
    present = write(run, "codes", "present")
    before = names(run.run)
    with aside(PLACE):
        own = Workspace(run.run)
        assert own.current("codes").build_id == present.build_id
        assert own.before("codes") == [old.build_id]
        new = write(own, "codes", "new")
        index = write(own, "index", "of new", inputs=[new])
        assert own.current("codes").build_id == new.build_id
        own.go_back(new, present=new)
        assert own.path("reports") == f"{PLACE}/reports"
    assert names(run.run) == before
    assert run.current("codes").build_id == present.build_id
    assert not run.has("index")
    assert run.open("index", index.build_id).content_id == index.content_id
    assert Workspace(run.run).path("reports") == "reports"
    with aside(PLACE):
        assert Workspace(run.run).current("index").build_id == index.build_id
    with aside("sweeps/trials/0b"):
        assert not Workspace(run.run).has("index")
    run.go_back(old, present=present)
    assert run.current("codes").build_id == old.build_id
    with aside(PLACE):
        assert Workspace(run.run).current("codes").build_id == new.build_id


def test_what_the_run_has_already_is_named_in_its_place_too(tmp_path):
    run = Workspace(str(tmp_path))
    first = write(run, "codes", "first")
    write(run, "codes", "second")
    with aside(PLACE):
        assert write(Workspace(run.run), "codes", "first").build_id == first.build_id
        assert Workspace(run.run).current("codes").build_id == first.build_id
    assert run.current("codes").build_id != first.build_id


def test_a_place_on_an_object_store(s3_bucket, tmp_path):
    run = Workspace(f"{s3_bucket}/aside", cache_dir=str(tmp_path))
    present = write(run, "codes", "present")
    with aside(PLACE):
        own = Workspace(run.run, cache_dir=str(tmp_path))
        new = write(own, "codes", "new")
        assert own.current("codes").build_id == new.build_id
    assert run.current("codes").build_id == present.build_id
    assert [name for name in run.storage.files("sweeps") if "current" in name] == [
        "trials/0a/codes/current.json"
    ]
