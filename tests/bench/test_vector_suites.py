import json

import numpy as np
import pytest

from raysys.bench import codes, retrieval
from raysys.bench.codes_plot import families
from raysys.bench.vectors import exact_top, load_dataset, recall
from raysys.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 24))
    vectors = centres[rng.integers(0, 40, 1500)] + 0.4 * rng.normal(size=(1500, 24))
    vectors[3] = 0
    path = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    np.save(path, vectors.astype(np.float16))
    return str(path)


def test_queries_are_held_out_by_a_seeded_hash(source):
    config = codes.CodesBenchConfig(seed=1)
    first = load_dataset(config, source=source, limit=None, n_queries=100)
    again = load_dataset(config, source=source, limit=None, n_queries=100)
    np.testing.assert_array_equal(first.queries, again.queries)
    assert (len(first.queries), len(first.vectors)) == (100, 1399)  # the zero row is left out
    np.testing.assert_allclose(np.linalg.norm(first.vectors, axis=1), 1, atol=1e-5)
    assert exact_top(first.queries, first.vectors, 1)[1].max() < 0.9999
    other = load_dataset(codes.CodesBenchConfig(seed=2), source=source, limit=None, n_queries=100)
    assert not np.array_equal(first.queries, other.queries)


def test_recall_against_the_exact_answer():
    found, truth = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 2, 9], [7, 8, 4]])
    assert recall(found, truth, 3) == 0.5
    assert recall(found, truth, 1) == 0.0


def test_peers_of_a_size():
    assert codes.peer_kinds(48, 384) == [
        ("PQ48x8", 384),
        ("OPQ48_384,PQ48x8", 384),
        ("PCA48,SQ8", 384),
        ("PCAR320,RaBitQ", 384),
    ]
    assert codes.peer_kinds(96, 256)[0] == ("PQ96x8", 288)
    assert codes.peer_kinds(96, 256)[-1] == ("RR256,RaBitQ", 256)


def test_codes_suite_compares_at_equal_bytes(source, monkeypatch, tmp_path):
    pytest.importorskip("faiss")
    kinds = codes.peer_kinds
    fast = lambda size, dim: [kind for kind in kinds(size, dim) if "PQ" not in kind[0]]  # noqa: E731
    monkeypatch.setattr(codes, "peer_kinds", fast)  # the product quantisers take minutes to train
    config = codes.CodesBenchConfig(
        source=source, sizes=[8], queries=60, limit=700, plot=str(tmp_path / "plot.png")
    )
    rows = codes.rows(config)
    assert rows[0]["engine"] == "raysys packed4"
    assert {row["bytes_per_item"] for row in rows if "RaBitQ" not in row["engine"]} == {8}
    assert all(0 < row["recall@10"] <= 1 and row["cosine"] <= 1 for row in rows)
    assert rows[0]["recall@10"] > 0.3
    assert rows[0]["pays_from_items"] > 0
    assert rows[0]["cosine_held_out"] < rows[0]["cosine"]
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert json.loads((tmp_path / "plot.json").read_text()) == rows


def test_recall_by_decile_counts_true_neighbours():
    popularity = np.arange(20)[::-1]  # items 18 and 19 are the rarest
    found, truth = np.array([[0, 19], [1, 5]]), np.array([[0, 18], [1, 0]])
    shares = codes.recall_by_decile(found, truth, popularity, 2)
    assert shares[0] == 0.0
    assert shares[9] == pytest.approx(2 / 3, abs=1e-4)
    assert shares[1:9] == [None] * 8


def test_families_of_the_plot():
    rows = [
        {"engine": engine, "bytes_per_item": size, "recall@10": 0.5}
        for engine, size in [
            ("faiss OPQ48_384,PQ48x8", 48),
            ("faiss PQ48x8", 48),
            ("faiss PCA48,SQ8", 48),
            ("faiss PCAR320,RaBitQ", 48),
            ("raysys packed4", 96),
            ("raysys packed4", 48),
        ]
    ]
    found = families(rows)
    assert set(found) == {
        "faiss OPQ",
        "faiss PQ",
        "faiss PCA+SQ8",
        "faiss RaBitQ",
        "raysys packed4",
    }
    assert found["raysys packed4"] == [(48.0, 0.5), (96.0, 0.5)]


def test_retrieval_suite_measures_every_engine(source):
    rows = retrieval.rows(
        retrieval.RetrievalBenchConfig(source=source, n_active=8, queries=60, peers=False)
    )
    assert [row["engine"] for row in rows] == ["raysys flat", "raysys ivf", "raysys graph"]
    assert rows[0]["own_recall@10"] == 1.0
    for row in rows:
        assert row["own_recall@10"] > 0.85
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["resident_bytes"] > row["n_items"] * 18


def test_a_source_that_cannot_be_used(tmp_path, source):
    config = codes.CodesBenchConfig()
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(config, source=str(tmp_path / "none.npy"), limit=None, n_queries=5)
    np.save(tmp_path / "flat.npy", np.zeros(9))
    with pytest.raises(DataError, match="shape"):
        load_dataset(config, source=str(tmp_path / "flat.npy"), limit=None, n_queries=5)
    with pytest.raises(DataError, match="usable vectors"):
        load_dataset(config, source=source, limit=10, n_queries=5)
    with pytest.raises(ConfigError, match="source"):
        load_dataset(config, source="", limit=None, n_queries=5)
