"""Reading a model's YAML: what loads, what is refused, and how the refusal reads."""

import contextlib
import json
from decimal import Decimal
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import catalog
from catalog.builtin import builtin_files
from catalog.load import model_document, parse_model, parse_model_yaml
from catalog.model import Engine, ModelSpec, Source
from core.errors import FareboxError, Invalid, TooLarge

MOCK_CHAT = """\
id: acme/mock-chat
task: chat
context_length: 8192
engine: {kind: external, url: "http://127.0.0.1:9100"}
prices: {input: "0.15", cached_input: "0.075", output: "0.60", endpoint_minute: "0.0005"}
"""
SERVED = """\
id: acme/chat
task: chat
context_length: 8192
source: {repository: acme/chat}
prices: {input: "0.15", output: "0.60"}
"""


def refusal(text: str | bytes) -> Invalid:
    with pytest.raises(Invalid) as caught:
        parse_model_yaml(text)
    return caught.value


def test_the_example_that_scripts_use_loads_as_it_is() -> None:
    spec = parse_model_yaml(MOCK_CHAT)
    assert (spec.id, spec.task, spec.context_length, spec.served_model) == (
        "acme/mock-chat",
        "chat",
        8192,
        "acme/mock-chat",
    )
    assert spec.engine == Engine(kind="external", url="http://127.0.0.1:9100")
    assert spec.prices.by_sku() == {
        "input": 150_000,
        "cached_input": 75_000,
        "output": 600_000,
        "endpoint_minute": 500_000_000,
    }


def test_defaults() -> None:
    spec = parse_model_yaml(SERVED)
    assert spec.engine == Engine(kind="vllm")
    assert spec.source == Source("acme/chat", "main")
    assert spec.prices.cached_input == spec.prices.input == 150_000
    assert spec.prices.endpoint_minute == 0


@pytest.mark.parametrize("file", builtin_files(), ids=lambda file: file.name)
def test_every_builtin_file_loads_and_survives_the_round_trip(file) -> None:
    spec = parse_model_yaml(file.data)
    document = model_document(spec)
    assert parse_model(json.loads(json.dumps(document))) == spec
    assert parse_model_yaml(yaml.safe_dump(document)) == spec
    schema = json.loads((Path(catalog.__file__).parent / "model.schema.json").read_text())
    jsonschema.validate(document, schema)


