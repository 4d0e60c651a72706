import numpy as np
import pytest

from raysys.cluster import tasks
from raysys.commands.index import IndexConfig, index
from raysys.compressor.codes import Codes
from raysys.config import load
from raysys.errors import BuildError, ConfigError
from raysys.index.files import open_index
from raysys.index.request import SearchRequest
from raysys.search.served import Served
from raysys.store.builds import Workspace
from tests.support.planting import plant_codes, plant_embeddings

DIM, N_ATOMS = 16, 64


def write_builds(run, *, n_items=3000, similarity="inner_product", dense=False):
    """Write embeddings, compressor and codes builds as the train job does."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, DIM))
    vectors = centres[rng.integers(0, 60, n_items)] + 0.3 * rng.normal(size=(n_items, DIM))
    vectors = vectors.astype(np.float32)
    n_bias = 2 if similarity == "inner_product" else 0
    bias = rng.normal(size=(n_items, n_bias)).astype(np.float32)
    dictionary = rng.normal(size=(N_ATOMS, DIM)).astype(np.float32)
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    workspace = Workspace(str(run))
    embeddings = plant_embeddings(workspace, vectors, bias=bias, similarity=similarity)
    atoms = np.argsort(-np.abs(vectors @ dictionary.T), axis=1)[:, :6]
    values = np.take_along_axis(vectors @ dictionary.T, atoms, 1)
    if dense:
        codes = Codes.pack_dense(vectors, similarity=similarity)
    else:
        codes = Codes.pack(
            atoms, values, dictionary=dictionary, vectors=vectors, similarity=similarity
        )
    plant_codes(workspace, codes, dictionary, embeddings, similarity=similarity)
    return workspace, vectors, bias


@pytest.mark.parametrize("kind", ["flat", "ivf", "graph"])
@pytest.mark.parametrize("similarity", ["cosine", "inner_product"])
def test_an_opened_index_answers(tmp_path, kind, similarity):
    workspace, vectors, _ = write_builds(tmp_path, similarity=similarity)
    result = index(IndexConfig(run=str(tmp_path), kind=kind))
    build = workspace.current("index")
    assert result.build_ids == {"index": build.build_id}
    opened = open_index(build, Served.open(workspace).coded)
    assert (opened.kind, opened.n_items, opened.dim) == (kind, 3000, DIM)
    weights = np.ones((30, opened.n_bias), np.float32)
    nums, scores = opened.search(SearchRequest(vectors[:30], weights=weights, top_k=10))
    exact = opened.score_all(vectors[:30], weights)
    np.testing.assert_array_equal(scores, np.take_along_axis(exact, nums, 1))
    assert np.mean(scores >= np.sort(exact, 1)[:, -10:-9]) > 0.9
    if kind != "flat":
        assert build.record()["recall_table"][-1]["similar"]["10"] >= 0.95
        assert set(build.record()["efforts"]) == {"10", "100", "300"}


def test_finished_builds_are_reused_and_other_settings_make_new_ones(tmp_path):
    workspace, _, _ = write_builds(tmp_path)
    first = index(IndexConfig(run=str(tmp_path))).build_ids["index"]
    files = workspace.open("index", first).manifest.files
    assert index(IndexConfig(run=str(tmp_path))).build_ids["index"] == first
    assert index(IndexConfig(run=str(tmp_path), n_lists=30)).build_ids["index"] != first
    again = index(IndexConfig(run=str(tmp_path), force=True)).build_ids["index"]
    assert again == first
    assert workspace.open("index", again).manifest.files == files


def test_small_catalogues_become_flat(tmp_path):
    workspace, vectors, _ = write_builds(tmp_path, n_items=120, dense=True)
    index(IndexConfig(run=str(tmp_path)))
    build = workspace.current("index")
    assert (build.record()["requested_kind"], build.record()["kind"]) == ("ivf", "flat")
    opened = open_index(build, Served.open(workspace).coded)
    nums, _ = opened.search(SearchRequest(vectors[:3], top_k=5))
    exact = vectors[:3] @ vectors.T
    assert np.mean(np.isin(nums, np.argsort(-exact, 1)[:, :6])) > 0.8


def test_a_missed_target_leaves_no_build(tmp_path):
    workspace, _, _ = write_builds(tmp_path)
    with pytest.raises(BuildError, match="misses target_recall"):
        index(IndexConfig(run=str(tmp_path), effort=1))
    assert not workspace.has("index")
    assert not (tmp_path / "index").exists()


def test_a_run_without_codes_names_the_job(tmp_path):
    with pytest.raises(BuildError, match="no codes build yet: train"):
        index(IndexConfig(run=str(tmp_path)))


def test_the_yaml_file_holds_the_defaults():
    assert load(IndexConfig, yaml_path="configs/index.yaml") == IndexConfig()
    with pytest.raises(ConfigError, match="target_recall=2"):
        load(IndexConfig, ["target_recall=2"])


@pytest.mark.ray
def test_tasks_on_ray_give_the_same_files(tmp_path, ray_cluster, monkeypatch):
    workspace, _, _ = write_builds(tmp_path)
    here = index(IndexConfig(run=str(tmp_path))).build_ids["index"]
    files = workspace.open("index", here).manifest.files
    monkeypatch.setattr(tasks, "IN_PROCESS_ROWS", 1000)
    there = index(IndexConfig(run=str(tmp_path), force=True)).build_ids["index"]
    assert workspace.open("index", there).manifest.files == files
    sharded = index(IndexConfig(run=str(tmp_path), n_shards=3)).build_ids["index"]
    build = workspace.open("index", sharded)
    assert len(build.files("items.npy")) == 3
    shards = open_index(build, Served.open(workspace).coded)
    vectors = np.load(workspace.current("embeddings").path("vectors.npy"))[:20]
    whole = open_index(workspace.open("index", here), Served.open(workspace).coded)
    np.testing.assert_array_equal(
        shards.search(SearchRequest(vectors, top_k=9))[0],
        whole.search(SearchRequest(vectors, top_k=9))[0],
    )
