"""The evaluate stage on small hand-made builds, in this process."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.linear_form import retrieval_vectors
from raysys.autoencoder.model import Conv4Rec
from raysys.cluster import tasks
from raysys.commands.backtest import BacktestConfig, backtest
from raysys.commands.compare import CompareConfig, compare
from raysys.commands.evaluate import EvaluateConfig, evaluate
from raysys.commands.index import IndexConfig, index
from raysys.compressor.codes import Codes
from raysys.config import load
from raysys.data.cells import Cells
from raysys.data.profiles import Profiles, ProfilesFacts
from raysys.data.schema import RatingLevels, Window
from raysys.errors import BuildError, ConfigError, DataError
from raysys.evaluation import fit_baselines
from raysys.evaluation.comparison import users_of_report
from raysys.prepare.levels import LevelCounts, build_levels
from raysys.reports import passes
from raysys.scoring.rankings import RANKINGS, Needs
from raysys.search.query import ProfileEntry, RecommendQuery
from raysys.search.search import Search
from raysys.store.builds import Workspace
from tests.support.models import make
from tests.support.planting import plant_autoencoder, plant_codes, plant_embeddings, plant_profiles

LEVELS = RatingLevels(("1", "2", "3"), (1.0, 2.0, 3.0), (False, False, True))
N_USERS, N_ITEMS = 60, 40
CUTOFFS = {"val": 100, "test": 200}
CATALOGUE = {"val": 30, "test": 36, "all": 40}

RATES = ("rmse", "mae", "nll", "ece")  # an index rates by float16 weights, as a service does


def planted_cells(seed=0):
    """Users of two tastes; item i is first seen at time 5 i (i < 30), in val, or in test."""
    rng = np.random.default_rng(seed)
    rows, counts = [], []
    for user in range(N_USERS):
        liked = [i for i in range(N_ITEMS) if i % 2 == user % 2]
        picks = rng.choice(liked, 14, replace=False)
        cells = []
        for item in picks:
            floor = 3 * item if item < 30 else (100 if item < 36 else 200)
            time = int(rng.integers(floor, 300))
            window = 0 if time < 100 else 1 if time < 200 else 2
            cells.append((time, int(item), int(rng.integers(3)), window))
        rows += sorted(cells)
        counts.append(len(cells))
    table = np.array(rows)
    return Cells(
        user_num=np.arange(N_USERS, dtype=np.int32),
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        item_num=table[:, 1].astype(np.int32),
        level=table[:, 2].astype(np.uint8),
        timestamp=table[:, 0].astype(np.int64),
        window=table[:, 3].astype(np.uint8),
    )


def write_profiles(workspace, cells=None, *, shards=2, split="temporal", levels=LEVELS, **changes):
    cells = planted_cells() if cells is None else cells
    first_seen = [0 if i < 30 else 100 if i < 36 else 200 for i in range(N_ITEMS)]
    items = {
        "item_id": [f"i{n:02d}" for n in range(N_ITEMS)],
        "title": [f"Item {n}" for n in range(N_ITEMS)],
        "first_seen": first_seen,
        "n_fit": np.bincount(cells.item_num[cells.window == 0], minlength=N_ITEMS),
    }
    temporal = split == "temporal"
    return plant_profiles(
        workspace,
        cells,
        levels,
        items | changes,
        user_ids=[f"u{n:03d}" for n in range(N_USERS)],
        shards=shards,
        settings={"config": {"seed": int(cells.timestamp.sum())}, "force": True},
        split=split,
        catalogue=CATALOGUE if temporal else {"val": 30, "test": 30, "all": 40},
        cutoffs=CUTOFFS if temporal else None,
        has_time=True,
    )


def write_autoencoder(
    workspace,
    profiles,
    *,
    n_items=36,
    period="test",
    windows=(Window.FIT, Window.VAL),
    levels=LEVELS,
):
    cfg = Conv4RecConfig(latent=8, level_latent=4)
    counts = torch.arange(n_items * levels.n_levels).reshape(n_items, levels.n_levels).float()
    model = Conv4Rec(cfg, n_items=n_items, levels=levels, counts=counts)
    with torch.no_grad():  # the two tastes are two directions
        model.items[:] = 0.1 * model.items
        model.items[torch.arange(n_items), torch.arange(n_items) % 2] += 1.0
    cutoffs = ProfilesFacts.of(profiles).cutoffs
    return model, plant_autoencoder(
        workspace,
        model,
        settings={"config": {"n": n_items}, "inputs": [profiles], "force": True},
        period=period,
        fitted_windows=windows,
        fitted_until=cutoffs[period] if cutoffs else None,
    )


@pytest.fixture
def run(tmp_path):
    workspace = Workspace(str(tmp_path / "run"))
    model, build = write_autoencoder(workspace, write_profiles(workspace))
    return workspace, model, build


def config(workspace, **settings):
    return EvaluateConfig(run=workspace.run, **({"replicates": 50} | settings))


def test_horizons_split_targets_and_users_by_days(run):
    workspace, _, _ = run
    days = [20 / 86_400, 60 / 86_400]  # the log of this world lasts 300 seconds
    result = evaluate(config(workspace, horizons=days))
    record = json.loads(
        (workspace_path(workspace) / "reports/evaluate-test-model.json").read_text()
    )
    users = record["horizons"]
    assert len(users["days_after"]) == len(users["days_away"]) == 3
    assert sum(users["days_away"].values()) == record["evaluated"]["rows"]
    assert max(users["days_after"].values()) < sum(users["days_after"].values())
    page = (workspace_path(workspace) / "reports/evaluate-test-model.md").read_text()
    assert "## Targets by days after the cut" in page
    folder = workspace_path(workspace) / f"reports/evaluate-test-model/{record['report_id']}"
    assert {path.name for path in folder.glob("*.svg")} == {"days_after.svg", "days_away.svg"}
    compared = {"recall@20^0.2", "recall@20", "ndcg@100", "recall@20^0.3"}
    assert set(record["differences"]["ease"]) == compared
    assert set(record["differences"]["bias"]) == {"rmse"}
    gap = (
        result.metrics["recall@20"]["mean"] - result.extra["baselines"]["ease"]["recall@20"]["mean"]
    )
    assert record["differences"]["ease"]["recall@20"]["mean"] == pytest.approx(gap)
    evaluate(config(workspace, horizons=[]))
    record = json.loads(
        (workspace_path(workspace) / "reports/evaluate-test-model.json").read_text()
    )
    assert record["horizons"] == {}


def test_the_report_holds_the_model_and_the_baselines(run):
    workspace, _, _ = run
    result = evaluate(config(workspace))
    metrics = result.metrics
    assert metrics["recall@20"]["mean"] > 0.9  # twenty items of the right taste
    assert metrics["recall@20"]["ci_low"] <= metrics["recall@20"]["mean"]
    assert {"recall@20^0.3", "ndcg@100", "hit@10", "rmse", "mae", "nll", "ece"} <= set(metrics)
    assert metrics["coverage@20"]["ci_low"] is None
    others = result.extra["baselines"]
    assert set(others) == {
        "popularity",
        "recent",
        "window",
        "decayed",
        "itemknn",
        "ease",
        "rdlae",
        "marginal",
        "histogram",
        "bias",
    }
    assert metrics["recall@20"]["mean"] > others["popularity"]["recall@20"]["mean"]
    assert "rmse" in others["bias"]
    assert "nll" not in others["bias"]
    report = json.loads(
        (workspace_path(workspace) / "reports/evaluate-test-model.json").read_text()
    )
    assert report["methods"]["model"]["metrics"] == metrics
    assert report["evaluated"]["rows"] == result.extra["evaluated"]["rows"] > 20
    users = users_of_report(workspace.storage, "reports/evaluate-test-model", "ease")
    assert users.num_rows == report["evaluated"]["rows"]
    assert users["user_id"][0].as_py().startswith("u")


def workspace_path(workspace):
    from pathlib import Path

    return Path(workspace.storage.root)


def test_targets_are_counted(run):
    workspace, _, _ = run
    cells = planted_cells()
    extra = evaluate(config(workspace, baselines=[])).extra
    in_test = cells.in_windows([2])
    new_items = int((in_test.item_num >= 36).sum())
    past = cells.in_windows([0, 1]).counts > 0
    assert extra["dropped"]["targets_outside_catalogue"] == new_items
    assert extra["evaluated"]["targets"] == in_test.users(past).n_cells - int(
        (in_test.users(past).item_num >= 36).sum()
    )
    assert extra["baselines"] == {}


def test_the_report_says_how_far_the_model_keeps_its_word(run):
    workspace, _, _ = run
    evaluate(config(workspace))
    report = workspace.storage.read_json("reports/evaluate-test-model.json")
    model, evaluated = report["methods"]["model"], report["evaluated"]
    bins = model["calibration"]["consume"]
    assert sum(row["n"] * row["observed"] for row in bins) == pytest.approx(evaluated["targets"])
    assert all(row["low"] <= row["predicted"] <= row["high"] for row in bins)
    assert list(model["calibration"]["levels"]) == model["confusion"]["levels"] == ["1", "2", "3"]
    assert sum(map(sum, model["confusion"]["counts"])) == evaluated["rated_targets"]
    assert model["coverage"] == {
        "items_in_lists@20": model["metrics"]["coverage@20"]["mean"],
        "gini@20": model["metrics"]["gini@20"]["mean"],
    }
    others = report["methods"]
    assert set(others["histogram"]["calibration"]) == {"levels"}
    assert not {"calibration", "confusion"} & (set(others["bias"]) | set(others["ease"]))
    assert "coverage" in others["ease"]
    assert "coverage" not in others["bias"]


def test_shards_and_blocks_change_nothing(tmp_path, monkeypatch):
    found, figures = [], []
    for shards, block in [(1, 256), (7, 256), (1, 5)]:
        workspace = Workspace(str(tmp_path / f"{shards}-{block}"))
        write_autoencoder(workspace, write_profiles(workspace, shards=shards))
        monkeypatch.setattr(passes, "_BLOCK_USERS", block)
        result = evaluate(config(workspace))
        found.append((result.metrics, result.extra["baselines"]))
        methods = workspace.storage.read_json("reports/evaluate-test-model.json")["methods"]
        figures.append([(e.get("calibration"), e.get("confusion")) for e in methods.values()])
    assert found[0] == found[1] == found[2]
    assert figures[0] == figures[1]


@pytest.mark.ray
def test_ray_gives_the_same_figures(run, ray_cluster, monkeypatch):
    workspace, _, _ = run
    here = evaluate(config(workspace))
    monkeypatch.setattr(tasks, "IN_PROCESS_ROWS", 0)
    there = evaluate(config(workspace))
    assert (here.metrics, here.extra["baselines"]) == (there.metrics, there.extra["baselines"])


@pytest.mark.ray
def test_leaks_found_on_ray_are_data_errors(run, ray_cluster, monkeypatch):
    workspace, _, _ = run
    cells = planted_cells()
    cells.timestamp[np.flatnonzero(cells.window == 2)[0]] = 10
    write_autoencoder(workspace, write_profiles(workspace, cells))
    monkeypatch.setattr(tasks, "IN_PROCESS_ROWS", 0)
    with pytest.raises(DataError, match="targets older than the test cut-off"):
        evaluate(config(workspace, baselines=[]))


@pytest.mark.parametrize("protocol", ["lloo", "loo"])
def test_leave_one_out_protocols(run, protocol):
    workspace, _, _ = run
    result = evaluate(config(workspace, protocol=protocol, baselines=["popularity"]))
    cut = evaluate(config(workspace, baselines=[]))
    assert result.extra["evaluated"]["rows"] > cut.extra["evaluated"]["rows"]
    assert result.metrics["recall@20"]["mean"] > 0.9
    assert "rmse" not in result.metrics
    report = f"reports/evaluate-test-model-{protocol}"
    users = users_of_report(workspace.storage, report, "model")
    assert len(set(users["user_id"].to_pylist())) == users.num_rows


def test_baselines_are_fitted_once(run, monkeypatch):
    workspace, _, _ = run
    first = evaluate(config(workspace))
    monkeypatch.setattr("raysys.evaluation.fit_baselines.fit_and_save", None)
    assert evaluate(config(workspace)).extra["baselines"] == first.extra["baselines"]


def test_baselines_of_a_large_log_are_fitted_on_a_share_of_its_users(run, monkeypatch):
    workspace, _, _ = run
    n_cells = planted_cells().n_cells
    monkeypatch.setattr(fit_baselines, "MAX_CELLS", n_cells // 2)
    some = fit_baselines.source_of(Profiles.open(workspace.current("profiles")))
    assert some.share == 0.5
    assert 0.3 * n_cells < some.cells.n_cells < 0.7 * n_cells
    fitted = evaluate(config(workspace))
    assert set(fitted.extra["baselines"]) == {*fit_baselines.RANKERS, *fit_baselines.RATERS}
    assert workspace.current("baselines").record()["user_share"] == 0.5
    monkeypatch.setattr(fit_baselines, "MAX_CELLS", n_cells)
    assert fit_baselines.source_of(Profiles.open(workspace.current("profiles"))).share == 1


def write_served(workspace, model, autoencoder, profiles):
    """Embeddings, 8-bit codes and a flat index of the model's vectors."""
    vectors, bias = retrieval_vectors(model)
    names = {k: [f"{k}{n}" for n in range(len(vectors))] for k in ("item_id", "title")}
    embeddings = plant_embeddings(
        workspace,
        vectors,
        bias=bias,
        items=names,
        similarity="inner_product",
        inputs=[autoencoder, profiles],
    )
    codes = Codes.pack_dense(vectors, similarity="inner_product")
    none = np.zeros((0, vectors.shape[1]), dtype=np.float32)
    plant_codes(workspace, codes, none, embeddings, similarity="inner_product")
    index(IndexConfig(run=workspace.run))


