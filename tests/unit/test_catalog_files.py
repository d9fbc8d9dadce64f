"""Every file in catalog/models fits the schema and the rules its README states."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

CATALOG = Path(__file__).resolve().parents[2] / "catalog"
MODELS = CATALOG / "models"
README = (MODELS / "README.md").read_text(encoding="utf-8")
SCHEMA = json.loads((CATALOG / "model.schema.json").read_text(encoding="utf-8"))
FILES = sorted(MODELS.glob("*.yaml"))
TASKS = {"chat", "completion", "embedding", "rerank", "transcription"}

# The least bytes per parameter. MXFP4: 4 bits each and one 8-bit scale for every 32 numbers.
BYTES = {
    "float32": Decimal(4),
    "float16": Decimal(2),
    "bfloat16": Decimal(2),
    "fp8": Decimal(1),
    "mxfp4": Decimal("0.53125"),
}
OWNED_BY_THE_PLATFORM = {
    "--model",
    "--revision",
    "--host",
    "--port",
    "--uds",
    "--served-model-name",
    "--api-key",
    "--tensor-parallel-size",
    "-tp",
}


def load(path: Path) -> dict[str, Any]:
    model = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(model, dict)
    return model


def problems(model: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(model)]


def table(heading: str) -> list[dict[str, str]]:
    """The README's price table under the line `heading`, its first column named `limit`."""
    lines = README.split(f"\n{heading}\n\n", 1)[1].split("\n\n", 1)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(["limit", *rows[0][1:]], row, strict=True)) for row in rows[2:]]


def row_for(heading: str, parameters: int, active: int) -> dict[str, str]:
    for row in table(heading):
        if row["limit"] == "any":
            return row
        limit = Decimal(row["limit"]) * 10**9
        if parameters * active <= limit * limit:
            return row
    raise AssertionError(f"no row for {parameters} parameters under {heading!r}")


def expected_prices(model: dict[str, Any]) -> dict[str, str]:
    parameters, task = model["parameters"], model["task"]
    if task in ("chat", "completion"):
        active = model.get("active_parameters", parameters)
        row = row_for("Tokens, `chat` and `completion`:", parameters, active)
    elif task == "transcription":
        row = row_for("Audio, `transcription`:", parameters, parameters)
    else:
        row = row_for(f"Tokens, `{task}`:", parameters, parameters)
    minutes = row_for("Endpoint minutes, every task:", parameters, parameters)
    return {k: v for k, v in {**row, **minutes}.items() if k != "limit"}


each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_schema_is_valid() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_enough_models_of_every_task() -> None:
    models = [load(path) for path in FILES]
    real = [model for model in models if not model.get("sample")]
    assert len(real) >= 24
    assert {model["task"] for model in real} == TASKS
    assert [model["id"] for model in models if model.get("sample")] == ["farebox/sample-chat"]
    assert "Qwen/Qwen3-0.6B" in {model["id"] for model in real}


def test_ids_are_unique() -> None:
    ids = [load(path)["id"].lower() for path in FILES]
    assert len(ids) == len(set(ids))


def test_nothing_else_lies_in_the_folder() -> None:
    assert {path.name for path in MODELS.iterdir()} == {path.name for path in FILES} | {"README.md"}


@each_file
def test_fits_the_schema(path: Path) -> None:
    assert problems(load(path)) == []


@each_file
def test_file_is_named_after_its_id(path: Path) -> None:
    assert path.name == load(path)["id"].lower().replace("/", "-") + ".yaml"


@each_file
def test_is_complete(path: Path) -> None:
    model = load(path)
    expected = set(SCHEMA["properties"]) - {
        "sample",
        "marketplace",
        "active_parameters",
        "tags",
        "references",
    }
    assert expected <= set(model)
    assert set(model["capabilities"]) == set(SCHEMA["properties"]["capabilities"]["properties"])
    assert set(model["license"]) == {"id", "url", "accept_terms"}
    assert set(model["requirements"]) == {"gpu_memory_gib", "gpu_count"}
    if not model.get("sample"):
        assert model["source"] == {"repository": model["id"], "revision": "main"}
        assert model["references"][0].startswith(f"https://huggingface.co/{model['id']}")


@each_file
def test_prices_follow_the_readme(path: Path) -> None:
    model = load(path)
    prices = model["prices"]
    if not model.get("sample"):
        assert prices == expected_prices(model)
    if "input" in prices:
        assert Decimal(prices["cached_input"]) * 2 == Decimal(prices["input"])


@each_file
def test_memory_holds_the_weights(path: Path) -> None:
    model = load(path)
    weights = model["parameters"] * BYTES[model["precision"]] / 2**30
    assert model["requirements"]["gpu_memory_gib"] >= weights
    assert model.get("active_parameters", 0) < model["parameters"]


