"""`builds` and `gc` as commands: what they say, and what a bucket keeps."""

import json
import os
from pathlib import Path

import pytest

from raysys.cli import main
from raysys.errors import BuildError
from raysys.store import collect, uploads
from raysys.store.builds import Workspace
from raysys.store.inventory import Inventory
from tests.store.test_collect import places, write


def asked(capfd, *words):
    assert main(words) == 0
    return json.loads(capfd.readouterr().out)


@pytest.fixture
def ws(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    ws = Workspace(str(tmp_path / "run"))
    profiles = write(ws, "profiles", "a")
    write(ws, "autoencoder", "first", inputs=[profiles])
    write(ws, "autoencoder", "second", inputs=[profiles])
    return ws


def test_builds_are_listed_with_what_they_are_made_from_and_what_keeps_them(ws, capfd):
    first, second = ws.before("autoencoder")[0], ws.current("autoencoder").build_id
    words = ["builds", f"run={ws.run}", f"pin={first}", "name=good"]
    found = asked(capfd, *words)
    shown = {build["build_id"]: build for build in found["builds"]}
    profiles = ws.current("profiles")
    assert shown[first]["made_from"] == [profiles.place]
    assert (shown[first]["pins"], shown[first]["before"]) == (["good"], 1)
    assert shown[second]["current"]
    assert shown[second]["bytes"] > len("second")
    assert found["build_ids"] == {"profiles": profiles.build_id, "autoencoder": second}
    assert found["left_over"] == []
    asked(capfd, "builds", f"run={ws.run}", "unpin=good")
    assert not Path(ws.run, "pins.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pin=nosuch"], "pin='nosuch' is not accepted"),
        (["pin=a", "unpin=b"], "builds takes pin= or unpin=, not both"),
        (["name=x"], "name='x' is not accepted: expected only with pin="),
        (["unpin=x"], "unpin='x' is no pin"),
    ],
)
def test_pins_that_mean_nothing_are_one_line(ws, capfd, words, message):
    assert main(["builds", f"run={ws.run}", *words]) == 2
    assert message in capfd.readouterr().err


def test_gc_says_first_and_removes_when_told(ws, capfd):
    old = ws.before("autoencoder")[0]
    words = [f"run={ws.run}", "keep=0", "older_days=0"]
    said = asked(capfd, "gc", *words)
    assert [waste["place"] for waste in said["would_remove"]] == [f"autoencoder/{old}"]
    assert f"autoencoder/{old}" in places(ws)
    assert asked(capfd, "gc", f"run={ws.run}")["would_remove"] == []  # it is young, and before
    assert asked(capfd, "gc", f"run={ws.run}", "keep=0")["would_remove"] == []
    assert asked(capfd, "gc", f"run={ws.run}", "older_days=0")["would_remove"] == []
    done = asked(capfd, "gc", *words, "dry_run=false")
    assert (done["removed"], done["bytes"]) == (said["would_remove"], said["bytes"])
    assert f"autoencoder/{old}" not in places(ws)
    assert not Path(ws.run, "locks").exists()


@pytest.mark.parametrize("word", ["keep=-1", "older_days=-1", "run=/no/such/run"])
def test_bad_settings_of_gc_are_one_line(ws, word, capfd):
    assert main(["gc", f"run={ws.run}", word]) == 2
    assert word.split("=")[0] in capfd.readouterr().err


