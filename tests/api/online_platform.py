"""The console with what tests of online endpoints need: documents, a runtime that is done at once, an echoing gateway."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import farebox
import httpx
from click.testing import CliRunner, Result
from farebox.cli.framework import State
from farebox.cli.main import cli as root

from serving.online import store
from tests.api.console_platform import ConsolePlatform, ConsoleTransport, open_platform

SCORE = "def init():\n    pass\n\n\ndef run(data):\n    return data\n"
ENDPOINT_FILE = """\
$schema: https://azuremlschemas.azureedge.net/latest/managedOnlineEndpoint.schema.json
name: shop
auth_mode: key
tags:
  team: search
"""
BLUE_FILE = """\
$schema: https://azuremlschemas.azureedge.net/latest/managedOnlineDeployment.schema.json
name: blue
endpoint_name: shop
model:
  path: model/weights.bin
code_configuration:
  code: ./src
  scoring_script: score.py
environment:
  conda_file: conda.yml
  image: mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu20.04:latest
instance_type: Standard_DS3_v2
instance_count: 1
"""


class _Doors(httpx.BaseTransport):
    """Calls of endpoints to the gateway, everything else to the console."""

    def __init__(self, console: ConsolePlatform, called: list[httpx.Request]) -> None:
        self._console, self._called = ConsoleTransport(console.client), called

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.startswith("/endpoints/"):
            return self._console.handle_request(request)
        self._called.append(request)
        content = request.read()
        if b"fail" in content:
            headers = {"ms-azureml-model-error-statuscode": "500", "x-request-id": "r1"}
            return httpx.Response(424, text="KeyError: price", headers=headers)
        return httpx.Response(200, content=content)


@dataclass
class OnlinePlatform:
    """A console, a folder with documents, and what was called."""

    console: ConsolePlatform
    folder: Path
    called: list[httpx.Request] = field(default_factory=list)
    failure: tuple[str, str] | None = None  # what the next change ends with

    def client(self) -> farebox.Client:
        """The published client with the admin key."""
        transport = _Doors(self.console, self.called)
        return farebox.Client("http://farebox.test:8080", self.console.admin_key, http_transport=transport)

    def cli(
        self, *arguments: str, code: int = 0, output: str | None = "json", stdin: str | None = None
    ) -> Result:
        """A command; its exit code must be `code`."""
        state = State(output=output, _client=self.client())
        result = CliRunner().invoke(root, list(arguments), obj=state, input=stdin, standalone_mode=False)
        found = result.exit_code or (result.return_value if isinstance(result.return_value, int) else 0)
        assert found == code, (result.stdout, result.stderr, result.exception)
        return result

    def answer(self, *arguments: str) -> Any:
        """What a command prints as JSON."""
        return json.loads(self.cli(*arguments).stdout)

    def finish(self, *_: object) -> None:
        """As the runtime does: everything pending is done."""
        with self.console.db.begin() as connection:
            for each in store.list_online_deployments(connection, states=["Creating", "Updating"]):
                now_ms = self.console.clock.now_ms()
                store.finish_provisioning(connection, each.id, each.generation, self.failure, now_ms)

    def patient(self) -> SimpleNamespace:
        """Instead of `time` for who waits: no time passes, but what is waited for happens."""
        return SimpleNamespace(sleep=self.finish, monotonic=time.monotonic)

    def write(self, name: str, text: str) -> str:
        """A file in the folder; its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)


def open_online(directory: Path) -> OnlinePlatform:
    """A console with a project, and the documents of an endpoint and a deployment in `directory`/mine."""
    console = open_platform(directory)
    console.project()
    made = OnlinePlatform(console, directory / "mine")
    for name, text in (
        ("endpoint.yml", ENDPOINT_FILE),
        ("blue.yml", BLUE_FILE),
        ("green.yml", BLUE_FILE.replace("name: blue", "name: green")),
        ("src/score.py", SCORE),
        ("model/weights.bin", "w"),
        ("conda.yml", "dependencies:\n  - python=3.11\n  - pip:\n      - numpy\n"),
        ("request.json", '{"data": [1]}'),
    ):
        made.write(name, text)
    return made
