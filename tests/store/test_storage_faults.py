"""Storage that fails: a build is finished all the same, or is not there at all, and says why."""

import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from raysys.errors import BuildError
from raysys.store.builds import Workspace
from raysys.store.collect import Collector, Policy
from raysys.store.inventory import Inventory
from tests.store.test_collect import Length, write
from tests.support.faults import FaultyProxy

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def proxy(s3_bucket):
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    proxy = FaultyProxy(server.hostname, server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def ws(s3_bucket, proxy, tmp_path):
    options = f"endpoint_override={proxy.address}&scheme=http&region=us-east-1"
    run = f"{s3_bucket}/{tmp_path.name}/run?{options}"
    return Workspace(run, cache_dir=str(tmp_path / "cache"))


def large(ws, *, size=12 * MIB):
    def fill(draft):
        draft.path("large.bin").write_bytes(os.urandom(size))
        return Length(size)

    return ws.build("codes", config={"large": size}, write=fill)


def test_answers_of_503_are_asked_again(ws, proxy):
    proxy.fault = lambda method, path, number: 503 if number % 5 == 0 else None
    build = write(ws, "codes", "a")
    large(ws).verify()
    build.verify()
    assert proxy.faults > 5
    ws.chain(ws.current("codes"))


def test_a_store_that_is_slow_is_waited_for(ws, proxy):
    proxy.fault = lambda method, path, number: 0.1
    write(ws, "codes", "a").verify()


def test_half_of_an_upload_is_sent_again(ws, proxy):
    cut = []

    def fault(method, path, number):
        if method == "PUT" and "large.bin" in path and len(cut) < 2:
            cut.append(path)
            return "cut"
        return None

    proxy.fault = fault
    large(ws).verify()
    assert len(cut) == 2


def test_a_store_that_stays_away_is_one_line_and_nothing_is_visible(ws, proxy):
    write(ws, "codes", "before")
    before = ws.current("codes").build_id
    proxy.fault = lambda method, path, _: "cut" if method != "GET" and "large.bin" in path else None
    with pytest.raises(BuildError, match="cannot write codes build") as caught:
        large(ws)
    assert "\n" not in str(caught.value).strip()
    proxy.fault = lambda *_: None
    assert ws.current("codes").build_id == before
    assert len(Inventory(ws.storage).builds) == 1
    large(ws).verify()
    collector = Collector(ws.storage, Policy(keep=0, older_s=0))
    for waste in collector.found(Inventory(ws.storage)):
        collector.remove(waste)
    assert list(Inventory(ws.storage).builds) == [ws.current("codes").place]


def test_small_files_are_one_request_each(ws, proxy):
    """Whoever is killed while it writes one leaves no open upload."""
    asked = []
    proxy.fault = lambda method, path, _: asked.append((method, path))
    ws.storage.write_atomic("small.json", "{}")
    assert [method for method, path in asked if "small.json" in path] == ["PUT"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounts need root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("what", ["run", "staging", "cache"])
def test_a_full_disk_is_one_line_and_the_job_goes_on_once_there_is_room(
    small_disk, what, s3_bucket, tmp_path, monkeypatch
):
    run = str(small_disk / "run") if what == "run" else f"{s3_bucket}/{tmp_path.name}/run"
    cache = small_disk / "cache" if what == "cache" else tmp_path / "cache"
    if what == "staging":
        monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    ws = Workspace(run, cache_dir=str(cache))
    write(ws, "codes", "small")
    before = ws.current("codes").build_id
    if what == "cache":
        build = large(ws, size=3 * MIB)
        with pytest.raises(BuildError, match="No space left on device"):
            build.verify()
        assert not [*small_disk.rglob("*large.bin*")]
    else:
        with pytest.raises(BuildError, match=r"cannot write codes build .* No space left"):
            large(ws, size=3 * MIB)
        assert ws.current("codes").build_id == before
        assert len(Inventory(ws.storage).builds) == 1
        assert not [*small_disk.rglob("*large.bin*")]
        build = None
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    (build or large(ws, size=3 * MIB)).verify()


SKEWED = """
import sys, time
from raysys.store.builds import Workspace
from raysys.store.collect import Collector, Policy
from raysys.store.inventory import Inventory
ws = Workspace(sys.argv[1])
collector = Collector(ws.storage, Policy(keep=0, older_s=float(sys.argv[2])))
print([w.what for w in collector.found(Inventory(ws.storage)) if w.what != "temporary"])
"""


@pytest.mark.parametrize("clock", ["+1h", "-1h"])
def test_a_clock_that_is_an_hour_off_takes_nothing_for_old(ws, s3_bucket, tmp_path, clock):
    """Ages are told by the storage's clock: of builds, drafts and uses of other hosts."""
    run = f"{s3_bucket}/{tmp_path.name}/run"
    if subprocess.run(["which", "faketime"], capture_output=True).returncode:
        pytest.skip("faketime is not installed")
    write(ws, "codes", "old")
    write(ws, "codes", "new")
    words = ["faketime", "-f", clock, sys.executable, "-c", SKEWED, run]
    inner = []

    def fill(draft):
        owner = f"drafts/codes-{draft.build_id}-{draft._token}.json"
        elsewhere = ws.storage.read(owner).decode().replace('"host": "', '"host": "elsewhere ')
        ws.storage.write_atomic(owner, elsewhere)
        done = subprocess.run([*words, "1800"], cwd=ROOT, capture_output=True, text=True)
        inner.append(done.stdout.strip() or done.stderr)
        ws.storage.write_atomic(owner, elsewhere.replace("elsewhere ", ""))
        return Length(1)

    ws.build("codes", config={"text": "third"}, write=fill)
    assert inner == ["[]"]
    time.sleep(1.1)
    done = subprocess.run([*words, "1"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "['build', 'build']", done.stderr