def test_a_bucket_is_collected_with_its_open_uploads_and_the_cache(
    s3_bucket, tmp_path, monkeypatch, capfd
):
    import boto3

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run, cache = f"{s3_bucket}/{tmp_path.name}/run", tmp_path / "cache"
    ws = Workspace(run, cache_dir=str(cache))
    old = write(ws, "codes", "old")
    old.verify()  # fetches it
    new = write(ws, "codes", "new")
    new.verify()
    client = boto3.client("s3")
    key = f"{tmp_path.name}/run/codes/half"
    begun = client.create_multipart_upload(Bucket="raysys", Key=key)
    part = {"Bucket": "raysys", "Key": key, "UploadId": begun["UploadId"]}
    client.upload_part(**part, PartNumber=1, Body=b"x" * 1000)
    words = [f"run={run}", f"cache_dir={cache}", "keep=0", "older_days=0", "dry_run=false"]
    with monkeypatch.context() as young:
        young.setattr(uploads, "_OLD_S", float("inf"))  # moto's begin in 2010
        fresh = asked(capfd, "gc", *words)["removed"]
        assert [waste["what"] for waste in fresh] == ["build"]  # what was just fetched stays
        young.setattr(collect, "_YOUNG_S", -1.0)
        whats = {waste["what"] for waste in asked(capfd, "gc", *words)["removed"]}
    assert whats == {"cache"}
    [upload] = asked(capfd, "gc", *words)["removed"]
    assert (upload["what"], upload["size_bytes"]) == ("upload", 1000)
    assert "Uploads" not in client.list_multipart_uploads(Bucket="raysys")
    inventory = Inventory(ws.storage)
    assert list(inventory.builds) == [new.place]
    assert sorted(inventory.files) == sorted(
        [*inventory.builds[new.place].files, "codes/current.json"]
    )
    assert [p.name for p in cache.rglob("*.txt")] == ["data.txt"]
    new.verify()


def test_a_host_without_boto3_says_what_the_bucket_must_do(s3_bucket, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    run = f"{s3_bucket}/{tmp_path.name}/run"
    write(Workspace(run), "codes", "x")
    assert "AbortIncompleteMultipartUpload" in asked(capfd, "gc", f"run={run}")["uploads"]


def test_a_run_that_can_only_be_read_is_listed(ws, capfd, monkeypatch):
    from raysys.store.storage import Storage

    def refused(*_):
        raise OSError("read-only file system")

    monkeypatch.setattr(Storage, "write_atomic", refused)
    assert len(asked(capfd, "builds", f"run={ws.run}")["builds"]) == 3
    assert main(["gc", f"run={ws.run}"]) == 2
    assert os.path.exists(ws.run)


def test_what_cannot_be_deleted_is_tried_once(ws, tmp_path, monkeypatch, capfd):
    stuck = tmp_path / "tmp/raysys-abcd1234"
    stuck.mkdir()
    os.utime(stuck, (0, 0))
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    done = asked(capfd, "gc", f"run={ws.run}", "dry_run=false")
    assert ([w["place"] for w in done["left"]], done["removed"]) == ([str(stuck)], [])
    monkeypatch.setattr("os.getuid", lambda: os.geteuid() + 1)  # another user's
    assert asked(capfd, "gc", f"run={ws.run}")["would_remove"] == []


@pytest.mark.parametrize("name", ["autoencoder/current.json", "uses/0a1b2c3d.json", "manifest"])
def test_gc_refuses_what_it_cannot_read_and_builds_goes_on(ws, name, capfd):
    if name == "manifest":
        name = f"{ws.current('autoencoder').place}/manifest.json"
    ws.storage.write_atomic(name, "{")
    for dry_run in ("true", "false"):
        words = [f"run={ws.run}", "keep=0", "older_days=0", f"dry_run={dry_run}"]
        assert main(["gc", *words]) == 2
        assert f"{name} is damaged" in capfd.readouterr().err
    assert len(places(ws)) == 3
    asked(capfd, "builds", f"run={ws.run}")


def test_uses_that_the_store_does_not_hand_out_fail_gc(ws, monkeypatch, capfd):
    from raysys.store.storage import Storage

    ws.storage.write_atomic("uses/0a1b2c3d.json", "{}")
    real = Storage.read_json

    def read_json(self, name):
        if name.startswith("uses/"):
            raise BuildError(f"cannot read {name}: 503")
        return real(self, name)

    monkeypatch.setattr(Storage, "read_json", read_json)
    assert main(["gc", f"run={ws.run}", "keep=0", "older_days=0", "dry_run=false"]) == 2
    assert "503" in capfd.readouterr().err
    assert len(places(ws)) == 3
