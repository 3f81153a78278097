"""Requests made up from the server's own OpenAPI file: none is answered by a 500, and answers are as it says."""

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from toy_server import Server

EXAMPLES = 8  # a route
CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def schema(server: Server) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_dict(httpx.get(f"{server.url}/openapi.json").json())


def test_made_up_requests(server: Server, schema: schemathesis.BaseSchema) -> None:
    sent = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            nonlocal sent
            sent += 1
            response = case.call(base_url=server.url, timeout=60)
            case.validate_response(response, checks=CHECKS)

        ask()
    assert sent > 2 * EXAMPLES and not server.engine.active


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/images/generations", {"prompt": "a cat", "partial_images": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 3}),
    ],
)
def test_streams_are_as_it_says(server: Server, schema: schemathesis.BaseSchema, path: str, body: dict) -> None:
    case = schema[path]["POST"].Case(body={**body, "stream": True}, media_type="application/json")
    response = case.call(base_url=server.url, timeout=60)
    assert response.headers["content-type"][0].startswith("text/event-stream")
    case.validate_response(response, checks=CHECKS)
