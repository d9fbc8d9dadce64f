"""`azureml.ai.monitoring.Collector` in a script: CloudEvents, input and output under one id, calls that go on."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_scorer import scoring

# Not pandas: what a data frame has that is used.
FRAME = """
class Frame:
    def __init__(self, rows): self.rows, self.columns = rows, list(rows[0]) if rows else []
    def to_dict(self, orient): return self.rows
"""
SCRIPT = (
    FRAME
    + """
import json
from azureml.ai.monitoring import Collector
from azureml.ai.monitoring.context import BasicCorrelationContext

said = []

def init():
    global inputs, outputs, quiet
    inputs, outputs = Collector(name="model_inputs"), Collector(name="model_outputs")
    quiet = Collector(name="model_inputs", on_error=lambda error: said.append(str(error)))

def run(data):
    given = json.loads(data)
    if "wrong" in given:
        quiet.collect(given)
        inputs.collect(given)
    if "id" in given:
        return inputs.collect(Frame([given]), BasicCorrelationContext(id=given["id"])).id
    context = inputs.collect(Frame([given]))
    outputs.collect(Frame([{"twice": given["a"] * 2}]), context)
    return said
"""
)


def settings(folder: Path, **changes: Any) -> str:
    values = {
        "collections": ["model_inputs", "model_outputs"], "rolling": "hour", "sampling_rate": 1.0,
        "folder": str(folder), "source": "/endpoints/shop/deployments/blue", "max_bytes": 10**9,
    }  # fmt: skip
    return json.dumps(values | changes)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for file in sorted(folder.rglob("*.jsonl")) for line in file.read_text().splitlines()
    ]


def test_frames_are_kept_with_the_calls_id(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with scoring(tmp_path, SCRIPT, FAREBOX_COLLECT=settings(folder)) as scorer:
        assert scorer.post({"a": 1}, x_request_id="req-1").status_code == 200
        assert scorer.post({"id": "mine"}).json() == "mine"
    by = {(each["type"].rpartition(".")[2], each["correlationid"]): each for each in lines(folder)}
    assert set(by) == {("model_inputs", "req-1"), ("model_outputs", "req-1"), ("model_inputs", "mine")}
    twice = by["model_outputs", "req-1"]
    assert (twice["xrequestid"], twice["data"]) == ("req-1", [{"twice": 2}])
    assert twice["type"] == "ai.farebox.inference.model_outputs" and twice["specversion"] == "1.0"
    assert twice["source"] == "/endpoints/shop/deployments/blue" and twice["time"].endswith("Z")
    assert {file.relative_to(folder).parts[0] for file in folder.rglob("*.jsonl")} == {
        "model_inputs",
        "model_outputs",
    }


def test_what_is_no_frame_raises_unless_it_is_caught(tmp_path: Path) -> None:
    with scoring(tmp_path, SCRIPT, FAREBOX_COLLECT=settings(tmp_path / "kept")) as scorer:
        assert scorer.post({"wrong": 1}).status_code == 500
        assert "a data frame of pandas is expected, got dict" in scorer.post({"a": 1}).json()[0]


@pytest.mark.parametrize("collect", ["", "disabled", "never", "full"])
def test_calls_go_on_where_nothing_is_kept(tmp_path: Path, collect: str) -> None:
    folder = tmp_path / "kept"
    changes: dict[str, Any] = {
        "disabled": {"collections": ["another"]},
        "never": {"sampling_rate": 0.0},
        "full": {"max_bytes": 1},
    }.get(collect, {})
    text = settings(folder, **changes) if collect else ""
    with scoring(tmp_path, SCRIPT, FAREBOX_COLLECT=text) as scorer:
        assert scorer.post({"a": 1}).json() == []
    assert lines(folder) == []
