"""Encoding part by part: the same bytes however it is cut up, spread or interrupted."""

import os
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysys.cluster import tasks
from raysys.commands.encode_parts import encode_in_parts
from raysys.commands.train import TrainConfig, train
from raysys.compressor.codes import Codes
from raysys.compressor.embeddings import Embeddings
from raysys.compressor.encode import ENCODE_ROWS, Encoder, encode
from raysys.config import load
from raysys.errors import BuildError
from raysys.progress import shown
from raysys.store.builds import Workspace
from tests.support.planting import Folder, plant_embeddings
from tests.support.processes import job, wait_for


def planted(n_rows, dim=24, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, dim))
    rows = centres[rng.integers(0, 40, n_rows)] + 0.5 * rng.normal(size=(n_rows, dim))
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run with embeddings of 21,000 rows and a dictionary."""
    workspace = Workspace(str(tmp_path_factory.mktemp("parts") / "run"))
    vectors = planted(21_000)
    embeddings = Embeddings.open(plant_embeddings(workspace, vectors))
    dictionary = torch.from_numpy(vectors[:64])
    dictionary = dictionary / dictionary.norm(dim=1, keepdim=True)
    return workspace, embeddings, dictionary


def written(world, name, *, value_bits=4, **settings):
    """Return the bytes of codes written in parts."""
    workspace, embeddings, dictionary = world
    vectors = embeddings.vectors
    encoder = Encoder.fit(vectors, dictionary, n_active=4, model=None, value_bits=value_bits)
    draft = Folder(workspace.run)
    encode_in_parts(
        draft,
        embeddings,
        encoder,
        storage=workspace.storage,
        name=name,
        fitted=True,
        similarity="cosine",
        value_bits=value_bits,
        **settings,
    )
    return {path.name: path.read_bytes() for path in draft.staging.iterdir()}


@pytest.mark.parametrize("value_bits", [4, 8])
def test_parts_are_the_codes_of_one_piece(world, tmp_path, value_bits):
    _, embeddings, dictionary = world
    vectors = np.array(embeddings.vectors)
    atoms, values = encode(vectors, dictionary, n_active=4, model=None, value_bits=value_bits)
    whole = Codes.pack(
        atoms,
        values,
        dictionary=dictionary.numpy(),
        vectors=vectors,
        value_bits=value_bits,
    )
    draft = Folder(tmp_path)
    whole.save(draft)
    wanted = {path.name: path.read_bytes() for path in draft.staging.iterdir()}
    for part_rows in (ENCODE_ROWS, 5 * ENCODE_ROWS):
        name = f"whole-{part_rows}-{value_bits}"
        assert written(world, name, part_rows=part_rows, value_bits=value_bits) == wanted


def test_codes_are_the_same_with_any_number_of_threads(world):
    _, embeddings, dictionary = world
    rows = np.array(embeddings.vectors[:ENCODE_ROWS])
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            encoder = Encoder.fit(rows, dictionary, n_active=4, model=None)
            found.append([part.tobytes() for part in encoder.block(rows)])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


CODE_ROWS = """
import hashlib
import numpy as np
import torch
from raysys.compressor.encode import Encoder

rows = np.random.default_rng(0).normal(size=(2000, 24)).astype(np.float32)
dictionary = torch.from_numpy(rows[:64] / np.linalg.norm(rows[:64], axis=1, keepdims=True))
atoms, values = Encoder.fit(rows, dictionary, n_active=4, model=None).block(rows)
print(hashlib.sha256(atoms.tobytes() + values.tobytes()).hexdigest())
"""


def test_a_kernel_codes_alike_when_compiled_and_when_loaded(tmp_path):
    """Workers of one job do both: numba optimises a parallel kernel again before it stores it."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", CODE_ROWS]
    found = []
    for n_stored in (0, 1):
        assert bool(list(tmp_path.rglob("pursuit._exchange*.nbc"))) == bool(n_stored)
        found.append(subprocess.check_output(command, env=environment, text=True))
    assert found[0] == found[1]


@pytest.mark.ray
def test_ray_tasks_write_the_same_bytes(world, ray_cluster, monkeypatch):
    here = written(world, "here")
    monkeypatch.setattr(tasks, "IN_PROCESS_ROWS", 0)
    assert written(world, "spread", part_rows=ENCODE_ROWS) == here


