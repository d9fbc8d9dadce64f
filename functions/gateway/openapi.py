"""How the metered routes look in the OpenAPI document; bodies are read by `wire/openai`, not by these."""

import re
from typing import Any

from wire.openai import MAX_CHOICES, MAX_MODEL_NAME, Operation

Json = dict[str, Any]

SECURITY: list[Json] = [{"bearer": []}, {"apiKey": []}]
SECURITY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A project's or an endpoint's key."},
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "api-key",
        "description": "The same, as Azure's clients send it.",
    },
}

_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")
_STRING: Json = {"type": "string"}
_INTEGER: Json = {"type": "integer", "minimum": 0}
_NUMBER: Json = {"type": "number"}
_MODEL: Json = {"type": "string", "minLength": 1, "maxLength": MAX_MODEL_NAME}
_STREAM_OPTIONS: Json = {"type": "object", "properties": {"include_usage": {"type": "boolean"}}}

_GENERATION: Json = {
    "model": _MODEL,
    "stream": {"type": "boolean", "default": False},
    "stream_options": _STREAM_OPTIONS,
    "n": {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES, "default": 1},
    "max_tokens": _INTEGER,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "stop": {"anyOf": [_STRING, {"type": "array", "items": _STRING}]},
    "seed": {"type": "integer"},
}
_MESSAGE: Json = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": _STRING,
        "content": {"anyOf": [_STRING, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]},
    },
}
_TEXTS: Json = {"anyOf": [_STRING, {"type": "array"}]}

_BODIES: dict[Operation, tuple[list[str], Json]] = {
    "chat.completions": (
        ["messages"],
        _GENERATION
        | {
            "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
            "max_completion_tokens": _INTEGER,
            "tools": {"type": "array", "items": {"type": "object"}},
            "response_format": {"type": "object"},
        },
    ),
    "completions": (["prompt"], _GENERATION | {"prompt": _TEXTS}),
    "embeddings": (
        ["input"],
        {"model": _MODEL, "input": _TEXTS, "dimensions": _INTEGER, "encoding_format": _STRING},
    ),
}
_SUMMARIES: dict[Operation, str] = {
    "chat.completions": "Answer a conversation",
    "completions": "Continue a text",
    "embeddings": "Embed texts",
}

ERROR_SCHEMA: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _STRING,
                "type": _STRING,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS = {
    400: "The body is wrong; `param` names the member.",
    401: "The key is missing, wrong, expired or revoked.",
    404: "No such model for this key.",
    413: "The body is too large.",
    502: "The model server failed.",
    503: "Not now; see Retry-After.",
    504: "The model server did not answer in time.",
}


def error_responses() -> dict[int | str, Json]:
    """The errors of a route in OpenAI's form."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAIError"}}}
    return {status: {"description": text, "content": content} for status, text in _ERRORS.items()}


def path_parameters(path: str) -> list[Json]:
    """The `{…}` of a path; FastAPI cannot know them, because the handlers take the request as it is."""
    return [
        {"name": name, "in": "path", "required": True, "schema": _STRING} for name in _PARAMETER.findall(path)
    ]


def summary(operation: Operation) -> str:
    """One line on what a metered route does."""
    return _SUMMARIES[operation]


def metered_route(path: str, operation: Operation, *, model_required: bool) -> Json:
    """What is added to the document for one metered route: its body, its answers, its keys."""
    required, properties = _BODIES[operation]
    schema = {
        "type": "object",
        "required": [*(["model"] if model_required else []), *required],
        "properties": properties,
        "additionalProperties": True,
    }
    content: Json = {"application/json": {"schema": {"type": "object"}}}
    if operation != "embeddings":
        content["text/event-stream"] = {"schema": _STRING}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": {"description": "The answer, in OpenAI's format", "content": content}},
        "parameters": path_parameters(path),
        "security": SECURITY,
    }
