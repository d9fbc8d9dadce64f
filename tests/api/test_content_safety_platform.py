"""The content check on the whole platform: the switch of an endpoint, by command and file, and that no text is kept."""

import json
from pathlib import Path

import httpx

from tests.mock_engine import MockEngine, wait_until
from tests.moderation_service import moderation
from tests.platform import external_model, running

SECRET = "hippopotamus"


def test_the_switch_of_an_endpoint(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with (
        moderation(hippopotamus="animals") as service,
        MockEngine() as engine,
        running(home, FAREBOX_CONTENT_SAFETY_URL=service.url, FAREBOX_LOG_LEVEL="DEBUG") as platform,
    ):
        client = platform.client()
        client.organizations.create("acme")
        client.projects.create("web", organization="acme")
        client.models.add(external_model(engine.url))
        create = ("serverless-endpoint", "create")
        made = json.loads(platform.cli(*create, "my-chat", "--model", "acme/mock-chat", "-o", "json").stdout)
        assert made["content_safety"] == "enabled"
        auth = {"authorization": f"Bearer {client.serverless_endpoints.get_keys('my-chat')['primaryKey']}"}

        def call() -> int:
            body = {"messages": [{"role": "user", "content": SECRET}]}
            url = made["openai_base_url"] + "/chat/completions"
            return httpx.post(url, json=body, headers=auth, timeout=20).status_code

        assert [call(), call()] == [400, 400]
        platform.cli("serverless-endpoint", "update", "my-chat", "--content-safety", "disabled")
        wait_until(lambda: call() == 200)
        assert client.serverless_endpoints.get("my-chat")["content_safety"] == "disabled"
        assert client.serverless_endpoints.update("my-chat", tags={"a": "b"})["tags"] == {"a": "b"}
        platform.cli("serverless-endpoint", "update", "my-chat", "--no-tags")
        assert client.serverless_endpoints.get("my-chat")["tags"] == {}
        client.serverless_endpoints.update("my-chat", content_safety="enabled")
        wait_until(lambda: call() == 400)
        actions = [each["action"] for each in client.audit.list()["data"]]
        assert actions.count("endpoint.content_safety") == 2
        file = tmp_path / "e.yaml"
        file.write_text(
            "name: other\nmodel: acme/mock-chat\ncontent_safety: {content_safety_status: disabled}\n"
        )
        other = json.loads(platform.cli(*create, "-f", str(file), "-o", "json").stdout)
        assert other["content_safety"] == "disabled"
        file.write_text("name: third\nmodel: acme/mock-chat\ncontent_safety: maybe\n")
        refused = platform.cli(*create, "-f", str(file), ok=False)
        assert "content_safety: expected enabled or disabled, got 'maybe'" in refused.stderr
    for path in home.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_without_a_service_it_is_said(tmp_path: Path) -> None:
    with MockEngine() as engine, running(tmp_path / "home") as platform:
        client = platform.client()
        client.organizations.create("acme")
        client.projects.create("web", organization="acme")
        client.models.add(external_model(engine.url))
        made = client.serverless_endpoints.create("my-chat", model="acme/mock-chat")
        assert made["content_safety"] == "not configured"
