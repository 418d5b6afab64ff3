"""schemathesis: thousands of requests made from our OpenAPI document, right and wrong ones; answers held against it."""

from __future__ import annotations

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis import checks

# A 5xx, a status outside of the document, an answer that is not as described, a method that works but should not.
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
]
# The same requests in every run: what is found can be found again.
SETTINGS = hypothesis.settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)
# The bundled model would talk to the end of its context, again and again.
LIMITS = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_answers_are_those_of_the_document(server, mode):
    schema = schemathesis.openapi.from_url(f"{server}/openapi.json")
    failures = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is schemathesis.GenerationMode.NEGATIVE and operation.body is None:
            continue

        @SETTINGS
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            if isinstance(case.body, dict) and case.path in LIMITS:
                case.body.setdefault(LIMITS[case.path], 4)
            case.call_and_validate(checks=CHECKS, timeout=60)

        try:
            ask()
        except hypothesis.errors.Unsatisfiable:
            # Nothing can be wrong about a route that takes nothing.
            continue
        except Exception as error:
            failures.append(f"{operation.label}: {error!r}"[:2000])
    assert not failures, "\n\n".join(failures)


def test_the_server_is_well_afterwards(server):
    assert httpx.get(f"{server}/ready").status_code == 200
