"""docs/examples/roll-out.sh on a platform with real processes: it ends with the traffic moved, or with none moved."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import platform as platforms

EXAMPLES = platforms.ROOT / "docs" / "examples"
GOOD = "def init():\n    pass\n\n\ndef run(data):\n    return data\n"
# Answers the first call, which tries it, and no other.
FLAKY = "calls = []\ndef init():\n    pass\ndef run(data):\n    calls.append(1)\n    return 1 / (len(calls) == 1)\n"
BROKEN = "def init():\n    pass\n\n\ndef run(data):\n    raise ValueError(data)\n"


@dataclass
class Site:
    """A platform with `blue` before all callers of `rooms`."""

    platform: platforms.Platform
    folder: Path

    def document(self, name: str, script: str) -> str:
        code = self.folder / name
        code.mkdir()
        (code / "score.py").write_text(script)
        file = self.folder / f"{name}.yml"
        file.write_text(
            f"name: {name}\nendpoint_name: rooms\ncode_configuration: {{code: ./{name}, scoring_script: score.py}}\n"
            "readiness_probe: {initial_delay: 1, period: 1}\n"
        )
        return str(file)

    def roll_out(self, name: str, script: str) -> subprocess.CompletedProcess[str]:
        environ = self.platform.environ | {
            "FAREBOX_URL": self.platform.url,
            "FAREBOX_API_KEY": self.platform.admin_key,
            "PATH": f"{platforms.FAREBOX.parent}:{os.environ['PATH']}",
            "CALLS": "5",
            "STEPS": "50 100",
        }
        command = [str(EXAMPLES / "roll-out.sh"), "rooms", name, self.document(name, script), "request.json"]
        return subprocess.run(
            command, cwd=self.folder, env=environ, capture_output=True, text=True, timeout=100
        )

    def traffic(self) -> Any:
        shown = self.platform.cli(
            "online-endpoint", "show", "-n", "rooms", "--query", "traffic", "-o", "json"
        )
        return {name: share for name, share in json.loads(shown.stdout).items() if share}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "request.json").write_text('{"rooms": 3}')
    with platforms.running(tmp_path_factory.mktemp("home")) as platform:
        made = Site(platform, folder)
        platform.cli("online-endpoint", "create", "-n", "rooms")
        platform.cli("online-deployment", "create", "-f", made.document("blue", GOOD), "--all-traffic")
        yield made


@pytest.mark.timeout(240)
def test_a_good_one_gets_the_traffic_and_a_bad_one_gives_it_back(site: Site) -> None:
    broken = site.roll_out("broken", BROKEN)
    assert broken.returncode == 1 and "broken does not answer request.json" in broken.stderr
    assert site.traffic() == {"blue": 100}
    flaky = site.roll_out("flaky", FLAKY)
    assert flaky.returncode != 0 and "rolling back: blue has all the traffic again" in flaky.stderr
    assert site.traffic() == {"blue": 100}
    good = site.roll_out("green", GOOD)
    assert good.returncode == 0, good.stderr
    assert good.stdout.splitlines() == ["green has 50 % of the traffic", "green has 100 % of the traffic"]
    assert site.traffic() == {"green": 100}


def test_the_workflow_calls_the_script() -> None:
    workflow = yaml.safe_load((EXAMPLES / "roll-out.yml").read_text())
    steps = workflow["jobs"]["roll-out"]["steps"]
    assert steps[-1]["run"].split()[0] == "docs/examples/roll-out.sh"
    assert os.access(EXAMPLES / "roll-out.sh", os.X_OK)