@pytest.mark.parametrize(
    ("change", "param", "line", "says"),
    [
        (("prices:", "pirces:"), "pirces", 5, "did you mean 'prices'?"),
        (("url:", "urll:"), "engine.urll", 4, "did you mean 'url'?"),
        (("kind: external", "kind: externl"), "engine.kind", 4, "did you mean 'external'?"),
        (('"0.15"', "0.15"), "prices.input", 5, 'put the price in quotes: "0.15"'),
        (('"0.15"', "1"), "prices.input", 5, 'put the price in quotes: "1"'),
        (('"0.15"', '"-0.15"'), "prices.input", 5, "zero or more"),
        (('"0.15"', "-0.15"), "prices.input", 5, "in quotes"),
        (('"0.15"', '"0.1234567"'), "prices.input", 5, "at most 6 decimal places"),
        (('"0.0005"', '"0.0000000000001"'), "prices.endpoint_minute", 5, "at most 12 decimal places"),
        (('"0.15"', '"1e-3"'), "prices.input", 5, "plain decimal"),
        (('"0.15"', "true"), "prices.input", 5, "in quotes"),
        (('input: "0.15", ', ""), "prices.input", 5, "missing"),
        ((', output: "0.60"', ""), "prices.output", 5, "missing"),
        (("8192", "-1"), "context_length", 3, "expected 1 to"),
        (("8192", '"8192"'), "context_length", 3, "expected a whole number"),
        (("8192", "true"), "context_length", 3, "expected a whole number"),
        (("8192", "9" * 5000), "context_length", 3, "18 digits"),
        (("context_length: 8192\n", ""), "context_length", 1, "missing"),
        (("chat\ncontext", "chatt\ncontext"), "task", 2, "did you mean 'chat'?"),
        (("acme/mock-chat", "../etc/passwd"), "id", 1, "expected an id such as"),
        (("acme/mock-chat", "'a b'"), "id", 1, "expected an id such as"),
        (("acme/mock-chat", "12"), "id", 1, "put it in quotes"),
        (("acme/mock-chat", "a" * 97), "id", 1, "at most 96"),
        (("http://127.0.0.1:9100", "ftp://x"), "engine.url", 4, "expected an address"),
        (("http://127.0.0.1:9100", "http://me:secret@x"), "engine.url", 4, "api_key_env"),
        (("http://127.0.0.1:9100", "http://x:99999"), "engine.url", 4, "expected an address"),
        (("http://127.0.0.1:9100", "http://[::1"), "engine.url", 4, "expected an address"),
        (("http://127.0.0.1:9100", "http://x?a=1"), "engine.url", 4, "without ?"),
        ((', url: "http://127.0.0.1:9100"', ""), "engine.url", 4, "missing"),
        (('url: "', 'args: [a], url: "'), "engine.args", 4, "has no args"),
        (('url: "', 'urls: ["http://b"], url: "'), "engine.urls", 4, "not both"),
        (('url: "http://127.0.0.1:9100"', "urls: []"), "engine.urls", 4, "at least one"),
        (('url: "http://127.0.0.1:9100"', "urls: [ftp://x]"), "engine.urls", 4, "expected an address"),
        (('url: "http://127.0.0.1:9100"', "urls: [http://x, http://x/v1]"), "engine.urls", 4, "listed twice"),
        (('url: "', 'max_parallel: 0, url: "'), "engine.max_parallel", 4, "expected 1 to"),
        (("kind: external", "kind: vllm"), "engine.url", 4, "only an engine of kind external"),
        (("prices: {", "task: chat\nprices: {"), "task", 5, "given twice, first on line 2"),
        (("prices: {", "sample: *a\nprices: {"), "sample", 5, "aliases"),
        (("prices: {", "sample: &a true\nprices: {"), "sample", 5, "anchors"),
        (("prices: {", "name: !!python/object:os.system x\nprices: {"), "name", 5, "tags"),
        (("prices: {", "<<: {a: b}\nprices: {"), None, 5, "merge keys"),
        (("prices: {", "source:\n\trepository: x\nprices: {"), None, 6, "tab"),
        (("prices: {", "capabilities: {tools: maybe}\nprices: {"), "capabilities.tools", 5, "true or false"),
        (("prices: {", "tags: [ok, [no]]\nprices: {"), "tags[1]", 5, "got a list"),
        (("prices: {", "? [a]\n: b\nprices: {"), None, 5, "plain text"),
        (("prices: {", "prices: ["), None, 5, "not YAML"),
    ],
)
def test_a_refusal_names_the_field_the_line_and_what_was_expected(change, param, line, says) -> None:
    text = MOCK_CHAT.replace(*change, 1)
    assert text != MOCK_CHAT
    error = refusal(text)
    assert (error.param, error.extra.get("line")) == (param, line), error.message
    assert says in error.message
    assert f"line {line}" in error.message
    assert len(error.message) < 600


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("- a\n- b\n", "expected fields"),
        ("just text", "expected fields"),
        (MOCK_CHAT + "---\n" + MOCK_CHAT, "a second"),
        (b"id: \xff", "UTF-8"),
        ("id: \x00", "does not allow"),
        ("[" * 5000, "too deeply"),
        ("a: " + "[" * 50 + "]" * 50, "too deeply"),
        ("%YAML 9.9\n---\na: b", "not YAML"),
        ("task: rerank\nid: a/b\nprices: {input: '1'}", "source (line 1): the field is missing"),
        ("task: rerank\nid: a\nsource: {builtin: sample, revision: a}\nprices: {input: '1'}", "not both"),
        ("task: transcription\nid: a\nsource: {repository: b}\nprices: {input: '1'}", "prices.audio_second"),
        (
            "task: embedding\nid: a\nsource: {repository: b}\nprices: {input: '1', audio_second: '1'}",
            "not sold by",
        ),
    ],
)
def test_odd_documents_are_refused_in_words(text, says) -> None:
    assert says in refusal(text).message


def test_a_document_over_the_bound_is_too_large() -> None:
    with pytest.raises(TooLarge, match="262144"):
        parse_model_yaml("#" * (256 * 1024 + 1))


