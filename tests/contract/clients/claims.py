"""What each client is shown to do: every claim stands on the test that makes it, and makes docs/compatibility.md.

`python -m tests.contract.clients.claims` writes the table anew.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "compatibility.md"
CLIENTS = (
    "openai (Python)",
    "openai (Node)",
    "anthropic",
    "azure-ai-inference",
    "langchain-openai",
    "plain HTTP",
)
MODULES = ("test_openai", "test_node", "test_anthropic", "test_azure", "test_langchain", "test_http")
ROUTES = {
    "/v1/chat/completions": "input, cached_input, output",
    "/v1/chat/completions, streamed": "input, cached_input, output",
    "/v1/completions": "input, cached_input, output",
    "/v1/completions, streamed": "input, cached_input, output",
    "/v1/embeddings": "input",
    "/v1/responses": "input, cached_input, output",
    "/v1/responses, streamed": "input, cached_input, output",
    "/v1/messages": "input, cached_input, output",
    "/v1/messages, streamed": "input, cached_input, output",
    "/v1/messages/count_tokens": "nothing",
    "/v1/rerank": "input",
    "/v1/score": "input",
    "/v1/audio/transcriptions": "audio_second",
    "/v1/audio/transcriptions, streamed": "audio_second",
    "/v1/models": "nothing",
    "/tokenize, /v1/tokenize": "nothing",
    "/endpoints/{name}/info": "nothing",
    "/endpoints/{name}/chat/completions": "input, cached_input, output",
    "/endpoints/{name}/chat/completions, streamed": "input, cached_input, output",
    "/endpoints/{name}/completions": "input, cached_input, output",
    "/endpoints/{name}/embeddings": "input",
}
HEAD = """# Routes and clients

Made by `tests/contract/clients`: a mark stands where a test calls that route with that client, unmodified, through a
real gateway, and checks the answer and its usage event. A test fails when this page is stale;
`python -m tests.contract.clients.claims` writes it.

Every `/v1` route is also below `/endpoints/{name}/v1`, for that endpoint only. Routes that an engine has and this
table has not are 404 here. Which of them a model can do follows from its task:

| task | operations |
|---|---|
"""
NOTES = """
## Where an API is narrower here

- `/v1/responses`: nothing is stored, so `background`, `previous_response_id`, `conversation` and `prompt` are refused
  (400 with `param`), and there are no routes to retrieve or cancel a response.
- `/v1/audio/transcriptions`: `response_format` is `json`, `text` or `verbose_json`. With `stream` the events are
  OpenAI's, sent when the engine is done: the engine's own stream does not tell the audio's length, which is billed.
- Azure's API: the endpoint names the model, `model` in the body is not looked at. `encoding_format` is `float` or
  `base64`, and `input_type` is `text`; others are 422 `parameter_not_supported` with `detail.loc`.
  `/images/embeddings` is not served.
- `Idempotency-Key` works on every route that is billed. Outcomes are kept in the gateway's memory for 24 hours (at most
  10,000, 64 MiB, 4 MiB each), never on disk; a restart forgets them. A key in flight or with another body is 409.
"""

_Test = TypeVar("_Test", bound=Callable[..., object])
claimed: dict[str, set[str]] = {}


def serves(client: str, *routes: str) -> Callable[[_Test], _Test]:
    """Mark a test as the proof that `client` works with `routes`."""
    assert client in CLIENTS, client
    for route in routes:
        assert route in ROUTES, route
        claimed.setdefault(route, set()).add(client)

    def unchanged(test: _Test) -> _Test:
        return test

    return unchanged


def document() -> str:
    """The page as the tests have it."""
    from functions.gateway.reading import OPERATIONS_OF_TASK

    for name in MODULES:
        importlib.import_module(f"tests.contract.clients.{name}")
    lines = [f"| {task} | {', '.join(names)} |" for task, names in OPERATIONS_OF_TASK.items()]
    lines += ["", f"| route | billed by | {' | '.join(CLIENTS)} |", "|---" * (len(CLIENTS) + 2) + "|"]
    for route, billed in ROUTES.items():
        marks = ["✓" if client in claimed.get(route, ()) else " " for client in CLIENTS]
        lines.append(f"| `{route}` | {billed} | {' | '.join(marks)} |")
    return HEAD + "\n".join(lines) + "\n" + NOTES


if __name__ == "__main__":
    # Run as a script this module is another one than the one that the tests mark.
    DOCUMENT.write_text(importlib.import_module("tests.contract.clients.claims").document())
