"""OpenAI's bodies as bytes and values: what is read of a request, what is changed in it, how errors look.

A request stays opaque but for the few members that routing and metering need; the model server validates the
rest.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw

from core.errors import BadRequest, FareboxError
from wire.openai_shapes import EngineUsage, PlainAnswer, text_bytes
from wire.requests import ModelRequest, TokenCounts

__all__ = [
    "COMPLETION_LIMITS",
    "FREE_OPERATIONS",
    "MAX_CHOICES",
    "MAX_MODEL_NAME",
    "OUTPUT_LIMITS",
    "PRIVATE_MEMBERS",
    "EngineUsage",
    "FreeOperation",
    "ModelRequest",
    "Operation",
    "PlainAnswer",
    "TokenCounts",
    "counts_of",
    "drop_private",
    "engine_error_status",
    "error_body",
    "estimate_input_tokens",
    "finish_reason_of",
    "map_engine_error",
    "parse_answer",
    "parse_object",
    "parse_request",
    "read_member",
    "render_error",
    "upstream_body",
]

Operation = Literal[
    "chat.completions",
    "completions",
    "embeddings",
    "responses",
    "messages",
    "rerank",
    "score",
    "audio.transcriptions",
    "scoring",  # not OpenAI's: any body to a model server of any kind
]

FreeOperation = Literal["tokenize", "messages.count_tokens"]  # nothing is generated, nothing billed
FREE_OPERATIONS: Final[tuple[FreeOperation, ...]] = ("tokenize", "messages.count_tokens")

MAX_MODEL_NAME: Final = 256
MAX_CHOICES: Final = 128  # OpenAI's own bound on n

# Members by which a caller could reach into the engine: its queue, its ids, other tenants' cache, its peers, its
# plug-ins, its tensors. vLLM's (`vllm_xargs` reaches what takes `kv_transfer_params`), then SGLang's.
PRIVATE_MEMBERS: Final = (
    *("priority", "request_id", "cache_salt", "kv_transfer_params", "ec_transfer_params", "vllm_xargs"),
    "prompt_embeds",
    *("rid", "extra_key", "session_params", "custom_params"),
    *("bootstrap_host", "bootstrap_port", "bootstrap_room", "data_parallel_rank", "routed_dp_rank"),
)
_PRIVATE: Final = frozenset(PRIVATE_MEMBERS)

# The members that bound the output. An engine heeds one of them, not every engine the same one: the largest counts.
OUTPUT_LIMITS: Final = ("max_completion_tokens", "max_tokens")
COMPLETION_LIMITS: Final = ("max_tokens",)  # `/v1/completions` knows no other, so another one bounds nothing

_TEXT_MEMBERS: Final = (
    *("messages", "prompt", "input", "system", "instructions"),
    *("query", "queries", "documents", "items", "text_1", "text_2", "data_1", "data_2"),
)

_members: Final = msgspec.json.Decoder(dict[str, Raw])
_anything: Final = msgspec.json.Decoder()
_encoder: Final = msgspec.json.Encoder()
_TRUE: Final = Raw(b"true")
_KINDS: Final = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


def parse_request(body: bytes, limits: Sequence[str] = OUTPUT_LIMITS) -> ModelRequest:
    """Read a request's body. BadRequest: not a JSON object, or one of the few members read here is wrong.

    `limits` are the members that bound the output; of several the largest counts.
    """
    members = parse_object(body)
    if "use_beam_search" in members and _flag(members, "use_beam_search"):
        raise BadRequest(
            "Beam search is not served: engines do not tell what the beams that they drop cost.",
            param="use_beam_search",
            code="unsupported_value",
        )
    stream = "stream" in members and _flag(members, "stream")
    return ModelRequest(
        members,
        _model(members) if "model" in members else None,
        stream,
        "stream_options" in members and _wants_usage(members) and stream,
        _count(members, "n", 1, MAX_CHOICES) or 1 if "n" in members else 1,
        _largest_count(members, limits),
        _count(members, "best_of", 1, MAX_CHOICES) or 1 if "best_of" in members else 1,
    )


def read_member(request: ModelRequest, name: str, kind: type) -> Any:
    """One more member of a request, None when it is absent or null. BadRequest: it is of another kind."""
    value = _value(request.members, name)
    if value is not None and not isinstance(value, kind):
        raise _wrong_type(name, _KINDS.get(kind, f"a {kind.__name__}"), value)
    return value


def upstream_body(
    request: ModelRequest, *, served_model: str, continuous_usage: bool, cache_salt: str | None
) -> bytes:
    """The body as the model server gets it: its own model name, usage asked for, nothing engine-private."""
    members = request.members
    drop_private(members)
    members["model"] = _text(served_model)
    if cache_salt is not None:
        members["cache_salt"] = _text(cache_salt)
    if request.stream:
        options = _stream_options(members)
        options["include_usage"] = _TRUE
        options.pop("continuous_usage_stats", None)
        if continuous_usage:
            options["continuous_usage_stats"] = _TRUE
        members["stream_options"] = Raw(_encoder.encode(options))
    return _encoder.encode(members)


@lru_cache(maxsize=4096)  # models and organizations: each is said again and again
def _text(text: str) -> Raw:
    return Raw(_encoder.encode(text))


def drop_private(members: dict[str, Raw]) -> None:
    """Take out what is not the caller's to set."""
    if not _PRIVATE.isdisjoint(members):
        for name in PRIVATE_MEMBERS:
            members.pop(name, None)


