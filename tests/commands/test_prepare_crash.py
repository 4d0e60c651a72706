"""Lost processes, full disks and object stores, with private clusters in processes of their own."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.commands.prepare import PrepareConfig, prepare
from raysys.config import load
from raysys.errors import BuildError
from raysys.store.builds import Workspace
from raysys.store.storage import open_filesystem
from tests.support.processes import end, job, tree, wait_for

pytestmark = pytest.mark.ray


def write_log(path, n_rows=400_000):
    rng = np.random.default_rng(3)
    table = pa.table(
        {
            "user_id": [f"user {n}" for n in rng.integers(4000, size=n_rows)],
            "item_id": rng.integers(3000, size=n_rows),
            "timestamp": 1_700_000_000 + rng.integers(10**7, size=n_rows),
        }
    )
    pq.write_table(table, path, row_group_size=100_000)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_jobs_leave_no_build_and_the_next_run_is_bit_identical(tmp_path, ray_cluster):
    write_log(tmp_path / "log.parquet")
    source = f"source={tmp_path / 'log.parquet'}"
    prepare(load(PrepareConfig, [f"run={tmp_path / 'two'}", source]))  # two CPUs, no accident
    folder = tmp_path / "one"
    ws = Workspace(str(folder))
    with job(folder, source) as (started, seen):
        wait_for(folder, "interactions/.*/.shuffle/*", started, seen)
        names = {pid: Path(f"/proc/{pid}/cmdline") for pid in tree(started.pid)}
        workers = [p for p, path in names.items() if path.read_bytes().startswith(b"ray::")]
        end(workers)
        started.communicate(timeout=200)
    assert workers
    # Ray Data tries again where it can; without its own actors the job fails, and leaves nothing.
    assert started.returncode == 0 or not ws.has("interactions")
    shutil.rmtree(folder)
    for moment in ("interactions/.*/.shuffle/*", "profiles/.*/shard-*"):
        with job(folder, source) as (started, seen):
            wait_for(folder, moment, started, seen)
            started.kill()
            started.wait()
        assert ws.has("interactions") == moment.startswith("profiles")
        assert not ws.has("profiles")
    time.sleep(1.1)  # younger drafts may belong to a run that just began
    prepare(load(PrepareConfig, [f"run={folder}", source, "force=true"]))
    other = Workspace(str(tmp_path / "two"))
    for kind in ("interactions", "profiles"):
        assert ws.current(kind).content_id == other.current(kind).content_id
        assert not list((folder / kind).glob(".*"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_read_and_write_an_object_store(tmp_path, s3_bucket):
    write_log(tmp_path / "log.parquet", n_rows=20_000)
    filesystem, path = open_filesystem(f"{s3_bucket}/real/log.parquet")
    filesystem.create_dir(path.rsplit("/", 1)[0])
    with filesystem.open_output_stream(path) as out:
        out.write((tmp_path / "log.parquet").read_bytes())
    run = f"{s3_bucket}/real-run"
    settings = [f"source={s3_bucket}/real/*.parquet", f"cache_dir={tmp_path / 'cache'}"]
    with job(run, *settings) as (started, _):
        output, _ = started.communicate(timeout=200)
    assert started.returncode == 0
    build = Workspace(run, cache_dir=str(tmp_path / "cache")).current("profiles")
    assert json.loads(output)["build_ids"]["profiles"] == build.build_id
    build.verify()


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path, ray_cluster):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not allowed here")
    try:
        write_log(tmp_path / "log.parquet", n_rows=300_000)
        settings = [f"run={small / 'run'}", f"source={tmp_path / 'log.parquet'}"]
        with pytest.raises(BuildError, match="No space left on device") as caught:
            prepare(load(PrepareConfig, settings))
        assert "\n" not in str(caught.value)
        assert [p for p in small.rglob("*") if p.is_file()] == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