def test_finished_parts_are_kept(world, monkeypatch):
    wanted = written(world, "first")
    done = []
    block = Encoder.block

    def failing(self, vectors):
        if len(done) == 3:
            raise BuildError("lost")
        done.append(len(vectors))
        return block(self, vectors)

    monkeypatch.setattr(Encoder, "block", failing)
    with pytest.raises(BuildError, match="lost"):
        written(world, "again", part_rows=ENCODE_ROWS)
    done[:] = [0, 0, 0, 0]
    assert written(world, "again", part_rows=ENCODE_ROWS) == wanted
    assert done[4:] == [ENCODE_ROWS, ENCODE_ROWS, 21_000 - 5 * ENCODE_ROWS]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_job_goes_on_where_it_stopped(tmp_path, ray_cluster, caplog):
    np.save(tmp_path / "x.npy", planted(60_000))
    words = ["model=compressor", f"source={tmp_path / 'x.npy'}", "launch.workers=0"]
    words += ["compressor.code_dim=64", "compressor.n_active=4"]
    train(load(TrainConfig, [f"run={tmp_path / 'whole'}", *words]))
    folder = tmp_path / "killed"
    with job(folder, *words, name="train") as (started, seen):
        wait_for(folder, "training/codes-*/codes-*-000000.npz", started, seen)
        started.kill()
        started.wait()
    ws = Workspace(str(folder))
    assert not ws.has("codes")
    with caplog.at_level("INFO"), shown("log"):
        train(load(TrainConfig, [f"run={folder}", *words]))
    n_encoded = re.findall(r"encode tasks=4/4 rows=(\d+)", caplog.text)
    assert 0 <= int(n_encoded[-1]) < 60_000
    wanted = Workspace(str(tmp_path / "whole")).current("codes")
    assert ws.current("codes").content_id == wanted.content_id
    assert not list((folder / "training").glob("*"))
    assert not list((folder / "codes").glob(".*"))  # the draft of the killed job


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_workers_keep_their_parts_on_an_object_store(tmp_path, ray_cluster, s3_bucket):
    np.save(tmp_path / "x.npy", planted(40_000))
    start = "from raysys import cli; from raysys.cluster import tasks; tasks.IN_PROCESS_ROWS = 0; "
    words = ["model=compressor", f"source={tmp_path / 'x.npy'}", "launch.workers=0"]
    words += ["compressor.code_dim=64", "compressor.n_active=4", f"cache_dir={tmp_path / 'cache'}"]
    here, there = str(tmp_path / "run"), f"{s3_bucket}/parts"
    train(load(TrainConfig, [f"run={here}", *words]))
    command = [sys.executable, "-c", f"{start} cli.main()", "train", f"run={there}", *words]
    private = ["ray.address=local", "ray.num_cpus=1", "ray.object_store_mb=100"]
    subprocess.run([*command, *private], timeout=300, check=True)
    found = []
    for run in (here, there):
        workspace = Workspace(run, cache_dir=str(tmp_path / "cache"))
        found.append(workspace.current("codes").content_id)
        assert workspace.storage.files("training") == {}
    assert found[0] == found[1]


@pytest.mark.ray
def test_shards_of_embeddings_are_the_matrix(tmp_path, ray_cluster):
    x = planted(700)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "ids.txt").write_text("".join(f"näme {n}\n" for n in range(700)))
    (tmp_path / "shards").mkdir()
    for start in range(0, 700, 300):
        rows = x[start : start + 300]
        names = [f"näme {n}" for n in range(start, start + len(rows))]
        table = pa.table({"item_id": names, "embedding": rows.tolist()})
        pq.write_table(table, tmp_path / "shards" / f"{start:03d}.parquet")
    words = ["model=compressor", "launch.workers=0", "compressor.n_active=4"]
    found = []
    matrix = [f"source={tmp_path / 'x.npy'}", f"ids={tmp_path / 'ids.txt'}"]
    for source in (matrix, [f"source={tmp_path / 'shards'}"]):
        workspace = Workspace(str(tmp_path / f"run{len(found)}"))
        train(load(TrainConfig, [f"run={workspace.run}", *words, *source]))
        files = workspace.current("embeddings").manifest.files
        found.append(files | workspace.current("codes").manifest.files)
    assert found[0] == found[1]
