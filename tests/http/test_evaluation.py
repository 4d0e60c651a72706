import json

import httpx
import pytest

from raysys.commands.evaluate import EvaluateConfig, report_name
from raysys.http.app import create_app
from raysys.http.evaluation import PERIODS, VIA
from raysys.search.search import Search
from tests.http.test_app import InProcess
from tests.support.runs import model_run


@pytest.fixture
def workspace(tmp_path):
    return model_run(tmp_path)[0]


def publish(workspace, period, via, methods, *, users=7, **others):
    ids = Search.open(workspace).build_ids | others
    record = {
        **{"period": period, "via": via, "protocol": "cutoff", "split": "temporal"},
        **{"build_ids": ids, "cutoffs": {"val": 1000, "test": 1050}, "evaluated": {"rows": users}},
        "methods": {name: {"metrics": metrics, "slices": {}} for name, metrics in methods.items()},
    }
    name = report_name(EvaluateConfig(period=period, via=via))
    workspace.storage.write_atomic(f"reports/{name}.json", json.dumps(record))


def evaluation(workspace, *, known=True):
    search = Search.open(workspace)
    app = create_app(lambda: search, run=workspace if known else None)
    with httpx.Client(transport=InProcess(app), base_url="http://service") as http:
        answer = http.get("/v1/evaluation").json()
    assert answer["build_id"] == search.build_id
    return answer["evaluation"]


def metric(mean):
    return {"mean": mean, "ci_low": mean - 0.01, "ci_high": mean + 0.01}


def test_reports_on_what_is_served_are_put_together(workspace):
    assert evaluation(workspace) is None
    publish(workspace, "val", "model", {"model": {"recall@20": metric(0.9)}})
    assert evaluation(workspace)["period"] == "val"
    own = {"recall@20": metric(0.3), "recall@7": metric(0.2)}
    popular = {"recall@20": metric(0.1), "rmse": {"mean": None, "ci_low": None, "ci_high": None}}
    publish(workspace, "test", "model", {"model": own, "popularity": popular})
    publish(workspace, "test", "index", {"index": own})
    publish(workspace, "test", "codes", {"codes": own}, users=8)  # of others
    told = evaluation(workspace)
    assert told["reports"] == ["evaluate-test-index", "evaluate-test-model"]
    assert (told["period"], told["users"], told["cutoffs"]["test"]) == ("test", 7, 1050)
    assert set(told["methods"]) == {"index", "model", "popularity"}
    assert told["methods"]["index"] == {"recall@20": metric(0.3)}  # headlines alone
    assert evaluation(workspace, known=False) is None


@pytest.mark.parametrize(
    ("via", "other"), [("model", "autoencoder"), ("codes", "codes"), ("index", "index")]
)
def test_reports_on_other_builds_are_not_shown(workspace, via, other):
    publish(workspace, "test", via, {via: {"recall@20": metric(0.3)}}, **{other: "another"})
    assert evaluation(workspace) is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"via": []}', '{"via": "model"}'])
def test_a_damaged_report_is_named_in_the_log(workspace, caplog, content):
    workspace.storage.write_atomic("reports/evaluate-test-index.json", content)
    assert evaluation(workspace) is None
    assert "report=evaluate-test-index" in caplog.text


def test_the_reports_that_are_looked_for_are_those_that_evaluate_writes():
    names = [report_name(EvaluateConfig(period=p, via=v)) for p in PERIODS for v in VIA]
    assert names == [f"evaluate-{period}-{via}" for period in PERIODS for via in VIA]
