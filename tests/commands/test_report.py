"""The page of a run, from real small builds in this process."""

from __future__ import annotations

import json
import shutil

import pytest

from raysys.commands.compare import CompareConfig, compare
from raysys.commands.evaluate import evaluate
from raysys.commands.report import ReportConfig, report
from raysys.errors import BuildError
from raysys.store.builds import Workspace
from raysys.store.storage import Storage
from tests.commands.test_evaluate import config, write_autoencoder, write_profiles, write_served
from tests.support.pages import checked
from tests.support.sweeps import sweep_record

PARTS = ["Data", "Against the baselines", "Coverage", "Ratings", "Search", "Other reports"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with an evaluation of model and index, a comparison and a sweep."""
    workspace = Workspace(str(tmp_path_factory.mktemp("report") / "run & <b>"))
    profiles = write_profiles(workspace)
    write_served(workspace, *write_autoencoder(workspace, profiles), profiles)
    few = {"replicates": 20, "baselines": ["popularity", "bias"]}
    found = evaluate(config(workspace, **few))
    evaluate(config(workspace, via="index", replicates=20, baselines=[]))
    compared = compare(CompareConfig(run=workspace.run, against="popularity", replicates=20))
    record = json.dumps(sweep_record(n_trials=6))
    workspace.storage.write_atomic("sweeps/ab12cd34/sweep.json", record)
    return workspace, found, compared


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(made[0].run, tmp_path / "run")
    return tmp_path / "run"


def page_of(run):
    result = report(ReportConfig(run=str(run)))
    assert result.extra["page"] == f"{run}/reports/run.html"
    return checked((run / "reports/run.html").read_text())


def test_every_report_is_a_page(made):
    workspace, found, compared = made
    for result in (found, compared):
        html = Storage("/").read(result.extra["page"].lstrip("/")).decode()
        page = checked(html)
        assert "run & <b>" in page.words or result is compared
        assert "<b>" not in html
        assert page.elements["figure"] >= 2
    record = workspace.storage.read_json("reports/compare-test-model-against-popularity.json")
    assert record["comparison"] == compared.extra["comparison"]


def test_a_run_is_one_page(run):
    page = page_of(run)
    assert [part for part in PARTS if part not in page.sections] == []
    assert "What compression and search lose" in page.words
    for link in (link for link in page.links if not link.startswith(("#", "data:"))):
        assert (run / "reports" / link).exists()  # of the sweep too: its page was not there
    assert "../sweeps/ab12cd34/report.html" in page.links
    record = json.loads((run / "reports/run.json").read_text())
    cells = Workspace(str(run)).current("profiles").record()["n_cells"]
    counted = {name: sum(counts) for name, counts in record["profile"]["counts"].items()}
    assert counted == {name: n for name, n in cells.items() if n}
    loss = record["loss"]["index"]["recall@20"]
    means = [
        record["evaluations"][f"evaluate-test-{via}"]["methods"][via]["metrics"]["recall@20"][
            "mean"
        ]
        for via in ("index", "model")
    ]
    assert loss["mean"] == pytest.approx(means[0] - means[1])
    before = (run / "reports/run.html").read_bytes()
    page_of(run)
    assert (run / "reports/run.html").read_bytes() == before


def test_what_is_not_there_is_named_with_its_command(run, tmp_path):
    for name in ("index", "codes", "reports", "sweeps"):
        shutil.rmtree(run / name)
    page = page_of(run)
    assert "Against the baselines" not in page.sections
    for words in ("raysys evaluate run=", "raysys index run=", "raysys tune run="):
        assert words in page.words
    (tmp_path / "empty").mkdir()
    assert "raysys prepare source=LOG run=" in page_of(tmp_path / "empty").words
    with pytest.raises(BuildError, match="holds no run"):
        report(ReportConfig(run=str(tmp_path / "none")))


DAMAGES = {
    "reports": {
        "reports/evaluate-test-model.json": '{"methods": {"model": 3}, "via": "model"}',
        "reports/evaluate-test-index.json": "{",
        "reports/compare-test-model-against-popularity.json": '{"comparison": []}',
        "sweeps/ab12cd34/sweep.json": '{"trials": [1], "objectives": 4}',
    },
    "files": {
        "index/current.json": "[]",
        "profiles/*/shard-00001.parquet": "PAR1",
        "reports/evaluate-test-model/*/model.parquet": "",
    },
    "manifests": {"autoencoder/*/manifest.json": "{}", "profiles/*/manifest.json": ""},
}
SAID = {
    "reports": [
        *(f"reports/{name}.json cannot be read" for name in (
            "evaluate-test-model", "evaluate-test-index", "compare-test-model-against-popularity",
        )),
        "sweeps/ab12cd34/sweep.json cannot be read",
    ],
    "files": ["index cannot be read", "profiles data cannot be read", "index loses cannot be read"],
    "manifests": ["autoencoder cannot be read", "profiles cannot be read"],
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_said_and_never_fails_the_report(run, kind):
    for place, text in DAMAGES[kind].items():
        [path] = run.glob(place)
        path.write_text(text)
    for path in run.glob("**/*.html"):
        path.unlink()
    words = page_of(run).words
    assert [said for said in SAID[kind] if said not in words] == []


def test_a_run_on_an_object_store_has_its_page_there(run, s3_bucket, tmp_path):
    url = f"{s3_bucket}/reported"
    Storage(s3_bucket).upload(run, "reported")
    cache = str(tmp_path / "cache")
    result = report(ReportConfig(run=url, cache_dir=cache))
    assert result.extra["page"] == f"{url}/reports/run.html"
    html = Storage(url).read("reports/run.html").decode()
    assert "What compression and search lose" in checked(html).words
    assert Storage(url).read("sweeps/ab12cd34/report.html").startswith(b"<!doctype html>")
