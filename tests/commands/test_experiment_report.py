"""The report of an experiment, from tables in a run to the table that the agreement suite reads."""

import json
import urllib.parse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysys import cli
from raysys.bench import agreement
from raysys.bench.agreement import AgreementBenchConfig
from raysys.commands.evaluate import evaluate
from raysys.commands.experiment_report import ExperimentReportConfig, report
from raysys.config import load
from raysys.data.schema import Window
from raysys.errors import ConfigError, DataError
from raysys.simulate.experiment import ExperimentSpec, experiment_tables
from raysys.store.builds import Workspace
from raysys.store.storage import Storage
from tests.commands.test_evaluate import (
    CUTOFFS,
    config,
    write_autoencoder,
    write_profiles,
    write_served,
)
from tests.reports.test_experiment_log import write, write_tables
from tests.support.planting import plant_autoencoder

ARMS = {"control": (0.5, 0.0), "new": (0.5, 0.9)}


def reported(run, *words):
    return report(load(ExperimentReportConfig, [f"run={run}", *words]))


@pytest.fixture
def logged(tmp_path):
    write_tables(Storage(str(tmp_path)), ExperimentSpec(ARMS, n_users=2500))
    return tmp_path


def test_a_report_names_the_better_arm_and_leaves_a_page(logged):
    found = reported(logged, "name=home")
    assert found.extra["verdict"].startswith("new is better than control, decided after")
    assert found.metrics["new"]["ci_low"] > found.metrics["control"]["ci_high"]
    text = (logged / "reports/experiment-home.json").read_text()
    record = json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity
    [comparison] = record["comparisons"]
    assert comparison["low"] > 0
    assert found.extra["comparisons"] == [{k: v for k, v in comparison.items() if k != "steps"}]
    page = (logged / "reports/experiment-home.md").read_text()
    assert found.extra["verdict"] in page
    [link] = [line for line in page.splitlines() if line.startswith("![")]
    plot = logged / "reports" / urllib.parse.unquote(link.partition("](")[2].rstrip(")"))
    assert plot.read_text().count("<path") > 10
    reported(logged, "name=home")
    assert not plot.exists()  # the report that replaces it has its own


def test_a_run_may_lie_on_an_object_store(s3_bucket, tmp_path):
    storage = Storage(f"{s3_bucket}/reported")
    write_tables(storage, ExperimentSpec(ARMS, n_users=600))
    first, again = (reported(storage.run, "name=home", f"cache_dir={tmp_path}") for _ in range(2))
    assert first.extra["verdict"] == again.extra["verdict"]
    names = list(storage.files("reports"))
    assert [name.rpartition("/")[2] for name in names] == [
        *("experiment-home.json", "experiment-home.md", "difference.svg", "experiments.parquet"),
    ]
    rows = pq.read_table(pa.BufferReader(storage.read("reports/experiments.parquet")))
    assert rows["arm"].to_pylist() == ["control", "new"]


def test_settings_of_the_report(logged):
    def arms(*words):
        reported(logged, "name=home", *words)
        return json.loads((logged / "reports/experiment-home.json").read_text())

    plain = arms()
    assert sum(arm["conversions"] for arm in arms("window_s=3600")["arms"]) < 0.5 * sum(
        arm["conversions"] for arm in plain["arms"]
    )
    longer = arms("horizon_s=400000")
    assert longer["arms"][1]["outcome"]["value"] > plain["arms"][1]["outcome"]["value"]
    assert longer["arms"][1]["conversions"] == plain["arms"][1]["conversions"]
    counts = arms("outcome=conversions")
    assert counts["arms"][1]["outcome"]["value"] > plain["arms"][1]["outcome"]["value"]
    turned = arms("control=new")
    assert [arm["name"] for arm in turned["arms"]] == ["new", "control"]
    strict = arms("alpha=0.001")["comparisons"][0]
    assert strict["high"] - strict["low"] > 1.2 * (
        plain["comparisons"][0]["high"] - plain["comparisons"][0]["low"]
    )
    with pytest.raises(DataError, match="no kinds of events of this run: it has purchase"):
        arms("events=[view]")
    assert arms("min_rating=3")["arms"] == plain["arms"]  # no event is rated


def test_what_a_reader_should_know_is_said(tmp_path):
    storage = Storage(str(tmp_path))
    _, impressions = experiment_tables(
        ExperimentSpec({"a": (0.3, 0.0), "b": (0.3, 0.0)}, n_users=200)
    )
    rows = impressions.to_pylist()
    first = rows[0]
    other = {"arm": "b" if first["arm"] == "a" else "a", "impression_id": "extra"}
    rows += [first | other, rows[1] | {"user_id": None, "impression_id": "nobody"}]
    write(storage, "impressions", "x.parquet", pa.Table.from_pylist(rows, impressions.schema))
    found = reported(tmp_path, "name=home")
    text = "\n".join(found.extra["notes"])
    assert "no table of events" in text
    assert f"1 users were seen in several arms and are left out: {first['user_id']}." in text
    assert "1 impressions without a user" in text
    assert "weights sum to 0.6" in text
    assert "No evaluation of the build and ranking of" in text
    rows[5] = rows[5] | {"weight": 0.4, "build_id": "later"}
    write(storage, "impressions", "x.parquet", pa.Table.from_pylist(rows, impressions.schema))
    text = "\n".join(reported(tmp_path, "name=home").extra["notes"])
    assert "Weights changed during the experiment" in text
    assert "Several builds or rankings answered in" in text