def test_codes_and_index_come_close_to_the_model(run):
    workspace, model, autoencoder = run
    write_served(workspace, model, autoencoder, workspace.current("profiles"))
    own = evaluate(config(workspace, baselines=[])).metrics["recall@20"]["mean"]
    codes = evaluate(config(workspace, via="codes", baselines=[]))
    served = evaluate(config(workspace, via="index", baselines=[]))
    raw = evaluate(config(workspace, via="index", rescore=False, baselines=[]))
    assert set(served.build_ids) >= {"index", "codes", "embeddings", "autoencoder", "profiles"}
    assert served.metrics["recall@20"]["mean"] == pytest.approx(own, abs=0.02)
    assert codes.metrics["recall@20"]["mean"] == pytest.approx(own, abs=0.05)
    for name, wanted in codes.metrics.items():
        if name in RATES:
            assert raw.metrics[name]["mean"] == pytest.approx(wanted["mean"], rel=1e-4)
        else:
            assert raw.metrics[name] == wanted
    assert raw.extra["report"].endswith("evaluate-test-index-raw.json")


def test_ratings_use_the_prior_for_unknown_items_and_users(tmp_path):
    workspace = Workspace(str(tmp_path))
    cells = planted_cells()
    profiles = write_profiles(workspace, cells, split="ratings")
    write_autoencoder(workspace, profiles, n_items=30, windows=(Window.FIT,))
    result = evaluate(config(workspace, period="test"))
    assert result.extra["evaluated"]["rated_targets"] == int((cells.window == 2).sum())
    assert "recall@20" not in result.metrics
    assert set(result.extra["baselines"]) == {"marginal", "histogram", "bias"}


