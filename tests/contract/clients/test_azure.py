"""The official Python client of Azure's Model Inference API, against an endpoint's own URL."""

from typing import Any

import httpx
import pytest
from azure.ai.inference import ChatCompletionsClient, EmbeddingsClient
from azure.ai.inference.models import SystemMessage, UserMessage
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError

from metering.model import Usage
from tests.contract.clients.claims import serves
from tests.contract.clients.values import cost, only_event
from tests.gateway_fixture import ENDPOINT, ENDPOINT_KEY, MODEL, PROJECT_KEY, RunningGateway
from tests.mock_engine import Behaviour, MockEngine

CLIENT = "azure-ai-inference"
TALK = [SystemMessage("be brief"), UserMessage("one two three")]
VERSION = {"api-version": "2024-05-01-preview"}


def chat_client(
    gateway: RunningGateway, key: str = ENDPOINT_KEY, endpoint: str = ENDPOINT
) -> ChatCompletionsClient:
    url = f"{gateway.url}/endpoints/{endpoint}"
    return ChatCompletionsClient(endpoint=url, credential=AzureKeyCredential(key), retry_total=0)


def post(gateway: RunningGateway, path: str, body: Any, **headers: str) -> httpx.Response:
    named = {"api-key": ENDPOINT_KEY} | {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{gateway.url}/endpoints/{ENDPOINT}{path}"
    return httpx.post(url, json=body, headers=named, params=VERSION)


@serves(CLIENT, "/endpoints/{name}/info")
def test_info(gateway: RunningGateway) -> None:
    with chat_client(gateway) as client:
        info = client.get_model_info()
    assert (info.model_name, info.model_provider_name) == ("mock-chat", "acme")
    assert info.model_type == "chat_completion"
    assert not gateway.journal.events


@serves(CLIENT, "/endpoints/{name}/chat/completions")
def test_chat(gateway: RunningGateway, engine: MockEngine) -> None:
    engine.default = Behaviour(tokens=3, cached_tokens=1)
    with chat_client(gateway) as client:
        answer = client.complete(messages=TALK, temperature=0.5, model="whatever")
    assert answer.choices[0].message.content == "tok0 tok1 tok2"
    assert answer.usage.completion_tokens == 3
    only_event(gateway, "chat.completions", Usage(5, 1, 3))
    seen = engine.seen[0].body
    assert (seen["model"], seen["temperature"]) == ("mock", 0.5)


@serves(CLIENT, "/endpoints/{name}/chat/completions, streamed")
def test_streamed_chat(gateway: RunningGateway, engine: MockEngine) -> None:
    engine.default = Behaviour(tokens=3)
    with chat_client(gateway) as client:
        updates = list(client.complete(messages=TALK, stream=True))
        parts = [update.choices[0].delta.content or "" for update in updates if update.choices]
        assert "".join(parts) == "tok0 tok1 tok2 "
        only_event(gateway, "chat.completions", Usage(5, 0, 3), stream=True)
        extras = {"stream_options": {"include_usage": True}}  # sent with extra-parameters: pass-through
        *_, last = client.complete(messages=TALK, stream=True, model_extras=extras)
        assert last.usage is not None and last.usage["cost_usd"] == cost(Usage(5, 0, 3))


@serves(CLIENT, "/endpoints/{name}/embeddings")
def test_embeddings(gateway: RunningGateway) -> None:
    url = f"{gateway.url}/endpoints/my-embedder"
    with EmbeddingsClient(endpoint=url, credential=AzureKeyCredential(PROJECT_KEY)) as client:
        answer = client.embed(input=["one two", "three"])
        assert len(answer.data) == 2
        only_event(gateway, "embeddings", Usage(3))
        assert client.get_model_info().model_type == "embeddings"
        for wrong in ({"encoding_format": "int8"}, {"input_type": "query"}):
            with pytest.raises(HttpResponseError) as caught:
                client.embed(input=["one"], **wrong)
            assert caught.value.status_code == 422
            assert caught.value.response is not None
            assert caught.value.response.headers["x-ms-error-code"] == "parameter_not_supported"
            detail = caught.value.response.json()["detail"]
            assert detail == {"loc": ["body", *wrong], "input": next(iter(wrong.values()))}


@serves("plain HTTP", "/endpoints/{name}/completions")
def test_completions(gateway: RunningGateway) -> None:
    response = post(gateway, "/completions", {"prompt": "one two", "max_tokens": 2})
    assert response.json()["choices"][0]["text"] == "tok0 tok1"
    only_event(gateway, "completions", Usage(2, 0, 2))


def test_extra_parameters(gateway: RunningGateway, engine: MockEngine) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "safe_prompt": True, "top_k": 3}
    for mode, status, left in (
        ("", 400, None),
        ("error", 400, None),
        ("drop", 200, set()),
        ("ignore", 200, set()),
        ("pass-through", 200, {"safe_prompt", "top_k"}),
        ("allow?", 400, None),
    ):
        response = post(gateway, "/chat/completions", body, **({"extra_parameters": mode} if mode else {}))
        assert response.status_code == status, mode
        if left is not None:
            assert {"safe_prompt", "top_k"} & set(engine.seen[-1].body) == left
            continue
        assert (
            response.headers["x-ms-error-code"] == response.json()["code"] == response.json()["error"]["code"]
        )
        assert response.json()["param"] == ("safe_prompt" if mode in ("", "error") else "extra-parameters")
    with chat_client(gateway) as client:
        client.complete(messages=TALK, model_extras={"safe_prompt": True})
    assert engine.seen[-1].body["safe_prompt"] is True


def test_errors_are_azures(gateway: RunningGateway, engine: MockEngine) -> None:
    with pytest.raises(ClientAuthenticationError), chat_client(gateway, "wrong") as client:
        client.complete(messages=TALK)
    with (
        pytest.raises(ResourceNotFoundError) as caught,
        chat_client(gateway, PROJECT_KEY, "my-embedder") as client,
    ):
        client.complete(messages=TALK)
    assert caught.value.response is not None and caught.value.response.headers["x-ms-error-code"]
    url = f"{gateway.url}/endpoints/{ENDPOINT}"
    for method, path in (("POST", "/chat/completions"), ("GET", "/info")):
        for params in ({}, {"api-version": "latest"}):
            response = httpx.request(
                method, url + path, headers={"api-key": ENDPOINT_KEY}, params=params, json={}
            )
            assert (response.status_code, response.json()["param"]) == (400, "api-version")
    assert httpx.get(url + "/info", params=VERSION).status_code == 401
    assert not engine.seen
    refusal = {
        "message": "response_format is not supported",
        "type": "Bad",
        "param": "response_format",
        "code": 400,
    }
    engine.default = Behaviour(status=400, error={"error": refusal})
    response = post(
        gateway, "/chat/completions", {"messages": [], "response_format": {"type": "json_object"}}
    )
    assert (response.status_code, response.headers["x-ms-error-code"]) == (422, "parameter_not_supported")
    assert response.json()["detail"]["loc"] == ["body", "response_format"]


def test_ms_headers(gateway: RunningGateway) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    response = post(gateway, "/chat/completions", body, x_ms_client_request_id="a" * 50)
    assert response.headers["x-ms-client-request-id"] == "a" * 40
    assert response.headers["x-ms-request-id"] == response.headers["x-request-id"]
    response = post(gateway, "/chat/completions", body, x_ms_client_request_id="a b<c>")
    assert "x-ms-client-request-id" not in response.headers
    assert MODEL not in response.headers.values()
