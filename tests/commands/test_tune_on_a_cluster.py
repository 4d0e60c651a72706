import json
import subprocess
import sys
from pathlib import Path

import pytest

from raysys.commands.train import TrainConfig, train
from raysys.commands.tune import TuneConfig
from raysys.commands.tune_run import tune
from raysys.config import load
from raysys.store.builds import Workspace
from tests.support.training import QUICK, planted_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRAIN = [f"train.{word}" for word in QUICK]
SPACE = "space.optim.lr={low: 0.002, high: 0.2, log: true}"


def currents(run):
    """Return what names the run's current builds, and its reports."""
    paths = [*Path(run).glob("*/current.json"), *Path(run).glob("reports/**/*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


def swept(run, *words):
    result = tune(load(TuneConfig, [f"run={run}", "replicates=200", *TRAIN, *words]))
    return result, json.loads(Path(result.extra["sweep"], "sweep.json").read_text())


def test_a_sweep_compares_its_finalists_and_moves_nothing_of_the_run(ray_cluster, tmp_path):
    run = planted_run(tmp_path / "run").run
    before = currents(run)
    result, record = swept(run, SPACE, "trials=2", "finalists=1", "seeds=2", "stop_early=false")
    assert currents(run) == before
    assert [row["state"] for row in record["trials"]] == ["complete"] * 3
    assert all(row["training_seconds"] > 0 < row["peak_bytes"] for row in record["trials"])
    finalists = record["finalists"]
    best = max(record["trials"][1:], key=lambda row: row["objectives"]["recall@20^0.2"])
    assert [each["number"] for each in finalists["settings"]] == [0, best["number"]]
    assert [len(each["by_seed"]) for each in finalists["settings"]] == [2, 2]
    assert record["winner"] == finalists["best"]
    assert 0 < record["totals"]["overhead_share"] < 1
    assert "Finalists" in Path(result.extra["page"]).read_text()
    again, same = swept(run, SPACE, "trials=2", "finalists=1", "seeds=2", "stop_early=false")
    assert same["trials"] == record["trials"]
    assert same["finalists"] == finalists
    _, other = swept(run, SPACE, "trials=2", "finalists=0", "stop_early=false", "sampler=random")
    assert other["trials"][0]["state"] == "reused"
    train(load(TrainConfig, [f"run={run}", "launch.workers=0"], yaml_path=again.extra["best"][0]))
    trained = Workspace(run).current("autoencoder").manifest.config
    values = record["trials"][record["winner"]]["values"]
    assert trained["optim"]["lr"] == values.get("optim.lr", TrainConfig().optim.lr)
    assert trained["autoencoder"]["latent"] == 8
    assert trained["select"] == "recall@20^0.2"


def test_stages_that_a_key_does_not_reach_are_made_once_for_all_trials(ray_cluster, tmp_path):
    run = planted_run(tmp_path / "run").run
    words = ["metrics=[bytes,recall@20]", "space.index.target_recall=[0.8]", "finalists=0"]
    result, record = swept(run, *words)
    rows = record["trials"]
    assert [row["state"] for row in rows] == ["complete"] * 2
    assert len({row["build_ids"]["autoencoder"] for row in rows}) == 1
    assert len({row["build_ids"]["codes"] for row in rows}) == 1
    assert len({row["build_ids"]["index"] for row in rows}) == 2
    assert all(row["objectives"]["bytes"] > 8 for row in rows)
    assert (record["best"], record["winner"]) == (0, 0)
    assert record["hypervolume"]["random"] is None
    assert [Path(name).name for name in result.extra["best"]] == ["best.yaml"]
    assert not Workspace(run).has("index")


def test_a_sweep_whose_driver_is_killed_goes_on_from_the_shell(tmp_path):
    """A private cluster of its own each time, which ends with the driver."""
    run = planted_run(tmp_path / "run").run
    words = [sys.executable, "-m", "raysys.cli", "tune", f"run={run}", "ray.address=local", *TRAIN]
    words += ["space.optim.lr=[0.01,0.1]", "finalists=1", "seeds=1", "replicates=100"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as driver:
        before = []
        for line in driver.stderr:
            before.append(line)
            if "trial ended id=1" in line:
                driver.kill()
                break
    [place] = Path(run).glob("sweeps/*/sweep.json")
    assert json.loads(place.read_text())["state"] == "running"
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    result, record = json.loads(done.stdout), json.loads(place.read_text())
    assert (result["job"], result["state"], result["trials"]) == (
        "tune",
        "finished",
        {"complete": 3},
    )
    assert [row["values"] for row in record["trials"]] == [
        {},
        {"optim.lr": 0.01},
        {"optim.lr": 0.1},
    ]
    ended = "".join(before) + done.stderr
    assert [ended.count(f"trial ended id={number}") for number in range(3)] == [1, 1, 1]
    assert record["finalists"]["settings"][0]["number"] == 0
    assert Path(result["page"]).is_file()