def test_models_of_a_later_period_are_refused(run):
    workspace, _, _ = run
    with pytest.raises(DataError, match=r"fitted on data until 200, period=val .* cut-off 100"):
        evaluate(config(workspace, period="val"))


def leaky(name):
    """Return cells and catalogue changes with one injected leak."""
    cells = planted_cells()
    changes = {}
    if name == "target":
        cells.timestamp[np.flatnonzero(cells.window == 2)[0]] = 10
    if name == "history":
        cells.timestamp[np.flatnonzero(cells.window == 1)[0]] = 250
    if name == "catalogue":
        changes["first_seen"] = [0] * 29 + [150] + [100] * 6 + [200] * 4
    if name == "numbering":
        changes["first_seen"] = [5, 0] + [6] * 28 + [100] * 6 + [200] * 4
    if name == "popularity":
        counts = np.bincount(cells.item_num[cells.window <= 1], minlength=N_ITEMS)
        changes["n_fit"] = counts
    if name == "user":
        cells = cells.users(np.array([0, *range(N_USERS - 1)]))
    if name == "shards":
        cells = cells.users(np.array([*range(N_USERS - 1), 0]))
    return cells, changes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("target", "targets older than the test cut-off 200: user 'u"),
        ("history", "history or training cells .* time 250"),
        ("catalogue", "items of the val catalogue .* 'i29'"),
        ("numbering", "does not follow"),
        ("popularity", "not counted in the fit window"),
        ("user", r"users stand twice .* 'u000' \(user_num 0"),
        ("shards", r"in shard-00001.parquet: 'u000' \(user_num 0, also in shard-00000"),
    ],
)
def test_injected_leaks_fail_the_job_and_name_the_rows(tmp_path, name, message):
    workspace = Workspace(str(tmp_path))
    cells, changes = leaky(name)
    write_autoencoder(workspace, write_profiles(workspace, cells, **changes))
    with pytest.raises(DataError, match=message):
        evaluate(config(workspace, baselines=[]))
    assert not (tmp_path / "reports").exists()