@each_file
def test_gpu_count_follows_the_readme(path: Path) -> None:
    needs = load(path)["requirements"]
    fitting = [count for count in (1, 2, 4, 8) if needs["gpu_memory_gib"] <= 72 * count]
    assert needs["gpu_count"] == (fitting[0] if fitting else 8)


@each_file
def test_engine_arguments_back_the_capabilities(path: Path) -> None:
    model = load(path)
    args, can = model["engine"]["args"], model["capabilities"]
    assert can["tools"] == ("--enable-auto-tool-choice" in args) == ("--tool-call-parser" in args)
    assert can["reasoning"] == ("--reasoning-parser" in args)
    if "--dtype" in args:
        assert args[args.index("--dtype") + 1] == model["precision"]
    assert not {arg.split("=")[0] for arg in args} & OWNED_BY_THE_PLATFORM
    assert ("--max-model-len" in args) == (
        model["task"] in ("chat", "completion") and model["context_length"] > 32768
    )
    if can["tools"] or can["reasoning"] or can["vision"] or can["json_schema"]:
        assert model["task"] == "chat"


@each_file
def test_has_no_machine_paths(path: Path) -> None:
    assert not re.search(
        r"(^|[\s\"'])(/home/|/root/|/tmp/|/work/|/mnt/|~/)", path.read_text(encoding="utf-8")
    )


EXTERNAL: dict[str, Any] = {
    "id": "acme/mock-chat",
    "task": "chat",
    "context_length": 8192,
    "engine": {"kind": "external", "url": "http://127.0.0.1:9100"},
    "prices": {"input": "0.15", "cached_input": "0.075", "output": "0.60", "endpoint_minute": "0.0005"},
}
VLLM: dict[str, Any] = {
    "id": "acme/embedder",
    "task": "embedding",
    "source": {"repository": "acme/embedder"},
    "prices": {"input": "0.01"},
}


@pytest.mark.parametrize(
    "model",
    [
        EXTERNAL,
        VLLM,
        VLLM | {"engine": {"kind": "vllm-cpu", "args": ["--dtype", "float32"]}},
        VLLM | {"task": "transcription", "prices": {"audio_second": "0.0001"}},
        EXTERNAL | {"engine": EXTERNAL["engine"] | {"model": "m", "api_key_env": "ACME_KEY"}},
        EXTERNAL | {"engine": {"kind": "external", "urls": ["http://a", "http://b"], "max_parallel": 9}},
        VLLM | {"engine": {"kind": "vllm", "max_parallel": 64}},
    ],
)
def test_schema_accepts(model: dict[str, Any]) -> None:
    assert problems(model) == []


@pytest.mark.parametrize(
    "model",
    [
        EXTERNAL | {"colour": "red"},
        EXTERNAL | {"id": "a/b/c"},
        EXTERNAL | {"id": "-a"},
        EXTERNAL | {"id": "a" * 97},
        EXTERNAL | {"task": "painting"},
        EXTERNAL | {"prices": {}},
        EXTERNAL | {"prices": {"input": "0.15"}},
        VLLM | {"prices": {"input": "0.01", "output": "0"}},
        EXTERNAL | {"prices": {"input": 0.15, "output": "1"}},
        EXTERNAL | {"prices": {"input": "-0.15", "output": "1"}},
        EXTERNAL | {"prices": {"input": "0.1234567", "output": "1"}},
        EXTERNAL | {"prices": {"input": "1e-3", "output": "1"}},
        EXTERNAL | {"prices": {"input": "0.15", "lunch": "1", "output": "1"}},
        EXTERNAL | {"prices": {"input": "0.15", "audio_second": "0.1", "output": "1"}},
        EXTERNAL | {"engine": {"kind": "external"}},
        EXTERNAL | {"engine": {"kind": "external", "url": "file:///etc/passwd"}},
        EXTERNAL | {"engine": EXTERNAL["engine"] | {"args": []}},
        EXTERNAL | {"engine": EXTERNAL["engine"] | {"urls": ["http://b"]}},
        EXTERNAL | {"engine": {"kind": "external", "urls": []}},
        EXTERNAL | {"engine": EXTERNAL["engine"] | {"max_parallel": 0}},
        EXTERNAL | {"engine": {"kind": "vllm"}},
        EXTERNAL | {"capabilities": {"tools": "yes"}},
        {k: v for k, v in EXTERNAL.items() if k != "context_length"},
        {k: v for k, v in EXTERNAL.items() if k != "engine"},
        {k: v for k, v in EXTERNAL.items() if k != "id"},
        VLLM | {"source": {"repository": "a", "builtin": "sample"}},
        VLLM | {"task": "transcription"},
        VLLM | {"task": "transcription", "prices": {"audio_second": "0.0001", "input": "1"}},
    ],
)
def test_schema_refuses(model: dict[str, Any]) -> None:
    assert problems(model)