@pytest.mark.parametrize("url", ["http://h:1/v1", "http://h:1/v1/", "http://h:1/", "http://h:1"])
def test_v1_may_be_given_or_left_off_an_attached_server(url) -> None:
    assert parse_model_yaml(MOCK_CHAT.replace("http://127.0.0.1:9100", url)).engine.url == "http://h:1"


def test_a_path_before_v1_is_kept() -> None:
    text = MOCK_CHAT.replace("http://127.0.0.1:9100", "https://api.example.com/openai/v1")
    assert parse_model_yaml(text).engine.url == "https://api.example.com/openai"


def test_several_attached_servers() -> None:
    text = MOCK_CHAT.replace('url: "http://127.0.0.1:9100"', "urls: [http://a:1/v1, http://b:2]")
    spec = parse_model_yaml(text)
    assert spec.engine.servers == ("http://a:1", "http://b:2")
    assert parse_model(model_document(spec)) == spec
    assert parse_model_yaml(MOCK_CHAT).engine.servers == ("http://127.0.0.1:9100",)


@pytest.mark.parametrize(
    ("engine", "parallel"),
    [
        ("{kind: vllm}", 0),
        ("{kind: vllm, args: [--max-num-seqs, '64']}", 64),
        ("{kind: vllm, args: [--dtype, auto, --max_num_seqs=32]}", 32),
        ("{kind: vllm, args: [--max-num-seqs, '64'], max_parallel: 8}", 8),
        ("{kind: vllm, args: [--max-num-seqs]}", 0),
        ("{kind: vllm, args: [--max-num-seqs, 'many']}", 0),
    ],
)
def test_how_many_calls_a_server_takes_at_once(engine: str, parallel: int) -> None:
    spec = parse_model_yaml(SERVED + f"engine: {engine}\n")
    assert spec.engine.parallel == parallel
    assert parse_model(model_document(spec)) == spec


def test_the_same_fields_as_json() -> None:
    assert parse_model(yaml.safe_load(MOCK_CHAT)) == parse_model_yaml(MOCK_CHAT)
    with pytest.raises(Invalid) as caught:
        parse_model(yaml.safe_load(MOCK_CHAT) | {"tasks": 1})
    assert caught.value.param == "tasks"
    assert "line" not in caught.value.message


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        3,
        "x",
        {},
        {"id": {}},
        {"id": "a", "task": []},
        {"id": "a", "task": "chat", "description": "\ud800"},
    ],
)
def test_any_json_value_is_answered(value) -> None:
    with pytest.raises(Invalid):
        parse_model(value)


@given(st.binary(max_size=400))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    with contextlib.suppress(FareboxError):
        parse_model_yaml(data)


_YAML_PIECES = st.sampled_from(
    [
        *(
            "id: ",
            "a",
            "\n",
            "  ",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ":",
            ": ",
            ",",
            "&a ",
            "*a",
            "!t ",
            "|",
            ">",
            "|9",
        ),
        *("'", '"', "#", "\t", "? ", "---\n", "...\n", "%YAML 1.1\n", "<<", "~", "\r", "\\x", "0x1", "1e999"),
        *(".inf", "\u2028", "\ud800", "é"),
    ]
)


@given(st.lists(_YAML_PIECES, max_size=40))
def test_no_yaml_of_odd_pieces_crashes_the_reader(pieces: list[str]) -> None:
    with contextlib.suppress(FareboxError):
        parse_model_yaml("".join(pieces))


@given(st.integers(0, 10**9 * 10**6 - 1))
def test_a_price_comes_out_as_it_went_in(pico: int) -> None:
    text = f"{Decimal(pico).scaleb(-6):f}"
    spec = parse_model_yaml(SERVED.replace('"0.15"', f'"{text}"'))
    assert spec.prices.input == pico
    assert Decimal(model_document(spec)["prices"]["input"]) == Decimal(text)


def test_a_spec_cannot_be_changed() -> None:
    spec = parse_model_yaml(MOCK_CHAT)
    assert hash(spec) == hash(parse_model_yaml(MOCK_CHAT))
    with pytest.raises(AttributeError):
        spec.id = "other"  # type: ignore[misc]  # that it fails is what is tested
    assert isinstance(spec, ModelSpec)