def test_pairs_in_history_and_targets_are_refused_where_there_is_no_time(tmp_path):
    workspace = Workspace(str(tmp_path))
    cells = planted_cells()
    last = int(cells.offsets[1]) - 1
    cells.item_num[last] = cells.item_num[0]
    cells.window[: last + 1] = [0] * last + [2]
    profiles = write_profiles(workspace, cells, split="ratings")
    write_autoencoder(workspace, profiles, n_items=30, windows=(Window.FIT,))
    with pytest.raises(DataError, match=r"pairs in both history and targets: user 'u000'"):
        evaluate(config(workspace, baselines=[]))


def test_missing_and_plain_builds_are_refused(tmp_path):
    workspace = Workspace(str(tmp_path))
    with pytest.raises(BuildError, match="holds no autoencoder build yet: train"):
        evaluate(config(workspace))
    plant_autoencoder(workspace, make())
    with pytest.raises(BuildError, match="no interaction log"):
        evaluate(config(workspace))


@pytest.mark.parametrize(
    "words",
    [
        ["period=all"],
        ["via=disk"],
        ["protocol=random"],
        ["ranking=best"],
        ["baselines=[mean]"],
        ["top_k=[0]"],
        ["betas=[-1]"],
        ["replicates=-1"],
    ],
)
def test_settings_out_of_range_are_refused(words):
    with pytest.raises(ConfigError, match=words[0].partition("=")[0]):
        load(EvaluateConfig, words)


