"""The control process's counting: whose tokenizer is where, what a template makes of messages, bad files."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient

from catalog.load import parse_model
from core.settings import Settings
from functions.internal import create_internal
from functions.tokens import MAX_BYTES, Question, TokenCounter, tokenizer_file
from metering.tokenizers import Tokenizers
from tests.small_tokenizer import make_tokenizer, rendered, tokens
from wire.prompts import Prompt

TALK = [{"role": "user", "content": "one two three"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return make_tokenizer(folder)


def test_messages_go_through_the_models_template(folder: Path, tokenizer: Any) -> None:
    file, counter = folder / "tokenizer.json", Tokenizers()
    expected = tokens(tokenizer, rendered(("user", "one two three")))
    assert counter.count(file, Prompt(TALK), None) == (expected, None)
    parts = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    assert counter.count(file, Prompt(parts), None)[0] == tokens(tokenizer, rendered(("user", "one\ntwo")))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with_tools = tokens(
        tokenizer, rendered(("user", "one two three"))[:-13] + json.dumps(tools) + "<|assistant|>"
    )
    assert counter.count(file, Prompt(TALK, {"tools": tools}), None)[0] == with_tools
    without = {"add_generation_prompt": False, "chat_template_kwargs": {"messages": [], "tools": tools}}
    assert counter.count(file, Prompt(TALK, without), None)[0] == expected - 1
    assert counter.count(file, Prompt(TALK, {"continue_final_message": True}), None)[0] is None


@pytest.mark.parametrize("template", [
    "{{ raise_exception('no system role') }}",
    "{% for %}",
    "{{ messages[0].nothing.at.all }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    None,
])  # fmt: skip
def test_a_template_that_cannot_be_used(tmp_path: Path, template: str | None) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    counter = Tokenizers()
    assert counter.count(tmp_path / "tokenizer.json", Prompt(TALK), ["one"])[0] is None
    assert counter.count(tmp_path / "tokenizer.json", Prompt(texts=["one"]), None)[0] is not None


def test_a_file_that_changes_is_read_again_and_few_are_kept(tmp_path: Path) -> None:
    counter = Tokenizers(max_loaded=2)
    files = [tmp_path / name / "tokenizer.json" for name in ("a", "b", "c")]
    for file in files:
        make_tokenizer(file.parent)
        counter.count(file, None, ["one"])
    assert list(counter._loaded) == files[1:]
    files[2].write_text("{}")
    os.utime(files[2], ns=(1, 1))
    with pytest.raises(ValueError, match="not a tokenizer"):
        counter.count(files[2], None, ["one"])


def model(**fields: Any) -> Any:
    prices = {"input": "1", "output": "1"}
    body = {"id": "acme/chat", "task": "chat", "context_length": 99, "prices": prices} | fields
    return parse_model(body)


def test_where_a_tokenizer_is(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    hub = tmp_path / "cache" / "huggingface" / "hub" / "models--acme--chat"
    snapshot = hub / "snapshots" / "0123abc" / "tokenizer.json"
    snapshot.parent.mkdir(parents=True)
    snapshot.write_text("{}")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0123abc\n")
    sample = tmp_path / "models" / "farebox-sample" / "tokenizer.json"
    sample.parent.mkdir(parents=True)
    sample.write_text("{}")
    outside: dict[str, Any] = {"kind": "external", "url": "http://127.0.0.1:9"}
    found = [
        tokenizer_file(model(**fields), settings)
        for fields in (
            {"engine": outside},
            {"engine": outside | {"tokenizer": str(sample.parent)}},
            {"engine": outside | {"tokenizer": str(sample)}},
            {"engine": outside | {"tokenizer": str(tmp_path / "none")}},
            {"engine": outside | {"tokenizer": "acme/chat"}},
            {"engine": outside | {"tokenizer": "acme/other"}},
            {"source": {"repository": "acme/chat"}},
            {"source": {"repository": "acme/chat", "revision": "0123abc"}},
            {"source": {"repository": "acme/chat", "revision": "v2"}},
            {"source": {"builtin": "sample"}},
        )
    ]
    assert found == [None, sample, sample, None, snapshot, None, snapshot, snapshot, None, sample]


def test_the_internal_route(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{")
    files = {"acme/chat": folder / "tokenizer.json", "acme/broken": broken}
    app = create_internal(None, None, TokenCounter(files.get))  # type: ignore[arg-type]
    client = TestClient(app)

    def ask(model_id: str) -> Any:
        question = Question(model_id, Prompt(pairs=[("one", "two")], ids=3), ["one", "two three"])
        return client.post("/internal/tokens", content=msgspec.json.encode(question))

    said = tokens(tokenizer, "one") + tokens(tokenizer, "two three")
    given = tokens(tokenizer, "one", "two", special=True) + 3
    assert ask("acme/chat").json() == {"prompt": given, "texts": said}
    assert ask("acme/none").status_code == ask("acme/broken").status_code == 404
    assert client.post("/internal/tokens", content=b"[]").status_code == 422
    assert client.post("/internal/tokens", content=b" " * (MAX_BYTES + 1)).status_code == 413