def test_faults_are_one_line(logged, capfd):
    for words, said in {
        ("name=nosuch",): "which has those of home",
        ("name=home", "control=old"): "control='old' is no arm of this experiment: control, new",
        (): "name=None is not accepted",
    }.items():
        assert cli.main(["experiment", "report", f"run={logged}", *words]) == 2
        out, err = capfd.readouterr()
        assert (out, "Traceback" in err) == ("", False)
        assert said in err
    for word in ("window_s=0", "horizon_s=0", "outcome=clicks", "alpha=1"):
        with pytest.raises(ConfigError, match=word.partition("=")[0]):
            load(ExperimentReportConfig, [word])


def test_a_name_may_hold_anything(tmp_path):
    name = "../a b%/é"
    write_tables(Storage(str(tmp_path)), ExperimentSpec(ARMS, n_users=50), name="x")
    _, impressions = experiment_tables(ExperimentSpec(ARMS, n_users=300), name=name)
    write(Storage(str(tmp_path)), "impressions", "y.parquet", impressions)
    found = reported(tmp_path, f"name={name}")
    assert set(tmp_path.iterdir()) == {tmp_path / n for n in ("events", "impressions", "reports")}
    page = tmp_path / "reports" / (found.extra["report"].rpartition("/")[2][:-5] + ".md")
    [link] = [line for line in page.read_text().splitlines() if line.startswith("![")]
    place = urllib.parse.unquote(link.partition("](")[2].rstrip(")"))
    assert (tmp_path / "reports" / place).exists()


def planted_model(workspace, profiles, *, is_spoiled):
    model, _ = write_autoencoder(workspace, profiles)
    if is_spoiled:
        with torch.no_grad():
            model.items[:] = torch.randn(
                model.items.shape, generator=torch.Generator().manual_seed(0)
            )
    return model, plant_autoencoder(
        workspace,
        model,
        settings={"config": {"is_spoiled": is_spoiled}, "inputs": [profiles]},
        period="test",
        fitted_windows=(Window.FIT, Window.VAL),
        fitted_until=CUTOFFS["test"],
        rankings=tuple(model.available_rankings),
    )


def test_offline_metrics_of_two_builds_meet_their_online_outcomes(tmp_path):
    """Two indexes of one run, both evaluated, are the arms of two experiments."""
    workspace = Workspace(str(tmp_path))
    profiles = write_profiles(workspace)
    builds = []
    for is_spoiled in (False, True):
        model, autoencoder = planted_model(workspace, profiles, is_spoiled=is_spoiled)
        write_served(workspace, model, autoencoder, profiles)
        for via in ("model", "index"):
            evaluate(config(workspace, via=via, baselines=[]))
        builds.append(workspace.current("index").build_id)
    good, bad = builds
    assert good != bad
    for name, seed in (("spring", 1), ("autumn", 2)):
        spec = ExperimentSpec({"bad": (0.5, 0.0), "good": (0.5, 0.5)}, n_users=800, seed=seed)
        events, impressions = experiment_tables(spec, name=name)
        ids = pa.array([good if arm == "good" else bad for arm in impressions["arm"].to_pylist()])
        place = impressions.schema.get_field_index("build_id")
        write(workspace.storage, "events", f"{name}.parquet", events)
        shown = impressions.set_column(place, "build_id", ids)
        write(workspace.storage, "impressions", f"{name}.parquet", shown)
        found = reported(tmp_path, f"name={name}")
        assert not [note for note in found.extra["notes"] if "No evaluation" in note]
    reported(tmp_path, "name=spring")  # in the place of its rows
    table = pq.read_table(found.extra["table"])
    assert sorted(zip(table["experiment"].to_pylist(), table["arm"].to_pylist())) == [
        *(("autumn", "bad"), ("autumn", "good"), ("spring", "bad"), ("spring", "good")),
    ]
    metric = "index.cutoff.recall@20"
    values = dict(zip(table["arm"].to_pylist(), table[metric].to_pylist()))
    assert values["good"] > values["bad"]
    words = [f"table={found.extra['table']}", "online=conversion", "system=experiment"]
    rows = agreement.rows(load(AgreementBenchConfig, words))
    names = {row["metric"]: row for row in rows}
    assert names["index.cutoff.recall@K"]["share"] > 0.9  # of 50 items both find all
    assert names["model.cutoff.ndcg@K"]["picked"] == names["model.cutoff.ndcg@K"]["cells"]
    write_tables(workspace.storage, ExperimentSpec(ARMS, n_users=300), name="unknown")
    lacking = reported(tmp_path, "name=unknown")
    assert [note for note in lacking.extra["notes"] if "No evaluation" in note]
    again = agreement.rows(load(AgreementBenchConfig, words))
    assert again == rows  # the experiment without offline metrics is left out


def test_experiments_without_evaluations_choose_no_metric(logged):
    found = reported(logged, "name=home")
    words = [f"table={found.extra['table']}", "online=conversion", "system=experiment"]
    with pytest.raises(DataError, match="holds no offline metric"):
        agreement.rows(load(AgreementBenchConfig, words))
