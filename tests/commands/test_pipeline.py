"""The whole pipeline on a small planted log, through the command line."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys import cli
from raysys.commands.pipeline import PipelineConfig
from raysys.config import load
from raysys.errors import ConfigError
from raysys.search.query import RecommendQuery
from raysys.search.search import Search
from raysys.store.builds import Workspace

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
    folder = str(tmp_path_factory.mktemp("pipeline") / "run")
    words = ["pipeline", f"run={folder}", f"source={small_log}", *SMALL]
    return folder, words


@pytest.mark.ray
@pytest.mark.slow
def test_a_log_becomes_answers_and_a_second_run_reuses_everything(built, capfd):
    folder, words = built
    status, out, err = run(capfd, *words)
    assert status == 0, err[-3000:]
    record = json.loads(out)
    assert set(record["build_ids"]) >= {"profiles", "autoencoder", "codes", "index"}
    assert record["metrics"]["recall@20"]["mean"] > 0
    assert set(record["metrics_index"]) == set(record["metrics"])
    again = json.loads(run(capfd, *words)[1])
    assert again["build_ids"] == record["build_ids"]
    assert again["stage_seconds"]["train"] < record["stage_seconds"]["train"] / 4

    search = Search.open(Workspace(folder))
    answer = search.recommend(RecommendQuery(user_id="user 0", k=5))
    assert len(answer.items) == 5


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_tries_settings_and_names_the_best(built, capfd):
    """A private cluster of its own, as from a shell: it needs the dashboard."""
    folder, words = built
    assert cli.main(words) == 0
    capfd.readouterr()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "raysys.cli", "tune", f"run={folder}", "ray.address=local"),
            "space={autoencoder: {profile_exponent: [0.3, 0.7]}}",
            *("train.optim.epochs=2", "train.launch.workers=1", "train.autoencoder.latent=16"),
            "train.optim.checkpoint_steps=5",  # also inside an epoch, which the sweep must not see
        ],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = done.stdout
    record = json.loads(out)
    tried = [t["values"]["autoencoder.profile_exponent"] for t in record["trials"]]
    assert sorted(tried) == [0.3, 0.7]
    best = max(record["trials"], key=lambda trial: trial["value"])
    assert record["best"] == best["values"]


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
