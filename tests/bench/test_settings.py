"""What each setting of the suites changes, with the long measurements replaced."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysys.autoencoder.files import Autoencoder
from raysys.bench import agreement, codes, evaluate, prepare, recovery, retrieval, scale, training
from raysys.bench.peers import Peer
from raysys.config import load
from raysys.data.cells import Cells


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    vectors = np.random.default_rng(0).normal(size=(1500, 24))
    path = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    np.save(path, vectors.astype(np.float32))
    return str(path)


@pytest.fixture
def learned(monkeypatch):
    """Replace the learning of dictionaries by a random one; return the rows it would learn from."""
    rows = []

    def fit(vectors, *, code_dim, seed, n_active=None):
        rows.append(len(vectors))
        draw = torch.Generator().manual_seed(seed)
        atoms = torch.randn(code_dim, vectors.shape[1], generator=draw)
        return atoms / atoms.norm(dim=1, keepdim=True)

    monkeypatch.setattr(retrieval, "fit_dictionary", fit)
    return rows


def test_retrieval(source, learned, monkeypatch, tmp_path):
    targets, threads = [], []

    def measured(*_, target):
        targets.append(target)
        return {}

    def build(vectors, path, seed, n_threads):
        threads.append(n_threads)
        path.write_bytes(bytes(len(vectors)))

    peer = Peer("ours", "numpy", build, lambda path, dim: None)
    monkeypatch.setattr(retrieval, "PEERS", [peer])
    monkeypatch.setattr(retrieval, "measure", measured)

    def rows(*words):
        words = [f"source={source}", "queries=60", "kinds=[flat]", *words]
        return retrieval.rows(load(retrieval.RetrievalBenchConfig, words))

    found = rows()
    assert [row["engine"] for row in found] == ["raysys flat", "ours"]
    assert {row["n_items"] for row in found} == {1440}
    assert (learned, set(targets), threads) == ([1440], {0.95}, [1])
    [row] = rows(
        *("peers=[]", "limit=800", "grow=900", "train_rows=300", "n_active=7"),
        *("target_recall=0.5", f"keep={tmp_path}", "build_threads=3"),
    )
    assert (row["n_items"], learned[1:], targets[2:]) == (900, [300], [0.5])
    assert np.load(tmp_path / "atoms-900.npy").shape == (900, 7)
    rows("build_threads=3")
    assert threads == [1, 3]


def test_scale(source, learned, monkeypatch):
    monkeypatch.setattr(scale, "learned_dictionary", retrieval.learned_dictionary)
    monkeypatch.setattr(scale, "_measure", lambda cfg, codes, *_: {"seen": codes.n_items})
    cfg = scale.ScaleBenchConfig(source=source, queries=60, n_active=8, sizes=[1000, 2500])
    assert [row["seen"] for row in scale.rows(cfg)] == [1000, 2500]


def test_codes(source, monkeypatch):
    asked = []
    row = {"engine": "raysys packed4"}
    monkeypatch.setattr(codes, "_ours", lambda cfg, data, truth: asked.append(data) or [row])
    monkeypatch.setattr(codes, "_peer", lambda *_: {"engine": "peer"})

    def engines(*words):
        words = [f"source={source}", *words]
        return {row["engine"] for row in codes.rows(load(codes.CodesBenchConfig, words))}

    assert engines("queries=60") == {"raysys packed4", "peer"}
    assert engines("peers=false", "similarity=inner_product") == {"raysys packed4"}
    assert [(len(data.queries), data.similarity) for data in asked] == [
        (60, "cosine"),
        (750, "inner_product"),
    ]


def test_prepare(monkeypatch, tmp_path):
    engines = []

    def measure(work, folder, *_):
        log = pq.read_table(f"{folder}/log")
        engines.append((work.__name__, len(log), log["user_id"], log["item_id"]))
        return prepare.Measured(1.0, 1.0, 1.0, 1 << 20, len(log))

    monkeypatch.setattr(prepare, "measure", measure)
    words = [f"run={tmp_path}", "sizes=[2000,3000]", "n_users=40", "n_items=30"]
    rows = prepare.rows(load(prepare.PrepareBenchConfig, [*words, "peers=false"]))
    assert [row["rows"] for row in rows] == [2000, 3000]
    assert [name for name, *_ in engines] == ["_prepare", "_prepare"]
    for _, _, users, items in engines:
        assert len(users.unique()) == 40
        assert len(items.unique()) == 30
    pytest.importorskip("polars")
    both = prepare.rows(load(prepare.PrepareBenchConfig, words))
    assert [row["engine"] for row in both] == ["raysys prepare", "polars"] * 2


def test_recovery(monkeypatch, tmp_path):
    words = ["n_users=50", "n_items=20", "rank=2", "latent=3", "epochs=1", "draws=[200,400]"]
    cfg = load(recovery.RecoveryBenchConfig, [f"run={tmp_path}", *words])
    truth = recovery._truth(cfg)
    assert truth.shape[:2] == (50, 20)
    scores = np.log(truth.sum(axis=2))
    scores -= scores.mean(axis=1, keepdims=True)
    scores -= scores.mean(axis=0)
    assert np.linalg.matrix_rank(scores, tol=1e-6) == 2
    cells = Cells.from_lists([[(item, 1) for item in range(user % 5 + 2)] for user in range(50)])
    held = np.arange(cells.n_cells) % 9 == 0

    def vectors(rate):
        slow = load(recovery.RecoveryBenchConfig, [*words, f"lr={rate}"])
        model, _ = recovery._passes(cells, None, recovery.STARS, slow, 1)
        assert model.items.shape == (20, 3)
        return model.items.detach()

    assert (vectors(0.1) - vectors(1e-9)).abs().max() > 50 * (
        vectors(1e-9) - vectors(2e-9)
    ).abs().max()
    assert recovery._fit(cells, held, recovery.STARS, cfg)[1] == 1
    asked = []
    names = ("model", "rating-blind", "independent", "popularity")
    monkeypatch.setattr(
        recovery, "_recover", lambda _, n, cfg: {"draws": n} | dict.fromkeys(names, 1 / n)
    )
    monkeypatch.setattr(
        recovery, "discover_rows", lambda *_, gammas, **__: asked.append(gammas) or []
    )
    recovery.rows(load(recovery.RecoveryBenchConfig, [f"run={tmp_path}", *words, "gammas=[0.7]"]))
    assert (tmp_path / "bench-recovery" / "recovery.png").read_bytes().startswith(b"\x89PNG")
    assert asked == [[0.7]]
    again = [f"run={tmp_path}", *words, "discover=false"]
    rows = recovery.rows(load(recovery.RecoveryBenchConfig, again))
    assert [row.get("draws") for row in rows] == [200, 400, None]
    assert len(asked) == 1


def test_steps_of_training(monkeypatch, tmp_path):
    sizes = []

    def alone(work, engine, size, device):
        sizes.append(size)
        return SimpleNamespace(seconds=2.0, peak=1 << 20)

    monkeypatch.setattr(training, "_alone", alone)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["n_items=400", "batch=8", "profile=9", "latent=7", "steps=5", "workers=false"]
    rows = training.rows(load(training.TrainBenchConfig, [f"run={tmp_path}", *words]))
    assert {(s.n_items, s.batch, s.profile, s.latent, s.steps) for s in sizes} == {
        (400, 8, 9, 7, 5)
    }
    assert {row["profiles_per_s"] for row in rows} == {4.0}


def test_workers_of_training(monkeypatch, tmp_path):
    worlds, jobs = [], []
    profiles = SimpleNamespace(build_id="p")
    workspace = SimpleNamespace(current=lambda kind: profiles, storage=None)

    def fit(job, *_, **__):
        jobs.append(job)
        return {"history": [{"examples_per_s": 1.0, "waiting": 0.0}] * 2}

    monkeypatch.setattr(training, "connected", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(training, "simulate", worlds.append)
    monkeypatch.setattr(training, "prepare", lambda cfg: None)
    monkeypatch.setattr(training, "Workspace", lambda run: workspace)
    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(training, "forget", lambda *_: None)
    monkeypatch.setattr(training, "_two_alone", lambda *_: (1.0, 0.0))
    words = ["epochs=3", "rounds=2", "n_users=700", "n_catalogue=300", "n_interactions=9000"]
    training._worker_rows(load(training.TrainBenchConfig, [f"run={tmp_path}", *words]))
    [world] = worlds
    assert (world.n_users, world.n_items, world.n_interactions) == (700, 300, 9000)
    assert [job.launch.workers for job in jobs] == [1, 2] * 2
    assert {job.optim.epochs for job in jobs} == {3}


def test_evaluate(monkeypatch, tmp_path):
    words = ["n_items=400", "rows_per_user=5", "latent=6", "metric_users=30", "replicates=3"]
    cfg = load(evaluate.EvaluateBenchConfig, [f"run={tmp_path}", *words, "baselines=[recent]"])
    past = evaluate._cells(cfg, 0, 500).in_windows([0, 1]).counts
    assert 4 < past.mean() < 6
    ours, full, *_ = evaluate._metric_rows(cfg)
    assert (ours["users"], full["engine"]) == (30, "raysys metrics, 3 replicates")
    asked = []

    def evaluated(config):
        asked.append(config)
        return SimpleNamespace(extra={"evaluated": {"rows": 1}})

    monkeypatch.setattr("raysys.commands.evaluate.evaluate", evaluated)
    evaluate._evaluate(SimpleNamespace(send=lambda _: None), str(tmp_path), cfg)
    assert (asked[0].baselines, asked[0].replicates) == (["recent"], 3)
    workspace = evaluate.Workspace(str(tmp_path))
    evaluate._write_run(workspace, cfg, 20)
    model = Autoencoder.open(workspace.current("autoencoder")).model
    assert (model.n_items, model.cfg.latent) == (400, 6)


def test_agreement(monkeypatch, tmp_path):
    specs, asked = [], []

    def one_site(spec):
        specs.append(spec)
        return [{"model": "m", "ctr": 0.5, "loo.recall@1^0": 0.1}]

    monkeypatch.setattr(agreement, "one_site", one_site)
    words = ["bias=[0.25]", "drift=[0.75]", "feedback=[0.125]", "repeats=3"]
    sizes = ["n_users=110", "n_items=60", "n_interactions=1000"]
    cfg = load(agreement.AgreementBenchConfig, [*words, *sizes])
    table = agreement.simulate(cfg)
    assert isinstance(table, pa.Table)
    assert len(specs) == len({spec.world.seed for spec in specs}) == 3
    for spec in specs:
        world = spec.world
        assert (world.n_users, world.n_items, world.n_interactions) == (110, 60, 1000)
        assert (spec.bias, spec.taste_drift, world.drift, spec.feedback) == (
            0.25,
            0.75,
            0.75,
            0.125,
        )
    models = pa.table({"clicks": [0.1, 0.2], "recall@5": [0.3, 0.4]})
    monkeypatch.setattr(agreement, "read_table", lambda path: models)

    def measured(*_, online, replicates, **__):
        asked.append((online, replicates))
        return []

    monkeypatch.setattr(agreement, "agreement", measured)
    words = ["online=clicks", "replicates=7"]
    agreement.rows(load(agreement.AgreementBenchConfig, [f"table={tmp_path}/t", *words]))
    assert asked == [("clicks", 7)]
