import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from raysys.errors import BuildError, CorruptBuildError, SchemaVersionError
from raysys.store.builds import Workspace
from raysys.store.drafts import SCRATCH
from raysys.store.kinds import Facts
from raysys.store.leases import Owner
from raysys.store.storage import Storage


@dataclasses.dataclass(frozen=True)
class Length(Facts):
    length: int


def write(ws, kind, text="x", *, inputs=(), config=None, force=False):
    def fill(draft):
        draft.path("deep/data.txt").write_text(text)
        return Length(len(text))

    settings = config or {"text": text}
    return ws.build(kind, config=settings, inputs=inputs, write=fill, force=force)


def fail(draft):
    draft.path("data").write_text("half")
    raise RuntimeError("boom")


@pytest.fixture
def ws(tmp_path):
    return Workspace(str(tmp_path / "run"))


def test_a_committed_build_reads_back(ws):
    build = write(ws, "codes", "hello")
    again = ws.current("codes")
    assert again.build_id == build.build_id
    assert again.path("deep/data.txt").read_text() == "hello"
    assert again.record() == {"length": 5}
    again.verify()


def test_same_settings_reuse_and_other_settings_move_current(ws):
    first = write(ws, "codes", "a")
    second = write(ws, "codes", "b")
    assert ws.current("codes").build_id == second.build_id != first.build_id
    reused = write(ws, "codes", "a")
    assert reused.content_id == first.content_id
    assert ws.current("codes").build_id == first.build_id


def test_force_writes_the_same_build_anew(ws):
    first = write(ws, "codes", "old", config={"same": 1})
    second = write(ws, "codes", "new", config={"same": 1}, force=True)
    assert first.build_id == second.build_id
    assert second.path("deep/data.txt").read_text() == "new"
    assert first.content_id != second.content_id


def test_a_failed_stage_leaves_nothing_behind(ws, tmp_path):
    with pytest.raises(RuntimeError, match="boom"):
        ws.build("codes", config={}, write=fail)
    assert not ws.has("codes")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_missing_build_names_the_job_that_writes_it(ws):
    with pytest.raises(BuildError, match="no index build yet: index writes it"):
        ws.current("index")


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damage_is_refused_and_named(ws, damage):
    build = write(ws, "codes", "hello")
    path = build.path("deep/data.txt")
    if damage == "delete":
        path.unlink()
    else:
        path.write_text("hell" if damage == "truncate" else "jello")
    with pytest.raises(CorruptBuildError, match=r"data\.txt"):
        ws.current("codes").verify()


def test_a_damaged_build_is_not_reused(ws):
    write(ws, "codes", "hello").path("deep/data.txt").unlink()
    assert write(ws, "codes", "hello").path("deep/data.txt").read_text() == "hello"


def test_other_schema_versions_are_refused(ws, tmp_path):
    build = write(ws, "codes")
    path = tmp_path / "run" / "codes" / build.build_id / "manifest.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"schema_version": 99}))
    with pytest.raises(SchemaVersionError, match="99"):
        ws.current("codes")


def test_a_chain_follows_content_and_refuses_mixtures(ws):
    base = write(ws, "profiles", "p")
    model = write(ws, "autoencoder", "m", inputs=[base])
    index = write(ws, "index", "i", inputs=[model, base])
    chain = ws.chain(index)
    assert {kind: b.content_id for kind, b in chain.items()} == {
        "profiles": base.content_id,
        "autoencoder": model.content_id,
        "index": index.content_id,
    }
    write(ws, "profiles", "changed", config={"text": "p"}, force=True)
    with pytest.raises(BuildError, match="mixed builds"):
        ws.chain(ws.current("index"))


def test_an_input_with_other_content_makes_another_build(ws):
    one = write(ws, "autoencoder", "m", inputs=[write(ws, "profiles", "a")])
    two = write(ws, "autoencoder", "m", inputs=[write(ws, "profiles", "b")])
    assert one.build_id != two.build_id


def test_weights_that_a_full_disk_does_not_take_are_one_clear_error(ws):
    def full(draft):  # what writes them has no OSError
        draft.path("half.npy").write_bytes(b"1")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(BuildError, match=r"cannot write autoencoder build to .*No space left"):
        ws.build("autoencoder", config={}, inputs=[], write=full)
    assert not ws.has("autoencoder")


def test_an_unwritable_run_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="cannot write"):
        write(Workspace(str(tmp_path / "file")), "codes")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(BuildError, match="nope"):
        Workspace("nope://bucket/run")


