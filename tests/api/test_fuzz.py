"""Every operation of both OpenAPI documents, with good and bad input made from the documents themselves.

Whatever comes in: an answer, in time, with a documented status, in the documented form; no 5xx of our making,
and nothing the model server was sent is missing on the ledger.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from tests.fuzzing import ENDPOINT, MODEL, TASKS, Target, running_target

EXAMPLES = int(
    os.environ.get("FUZZ_EXAMPLES", "10")
)  # per operation and mode; more by hand when looking for something
TIMEOUT_S = 10.0
_ERROR_MEMBERS = {"message", "type", "param", "code"}
_PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code", "request_id"}

Judge = Callable[[httpx.Response], str]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with running_target(tmp_path_factory.mktemp("home")) as target:
        yield target


@pytest.mark.timeout(180)
def test_the_gateway(target: Target) -> None:
    with httpx.Client(
        base_url=target.url, timeout=TIMEOUT_S, headers={"authorization": f"Bearer {target.key}"}
    ) as client:
        calls = fuzz(client, client.get("/openapi.json").json(), _judge_model_route)
    assert calls > 100
    assert target.check_ledger() > 20  # so that some did get through


@pytest.mark.timeout(180)
def test_the_console(target: Target) -> None:
    key = target.platform.admin_key
    with httpx.Client(
        base_url=target.url, timeout=TIMEOUT_S, headers={"authorization": f"Bearer {key}"}
    ) as client:
        calls = fuzz(client, client.get("/api/openapi.json").json(), _judge_problem)
        assert client.get("/api/organizations").status_code == 200
    assert calls > 100
    target.check_ledger()


def fuzz(client: httpx.Client, document: dict[str, Any], judge: Judge) -> int:
    """Try every operation; AssertionError lists all that was wrong, with an example of each."""
    found: dict[str, str] = {}
    calls = 0

    def attempt(case: Any, usual: bool, status_words: set[str]) -> None:
        nonlocal calls
        calls += 1
        request = build(client, case, usual=usual)
        if request is None:
            return
        wrong = _send(client, request, status_words, judge)
        if wrong:
            name = f"{case.operation.method.upper()} {case.operation.path}: {wrong}"
            found.setdefault(name, f"{request.method} {request.url} {request.read()[:600]!r}")

    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()
        documented = set(operation.definition.raw["responses"])
        for mode in schemathesis.GenerationMode:
            _run(operation, mode, attempt, documented)
    assert not found, "\n".join(f"{name}\n    {example}" for name, example in sorted(found.items()))
    return calls


def _run(operation: Any, mode: Any, attempt: Callable[..., None], documented: set[str]) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode), usual=st.booleans())
    def one(case: Any, usual: bool) -> None:
        attempt(case, usual, documented)

    with contextlib.suppress(Unsatisfiable):  # nothing that could be sent to it is wrong
        one()


def build(client: httpx.Client, case: Any, *, usual: bool) -> httpx.Request | None:
    """The request of a case; `usual`: with names that exist, so that not all ends at the first lookup."""
    path = case.operation.path
    if usual:
        model, endpoint = _names(path)
        for name in ("endpoint_name", "name"):
            if name in (case.path_parameters or {}):
                case.path_parameters[name] = endpoint
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = model
        if case.operation.method == "delete":
            return None  # the next operations need it
    arguments = case.as_transport_kwargs(base_url=str(client.base_url))
    headers = {k: v for k, v in arguments["headers"].items() if k.lower() not in _NOT_THEIRS}
    names = ("method", "url", "params", "json", "data", "files")
    try:
        made = requests.Request(**{name: arguments.get(name) for name in names}, headers=headers).prepare()
        return client.build_request(made.method, made.url, headers=dict(made.headers), content=made.body)
    except (requests.RequestException, httpx.InvalidURL, UnicodeError, ValueError, TypeError):
        return None  # the client would not send it; `test_raw_http` does


_NOT_THEIRS = ("authorization", "api-key", "x-api-key", "user-agent", "host", "content-length")


def _names(path: str) -> tuple[str, str]:
    if "transcriptions" in path:
        return TASKS["transcription"]
    if path.endswith(("embeddings", "rerank", "score")):
        return TASKS["embedding"]
    return MODEL, ENDPOINT


def _send(client: httpx.Client, request: httpx.Request, documented: set[str], judge: Judge) -> str:
    try:
        response = client.send(request)
    except httpx.LocalProtocolError:
        return ""  # the client would not send it
    except httpx.TransportError as error:
        return f"no answer: {error!r}"
    if response.status_code >= 500:
        return f"{response.status_code}: {_said(response)}"
    if str(response.status_code) not in documented and "default" not in documented:
        return f"status {response.status_code} is not documented: {_said(response)}"
    if "x-request-id" not in response.headers:
        return f"{response.status_code} has no x-request-id"
    return "" if response.status_code < 400 else judge(response)


def _said(response: httpx.Response) -> str:
    """The answer without what differs from one to the next."""
    return re.sub(r"req_\w+", "req_…", response.text)[:300]


def _judge_model_route(response: httpx.Response) -> str:
    if not response.request.url.path.startswith(("/v1/", "/endpoints/")):
        return ""
    try:
        body = json.loads(response.content)
    except ValueError:
        return f"{response.status_code} is not JSON: {response.text[:200]}"
    if not response.headers["content-type"].startswith("application/json"):
        return f"{response.status_code} is {response.headers['content-type']}"
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not error.get("message"):
        return f"{response.status_code} is no error document: {body}"
    path = response.request.url.path
    if "/v1/messages" in path:
        return "" if "type" in error and body.get("type") == "error" else f"not Anthropic's error: {body}"
    if "/v1/" not in path:
        return "" if "code" in error else f"not Azure's error: {body}"
    return "" if error.keys() >= _ERROR_MEMBERS else f"members are missing: {body}"


def _judge_problem(response: httpx.Response) -> str:
    if response.request.url.path.startswith("/v1/"):  # OpenAI's own API for operators
        return _judge_model_route(response)
    if response.headers["content-type"] != "application/problem+json":
        return f"{response.status_code} is {response.headers['content-type']}"
    body = response.json()
    if not body.keys() >= _PROBLEM_MEMBERS or body["status"] != response.status_code:
        return f"not a problem document: {body}"
    return ""
