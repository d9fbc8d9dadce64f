"""`scale_settings` over REST: what the documentation shows is taken, what is wrong is named."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.api.console_platform import ConsolePlatform
from tests.api.online_calls import blue, deploy, endpoint, finish


def test_the_scale_settings_of_the_documentation(console: ConsolePlatform, code: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "online.md"
    blocks = [yaml.safe_load(each) for each in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)]
    settings = [each["scale_settings"] for each in blocks if "scale_settings" in each]
    assert {each["type"] for each in settings} == {"target_utilization", "rules"}
    endpoint(console)
    for at, given in enumerate(settings):
        made = deploy(console, blue(code, name=f"scaled-{at}", scale_settings=given))
        finish(console, made)
        shown = made["scale_settings"]
        assert shown["type"] == given["type"] and shown["max_instances"] == given["max_instances"]
        conditions = [rule["condition"] for rule in given.get("rules", ())]
        assert [rule["condition"] for rule in shown["rules"]] == conditions
    assert shown["schedules"][0]["days"] == ["monday", "tuesday", "wednesday", "thursday", "friday"]


@pytest.mark.parametrize(
    ("rule", "param"),
    [
        ({"condition": "CpuUtilizationPercentage > 70 avg 5m"}, "scale_settings.rules.0.scale"),
        ({"condition": "Heat > 70 avg 5m", "scale": "out 1"}, "scale_settings.rules[0].condition"),
        (
            {"condition": "CpuUtilizationPercentage > 70 avg 5m", "scale": "out 1", "cool": 1},
            "scale_settings.rules.0.cool",
        ),
    ],
)
def test_a_rule_that_is_wrong(console: ConsolePlatform, code: Path, rule: dict[str, Any], param: str) -> None:
    endpoint(console)
    body = blue(code, scale_settings={"type": "rules", "max_instances": 2, "rules": [rule]})
    answer = console.client.post("/api/online-endpoints/shop/deployments", json=body)
    assert answer.status_code == 422
    assert answer.json()["param"].replace("[", ".").replace("]", "") == param.replace("[", ".").replace(
        "]", ""
    )
