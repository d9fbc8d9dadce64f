"""The sample model, trained as long as users get it: it has learned what it was told."""

import json
from pathlib import Path

import pytest

from catalog import sample
from core.settings import Settings
from serving.engines import install

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(1800)]


def test_the_whole_training_learns_the_answers(tmp_path: Path, engine_settings: Settings) -> None:
    python = install.install(install.detect_kind(), engine_settings.engines_path, progress=lambda *_: None)
    steps: list[str] = []
    folder = sample.build(python, tmp_path, lambda step, done, total: steps.append(f"{step} {done}/{total}"))
    record = json.loads((folder / "model-build.json").read_text())
    assert steps[0] == "tokenizer 0/1" and steps[-1] == "write 1/1"
    assert record["steps"] >= 320
    assert record["final_loss"] < 0.2, "0.09 after all of it, 0.40 after half"
    assert sample.is_built(tmp_path)
