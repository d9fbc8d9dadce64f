"""From a model's YAML (or the same fields as JSON) to a checked `ModelSpec`, and back."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from catalog.batch_prices import BATCH, discounted
from catalog.fields import Fields
from catalog.model import (
    ENGINE_KINDS,
    MAX_PARALLEL,
    TASKS,
    Adapter,
    Capabilities,
    Engine,
    License,
    Marketplace,
    ModelSpec,
    Prices,
    Requirements,
    Source,
    Task,
)
from core.money import format_per_million, format_pico, pico_per_token, pico_per_unit
from wire.yaml_source import Document, parse_yaml

MAX_ID = 96
_ID = r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){0,1}"
_FIELDS = (
    "id",
    "name",
    "publisher",
    "description",
    "task",
    "source",
    "adapter",
    "license",
    "marketplace",
    "context_length",
    "parameters",
    "active_parameters",
    "precision",
    "requirements",
    "engine",
    "capabilities",
    "prices",
    "references",
    "tags",
    "sample",
)
_CAPABILITIES = ("tools", "vision", "reasoning", "json_schema", "prompt_caching")
_BATCH_PRICES = ("batch_input", "batch_cached_input", "batch_output")
_DISCOUNT = "batch_discount_percent"
_PRICES = ("input", "cached_input", "output", "endpoint_minute", "audio_second", *_BATCH_PRICES, _DISCOUNT)
_PRECISIONS = ("float32", "float16", "bfloat16", "fp8", "int8", "int4", "mxfp4", "nvfp4")
_TOKENIZER = rf"/.+|{_ID}"
_URL = r"https?://\S+"
_TAG = r"[a-z0-9][a-z0-9-]*"
_OFFER = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_AN_URL = "an http or https address"
_MAX_PARAMETERS = 10**14
_MAX_CONTEXT = 100_000_000
_MAX_URL = 500
MAX_SERVERS = 64

# By task: the prices that must be there, and those that may.
_NEEDED: Mapping[Task, tuple[str, ...]] = {
    "chat": ("input", "output"),
    "completion": ("input", "output"),
    "embedding": ("input",),
    "rerank": ("input",),
    "transcription": ("audio_second",),
}


def parse_model_yaml(text: str | bytes, *, fast: bool = False) -> ModelSpec:
    """The model that `text` describes; Invalid names the field and the line and says what was expected.

    `fast`: for files of our own, see `parse_yaml`.
    """
    return _spec(parse_yaml(text, fast=fast))


def parse_model(value: Any) -> ModelSpec:
    """The same from a value that was decoded already (JSON): messages name the field only."""
    return _spec(Document(value, {}))


def model_document(spec: ModelSpec) -> dict[str, Any]:
    """The fields of `spec` as its file would have them; feeding it to `parse_model` gives `spec` again."""
    values = asdict(spec)
    document = {name: _bare(values[name]) for name in _FIELDS if name != "prices"}
    if spec.adapter is None:
        document["engine"] = _bare(values["engine"]) | {"kind": spec.engine.kind}
    else:
        del document["engine"]
    if spec.source and spec.source.builtin:
        document["source"] = {"builtin": spec.source.builtin}
    document["prices"] = prices_document(spec.prices.by_sku())
    return {name: value for name, value in document.items() if value not in ("", 0, None, {}, [], False)}


def prices_document(unit_prices: Mapping[str, int]) -> dict[str, str]:
    """Prices as people write them: dollars per million tokens, or per second or minute."""
    return {
        sku: format_pico(price) if sku in ("audio_second", "endpoint_minute") else format_per_million(price)
        for sku, price in unit_prices.items()
    }


def _bare(value: Any) -> Any:
    """Without what is not stated."""
    if isinstance(value, dict):
        return {name: _bare(inner) for name, inner in value.items() if inner not in ("", 0, None, (), False)}
    return list(value) if isinstance(value, tuple) else value


def _spec(document: Document) -> ModelSpec:
    top = Fields(document, (), _FIELDS)
    model_id = top.text("id", limit=MAX_ID, pattern=_ID, expected="an id such as acme/mock-chat", needed=True)
    task = top.choice("task", TASKS)
    source = _source(top)
    engine = _engine(top)
    if engine.kind == "external" and source is not None and source.builtin:
        raise top.wrong(
            "source", "a builtin source is for a model that Farebox serves, not for an external engine"
        )
    adapter = _adapter(top, task)
    if engine.kind != "external" and source is None and adapter is None:
        raise top.wrong(
            "source",
            "the field is missing: give source: {repository: OWNER/NAME} to serve the model here, "
            "or engine: {kind: external, url: ...} for a server that runs already",
        )
    return ModelSpec(
        id=model_id,
        task=task,
        prices=_prices(top, task),
        name=top.text("name"),
        publisher=top.text("publisher"),
        description=top.prose("description", limit=2000),
        source=source,
        adapter=adapter,
        license=_license(top),
        marketplace=_marketplace(top),
        context_length=top.whole(
            "context_length", low=1, high=_MAX_CONTEXT, needed=task in ("chat", "completion")
        ),
        parameters=top.whole("parameters", low=1, high=_MAX_PARAMETERS),
        active_parameters=top.whole("active_parameters", low=1, high=_MAX_PARAMETERS),
        precision=top.choice("precision", _PRECISIONS) if "precision" in top else "",
        requirements=_requirements(top),
        engine=engine,
        capabilities=_capabilities(top),
        references=top.texts("references", most=20, limit=500, pattern=_URL, expected=_AN_URL),
        tags=top.texts("tags", most=20, limit=40, pattern=_TAG, expected="a tag such as small-model"),
        sample=top.flag("sample"),
    )


def _source(top: Fields) -> Source | None:
    fields = top.inner("source", ("repository", "revision", "builtin"))
    if fields is None:
        return None
    if "builtin" in fields:
        if "repository" in fields or "revision" in fields:
            raise fields.wrong("builtin", "give either builtin or repository, not both")
        return Source(revision="", builtin=fields.choice("builtin", ("sample",)))
    expected = "a repository such as Qwen/Qwen3-0.6B"
    return Source(
        repository=fields.text("repository", limit=MAX_ID, pattern=_ID, expected=expected, needed=True),
        revision=fields.text(
            "revision", limit=128, pattern=r"[A-Za-z0-9][A-Za-z0-9._/-]*", expected="a branch, tag or commit"
        )
        or "main",
    )


def _adapter(top: Fields, task: Task) -> Adapter | None:
    fields = top.inner("adapter", ("base", "path"))
    if fields is None:
        return None
    for name in ("source", "engine", "requirements"):
        if name in top:
            raise top.wrong(name, f"a fine-tune is served by its base's servers, so it has no {name}")
    if task not in ("chat", "completion"):
        raise fields.wrong(None, f"only chat and completion models have fine-tunes here, not {task}")
    return Adapter(
        base=fields.text(
            "base", limit=MAX_ID, pattern=_ID, expected="the catalog id of the base model", needed=True
        ),
        path=fields.text("path", limit=1000, pattern="/.+", expected="an absolute path", needed=True),
    )


def _license(top: Fields) -> License | None:
    fields = top.inner("license", ("id", "url", "accept_terms"))
    if fields is None:
        return None
    return License(
        id=fields.text("id", limit=80, needed=True),
        url=fields.text("url", limit=500, pattern=_URL, expected=_AN_URL),
        accept_terms=fields.flag("accept_terms"),
    )


def _marketplace(top: Fields) -> Marketplace | None:
    fields = top.inner("marketplace", ("offer", "terms_url", "publisher", "plan"))
    if fields is None:
        return None

    def name(field: str, *, needed: bool = False) -> str:
        return fields.text(
            field, limit=80, pattern=_OFFER, expected="an id such as large-chat-offer", needed=needed
        )

    return Marketplace(
        offer=name("offer", needed=True),
        terms_url=fields.text("terms_url", limit=500, pattern=_URL, expected=_AN_URL, needed=True),
        publisher=name("publisher"),
        plan=name("plan"),
    )


def _requirements(top: Fields) -> Requirements:
    fields = top.inner("requirements", ("gpu_memory_gib", "gpu_count"))
    if fields is None:
        return Requirements()
    return Requirements(
        gpu_memory_gib=fields.number("gpu_memory_gib", high=100_000),
        gpu_count=fields.whole("gpu_count", low=1, high=64),
    )


def _capabilities(top: Fields) -> Capabilities:
    fields = top.inner("capabilities", _CAPABILITIES)
    return Capabilities() if fields is None else Capabilities(**{n: fields.flag(n) for n in _CAPABILITIES})


def _engine(top: Fields) -> Engine:
    known = (
        "kind",
        "args",
        "url",
        "urls",
        "model",
        "api_key_env",
        "continuous_usage",
        "tokenizer",
        "max_parallel",
    )
    fields = top.inner("engine", known)
    if fields is None:
        return Engine()
    kind = fields.choice("kind", ENGINE_KINDS, default="vllm")
    parallel = fields.whole("max_parallel", low=1, high=MAX_PARALLEL)
    if kind != "external":
        for name in ("url", "urls", "model", "api_key_env", "continuous_usage", "tokenizer"):
            if name in fields:
                raise fields.wrong(name, f"only an engine of kind external has {name}; this one is {kind}")
        args = fields.texts("args", most=100, limit=8192, expected="an argument")
        return Engine(kind=kind, args=args, max_parallel=parallel)
    if "args" in fields:
        raise fields.wrong("args", "an external engine is started by someone else, so it has no args")
    urls = _base_urls(fields)
    return Engine(
        kind=kind,
        url="" if urls else _base_url(fields, "url", fields.text("url", limit=_MAX_URL, needed=True)),
        urls=urls,
        model=fields.text("model"),
        api_key_env=fields.text(
            "api_key_env",
            limit=100,
            pattern=r"[A-Za-z_][A-Za-z0-9_]*",
            expected="the name of an environment variable (never the key itself)",
        ),
        continuous_usage=fields.flag("continuous_usage"),
        tokenizer=fields.text(
            "tokenizer",
            limit=500,
            pattern=_TOKENIZER,
            expected="an absolute path of a folder or a tokenizer.json, or a repository such as Qwen/Qwen3-0.6B",
        ),
        max_parallel=parallel,
    )


def _base_urls(fields: Fields) -> tuple[str, ...]:
    """Several attached servers that are alike, instead of the one in `url`."""
    given = fields.texts("urls", most=MAX_SERVERS, limit=_MAX_URL, expected=_AN_URL)
    if given and "url" in fields:
        raise fields.wrong("urls", "give either url or urls, not both")
    if "urls" in fields and not given:
        raise fields.wrong("urls", "expected at least one address")
    urls = tuple(_base_url(fields, "urls", url.strip()) for url in given)
    if len(set(urls)) < len(urls):
        raise fields.wrong("urls", "an address is listed twice")
    return urls


def _base_url(fields: Fields, name: str, url: str) -> str:
    """The server's base without `/v1`: Farebox appends `/v1/…`, so one trailing `/v1` is taken off."""
    expected = "expected an address such as http://127.0.0.1:9100"
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a malformed host or port
        good = False
    if not good or not re.fullmatch(r"[!-~]+", url):
        raise fields.wrong(name, f"{expected}, got {url!r}")
    if "@" in parts.netloc:
        raise fields.wrong(name, "keep credentials out of the address; name a variable in api_key_env")
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        raise fields.wrong(name, f"{expected}, without ? or #")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _prices(top: Fields, task: Task) -> Prices:
    fields = top.inner("prices", _PRICES)
    if fields is None:
        raise top.wrong("prices", f"the field is missing: a {task} model needs {' and '.join(_NEEDED[task])}")
    needed = _NEEDED[task]
    for sku in needed:
        if sku not in fields:
            raise fields.wrong(sku, f"the field is missing: a {task} model needs {' and '.join(needed)}")
    for sku in _PRICES:
        if sku in fields and sku not in needed and not _optional(sku, needed):
            raise fields.wrong(sku, f"a {task} model is not sold by {sku}")
    tokens = {sku: fields.price(sku, pico_per_token) for sku in ("input", "cached_input", "output")}
    if tokens["cached_input"] is None:
        tokens["cached_input"] = tokens["input"]
    return Prices(
        **tokens,
        **_batch_prices(fields, tokens),
        audio_second=fields.price("audio_second", pico_per_unit),
        endpoint_minute=fields.price("endpoint_minute", pico_per_unit) or 0,
    )


