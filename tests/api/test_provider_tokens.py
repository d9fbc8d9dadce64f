"""`auth_mode: aad_token` through a whole platform: an identity provider's tokens open endpoints, others manage."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import platform as platforms
from tests.mock_engine import Behaviour, MockEngine
from tests.oidc_provider import CALLS, CONTROL, Provider, provider

CHAT = {"model": "shop", "messages": [{"role": "user", "content": "Hello"}]}
SCRIPT = """
def init():
    pass
def run(data):
    return "answered"
"""
BLUE = """
name: blue
endpoint_name: shop
code_configuration: {code: code, scoring_script: score.py}
environment: {conda_file: {dependencies: [python=3.11, {pip: []}]}}
instance_type: Standard_DS3_v2
instance_count: 1
readiness_probe: {initial_delay: 1, period: 1}
"""
MODEL = """
id: acme/chat
task: chat
context_length: 4096
engine: {kind: external, url: "URL"}
prices: {input: "1.00", output: "2.00", endpoint_minute: "0.001"}
"""


@dataclass
class There:
    """The platform with an endpoint `shop` that takes tokens, and the provider of these."""

    platform: platforms.Platform
    provider: Provider
    key: str  # of the project

    def manage(self, token: str, path: str = "/api/online-endpoints") -> httpx.Response:
        return httpx.get(self.platform.url + path, headers={"authorization": f"Bearer {token}"})

    def call(self, token: str, endpoint: str = "shop") -> httpx.Response:
        url = f"{self.platform.url}/endpoints/{endpoint}/score"
        return httpx.post(url, json={}, headers={"authorization": f"Bearer {token}"}, timeout=30)

    def receipts(self) -> list[dict[str, Any]]:
        return list(self.manage(self.platform.admin_key, "/api/receipts?limit=100").json()["data"])


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[There]:
    folder: Path = tmp_path_factory.mktemp("tokens")
    with provider() as one, MockEngine() as engine:
        engine.default = Behaviour(tokens=3, prompt_tokens=7)
        settings = {
            "FAREBOX_OIDC_ISSUER": one.issuer,
            "FAREBOX_OIDC_AUDIENCE": CALLS,
            "FAREBOX_OIDC_CONTROL_AUDIENCE": CONTROL,
        }
        with platforms.running(folder / "home", **settings) as platform:
            (folder / "code").mkdir()
            (folder / "code" / "score.py").write_text(SCRIPT)
            (folder / "chat.yaml").write_text(MODEL.replace("URL", engine.url))
            (folder / "endpoint.yaml").write_text("name: shop\nauth_mode: aad_token\n")
            (folder / "blue.yaml").write_text(BLUE)
            platform.cli("model", "add", "-f", str(folder / "chat.yaml"))
            platform.cli("org", "create", "acme")
            platform.cli("project", "create", "web", "--org", "acme")
            project = ("--project", "acme/web")
            platform.cli("online-endpoint", "create", "-f", str(folder / "endpoint.yaml"), *project)
            platform.cli("online-deployment", "create", "-f", str(folder / "blue.yaml"), "--all-traffic")
            key = platform.client().keys.create(name="mine", project="acme/web")
            yield There(platform, one, str(key["key"]))


def test_a_role_and_the_right_audience_open_the_endpoint(there: There) -> None:
    for role in ("farebox.score", "farebox.score.shop"):
        for _ in range(3):  # the later ones from memory
            answer = there.call(there.provider.token(CALLS, role))
            assert answer.status_code == 200, answer.text
    callers = {row["key_id"] for row in there.receipts()}
    assert len(callers) == 1 and next(iter(callers)).startswith("sub_")


@pytest.mark.parametrize(
    ("audience", "roles", "status", "code"),
    [
        (CONTROL, ("farebox.score", "farebox.admin"), 401, "wrong_audience"),
        (CALLS, (), 403, "missing_role"),
        (CALLS, ("farebox.score.other", "farebox.admin"), 403, "missing_role"),
    ],
)
def test_who_may_not_call(
    there: There, audience: str, roles: tuple[str, ...], status: int, code: str
) -> None:
    answer = there.call(there.provider.token(audience, *roles))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


def test_a_token_opens_nothing_but_endpoints_of_its_mode(there: There) -> None:
    token = there.provider.token(CALLS, "farebox.score")
    there.platform.cli(
        "serverless-endpoint", "create", "plain", "--model", "acme/chat", "--project", "acme/web"
    )
    assert there.call(token, "plain").status_code == 404
    assert there.call(token, "nowhere").status_code == 404
    without = httpx.post(
        f"{there.platform.url}/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {token}"}
    )
    assert (without.status_code, without.json()["error"]["code"]) == (401, "token_without_endpoint")


def test_keys_do_not_open_it(there: There) -> None:
    assert there.call(there.key).status_code == 404
    direct = httpx.post(
        f"{there.platform.url}/v1/chat/completions",
        json=CHAT,
        headers={"authorization": f"Bearer {there.key}"},
    )
    assert direct.status_code == 404
    refused = there.platform.cli("online-endpoint", "get-credentials", "--name", "shop", ok=False)
    assert refused.returncode and "identity provider" in refused.stderr


def test_the_management_has_an_audience_of_its_own(there: There) -> None:
    managed = there.manage(there.provider.token(CONTROL, "farebox.admin"))
    assert managed.status_code == 200, managed.text
    for audience, role, status, code in (
        (CALLS, "farebox.admin", 401, "wrong_audience"),
        (CONTROL, "farebox.score", 403, "missing_role"),
    ):
        answer = there.manage(there.provider.token(audience, role))
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_what_its_instances_use_is_on_the_metrics_page(there: There) -> None:
    there.call(there.provider.token(CALLS, "farebox.score"))
    httpx.get(there.platform.url + "/metrics")  # CPU is what was used since the look before
    time.sleep(0.5)
    page = httpx.get(there.platform.url + "/metrics").text
    of = '{endpoint="shop",deployment="blue"'
    assert f'farebox_online_instances{of},state="ready"}} 1' in page
    [memory] = re.findall(r"^farebox_online_memory_utilization_percent\{.*\} (.*)$", page, re.MULTILINE)
    [cpu] = re.findall(r"^farebox_online_cpu_utilization_percent\{.*\} (.*)$", page, re.MULTILINE)
    assert 0 < float(memory) < 100 and 0 <= float(cpu) <= 100


def test_another_mode_closes_it_within_a_second(there: There) -> None:
    token = there.provider.token(CALLS, "farebox.score")
    assert there.call(token).status_code == 200
    there.platform.cli("online-endpoint", "update", "--name", "shop", "--set", "auth_mode=key")
    deadline = time.monotonic() + 10
    while (answer := there.call(token)).status_code == 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "other_auth_mode")
    there.platform.cli("online-endpoint", "update", "--name", "shop", "--set", "auth_mode=aad_token")
    deadline = time.monotonic() + 10
    while (answer := there.call(token)).status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert answer.status_code == 200
