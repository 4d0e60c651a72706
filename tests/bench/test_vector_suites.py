import json

import numpy as np
import pytest

from raysys.bench import codes, retrieval, scale
from raysys.bench.codes_plot import families
from raysys.bench.engines import measure
from raysys.bench.grown import Kept, grow
from raysys.bench.peers import PEERS
from raysys.bench.vectors import exact_top, load_dataset, recall
from raysys.compressor.codes import Codes
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
    assert rows[0]["held_out_loss"] > 0
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert json.loads((tmp_path / "plot.json").read_text()) == rows


def test_the_papers_modes_are_compared_over_compression(tmp_path):
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(60, 96))
    vectors = centres[rng.integers(0, 60, 900)] + 0.5 * rng.normal(size=(900, 96))
    np.save(tmp_path / "wide.npy", vectors.astype(np.float32))
    config = codes.CodesBenchConfig(source=str(tmp_path / "wide.npy"), queries=60, parts=["paper"])
    rows = codes.rows(config)
    assert [row["compression"] for row in rows] == [12.0] * 3 + [24.0] * 3 + [48.0] * 3
    assert [row["engine"] for row in rows[:3]] == [
        "paper, sparse",
        "paper, reconstructed",
        "paper, asymmetric",
    ]
    found = [rows[n]["recall@100"] for n in (2, 5, 8)]
    assert found[0] > found[1] > found[2] > 0  # longer codes find more


def test_the_papers_modes_take_cosines(source):
    with pytest.raises(ConfigError, match="inner products"):
        codes.rows(
            codes.CodesBenchConfig(
                source=source, queries=60, similarity="inner_product", parts=["recall", "paper"]
            )
        )


def test_training_rate_is_measured_beside_its_matrix_products(source):
    [row] = codes.rows(codes.CodesBenchConfig(source=source, queries=60, parts=["training"]))
    assert row["engine"] == "raysys paper training"
    assert row["setting"].startswith("code_dim=359 n_active=32 ")
    assert row["examples_per_s"] * row["times_the_products"] == pytest.approx(
        row["products_examples_per_s"], rel=0.01
    )
    with pytest.raises(ConfigError, match="recall, paper, training"):
        codes.CodesBenchConfig(parts=["speed"])


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
        retrieval.RetrievalBenchConfig(source=source, n_active=8, queries=60, peers=[])
    )
    engines = ["raysys flat", "raysys ivf", "raysys ivf, rescored", "raysys graph"]
    assert [row["engine"] for row in rows] == engines
    assert rows[0]["own_recall@10"] == 1.0
    assert rows[2]["p50_cpu_ms_at_0.9"] > 0
    assert rows[2]["recall@10"] > rows[1]["recall@10"]
    for row in rows:
        assert row["own_recall@10"] > 0.85
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["qps_2_threads"] > 0
        assert row["batch_cpu_ms"] > 0


@pytest.mark.parametrize("name", ["hnswlib float32", "usearch i8", "SVS LeanVec 4x8"])
def test_peers_reach_the_target_of_their_own_ranking(source, tmp_path, name):
    [peer] = [peer for peer in PEERS if peer.name == name]
    if not peer.installed:
        pytest.skip(f"{peer.module} is not installed, or not for this processor")
    data = load_dataset(codes.CodesBenchConfig(), source=source, limit=None, n_queries=50)
    peer.build(data.vectors, tmp_path / "peer", 0, 1)
    truth = exact_top(data.queries, data.vectors, 10)[0]
    row = measure(lambda: peer.open(tmp_path / "peer", 24), data, truth, target=0.95)
    assert row["own_recall@10"] >= 0.95
    assert row["recall@10"] > (0.3 if "i8" in name else 0.9)


def test_grown_sets_begin_alike_and_stay_near_real_rows(source, tmp_path):
    data = load_dataset(codes.CodesBenchConfig(), source=source, limit=None, n_queries=100)
    small = grow(data, 9000, seed=3, kept=Kept(str(tmp_path), ""))
    large = grow(data, 20_000, seed=3, kept=Kept("", str(tmp_path / "other")))
    np.testing.assert_array_equal(small.vectors, large.vectors[:9000])
    np.testing.assert_array_equal(small.vectors[:1399], data.vectors)
    np.testing.assert_allclose(np.linalg.norm(large.vectors, axis=1), 1, atol=1e-5)
    nearest = exact_top(large.vectors[-50:], data.vectors, 1)[1][:, 0]
    assert 0.6 < np.median(nearest) < 0.98
    again = grow(data, 9000, seed=4, kept=Kept("", str(tmp_path / "seed")))
    assert not np.array_equal(again.vectors[1399:], small.vectors[1399:])


def test_kept_arrays_are_made_once(tmp_path):
    kept = Kept(str(tmp_path), "")
    assert kept.array("x", lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert Kept(str(tmp_path), "").array("x", lambda: np.arange(9)).tolist() == [0, 1, 2]


def test_the_exact_answer_is_that_of_one_block(monkeypatch):
    rng = np.random.default_rng(0)
    queries, vectors = rng.normal(size=(7, 6)), rng.integers(-1, 2, (500, 6))
    whole = exact_top(queries.astype(np.float32), vectors.astype(np.float32), 12)
    monkeypatch.setattr("raysys.bench.vectors._TRUTH_CHUNK", 5)
    parts = exact_top(queries.astype(np.float32), vectors.astype(np.float32), 12)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-5)


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


def test_grown_codes_begin_alike_and_keep_the_strongest_entries():
    rng = np.random.default_rng(0)
    dictionary = rng.normal(size=(64, 16)).astype(np.float32)
    atoms = np.argsort(rng.random((200, 64)), axis=1)[:, :12]
    real = Codes.pack(atoms, rng.normal(size=(200, 12)), dictionary=dictionary)
    small, large = (scale.grown_codes(real, n, seed=3) for n in (500, 900))
    np.testing.assert_array_equal(small.entries, large.entries[:500])
    np.testing.assert_array_equal(small.entries[:200], real.entries)
    heads = {row.tobytes() for row in real.entries[:, :8]}
    tails = {row.tobytes() for row in real.entries[:, 8:]}
    assert {row.tobytes() for row in large.entries[:, :8]} <= heads
    assert {row.tobytes() for row in large.entries[:, 8:]} <= tails
    assert len({row.tobytes() for row in large.entries}) > 850
    assert scale.grown_codes(real, 50, seed=3).n_items == 50