def _batch_prices(fields: Fields, tokens: Mapping[str, int | None]) -> dict[str, int | None]:
    """One by one, or all of them by a discount; None where neither is said."""
    own = {sku: fields.price(sku, pico_per_token) for sku in _BATCH_PRICES}
    for sku, price in own.items():
        if price is not None and tokens[sku.removeprefix(BATCH)] is None:
            raise fields.wrong(sku, f"the model is not sold by {sku.removeprefix(BATCH)}")
    if _DISCOUNT in fields:
        clash = next((sku for sku, price in own.items() if price is not None), "")
        if clash:
            raise fields.wrong(_DISCOUNT, f"give either {_DISCOUNT} or {clash}, not both")
        percent = fields.whole(_DISCOUNT, low=0, high=100)
        known = {sku: price for sku, price in tokens.items() if price is not None}
        return {**own, **discounted(known, percent)}
    if own["batch_input"] is not None and own["batch_cached_input"] is None:
        cached = tokens["cached_input"]
        assert cached is not None, "where input has a price it has one too"
        own["batch_cached_input"] = min(cached, own["batch_input"])
    return own


def _optional(sku: str, needed: tuple[str, ...]) -> bool:
    of_tokens = ("cached_input", "output", *_BATCH_PRICES, _DISCOUNT)
    return sku == "endpoint_minute" or (sku in of_tokens and "input" in needed)
