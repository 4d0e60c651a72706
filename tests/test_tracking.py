import dataclasses
import subprocess
import sys

import pytest
from mlflow import MlflowClient

from raysys.config import JobConfig
from raysys.errors import ConfigError
from raysys.store.builds import StageResult
from raysys.tracking import current, tracked, tracked_stage

AWAY = "http://me:secret@127.0.0.1:9"  # the port of `discard`: nobody listens


@dataclasses.dataclass
class Settings(JobConfig):
    """Settings of a stage that does nothing."""

    source: str = "s3://me:secret@bucket/log.csv"
    sizes: list[int] = dataclasses.field(default_factory=lambda: [1, 2])
    many: dict[str, int] = dataclasses.field(
        default_factory=lambda: {f"k{n}": n for n in range(250)}
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@pytest.fixture
def cfg(tmp_path, monkeypatch, place):
    """Return settings whose experiment has the name of the test; the place is one for all."""
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    monkeypatch.chdir(tmp_path)
    return Settings(run=str(tmp_path / tmp_path.name), tracking="mlflow")


def runs_of(place, experiment):
    """Return a client and the runs of an experiment by name."""
    client = MlflowClient(tracking_uri=place)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, {run.info.run_name: run for run in found}


def lost(caplog):
    return [message for message in caplog.messages if message.startswith("tracking lost")]


def test_a_sweep_is_a_run_and_its_trials_are_runs_below_it(cfg, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "films")
    page = tmp_path / "page.html"
    page.write_text("a page")
    with tracked(cfg, name="sweep") as sweep:
        for number in range(2):
            with tracked(cfg, name=f"trial {number}", parent=sweep) as trial:
                for epoch in (1, 2):
                    trial.metrics({"recall@20^0.2": epoch / 10, "nll": None}, step=epoch)
        sweep.artifact(str(page))
    client, runs = runs_of(f"sqlite:///{cfg.run}/mlflow.db", "films")
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    above = runs["sweep"].info.run_id
    for name in ("trial 0", "trial 1"):
        assert runs[name].data.tags["mlflow.parentRunId"] == above
        assert runs[name].data.metrics == {"recall_at_20_beta_0.2": 0.2}
        values = client.get_metric_history(runs[name].info.run_id, "recall_at_20_beta_0.2")
        assert [(value.step, value.value) for value in values] == [(1, 0.1), (2, 0.2)]
    [kept] = (tmp_path / tmp_path.name / "mlruns").glob("**/page.html")
    assert kept.read_text() == "a page"
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / tmp_path.name, page])


def test_a_stage_keeps_its_settings_metrics_builds_and_report(cfg, place, tmp_path):
    report = tmp_path / "report.json"
    report.write_text("{}")

    @tracked_stage("index")
    def index(cfg):
        current().tags({"more": "yes"})
        metrics = {"recall@20": {"mean": 0.5, "ci_low": 0.4, "ci_high": 0.6}}
        extra = {"report": str(report), "n": {"items": 3}, "kind": "ivf", "exact": True}
        return StageResult(build_ids={"index": "ab12"}, metrics=metrics, extra=extra)

    index(cfg)
    assert current().run_id is None
    client, runs = runs_of(place, tmp_path.name)
    data = runs["index"].data
    assert data.metrics == {"recall_at_20": 0.5, "n.items": 3}
    assert (data.tags["build.index"], data.tags["more"]) == ("ab12", "yes")
    assert (data.params["sizes"], data.params["many.k249"]) == ("[1, 2]", "249")
    assert data.params["source"] == "s3://bucket/log.csv"
    assert "run" not in data.params
    assert [file.path for file in client.list_artifacts(runs["index"].info.run_id)] == [report.name]


@pytest.mark.parametrize(("error", "status"), [(OSError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_what_did_not_end_well_says_so(cfg, place, tmp_path, error, status):
    with pytest.raises(error), tracked(cfg, name="train"):
        raise error
    _, runs = runs_of(place, tmp_path.name)
    assert runs["train"].info.status == status


def test_a_server_that_is_away_costs_a_warning(cfg, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    with tracked(cfg, name="pipeline"), tracked(cfg, name="train") as record:
        record.metrics({"loss": 1.0})
    [message] = lost(caplog)
    assert message.startswith("tracking lost uri=http://127.0.0.1:9 reason=")
    assert "secret" not in caplog.text


def test_a_server_that_goes_away_is_asked_no_more(cfg, place, monkeypatch, caplog, tmp_path):
    def fails(*_, **__):
        asked.append(1)
        raise OSError("no route to http://me:secret@host")

    asked = []
    with tracked(cfg, name="train") as record:
        monkeypatch.setattr(MlflowClient, "log_batch", fails)
        record.metrics({"loss": 1.0}, step=1)
        record.metrics({"loss": 0.5}, step=2)
        with tracked(cfg, name="below") as below:
            below.artifact("/nowhere")
    assert len(asked) == 1
    [message] = lost(caplog)
    assert message.endswith("no route to http://host")
    assert set(runs_of(place, tmp_path.name)[1]) == {"train"}


def test_a_package_that_is_missing_is_said_before_any_work(cfg, monkeypatch):
    worked = []
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'raysys\[tracking\]'"):
        tracked_stage("train")(worked.append)(cfg)
    assert worked == []


@pytest.mark.parametrize(
    ("uri", "changed", "message"),
    [
        ("", {"tracking": "wandb"}, "tracking='wandb' is not accepted: expected mlflow"),
        ("", {"run": "s3://me:secret@bucket/r"}, "needs MLFLOW_TRACKING_URI where run=s3://bucket"),
        ("carrier://me:secret@pigeon", {}, "cannot write to carrier://pigeon: "),
        ("sqlite:////dev/null/mlflow.db", {}, "cannot write to sqlite:////dev/null/mlflow.db: "),
    ],
)
def test_a_place_that_cannot_be_is_one_line(cfg, monkeypatch, uri, changed, message):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with (
        pytest.raises(ConfigError, match=message) as caught,
        tracked(dataclasses.replace(cfg, **changed), name="train"),
    ):
        pass
    assert "secret" not in str(caught.value)


def test_nothing_is_imported_or_kept_unless_asked(tmp_path):
    code = """
import sys
from raysys.config import JobConfig
from raysys.tracking import tracked
with tracked(JobConfig(run=sys.argv[1]), name="train") as record:
    record.metrics({"loss": 1.0})
    record.artifact("/nowhere")
assert "mlflow" not in sys.modules
"""
    run = tmp_path / "run"
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, timeout=60)
    assert not run.exists()
