"""The OpenAPI document: committed, with examples that are answered, and kept by the service."""

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from raysys.events.feed import Feed
from raysys.http.app import create_app
from raysys.http.openapi import text
from raysys.http.service import ServiceOptions
from raysys.http.wire import Scenario
from raysys.search.search import Search
from tests.http.test_app import InProcess
from tests.support.runs import model_run

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"


def test_the_committed_document_is_that_of_the_service():
    assert DOCUMENT.read_text() == text(), "python -m raysys.http.openapi docs/openapi.json"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    workspace, _ = model_run(tmp_path_factory.mktemp("run"))
    search, feed = Search.open(workspace), Feed(workspace.storage)
    home = Scenario(k=3, ranking="like")
    return create_app(lambda: search, ServiceOptions(scenarios={"home": home}), feed=feed)


UNKNOWN = ("unknown_user", "unknown_item", "bad_query")  # of this build


def test_every_example_is_a_request_that_is_answered_or_unknown(app):
    document = json.loads(DOCUMENT.read_text())
    n_examples = 0
    with httpx.Client(transport=InProcess(app), base_url="http://service") as http:
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                content = operation.get("requestBody", {}).get("content", {})
                for given in content.values():
                    name = json.dumps(given["schema"]).rpartition("/")[2].partition('"')[0]
                    for example in document["components"]["schemas"][name]["examples"]:
                        answer = http.request(method, path, json=example)
                        kind = answer.json().get("error", {}).get("type")
                        assert kind in (
                            None,
                            "unknown_user",
                            "unknown_item",
                            "bad_query",
                            "no_keys",
                        )
                        n_examples += 1
    assert n_examples >= 8


CHECKED = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_schema_conformance", "response_headers_conformance", "unsupported_method"),
    "negative_data_rejection",
)


@pytest.mark.parametrize("mode", GenerationMode)
def test_requests_that_the_document_allows_and_forbids(app, mode):
    load_all_checks()
    checks = [CHECKS.get_one(name) for name in CHECKED]
    asked = Counter()
    for operation in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
        strategy = operation.ok().as_strategy(generation_mode=mode)

        @settings(max_examples=15, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=strategy)
        def ask(case):
            answer = case.call_and_validate(checks=checks)
            asked[answer.status_code] += 1

        with suppress(Unsatisfiable):  # nothing that it may not be asked
            ask()
    assert asked[200] > 20 or mode is GenerationMode.NEGATIVE
    assert asked[422] > 20
    assert not {500, 502, 504} & set(asked)
