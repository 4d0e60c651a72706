"""The whole pipeline on a small planted log, through the command line."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from raysys import cli
from raysys.commands.pipeline import PipelineConfig
from raysys.config import load
from raysys.errors import ConfigError
from raysys.search.query import RecommendQuery
from raysys.search.search import Search
from raysys.store.builds import Workspace
from tests.support.pages import checked

SMALL = (
    "train.optim.epochs=4",
    "train.autoencoder.latent=16",
    "train.autoencoder.level_latent=8",
    "train.launch.workers=2",
    "evaluate.replicates=100",
)


def run(capfd, *words):
    status = cli.main(list(words))
    out, err = capfd.readouterr()
    return status, out, err


def test_shared_keys_are_handed_down_to_the_stages():
    words = ["source=a.csv", "items=b.csv", "split=users", "seed=3", "format.kind=tsv"]
    cfg = load(PipelineConfig, ["run=r", *words])
    asked = cfg.prepare.source, cfg.prepare.items, cfg.prepare.split, cfg.prepare.format.kind
    assert asked == ("a.csv", "b.csv", "users", "tsv")
    assert {getattr(cfg, name).seed for name in ("prepare", "train", "index", "evaluate")} == {3}
    with pytest.raises(ConfigError, match=r"prepare.split='ratings' is not accepted: set split="):
        load(PipelineConfig, ["split=users", "prepare.split=ratings"])


@pytest.fixture(scope="module")
def built(ray_cluster, small_log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    shutil.copy(small_log, folder / "log.csv")
    words = ["pipeline", f"run={folder}/run", f"source={folder}/log.csv", *SMALL]
    return f"{folder}/run", words


def check_tracked(folder, record):
    """Find the stages below the pipeline, with what they trained, measured and reported."""
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("run").experiment_id])
    stages = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    [above] = [run for run in runs if run.info.run_name == "pipeline"]
    assert {run.data.tags["mlflow.parentRunId"] for run in stages.values()} == {above.info.run_id}
    assert set(stages) == {"prepare", "train", "index", "evaluate"}
    trained = stages["train"]
    assert trained.data.params["optim.epochs"] == "4"
    assert trained.data.tags["build.codes"] == record["build_ids"]["codes"]
    losses = client.get_metric_history(trained.info.run_id, "fit/train/loss")
    assert [loss.step for loss in losses] == [1, 2, 3, 4]
    assert above.data.metrics["recall_at_20"] == record["metrics"]["recall@20"]["mean"]
    files = client.list_artifacts(above.info.run_id)
    assert {file.path for file in files} == {Path(record[k]).name for k in ("report", "page")}


@pytest.mark.ray
@pytest.mark.slow
def test_a_log_becomes_answers_and_a_second_run_reuses_everything(built, capfd, monkeypatch):
    """The workers stand in another folder than the command, and open what its words name."""
    folder, _ = built
    home = Path(folder).parent
    words = ["pipeline", "run=run", "source=log.csv", *SMALL]
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    status, out, err = run(capfd, *words, "tracking=mlflow")
    assert status == 0, err[-3000:]
    record = json.loads(out)
    assert record["run"] == folder
    check_tracked(folder, record)
    assert set(record["build_ids"]) >= {"profiles", "autoencoder", "codes", "index"}
    assert record["metrics"]["recall@20"]["mean"] > 0
    assert Path(record["page"]) == Path(folder) / "reports/run.html"
    assert "What compression and search lose" in checked(Path(record["page"]).read_text()).words
    assert set(record["metrics_index"]) == set(record["metrics"])
    trainings = record["training"].values()
    assert record["training"]["autoencoder"]["workers"] == 2
    assert record["ledger"]["worker_seconds"] == pytest.approx(
        sum(one["worker_seconds"] for one in trainings), abs=0.01
    )
    assert record["ledger"]["peak_bytes"] == max(one["peak_bytes"] for one in trainings)
    assert record["ledger"]["training_seconds"] < record["ledger"]["seconds"]
    again = json.loads(run(capfd, *words)[1])
    assert again["build_ids"] == record["build_ids"]
    assert again["stage_seconds"]["train"] < record["stage_seconds"]["train"] / 4

    status, _, err = run(capfd, "score", "run=run", "top_k=3")
    assert status == 0, err[-3000:]
    assert sorted(path.name for path in home.iterdir()) == ["log.csv", "run"]

    search = Search.open(Workspace(folder))
    answer = search.recommend(RecommendQuery(user_id="user 0", k=5))
    assert len(answer.items) == 5


COLUMNS = {"user_id": ["a", "b"], "item_id": ["x", "y"], "rating": [1.0, 2.0], "timestamp": [1, 2]}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("table", "words", "message"),
    [
        (None, [], "does not exist"),
        ({name: [] for name in COLUMNS}, [], "no rows"),
        (COLUMNS, ["columns.user=person"], "person"),
        (COLUMNS | {"user_id": ["a", "a"]}, [], "user"),
        (COLUMNS | {"rating": [float("nan")] * 2}, [], "rating"),
        (COLUMNS, ["split=diagonal"], "split"),
        (COLUMNS, ["columsn.user=a"], "did you mean"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_build(
    ray_cluster, tmp_path, capfd, table, words, message
):
    source = tmp_path / "log.parquet"
    if table is not None:
        pq.write_table(pa.table(table), source)
    folder = tmp_path / "run"
    status, out, err = run(capfd, "pipeline", f"run={folder}", f"source={source}", *words)
    assert status == 2
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert message in last
    assert "ERROR" in last
    assert "Traceback" not in err
    assert not list(folder.glob("*/current.json"))
    assert not list(folder.glob("*/.*"))


def test_windows_to_backtest_are_refused_and_their_command_is_named():
    with pytest.raises(ConfigError, match=r"raysys backtest windows=4"):
        load(PipelineConfig, ["run=r", "evaluate.backtest=4"])
    assert load(PipelineConfig, ["run=r", "evaluate.backtest=0"]).evaluate.via == "model"
