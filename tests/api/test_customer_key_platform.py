"""A customer's key on a whole platform: nothing of the customer's lies in the home in the open, and all of it works."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import platform as platforms
from tests.api.test_online_platform import Shop, score
from tests.mock_engine import wait_until

SCRIPT = """
# Marker-of-code
import json, os
from azureml.ai.monitoring import Collector
class Frame:
    def __init__(self, rows): self.rows, self.columns = rows, list(rows[0])
    def to_dict(self, orient): return self.rows
def init():
    global model, kept
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "model", "weights.json")) as file:
        model = json.load(file)
    kept = Collector(name="inputs")
def run(data):
    given = json.loads(data)
    kept.collect(Frame([given]))
    return {"said": given["say"], "model": model["marker"]}
"""
COLLECTING = {"collections": {name: {"enabled": True} for name in ("request", "response", "inputs")}}
MARKERS = (b"Marker-of-code", b"Marker-of-model", b"Marker-of-payload")


def in_the_open(home: Path, *texts: bytes) -> list[str]:
    """Files that hold one of the texts; environments hold packages of others only."""
    files = [each for each in home.rglob("*") if each.is_file() and "environments" not in each.parts]
    assert len(files) > 5
    return [str(each) for each in files if any(text in each.read_bytes() for text in texts)]


def collected(platform: platforms.Platform, collection: str) -> list[Any]:
    """What was said in the calls that were kept, decrypted by a user."""
    folder = platform.home / "collected" / "modelDataCollector" / "shop" / "blue" / collection
    shown = platform.cli("customer-key", "decrypt", str(folder), FAREBOX_HOME=str(platform.home)).stdout
    return [json.loads(line)["data"] for line in shown.splitlines()]


def refused(home: Path, **settings: str) -> str:
    command = [platforms.FAREBOX, "up", "--home", home]
    run = subprocess.run(
        command, env=platforms.environment(**settings), capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 1, run.stdout + run.stderr
    return run.stderr


def cli(*arguments: object, ok: bool = True) -> str:
    """What a command told that needs no platform."""
    run = subprocess.run(
        [platforms.FAREBOX, *map(str, arguments)],
        env=platforms.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode == 0) == ok, run.stdout + run.stderr
    return run.stderr


def new_key(file: Path) -> str:
    """Its public half."""
    return cli("customer-key", "new", file).split(": ")[1].split(".")[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("mine", "keys"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.timeout(300)
def test_a_life_under_a_customers_key(folder: Path) -> None:
    """Deployed and called, the key rotated, started again, read by its owner; without the key it does not start."""
    home, file, second = folder / "home", folder / "keys" / "customer.key", folder / "keys" / "second.key"
    first_public, second_public = new_key(file), new_key(second)
    settings = {"FAREBOX_CUSTOMER_KEY_FILE": str(file), "FAREBOX_OPENED_DIR": str(folder / "opened")}
    with platforms.running(home, **settings) as platform:
        shop = Shop(platform, folder / "mine")
        (shop.model / "weights.json").write_text('{"marker": "Marker-of-model"}')
        shop.ask("POST", "/api/online-endpoints", {"name": "shop", "project": "acme/web"})
        key = shop.key()
        blue = shop.deployment("blue", SCRIPT, data_collector=COLLECTING)
        made = shop.operate("POST", "/api/online-endpoints/shop/deployments?all_traffic=true", blue)
        assert made["state"] == "Succeeded", made
        said = {"said": "Marker-of-payload 1", "model": "Marker-of-model"}
        assert score(shop, key, {"say": "Marker-of-payload 1"}).json() == said
        logs = shop.client.get(
            "/api/online-endpoints/shop/deployments/blue/logs?container=storage-initializer"
        )
        assert logs.status_code == 200, logs.text
        # The key is rotated as its owner would do it: the new one above the old one, then the old one goes.
        file.write_text(second.read_text() + file.read_text())
        rotated = json.loads(platform.cli("customer-key", "rotate", "-o", "json").stdout)
        assert (rotated["customer_key"], rotated["data_keys"]) == (second_public, 2)
        file.write_text(second.read_text())
        assert score(shop, key, {"say": "Marker-of-payload 2"}).status_code == 200
        shown = json.loads(platform.cli("customer-key", "show", "-o", "json").stdout)
        assert shown == rotated
        assert shown["enabled"] is True
        assert shown["since"] <= shown["rotated_at"]
        audit = shop.ask("GET", "/api/audit?action=customer_key")["data"]
        assert [(each["action"], each["detail"]["before"]) for each in audit] == [
            ("customer_key.rotate", first_public)
        ]
        opened = list((folder / "opened").rglob("weights.json"))
        assert len(opened) == 1, "in the open where the instance runs from, and there alone"
    assert not list((folder / "opened").rglob("weights.json"))
    assert in_the_open(home, *MARKERS, key.encode(), b"AGE-SECRET-KEY") == []
    assert not (home / "secret.key").exists()
    with platforms.running(home, **settings) as platform:
        shop.platform = platform
        shop.client.base_url = platform.url
        assert shop.key() == key, "sealed before the rotation"
        waiting = score(shop, key, {"say": "Marker-of-payload 3"})
        assert waiting.status_code == 200, waiting.text
        said = [f"Marker-of-payload {number}" for number in (1, 2, 3)]
        wait_until(lambda: [each["say"] for each in collected(platform, "request")] == said, 20)
        wait_until(lambda: sorted(each[0]["say"] for each in collected(platform, "inputs")) == said, 20)
        copies = next((home / "online").glob("dep_*")) / "1" / "model"
        environ = {"FAREBOX_HOME": str(home)}
        platform.cli("customer-key", "decrypt", str(copies), "--to", str(folder / "out"), **environ)
        assert (folder / "out" / "model" / "weights.json").read_text() == '{"marker": "Marker-of-model"}'
        again = ("customer-key", "decrypt", str(copies), "--to", str(folder / "out"))
        assert "is there already" in platform.cli(*again, ok=False, **environ).stderr
    assert in_the_open(home, *MARKERS) == []
    assert f"{second_public}: set FAREBOX_CUSTOMER_KEY_FILE" in refused(home)
    third = folder / "keys" / "third.key"
    new_key(third)
    assert "none of the 1" in refused(home, **settings | {"FAREBOX_CUSTOMER_KEY_FILE": str(third)})
    assert "is not there" in refused(home, **settings | {"FAREBOX_CUSTOMER_KEY_FILE": str(file) + "x"})


def test_a_key_is_never_overwritten(folder: Path) -> None:
    file = folder / "keys" / "customer.key"
    public = new_key(file)
    assert public.startswith("age1")
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_bytes()
    assert "never overwritten" in cli("customer-key", "new", file, ok=False)
    assert file.read_bytes() == before


def test_a_home_from_before_is_encrypted_at_the_start(folder: Path) -> None:
    """Copies and collected data that were stored in the open; the endpoint's keys stay what they were."""
    home, file = folder / "home", folder / "keys" / "customer.key"
    with platforms.running(home) as platform:
        shop = Shop(platform, folder / "mine")
        shop.ask("POST", "/api/online-endpoints", {"name": "shop", "project": "acme/web"})
        key = shop.key()
        assert shop.ask("GET", "/api/customer-key")["enabled"] is False
        refusal = shop.client.post("/api/customer-key/rotate")
        assert (refusal.status_code, refusal.json()["code"]) == (409, "no_customer_key")
    line = '{"data": {"say": "Marker-of-payload 0"}}\n'
    for name, text in (
        ("online/dep_0/1/code/score.py", SCRIPT),
        ("collected/modelDataCollector/shop/blue/request/2026/11/26/21/gateway-1.jsonl", line),
    ):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text(text)
    assert len(in_the_open(home, *MARKERS)) == 2
    new_key(file)
    with platforms.running(home, FAREBOX_CUSTOMER_KEY_FILE=str(file)) as platform:
        shop.client.base_url = platform.url
        assert shop.key() == key
        assert [each["say"] for each in collected(platform, "request")] == ["Marker-of-payload 0"]
    assert in_the_open(home, *MARKERS) == []
    assert not (home / "secret.key").exists()
