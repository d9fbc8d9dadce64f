"""The official clients, Python and Node, unmodified, against a whole platform with a scripted model server."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests import platform as platforms
from tests.mock_engine import MockEngine

NODE_PROJECT = Path(__file__).parent / "node"
MODEL = "acme/mock-chat"


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with MockEngine() as engine:
        yield engine


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, engine: MockEngine) -> Iterator[platforms.Platform]:
    with platforms.running(tmp_path_factory.mktemp("home")) as platform:
        with platform.client() as client:
            client.models.add(platforms.external_model(engine.url))
            client.organizations.create("acme")
            client.projects.create("web", organization="acme")
            client.serverless_endpoints.create("my-chat", model=MODEL, project="web")
        yield platform


@pytest.fixture(scope="module")
def key(platform: platforms.Platform) -> str:
    with platform.client() as client:
        return client.keys.create(project="web", name="laptop")["key"]


def test_python_lists_chats_streams_and_embeds(platform: platforms.Platform, key: str) -> None:
    with openai.OpenAI(base_url=platform.url + "/v1", api_key=key, max_retries=0) as ai:
        assert {m.id for m in ai.models.list()} >= {MODEL, "my-chat"}
        assert ai.models.retrieve("my-chat").id == "my-chat"
        plain = ai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "one two three"}]
        )
        assert plain.choices[0].message.content
        assert plain.usage is not None and plain.usage.completion_tokens == 4
        stream = ai.chat.completions.create(
            model="my-chat",
            messages=[{"role": "user", "content": "one two three"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 4
        assert all(chunk.usage is None for chunk in chunks[:-1])
        completion = ai.completions.create(model="my-chat", prompt="one two")
        assert completion.choices[0].text


def test_python_with_the_endpoints_own_key_and_url(platform: platforms.Platform) -> None:
    with platform.client() as client:
        endpoint = client.serverless_endpoints.get("my-chat")
        keys = client.serverless_endpoints.get_keys("my-chat")
    for key in keys.values():
        with openai.OpenAI(base_url=endpoint["openai_base_url"], api_key=str(key), max_retries=0) as ai:
            answer = ai.chat.completions.create(model="my-chat", messages=[{"role": "user", "content": "hi"}])
            assert answer.usage is not None and answer._request_id is not None
            with platform.client() as client:
                receipt = client.receipts.get(answer._request_id)
            assert receipt["usage"]["output"] == answer.usage.completion_tokens


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with its one dependency installed, from the lock file."""
    folder = tmp_path_factory.mktemp("node")
    shutil.copytree(NODE_PROJECT, folder, dirs_exist_ok=True)
    subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True, capture_output=True, timeout=110
    )
    return folder


def run_node(folder: Path, base_url: str, key: str, model: str) -> dict[str, Any]:
    command = ["node", "client.mjs", base_url, key, model]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


def test_node_lists_chats_and_streams(platform: platforms.Platform, key: str, node_client: Path) -> None:
    seen = run_node(node_client, platform.url + "/v1", key, "my-chat")
    assert {MODEL, "my-chat"} <= set(seen["models"])
    assert seen["plain"]["text"] and seen["plain"]["usage"]["completion_tokens"] == 4
    assert seen["requestHeader"].startswith("req_")
    assert seen["stream"]["text"] and seen["stream"]["usage"]["completion_tokens"] == 4
    assert seen["refused"] == {"status": 401, "code": "invalid_api_key", "name": "AuthenticationError"}
    with platform.client() as client:
        assert client.receipts.get(seen["requestHeader"])["usage"]["output"] == 4
