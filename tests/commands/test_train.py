"""The train stage: two planted tastes, one process against two workers, and own vectors."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.files import Autoencoder
from raysys.autoencoder.ragged_ops import Pairs, factors_left_out
from raysys.autoencoder.task import AutoencoderTask
from raysys.commands.train import TrainConfig, train
from raysys.commands.train_phases import autoencoder_phases
from raysys.compressor.codes import Codes
from raysys.config import load
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.data.profiles import Profiles
from raysys.errors import BuildError, ConfigError, DataError
from raysys.scoring.rankings import RANKINGS, Ranking
from raysys.store.builds import Workspace
from tests.support.training import CATALOGUE, CUTOFFS, config, planted_cells, planted_run


@pytest.fixture
def workspace(tmp_path):
    return planted_run(tmp_path / "run")


def test_batches_bring_along_what_no_step_changes(workspace):
    profiles = Profiles.open(workspace.current("profiles"))
    fixed = {"cells": profiles.cells(), "period": "val", "seed": 0}
    task = AutoencoderTask(profiles, Conv4RecConfig(), **fixed, validated=False)
    rows = np.array([5, 0])
    batch = task.batch(rows, epoch=0)
    assert batch.distinct
    fresh = dataclasses.replace(batch, left=None)
    wanted = factors_left_out(fresh, Pairs(fresh, CATALOGUE["val"]), task.module.user_tables())
    assert batch.left.any()
    torch.testing.assert_close(batch.left, wanted)


@pytest.mark.ray
def test_trainings_that_differ_in_their_history_alone_have_one_content(ray_cluster, workspace):
    cfg = config(workspace, "model=autoencoder")
    builds, histories = [], []
    for force in (False, True):
        train(dataclasses.replace(cfg, force=force))
        build = workspace.current("autoencoder")
        histories.append(build.path("history.jsonl").read_text())
        builds.append((build, workspace.current("embeddings")))
        build.verify()
    assert histories[0] != histories[1]  # they hold times
    (model, vectors), (model_again, vectors_again) = builds
    assert model_again.content_id == model.content_id
    assert (vectors_again.build_id, vectors_again.content_id) == (
        vectors.build_id,
        vectors.content_id,
    )


def test_the_builds_fit_together_and_are_reused(ray_cluster, workspace):
    result = train(config(workspace))
    assert set(result.build_ids) == {"autoencoder", "embeddings", "compressor", "codes"}
    chain = workspace.chain(workspace.current("codes"))
    facts = chain["autoencoder"].record()
    assert (facts["period"], facts["n_items"]) == ("test", CATALOGUE["test"])
    assert facts["fitted_until"] == CUTOFFS["test"]
    lists = {"recall@20", "ndcg@100", "recall@20^0.3"}
    assert set(facts["val_metrics"]) == {*lists, "nll", "consume_nll"}
    recall = chain["embeddings"].record()["candidate_recall"]
    assert set(recall) == set(RANKINGS)
    assert min(recall.values()) == 1  # fewer items than candidates
    model = Autoencoder.open(chain["autoencoder"]).model
    vectors = np.load(chain["embeddings"].path("vectors.npy"))
    assert (
        vectors.shape
        == (model.n_items, chain["embeddings"].record()["dim"])
        == (45, 8 + 5 + 16 + 3)
    )
    assert Codes.open(chain["codes"]).packing == "dense8"  # under 256 items
    training = result.extra["training"]["autoencoder"]
    assert training == chain["autoencoder"].manifest.notes["training"]
    assert training["workers"] == 1
    assert training["rows"] > 0 < training["rows_per_s"]
    assert training["worker_seconds"] <= training["seconds"]
    assert training["peak_bytes"] > 50 << 20
    again = train(config(workspace))
    assert again.build_ids == result.build_ids
    assert again.extra["training"] == result.extra["training"]  # dense vectors train no compressor


@pytest.mark.ray
def test_what_was_planted_is_learned(ray_cluster, workspace):
    words = ["optim.epochs=30", "model=autoencoder", "refit=none"]
    train(config(workspace, *words))
    build = workspace.current("autoencoder")
    assert (build.record()["period"], build.record()["fitted_until"]) == ("val", CUTOFFS["val"])
    model = Autoencoder.open(build).model
    with torch.no_grad():
        liked = [(i, 2) for i in range(0, 16, 2)]
        z = model.encode(ragged(Cells.from_lists([[*liked, (17, 0), (19, 0)]])))
        top = model.scores(z, Ranking("consume"))[0].topk(12).indices
        rating = model.scores(z, Ranking("rating"))[0, 20:]
    assert (top % 2 == 0).float().mean() > 0.9
    assert rating[::2].mean() > rating[1::2].mean() + 1


@pytest.mark.ray
def test_a_model_of_the_whole_log_is_asked_at_the_time_that_it_was_fitted_for(
    ray_cluster, workspace
):
    train(config(workspace, "model=autoencoder", "refit=all"))
    build = workspace.current("autoencoder")
    end = int(planted_cells().timestamp.max()) + 1
    assert (build.record()["period"], build.record()["fitted_until"]) == ("all", end)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # Ray's own
def test_a_closed_form_of_more_dims_than_the_trained_model_is_taken_on_all_workers(
    ray_cluster, workspace
):
    words = ["autoencoder.latent=1", "optim.epochs=1", "optim.lr=1e-6", "force=true"]
    models, build_ids = [], []
    for workers in (0, 2):
        train(config(workspace, "model=autoencoder", *words, f"launch.workers={workers}"))
        build = workspace.current("autoencoder")
        assert build.record()["epochs"]["recall@20"] == 0
        assert build.record()["choices"]["closed_form_rank"] == 2
        models.append(Autoencoder.open(build).model)
        assert models[-1].cfg.latent == models[-1].items.shape[1] == 2
        build_ids.append(build.build_id)
    alone, together = (model.consume_vectors() for model in models)
    torch.testing.assert_close(together @ together.T, alone @ alone.T, atol=1e-4, rtol=1e-4)
    assert workspace.current("embeddings").record()["dim"] == 2 + 5 + 16 + 3
    assert build_ids[0] == build_ids[1]  # how many workers is no part of the identity
    assert not list(Path(workspace.run, "training").glob("*"))


@pytest.mark.ray
@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_own_vectors_need_no_log(ray_cluster, tmp_path, suffix):
    vectors = np.random.default_rng(0).normal(size=(300, 48)).astype(np.float32)
    source = tmp_path / f"vectors.{suffix}"
    if suffix == "npy":
        np.save(source, vectors)
    else:
        names = [f"näme {n}" for n in range(300)]
        pq.write_table(pa.table({"item_id": names, "embedding": vectors.tolist()}), source)
    workspace = Workspace(str(tmp_path / "run"))
    words = ["model=compressor", f"source={source}", "launch.workers=0"]
    result = train(load(TrainConfig, [f"run={workspace.run}", *words]))
    assert set(result.build_ids) == {"embeddings", "compressor", "codes"}
    codes = workspace.current("codes")
    assert codes.record()["code_dim"] == 75
    assert codes.record()["n_active"] == 75 // 4
    assert codes.record()["mean_cosine"] > 0.9
    dictionary = np.load(workspace.current("compressor").path("dictionary.npy"), mmap_mode="r")
    assert dictionary.flags.c_contiguous  # an index maps it
    cut = train(load(TrainConfig, [f"run={workspace.run}", *words, "compressor.keep=9"]))
    assert cut.build_ids["compressor"] == result.build_ids["compressor"]
    assert cut.build_ids["codes"] != result.build_ids["codes"]
    short = workspace.current("codes")
    assert (short.record()["n_active"], Codes.open(short).bytes_per_item) == (9, 20)
    again = train(load(TrainConfig, [f"run={workspace.run}", *words]))
    assert again.build_ids == result.build_ids


@pytest.mark.ray
def test_narrow_vectors_stay_dense_where_codes_are_no_smaller(ray_cluster, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(400, 12)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    words = ["model=compressor", f"source={tmp_path / 'vectors.npy'}", "launch.workers=0"]
    words += [f"run={tmp_path / 'run'}", "similarity=inner_product"]
    result = train(load(TrainConfig, words))
    codes = Workspace(str(tmp_path / "run")).current("codes")
    assert result.extra["codes"]["bytes_per_item"] == 12 + 2
    assert (codes.record()["packing"], codes.record()["similarity"]) == ("dense8", "inner_product")
    back = Codes.open(codes).decode(np.zeros((0, 12), dtype=np.float32))
    np.testing.assert_allclose(back, vectors, atol=0.02 * np.abs(vectors).max())


@pytest.mark.ray
@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_bad_row_is_named_and_no_build_is_left(ray_cluster, tmp_path, bad):
    vectors = np.ones((300, 4), dtype=np.float32)
    vectors[17] = bad
    np.save(tmp_path / "vectors.npy", vectors)
    run = tmp_path / "run"
    words = ["model=compressor", f"source={tmp_path / 'vectors.npy'}", f"run={run}"]
    with pytest.raises(DataError, match="17"):
        train(load(TrainConfig, words))
    assert not list(run.glob("*/*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=both"], "model='both'"),
        (["source=x.npy"], "model=compressor"),
        (["model=compressor", "ids=x.txt"], "source="),
        (["refit=test"], "refit='test'"),
    ],
)
def test_settings_that_conflict_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        load(TrainConfig, ["run=x", *words])


@pytest.mark.ray
def test_without_profiles_the_job_that_writes_them_is_named(ray_cluster, tmp_path):
    with pytest.raises(BuildError, match="prepare"):
        train(load(TrainConfig, [f"run={tmp_path / 'run'}"]))


def test_the_phases_of_a_process_read_the_log_once(workspace, monkeypatch):
    reads, read = [], Profiles.cells
    monkeypatch.setattr(Profiles, "cells", lambda *args: reads.append(1) or read(*args))
    profiles = workspace.current("profiles").build_id
    cfg = {"latent": 4, "level_latent": 4}
    phases = autoencoder_phases(workspace.run, None, profiles, cfg, seed=0, refit="val")
    periods = [phase().module.n_items for phase in phases]
    assert periods == [CATALOGUE["val"], CATALOGUE["test"]]
    assert len(reads) == 1