def test_builds_live_on_object_stores(s3_bucket, tmp_path):
    ws = Workspace(f"{s3_bucket}/run", cache_dir=str(tmp_path / "cache"))
    first = write(ws, "profiles", "hello")
    second = write(ws, "index", "i", inputs=[first])
    again = Workspace(f"{s3_bucket}/run", cache_dir=str(tmp_path / "other")).current("index")
    assert again.content_id == second.content_id
    again.verify()
    assert set(ws.chain(again)) == {"index", "profiles"}
    reused = write(ws, "profiles", "hello")
    assert reused.content_id == first.content_id
    with pytest.raises(RuntimeError, match="boom"):
        ws.build("codes", config={}, write=fail)
    assert not ws.has("codes")


def test_a_flipped_byte_is_found_before_a_build_is_reused(ws):
    first = write(ws, "codes", "hello")
    path = first.path("deep/data.txt")
    path.write_text("jello")
    again = write(ws, "codes", "hello")
    assert again.path("deep/data.txt").read_text() == "hello"
    again.verify()
    assert path.read_text() == "jello"  # it is written beside what is there


def test_hashes_are_taken_once_while_files_stay_as_they_are(ws, monkeypatch):
    write(ws, "codes", "hello")
    monkeypatch.setattr("raysys.store.storage.Storage.sha256", None)
    assert write(ws, "codes", "hello").record() == {"length": 5}


def test_a_cached_file_that_fails_is_fetched_again(s3_bucket, tmp_path):
    ws = Workspace(f"{s3_bucket}/cached", cache_dir=str(tmp_path / "cache"))
    build = write(ws, "codes", "hello")
    cached = build.path("deep/data.txt")
    cached.write_text("hell")
    assert ws.current("codes").path("deep/data.txt").read_text() == "hello"
    cached.write_text("jello")
    ws.current("codes").verify()
    assert cached.read_text() == "hello"


@pytest.mark.parametrize("damage", [b"hell", b"jello", None])
def test_an_object_that_is_repaired_is_read_again(s3_bucket, tmp_path, damage):
    import boto3

    run = f"repaired-{damage}"
    ws = Workspace(f"{s3_bucket}/{run}", cache_dir=str(tmp_path / "cache"))
    build = write(ws, "codes", "hello")
    key = f"{run}/codes/{build.build_id}/{build.manifest.folder}/deep/data.txt"
    store = boto3.client("s3")
    if damage is None:
        store.delete_object(Bucket="raysys", Key=key)
    else:
        store.put_object(Bucket="raysys", Key=key, Body=damage)
    with pytest.raises(CorruptBuildError, match=r"data\.txt"):
        ws.current("codes").verify()
    store.put_object(Bucket="raysys", Key=key, Body=b"hello")
    ws.current("codes").verify()


DIES = """
import os, sys
from raysys.store.builds import Workspace

def die(draft):
    draft.path("data").write_text("half")
    os._exit(9)

Workspace(sys.argv[1]).build("codes", config={"other": 1}, write=die)
"""


@pytest.mark.parametrize("next_kind", ["codes", "changes"])
def test_a_draft_of_a_dead_job_is_removed_by_the_next_one(ws, tmp_path, next_kind):
    folder = tmp_path / "run" / "codes"
    assert subprocess.run([sys.executable, "-c", DIES, ws.run]).returncode == 9
    assert [path.name for path in folder.rglob("data")] == ["data"]
    write(ws, next_kind)
    assert [path.name for path in folder.rglob("data")] == []
    assert not (tmp_path / "run" / "drafts").exists()


def test_a_dead_draft_on_an_object_store_goes_with_a_job_of_another_kind(s3_bucket, tmp_path):
    ws = Workspace(f"{s3_bucket}/dead", cache_dir=str(tmp_path / "cache"))
    before = write(ws, "codes", "hello")
    gone = dataclasses.replace(Owner.here(), started=Owner.here().started + 1)
    ws.storage.write_atomic(f"drafts/codes-{before.build_id}-00c0ffee.json", gone.text())
    ws.storage.write_atomic(f"codes/{before.build_id}/00c0ffee/data", b"half")
    write(ws, "index")
    before.verify()
    files = ws.storage.files("codes")
    assert [name for name in files if "00c0ffee" in name] == []
    assert ws.storage.files("drafts") == {}


def test_looking_for_dead_drafts_lists_no_folder_of_builds(ws, monkeypatch):
    write(ws, "profiles")
    listed, files = [], Storage.files

    def seen(storage, folder):
        if storage is ws.storage:  # services of other tests may still look at their runs
            listed.append(folder)
        return files(storage, folder)

    monkeypatch.setattr(Storage, "files", seen)
    build = write(ws, "codes")
    own = {name for name in listed if build.build_id in name}
    assert set(listed) - own == {"drafts", "locks/codes/current"}