def estimate_input_tokens(request: ModelRequest) -> int:
    """A rough count for when the engine gave none: a token per four bytes of text, or per given token id."""
    size = 0
    for name in _TEXT_MEMBERS:
        raw = request.members.get(name)
        if raw is not None:
            try:
                size += text_bytes(_anything.decode(raw))
            except msgspec.DecodeError:  # the engine will have refused it
                size += len(bytes(raw))
    return (size + 3) // 4


def parse_object(body: bytes) -> dict[str, Raw]:
    """The members of a JSON object, still encoded. BadRequest: it is none."""
    try:
        return _members.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The request body must be a JSON object: {error}.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    except RecursionError:
        raise BadRequest("The request body is nested too deeply.", code="invalid_json") from None


def _value(members: Mapping[str, Raw], name: str) -> Any:
    raw = members.get(name)
    if raw is None:
        return None
    try:
        return _anything.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"'{name}' is not valid JSON: {error}.", param=name, code="invalid_json") from None
    except RecursionError:
        raise BadRequest(f"'{name}' is nested too deeply.", param=name, code="invalid_json") from None


def _wrong_type(name: str, expected: str, value: object) -> BadRequest:
    given = _KINDS.get(type(value), "a number")
    return BadRequest(
        f"Invalid type for '{name}': expected {expected}, but got {given}.", param=name, code="invalid_type"
    )


def _model(members: Mapping[str, Raw]) -> str:
    value = _value(members, "model")
    if not isinstance(value, str):
        raise _wrong_type("model", "a string", value)
    if not value or len(value) > MAX_MODEL_NAME:
        raise BadRequest(
            f"'model' must have 1 to {MAX_MODEL_NAME} characters.", param="model", code="invalid_value"
        )
    return value


def _flag(members: Mapping[str, Raw], name: str, shown: str = "") -> bool:
    value = _value(members, name)
    if value is not None and not isinstance(value, bool):
        raise _wrong_type(shown or name, "a boolean", value)
    return bool(value)


