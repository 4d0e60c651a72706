"""A trial: what it measures, that it can be repeated, and what it leaves alone."""

import dataclasses
from pathlib import Path

import pytest

from raysys.autoencoder.files import AutoencoderFacts
from raysys.commands.evaluate import EvaluateConfig, evaluate
from raysys.commands.index import IndexConfig, index
from raysys.commands.train import train_builds
from raysys.commands.trial import TrialPlan, direction, finalist, is_whole, measure
from raysys.config import digest
from raysys.data.profiles import Profiles
from raysys.errors import ConfigError
from raysys.evaluation.comparison import compare_users, users_of_report
from raysys.index.files import IndexFacts
from tests.support.training import config, planted_run

VALUES = {"optim.lr": 0.02, "autoencoder.profile_exponent": 0.4}
SPEED = ("seconds", "training_seconds", "worker_seconds", "peak_bytes", "rows_per_s")


def plan_of(workspace, *objectives, **fields):
    names = objectives or ("recall@20^0.2",)
    base = {"profiles": workspace.current("profiles").build_id, "train": config(workspace)}
    return TrialPlan(workspace.run, None, objectives=names, **base | fields)


def measured(plan, values=VALUES, *, seed=0, on_epoch=lambda values: None):
    """Return what a trial found but for what it took."""
    found = vars(measure(plan, values, seed=seed, folder=folder(values), on_epoch=on_epoch))
    return {name: value for name, value in found.items() if name not in SPEED}


def folder(values):
    return f"sweeps/trials/{digest(values)}"


def files(run):
    """Return {path: content} of a run."""
    paths = sorted(p for p in Path(run).rglob("*") if p.is_file())
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


@pytest.fixture
def workspace(tmp_path):
    return planted_run(tmp_path / "run")


class StopError(Exception):
    pass


def test_a_trial_is_repeated_to_the_last_digit_and_leaves_nothing(workspace):
    before = files(workspace.run)
    plan = plan_of(workspace, "recall@7", "ndcg@10", "rmse", threads=1)
    epochs = []
    first = measured(plan, on_epoch=epochs.append)
    assert set(first["objectives"]) == {"recall@7", "ndcg@10", "rmse"}
    assert [values["epoch"] for values in epochs] == [0, 1, 2, 3]
    assert all("recall@20" in values for values in epochs)
    assert [epoch for epoch, _ in first["history"]] == [0, 1, 2, 3]
    assert dict(first["history"])[2] == epochs[2]["recall@20"]

    def stop(values):
        if values["epoch"] == 2:
            raise StopError

    with pytest.raises(StopError):
        measured(plan, on_epoch=stop)
    assert files(workspace.run) == before
    assert measured(plan) == first
    assert measured(plan, seed=1)["metrics"] != first["metrics"]
    assert measured(plan, {})["metrics"] != first["metrics"]


def test_metrics_of_a_fit_are_those_of_an_evaluation(workspace):
    names = ("recall@20^0.2", "recall@3", "recall@7^0.15", "ndcg@10", "rmse", "nll")
    plan = plan_of(workspace, *names)
    found = measured(plan, {})["metrics"]
    cfg = plan.settings({}, seed=0).train
    assert (cfg.select, cfg.refit) == ("recall@20^0.2", "none")
    train_builds(cfg, workspace)
    asked = {"run": workspace.run, "period": "val", "baselines": [], "replicates": 0}
    report = evaluate(EvaluateConfig(**asked, top_k=[3, 7], betas=[0.15, 0.2])).metrics
    for name in names:
        assert found[name] == pytest.approx(report[name]["mean"], abs=1e-6), name


def test_what_a_log_cannot_give_is_refused(workspace):
    with pytest.raises(ConfigError, match="objective 'bytes'"):
        measured(plan_of(workspace, "recall@20", "bytes"))
    with pytest.raises(ConfigError, match=r"optim\.lrr"):
        measured(plan_of(workspace), {"optim.lrr": 1})


def test_objectives_and_keys_decide_how_deep_a_trial_goes():
    assert [direction(name) for name in ("recall@5^0.2", "ndcg@10")] == ["max"] * 2
    assert {direction(name) for name in ("nll", "rmse", "bytes", "answer_ms")} == {"min"}
    assert not is_whole(["optim.lr", "autoencoder.latent"], ["recall@20", "nll"])
    assert is_whole(["optim.lr"], ["recall@20", "bytes"])
    for key in ("index.kind", "compressor.n_active", "prepare.liked_levels"):
        assert is_whole([key], ["recall@20"])


WHOLE = {"compressor.value_bits": 8, "index.kind": "flat", "prepare.liked_levels": ["2", "3"]}


