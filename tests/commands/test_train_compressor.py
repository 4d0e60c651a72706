"""What each setting of the compressor does to the codes of vectors, without a cluster."""

import contextlib

import numpy as np
import pytest

from raysys.commands.train import TrainConfig, train
from raysys.compressor.codes import Codes
from raysys.config import load
from raysys.store.builds import Workspace


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 64))
    rows = centres[rng.integers(0, 30, 400)] + 0.4 * rng.normal(size=(400, 64))
    return rows.astype(np.float32)


@pytest.fixture
def compressed(tmp_path, monkeypatch, vectors):
    """Return a function from settings to (what the codes' build says, their bytes per item)."""
    monkeypatch.setattr("raysys.commands.train.connected", lambda _: contextlib.nullcontext())
    source = tmp_path / "vectors.npy"
    np.save(source, vectors)

    def build(*words):
        words = ["model=compressor", f"source={source}", "launch.workers=0", *words]
        train(load(TrainConfig, [f"run={tmp_path / 'run'}", *words]))
        codes = Workspace(str(tmp_path / "run")).current("codes")
        return codes.record(), Codes.open(codes)

    return build


def test_both_ways_of_training_state_what_they_took(compressed, tmp_path):
    words = ["compressor.code_dim=80", "compressor.n_active=9", "compressor.optim.epochs=3"]
    for preset in ("best", "paper"):
        compressed(*words, f"compressor.preset={preset}")
        build = Workspace(str(tmp_path / "run")).current("compressor")
        training = build.manifest.notes["training"]
        n_items = build.record()["n_items"]
        passes = {"best": 8, "paper": 3}[preset]
        assert training["rows"] == passes * min(n_items, 16 * 80 if preset == "best" else n_items)
        assert training["workers"] == 1
        assert 0 < training["worker_seconds"] <= training["seconds"]
        assert training["peak_bytes"] > 10 << 20
        assert training["rows_per_s"] > 0


def test_sizes_of_the_code(compressed):
    sizes = ("compressor.code_dim=80", "compressor.n_active=9")
    record, codes = compressed(*sizes)
    assert (record["code_dim"], record["n_active"], codes.n_active) == (80, 9, 9)
    wide, _ = compressed(*sizes, "compressor.value_bits=8")
    assert (record["packing"], wide["packing"]) == ("packed4", "int8")
    assert wide["bytes_per_item"] > record["bytes_per_item"]
    cut, _ = compressed(*sizes, "compressor.keep=4")
    assert (cut["n_active"], cut["code_dim"]) == (4, 80)


def test_the_papers_preset_encodes_with_a_trained_encoder(compressed):
    sizes = ("compressor.code_dim=80", "compressor.n_active=9", "compressor.optim.epochs=3")
    best, _ = compressed(*sizes)
    paper, codes = compressed(*sizes, "compressor.preset=paper")
    assert paper["mean_cosine"] < best["mean_cosine"]
    longer, _ = compressed(*sizes[:2], "compressor.optim.epochs=30", "compressor.preset=paper")
    assert longer["mean_cosine"] > paper["mean_cosine"] + 0.01
    _, other = compressed(*sizes, "compressor.preset=paper", "compressor.wide_weight=5")
    assert not np.array_equal(codes.entries, other.entries)