def test_rankings_that_the_model_cannot_give_are_refused(tmp_path):
    workspace = Workspace(str(tmp_path))
    write_autoencoder(workspace, write_profiles(workspace))
    ranked = evaluate(config(workspace, ranking="discover", baselines=[]))
    assert ranked.extra["report"].endswith("evaluate-test-model-discover.json")
    with pytest.raises(ConfigError, match="period"):
        load(EvaluateConfig, ["period=later"])


def test_the_report_holds_the_cuts_penalties_and_intervals_asked_for(run):
    workspace, _, _ = run
    settings = {"top_k": [7], "betas": [0.7], "replicates": 0, "baselines": []}
    metrics = evaluate(config(workspace, **settings)).metrics
    assert {"recall@7", "recall@7^0.7"} <= set(metrics)
    assert not {"recall@10", "recall@7^0.2"} & set(metrics)
    assert {entry["ci_low"] for entry in metrics.values()} == {None}


def test_the_val_period_is_evaluated_with_a_model_fitted_before_it(tmp_path):
    workspace = Workspace(str(tmp_path / "run"))
    profiles = write_profiles(workspace)
    write_autoencoder(workspace, profiles, n_items=30, period="val", windows=(Window.FIT,))
    found = evaluate(config(workspace, period="val", baselines=[]))
    targets = planted_cells().in_windows([1])
    outside = int((targets.item_num >= 30).sum())
    assert found.extra["dropped"]["targets_outside_catalogue"] == outside
    same = compare(CompareConfig(run=workspace.run, period="val", against="popularity"))
    assert same.extra["period"] == "val"
    assert same.extra["common_users"] == found.extra["evaluated"]["rows"]