def test_files_that_are_left_out_are_checked_but_decide_no_content(ws):
    def fill(history):
        def write(draft):
            draft.leave_out("history.jsonl", "tensorboard/")
            draft.path("weights").write_text("w")
            draft.path("history.jsonl").write_text(history)
            draft.path(f"tensorboard/fit/events.{history}").write_text(history)
            return Facts()

        return write

    first = ws.build("autoencoder", config={}, write=fill("slow"))
    codes = write(ws, "codes", inputs=[first])
    second = ws.build("autoencoder", config={}, write=fill("fast"), force=True)
    assert second.path("history.jsonl").read_text() == "fast"
    assert second.content_id == first.content_id
    assert write(ws, "codes", inputs=[second]).build_id == codes.build_id
    assert set(ws.chain(ws.current("codes"))) == {"codes", "autoencoder"}
    second.path("history.jsonl").write_text("fest")
    with pytest.raises(CorruptBuildError, match=r"history\.jsonl"):
        second.verify()


def test_equal_contents_of_other_histories_are_not_mixed_up_in_the_cache(s3_bucket, tmp_path):
    ws = Workspace(f"{s3_bucket}/histories", cache_dir=str(tmp_path / "cache"))

    def fill(history):
        def write(draft):
            draft.leave_out("history.jsonl")
            draft.path("history.jsonl").write_text(history)
            return Facts()

        return write

    for history in ("slow", "fast"):
        build = ws.build("autoencoder", config={}, write=fill(history), force=True)
        assert build.path("history.jsonl").read_text() == history


def test_scratch_outlives_a_failed_job_and_goes_with_the_build(ws):
    kept = []

    def resumable(draft):
        part = f"{SCRATCH}/{draft.scratch()}/part"
        kept.append(ws.storage.read(part))
        ws.storage.write_atomic(part, b"half")
        if len(kept) == 1:
            raise RuntimeError("boom")
        return Facts()

    with pytest.raises(RuntimeError, match="boom"):
        ws.build("codes", config={}, write=resumable)
    ws.build("codes", config={}, write=resumable)
    ws.build("codes", config={}, write=resumable, force=True)
    assert kept == [None, b"half", None]
    assert ws.storage.files(SCRATCH) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_damaged_current_is_written_again(ws, content):
    build = write(ws, "codes", "hello")
    ws.storage.write_atomic("codes/current.json", content)
    write(ws, "codes", "hello")
    assert ws.current("codes").content_id == build.content_id


def test_a_build_under_a_lease_that_was_lost_is_not_published(ws):
    def lose(draft):
        for name in ws.storage.files("locks/changes/edit"):
            ws.storage.remove(f"locks/changes/edit/{name}")
        return Facts()

    with ws.held("changes/edit"), pytest.raises(BuildError, match="took over changes/edit"):
        ws.build("changes", config={}, write=lose)
    assert not ws.has("changes")


@pytest.mark.parametrize("alive", [True, False])
def test_an_old_draft_of_another_host_stays_while_its_lease_beats(ws, alive):
    ws.storage.write_atomic("codes/x/keep", b"")
    owner = dataclasses.replace(Owner.here(), host="another boot")
    folder = "codes/.0123456789abcdef.00c0ffee"
    names = ["drafts/codes-0123456789abcdef-00c0ffee.json", f"{folder}/data"]
    names += ["locks/codes/0123456789abcdef/beat-00c0ffee"] * alive
    for name in names:
        ws.storage.write_atomic(name, owner.text())
    for name in names[:2]:
        os.utime(f"{ws.run}/{name}", (0, 0))
    write(ws, "codes")
    assert ws.storage.exists(f"{folder}/data") == alive


def test_a_note_is_in_the_manifest_and_in_no_digest(ws):
    def fill(seconds):
        def write(draft):
            draft.note(seconds=seconds)
            return Facts()

        return write

    first = ws.build("codes", config={}, write=fill({"fit": 1.0}))
    second = ws.build("codes", config={}, write=fill({"fit": 2.0}), force=True)
    place = Path(ws.run) / "codes" / second.build_id / "manifest.json"
    manifest = json.loads(place.read_text())
    assert second.content_id == first.content_id
    assert manifest["notes"]["seconds"] == {"fit": 2.0}


def test_what_was_current_before_is_named(ws):
    ids = [write(ws, "codes", text).build_id for text in ("one", "two", "three", "two")]
    assert ws.current("codes").build_id == ids[1]
    assert ws.before("codes") == [ids[2], ids[0]]
    write(ws, "codes", "two")
    assert ws.before("codes") == [ids[2], ids[0]]
    ws.go_back(ws.open("codes", ids[0]))
    assert (ws.current("codes").build_id, ws.before("codes")) == (ids[0], [])
    assert ws.before("index") == []
    write(ws, "codes", "four")
    assert ws.before("codes") == [ids[0]]
