"""Thousands of requests, drawn from the OpenAPI document, at a service that runs.

    python tests/long/http_cases.py url=http://127.0.0.1:8000 examples=400

The service says what it takes; every answer has to be one that the document names, no request may
end in 500, 502 or 504, 503 comes with Retry-After, and what the document forbids is refused.
`examples` is for each route, of what it allows and of what it forbids.
"""

import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.http.test_openapi import CHECKED

NO_HTTP = "Invalid HTTP request received."  # of the server: bytes that no app ever sees


def main(url, examples, key):
    load_all_checks()
    checks = [CHECKS.get_one(name) for name in CHECKED]
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    asked, faults = Counter(), []
    how = settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=[*HealthCheck]
    )
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=headers)
    for operation in schema.get_all_operations():
        for mode in GenerationMode:
            case = operation.ok().as_strategy(generation_mode=mode)

            @how
            @given(case=case)
            def ask(case):
                answer = case.call(headers=headers)
                asked[answer.status_code] += 1
                if answer.status_code == 400 and answer.text == NO_HTTP:
                    return
                assert answer.status_code not in (500, 502, 504), answer.text[:300]
                assert answer.status_code != 503 or "retry-after" in answer.headers
                case.validate_response(answer, checks=checks)

            try:
                with suppress(Unsatisfiable):
                    ask()
            except (Exception, BaseExceptionGroup) as error:
                faults.append(f"{operation.ok().label} {mode.value}: {str(error)[:600]}")
        print(operation.ok().label, sum(asked.values()), flush=True)
    print(dict(sorted(asked.items())))
    for fault in faults:
        print(fault)
    return bool(faults)


if __name__ == "__main__":
    given_words = dict(word.split("=", 1) for word in sys.argv[1:])
    sys.exit(
        main(given_words["url"], int(given_words.get("examples", 400)), given_words.get("key"))
    )
