"""Azure's Model Inference API in front of OpenAI's bodies: its parameters, its rule for others, its errors."""

import re
from typing import Any
from urllib.parse import parse_qs

import msgspec
from msgspec import Raw

from core.errors import BadRequest, FareboxError, Invalid
from wire.openai import Operation, parse_object
from wire.suggestions import suggest

MODES = ("error", "drop", "ignore", "pass-through")
_API_VERSION = re.compile(r"20[0-9]{2}-[01][0-9]-[0-3][0-9](-preview)?")
_GENERATION = {
    *("model", "frequency_penalty", "presence_penalty", "max_tokens", "seed", "stop", "stream"),
    *("temperature", "top_p"),
}
PARAMETERS: dict[Operation, frozenset[str]] = {
    "chat.completions": frozenset(
        _GENERATION | {"messages", "response_format", "tools", "tool_choice", "modalities"}
    ),
    "completions": frozenset(_GENERATION | {"prompt", "n", "best_of", "echo", "logprobs", "suffix"}),
    "embeddings": frozenset({"model", "input", "dimensions", "encoding_format", "input_type"}),
}
MODEL_TYPES = {"chat": "chat_completion", "completion": "text_generation", "embedding": "embeddings"}
_ENCODINGS = ("float", "base64")
NOT_SUPPORTED = "parameter_not_supported"

_encoder = msgspec.json.Encoder()
_anything = msgspec.json.Decoder()
_KNOWN = frozenset().union(*PARAMETERS.values())


def check_api_version(query: bytes) -> None:
    """BadRequest: the query has no `api-version`, or it is none."""
    values = parse_qs(query.decode("latin-1"), max_num_fields=32).get("api-version", [])
    if not values:
        raise BadRequest(
            "The query parameter 'api-version' is required, for example ?api-version=2024-05-01-preview.",
            param="api-version",
            code="missing_api_version",
        )
    if len(values) > 1 or not _API_VERSION.fullmatch(values[0]):
        raise BadRequest(
            "The query parameter 'api-version' must look like 2024-05-01 or 2024-05-01-preview.",
            param="api-version",
            code="invalid_api_version",
        )


def openai_body(body: bytes, operation: Operation, extra_parameters: bytes) -> bytes:
    """The body in OpenAI's terms. The endpoint names the model, so `model` is not looked at (R5.12)."""
    mode = extra_parameters.decode("latin-1").strip().lower() or "error"
    if mode not in MODES:
        raise BadRequest(
            f"The header 'extra-parameters' must be one of {', '.join(MODES)}.",
            param="extra-parameters",
            code="invalid_value",
        )
    members = parse_object(body)
    members.pop("model", None)
    _settle_extras(members, operation, mode)
    if operation == "embeddings":
        _check_embedding(members)
    return _encoder.encode(members)


def _settle_extras(members: dict[str, Raw], operation: Operation, mode: str) -> None:
    known = PARAMETERS[operation]
    extras = [name for name in members if name not in known]
    if not extras or mode == "pass-through":
        return
    if mode == "error":
        close = suggest(extras[0], known)
        hint = f" Did you mean '{close}'?" if close else ""
        raise BadRequest(
            f"'{extras[0][:64]}' is not a parameter of this API.{hint} The header 'extra-parameters' lets others "
            "through (pass-through) or drops them (drop).",
            param=extras[0][:64],
            code="extra_parameter",
        )
    for name in extras:
        del members[name]


def _check_embedding(members: dict[str, Raw]) -> None:
    """What no engine here can do is said, not left out: the caller would get other vectors than asked for."""
    for name, served in (("encoding_format", _ENCODINGS), ("input_type", ("text",))):
        raw = members.get(name)
        value = _anything.decode(raw) if raw is not None else None
        if value is not None and value not in served:
            raise Invalid(
                f"{name}={value!r:.60} is not supported by this model; it can do {', '.join(served)}.",
                param=name,
                code=NOT_SUPPORTED,
                extra={"input": value},
            )
    members.pop("input_type", None)


def error_document(error: FareboxError) -> tuple[int, str, dict[str, Any]]:
    """Status, code and body. A valid parameter that the model lacks is 422 with `detail.loc` (R5.11)."""
    status, code, param = error.status, error.code, error.param
    if status == 400 and code == "bad_request" and param in _KNOWN:
        status, code = 422, NOT_SUPPORTED
    inner: dict[str, Any] = {"code": code, "message": error.message, "param": param, "status": status}
    body: dict[str, Any] = {"error": inner, "code": code, "message": error.message, "status": status}
    if param is not None:
        body["param"] = param
    if status == 422:
        body["detail"] = {"loc": ["body", *([param] if param else [])], "input": error.extra.get("input")}
    return status, code, body
