"""The sample model's text and the record of its inputs; building it for real is the engine tests' job."""

import json
import random
import sys
from pathlib import Path

import pytest

from catalog import sample
from catalog.sample import corpus


def test_corpus_has_enough_and_is_plain() -> None:
    pairs, texts = corpus.load()
    assert len(pairs) > 500
    assert len(texts) >= 5
    assert len({pair.answer for pair in pairs}) > 150
    for pair in pairs:
        assert pair.question == pair.question.strip() != ""
        assert pair.answer[-1] in ".!?"
        assert "<|" not in pair.question + pair.answer


def test_a_question_has_one_answer() -> None:
    pairs, _ = corpus.load()
    answers: dict[str, set[str]] = {}
    for pair in pairs:
        answers.setdefault(pair.question, set()).add(pair.answer)
    assert {question: found for question, found in answers.items() if len(found) > 1} == {}


def test_rephrasing_depends_on_the_seed_alone() -> None:
    first, second = random.Random(7), random.Random(7)
    question = "What is a hold in Farebox?"
    forms = [corpus.rephrase(question, first) for _ in range(50)]
    assert forms == [corpus.rephrase(question, second) for _ in range(50)]
    assert question in forms
    assert "what is a hold in farebox" in forms


@pytest.mark.parametrize("text", ["Q: only a question", "nonsense", "Q: a\nA: b\nA: c"])
def test_a_malformed_block_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match="corpus block"):
        corpus.load(path)


def record_in(models: Path, **changes: object) -> None:
    folder = sample.sample_model_dir(models)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    record = {"seed": sample.SEED, "inputs": sample.inputs_digest(), "files": {"config.json": ""}} | changes
    (folder / "model-build.json").write_text(json.dumps(record))


def test_is_built_follows_inputs_seed_and_files(tmp_path: Path) -> None:
    assert not sample.is_built(tmp_path)
    record_in(tmp_path)
    assert sample.is_built(tmp_path)
    record_in(tmp_path, inputs={"corpus.txt": "another"})
    assert not sample.is_built(tmp_path)
    record_in(tmp_path, seed=sample.SEED + 1)
    assert not sample.is_built(tmp_path)
    record_in(tmp_path, files={"model.safetensors": ""})
    assert not sample.is_built(tmp_path)


def test_a_python_without_torch_is_explained(tmp_path: Path) -> None:
    with pytest.raises(sample.SampleBuildError, match=r"(?s)No module named.*farebox engine check"):
        sample.build(Path(sys.executable), tmp_path, lambda step, done, total: None)
    assert list(tmp_path.iterdir()) == []