def _count(members: Mapping[str, Raw], name: str, least: int, most: int | None = None) -> int | None:
    value = _value(members, name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(name, "an integer", value)
    if value < least or (most is not None and value > most):
        bounds = f"{least} or more" if most is None else f"between {least} and {most}"
        raise BadRequest(
            f"Invalid value for '{name}': expected {bounds}, but got {value}.",
            param=name,
            code="invalid_value",
        )
    return value


def _largest_count(members: Mapping[str, Raw], names: Sequence[str]) -> int | None:
    largest = 0
    for name in names:
        if name in members and (found := _count(members, name, 0)) and found > largest:
            largest = found
    return largest or None


def _stream_options(members: Mapping[str, Raw]) -> dict[str, Raw]:
    raw = members.get("stream_options")
    if raw is None or bytes(raw) == b"null":
        return {}
    try:
        return _members.decode(raw)
    except msgspec.ValidationError:
        raise _wrong_type("stream_options", "an object", _value(members, "stream_options")) from None


def _wants_usage(members: Mapping[str, Raw]) -> bool:
    options = _stream_options(members)
    return _flag(options, "include_usage", "stream_options.include_usage") if options else False


# -- usage --


def counts_of(usage: EngineUsage) -> TokenCounts:
    """An engine's counts, clamped, so that the invariants hold whatever it says."""
    prompt, output = _whole(usage.prompt_tokens), _whole(usage.completion_tokens)
    before, after = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = 0 if before is None else _whole(before.cached_tokens)
    reasoning = 0 if after is None else _whole(after.reasoning_tokens)
    return TokenCounts(
        prompt, cached if cached < prompt else prompt, output, reasoning if reasoning < output else output
    )


def _whole(count: int | float | None) -> int:
    if count is None:
        return 0
    whole = count if isinstance(count, int) else int(count)
    return whole if whole > 0 else 0


def finish_reason_of(answer: PlainAnswer) -> str:
    """The first that any of its choices gives, "" when none does."""
    for choice in answer.choices:
        if choice.finish_reason:
            return choice.finish_reason
    return ""


_plain: Final = msgspec.json.Decoder(PlainAnswer)


def parse_answer(body: bytes) -> PlainAnswer | None:
    """An answer's known members; None when it is not the JSON object it should be."""
    try:
        return _plain.decode(body)
    except msgspec.ValidationError:
        return _parse_answer_leniently(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _parse_answer_leniently(body: bytes) -> PlainAnswer | None:
    """Some member has a type of the engine's own: keep the usage if that can be read."""
    members = _members.decode(body) if body.lstrip().startswith(b"{") else None
    if members is None:
        return None
    try:
        return PlainAnswer(usage=msgspec.json.decode(members.get("usage", b"null"), type=EngineUsage | None))
    except msgspec.DecodeError:
        return PlainAnswer()


# -- errors --

_TYPES: Final = {402: "insufficient_quota", 403: "permission_error", 429: "rate_limit_error"}
_CODES: Final = {
    400: "bad_request",
    404: "not_found",
    408: "timeout",
    413: "too_large",
    422: "bad_request",
    429: "rate_limit_exceeded",
    503: "unavailable",
    504: "timeout",
}
_CONTEXT_LENGTH: Final = re.compile(
    r"maximum (context|model|input) length|context (length|window|size)|max_model_len|max_total_tokens"
    r"|longer than the (maximum|model)|prompt is too long",
    re.IGNORECASE,
)
_PYDANTIC_LOCATION: Final = re.compile(
    r"'loc': (?:\('body', '([A-Za-z0-9_]+)'|'body\.([A-Za-z0-9_.]{1,100})')"
)
_MAX_MESSAGE: Final = 4000


def error_body(
    status: int, message: str, *, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """OpenAI's error document."""
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def render_error(error: FareboxError) -> dict[str, Any]:
    """One of our own errors as OpenAI's error document."""
    body = error_body(error.status, error.message, code=error.code, param=error.param)
    body["error"] |= error.extra
    return body


def map_engine_error(status: int, body: bytes) -> tuple[str, str, str | None]:
    """Message, string code and param of an engine's error body, whatever its dialect.

    vLLM writes an integer `code` and sometimes no `error` around it; FastAPI-made servers write `detail`.
    """
    message, code, param = _engine_error_fields(body)
    if not message:
        message = f"The model server answered {status} without an explanation."
    if _CONTEXT_LENGTH.search(message) and status in (400, 413, 422):
        code = "context_length_exceeded"
        param = param or "messages"
    if code is None:
        code = _CODES.get(status) or ("upstream_error" if status >= 500 else "bad_request")
    if param is None and (match := _PYDANTIC_LOCATION.search(message)):
        param = match[1] or match[2]
    return message[:_MAX_MESSAGE], code, param


def _engine_error_fields(body: bytes) -> tuple[str, str | None, str | None]:
    try:
        document = _anything.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return "", None, None  # an HTML page or a stack trace: nothing a caller should see
    if not isinstance(document, dict):
        return (document, None, None) if isinstance(document, str) else ("", None, None)
    error = document.get("error", document)
    if isinstance(error, str):
        return error, None, None
    if not isinstance(error, dict):
        return "", None, None
    message = error.get("message") or error.get("detail") or ""
    if not isinstance(message, str):
        message = _encoder.encode(message).decode()
    code, param = error.get("code"), error.get("param")
    text_code = code if isinstance(code, str) and code and not code.isdigit() else None
    return message, text_code, param if isinstance(param, str) else None


def engine_error_status(body: bytes) -> int:
    """The HTTP status of an error object inside a stream (vLLM's integer code), 502 when it has none."""
    try:
        document = _anything.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return 502
    error = document.get("error", document) if isinstance(document, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdigit():
        code = int(code)
    return code if isinstance(code, int) and 400 <= code <= 599 else 502