def test_gamma_moves_the_discover_ranking(run):
    workspace, _, _ = run
    plain = {"ranking": "discover", "baselines": []}
    values = [
        evaluate(config(workspace, **plain, gamma=gamma)).metrics["recall@20^0.5"]["mean"]
        for gamma in (0.0, 0.5, 5.0)
    ]
    assert len(set(values)) == 3


def test_compare_takes_the_settings_of_both_evaluations(run):
    workspace, model, autoencoder = run
    write_served(workspace, model, autoencoder, workspace.current("profiles"))

    def found(**settings):
        return compare(CompareConfig(run=workspace.run, **({"replicates": 20} | settings)))

    # without the model's rescoring an index returns what its codes say
    raw = found(via="index", against="codes", rescore=False).extra["comparison"]
    ranks = [entry for name, entry in raw.items() if name not in RATES]
    assert {entry["difference"] for entry in ranks} == {0.0}
    cut = found(against="popularity")
    last = found(against="popularity", protocol="lloo", ranking="discover", replicates=10)
    for name in ("evaluate-test-model", "evaluate-test-model-lloo-discover"):
        assert workspace.storage.exists(f"reports/{name}.json")
    recall = [result.extra["comparison"]["recall@20"]["mean"] for result in (cut, last)]
    assert recall[0] != recall[1]
    wide, narrow = (found(against="popularity", replicates=n).metrics for n in (5, 90))
    assert wide["recall@20"]["ci_low"] != narrow["recall@20"]["ci_low"]


def test_compare_pairs_the_users_of_two_paths(run):
    workspace, model, autoencoder = run
    write_served(workspace, model, autoencoder, workspace.current("profiles"))
    result = compare(CompareConfig(run=workspace.run, against="index", replicates=100))
    entry = result.extra["comparison"]["recall@20"]
    assert entry["difference"] == pytest.approx(entry["mean"] - entry["other"])
    assert result.metrics["recall@20"]["mean"] == entry["difference"]
    assert entry["ci_low"] <= entry["difference"] <= entry["ci_high"]
    served = evaluate(config(workspace, via="index", baselines=[])).metrics
    assert entry["other"] == pytest.approx(served["recall@20"]["mean"])


def test_compare_with_a_baseline_and_with_another_run(run, tmp_path):
    workspace, _, _ = run
    result = compare(CompareConfig(run=workspace.run, against="popularity", replicates=100))
    entry = result.extra["comparison"]["recall@20"]
    assert entry["difference"] > 0.1 < entry["ci_low"] + 0.1
    assert entry["better"] > entry["worse"]
    other = Workspace(str(tmp_path / "other"))
    write_autoencoder(other, write_profiles(other, shards=3))
    same = compare(CompareConfig(run=workspace.run, other=other.run, replicates=20))
    assert same.extra["common_users"] == result.extra["common_users"]
    assert {d["difference"] for d in same.extra["comparison"].values()} == {0.0}
    assert same.extra["comparison"]["recall@20"]["better"] == 0