def whole_plan(workspace, *objectives, **fields):
    return plan_of(workspace, *objectives, whole=True, **fields)


def test_a_whole_trial_measures_the_service_and_moves_nothing_of_the_run(workspace):
    train_builds(config(workspace, "refit=val"), workspace)
    index(IndexConfig(run=workspace.run))
    evaluate(EvaluateConfig(run=workspace.run, baselines=[], replicates=0))
    before = files(workspace.run)
    plan = whole_plan(workspace, "recall@7", "bytes", "answer_ms")
    found = measured(plan, WHOLE)
    after = files(workspace.run)
    assert {name: after[name] for name in before} == before
    new = after.keys() - before.keys()
    assert {name for name in new if "current.json" in name or "report" in name} == {
        name for name in new if name.startswith("sweeps/")
    }
    assert any(name.endswith("evaluate-val-index.json") for name in new)
    assert 0 < found["objectives"]["answer_ms"] < 1000
    facts = IndexFacts.of(workspace.open("index", found["build_ids"]["index"]))
    assert found["objectives"]["bytes"] == facts.bytes_per_item_with_dictionary
    model = AutoencoderFacts.of(workspace.open("autoencoder", found["build_ids"]["autoencoder"]))
    assert model.period == "val"
    swept = workspace.open("profiles", found["build_ids"]["profiles"])
    assert Profiles.open(swept).levels.liked == (False, True, True)
    known = workspace.current("profiles")
    for name in known.files(".parquet"):
        assert swept.path(name).read_bytes() == known.path(name).read_bytes()
    again = measured(plan, WHOLE)
    assert again["epochs"] == 0  # the build was there
    same = found["metrics"].keys() - {"answer_ms"}
    assert {k: again["metrics"][k] for k in same} == {k: found["metrics"][k] for k in same}
    assert workspace.current("index").record()["requested_kind"] == "ivf"


def test_bytes_alone_need_no_evaluation(workspace):
    found = measured(whole_plan(workspace, "bytes"), {"index.kind": "flat"})
    assert set(found["metrics"]) == {"bytes"}
    assert not [name for name in files(workspace.run) if "report" in name]


def test_a_whole_trial_that_is_stopped_leaves_nothing(workspace):
    before = files(workspace.run)

    def stop(values):
        raise StopError

    with pytest.raises(StopError):
        measured(whole_plan(workspace, "recall@20"), WHOLE | VALUES, on_epoch=stop)
    left = files(workspace.run).keys() - before.keys()
    assert {name.split("/")[0] for name in left} <= {"profiles"}  # that one was finished


@pytest.mark.parametrize("whole", [False, True])
def test_finalists_are_compared_user_by_user(workspace, whole):
    plan = plan_of(workspace, "recall@7^0.15", whole=whole)
    tables = []
    for seed in (0, 1):
        place = f"sweeps/s/finalists/{seed}"
        report, via = finalist(plan, VALUES, seed=seed, folder=place)["users"]
        assert report.startswith(f"{place}/reports/")
        tables.append(users_of_report(workspace.storage, report, via))
    found, n_users = compare_users(*tables, seed=0, replicates=10, metrics=["recall@7^0.15"])
    assert n_users > 10
    assert found["recall@7^0.15"].difference != 0
    assert not workspace.has("autoencoder")


def test_a_trial_on_an_object_store(s3_bucket, tmp_path):
    run = planted_run(f"{s3_bucket}/trials", cache_dir=str(tmp_path))
    before = run.storage.files("")
    plan = dataclasses.replace(whole_plan(run, "recall@20", "bytes"), cache_dir=str(tmp_path))
    found = measured(plan, WHOLE)
    assert set(found["objectives"]) == {"recall@20", "bytes"}
    after = run.storage.files("")
    assert {name: after[name] for name in before} == before
    named = {name for name in after.keys() - before.keys() if "current.json" in name}
    assert {name.rpartition("/")[0] for name in named} == {
        f"{folder(WHOLE)}/{kind}" for kind in found["build_ids"]
    }
    assert not run.has("index")


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # Ray's own
def test_a_trial_may_have_a_worker_of_its_own(ray_cluster, workspace):
    before = files(workspace.run)
    alone = measured(plan_of(workspace, "recall@7"))
    base = config(workspace, "launch.workers=1")
    found = measured(plan_of(workspace, "recall@7", train=base))
    assert found["metrics"] == pytest.approx(alone["metrics"], rel=1e-3)
    epochs = dict(alone["history"])
    epochs.pop(0)  # told where the training is in this process
    assert dict(found["history"]) == pytest.approx(epochs, rel=1e-3)
    assert files(workspace.run) == before