def test_compare_evaluates_again_when_the_builds_changed(run):
    workspace, _, _ = run
    settings = {"run": workspace.run, "against": "popularity", "replicates": 5}
    before = compare(CompareConfig(**settings))
    _, build = write_autoencoder(
        workspace, write_profiles(workspace), n_items=30, windows=(Window.FIT,)
    )
    after = compare(CompareConfig(**settings))
    assert after.build_ids["autoencoder"] == build.build_id
    assert before.build_ids != after.build_ids


def test_comparing_a_thing_with_itself_is_refused(run):
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare(CompareConfig(run=run[0].run))


def test_a_backtest_needs_a_split_in_time(tmp_path):
    workspace = Workspace(str(tmp_path))
    profiles = write_profiles(workspace, split="ratings")
    write_autoencoder(workspace, profiles, n_items=30, windows=(Window.FIT,))
    with pytest.raises(ConfigError, match="windows=2 needs a run prepared with split=temporal"):
        backtest(BacktestConfig(run=workspace.run, windows=2))


@pytest.mark.parametrize(
    ("levels", "met"),
    [
        (build_levels(LevelCounts({1.0: 9}, 0, {})), {Needs.NOTHING}),
        (build_levels(LevelCounts({5.0: 4}, 5, {})), {Needs.NOTHING, Needs.LIKED}),
        (build_levels(LevelCounts({1.0: 9}, 0, {"buy": 3, "view": 6})), {Needs.NOTHING}),
        (RatingLevels(("1",), (1.0,), (True,)), {Needs.NOTHING}),  # a build of before
    ],
)
def test_a_log_whose_ratings_never_differ_is_consumption(tmp_path, levels, met):
    rankings = tuple(name for name, rule in RANKINGS.items() if rule.needs in met)
    workspace = Workspace(str(tmp_path / "run"))
    cells = planted_cells()
    cells = dataclasses.replace(cells, level=cells.level % levels.n_levels)
    profiles = write_profiles(workspace, cells, levels=levels)
    model, build = write_autoencoder(workspace, profiles, levels=levels)
    assert model.available_rankings == rankings
    write_served(workspace, model, build, profiles)
    for via in ("model", "codes", "index"):
        for ranking in rankings:
            result = evaluate(config(workspace, via=via, ranking=ranking))
            assert result.metrics["recall@20"]["mean"] > 0
            assert not {"rmse", "mae", "nll", "ece"} & set(result.metrics)
        assert result.extra["baselines_left_out"] == dict.fromkeys(
            fit_baselines.RATERS, "the log has no ratings that differ"
        )
    with pytest.raises(ConfigError, match="ranking='rating' is not what this model can give"):
        evaluate(config(workspace, ranking="rating"))
    search = Search.open(workspace)
    assert search.rankings == rankings
    [hit] = search.recommend(RecommendQuery(profile=[ProfileEntry(item_id="i00")], k=1)).items
    assert levels.n_rated or hit.expected_rating is None


def test_a_level_that_no_cell_has_is_no_fault(tmp_path):
    workspace = Workspace(str(tmp_path / "run"))
    cells = planted_cells()
    cells = dataclasses.replace(cells, level=np.minimum(cells.level, 1).astype(np.uint8))
    profiles = write_profiles(workspace, cells)  # nobody rates 3
    write_autoencoder(workspace, profiles)
    metrics = evaluate(config(workspace)).metrics
    assert all(np.isfinite(metrics[name]["mean"]) for name in ("recall@20", "rmse", "nll", "ece"))


def test_ratings_that_never_differ_cannot_be_what_is_evaluated(tmp_path):
    workspace = Workspace(str(tmp_path / "run"))
    levels = build_levels(LevelCounts({1.0: 9}, 0, {}))
    cells = dataclasses.replace(planted_cells(), level=np.zeros_like(planted_cells().level))
    profiles = write_profiles(workspace, cells, split="ratings", levels=levels)
    write_autoencoder(workspace, profiles, n_items=30, windows=(Window.FIT,), levels=levels)
    with pytest.raises(DataError, match=r"none that differ \(levels: consumed\)"):
        evaluate(config(workspace))
