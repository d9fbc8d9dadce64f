"""How the metered routes look in the OpenAPI document; bodies are read by `wire/openai`, not by these."""

import re
from typing import Any

from functions.gateway.reading import Plan
from functions.gateway.surfaces import ANTHROPIC, AZURE
from wire.openai import MAX_CHOICES, MAX_MODEL_NAME, FreeOperation, Operation

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
    "anthropicKey": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same, as Anthropic's clients send it.",
    },
}

AZURE_PARAMETERS: list[Json] = [
    {"name": "api-version", "in": "query", "required": True, "schema": {"type": "string"}},
    {
        "name": "extra-parameters",
        "in": "header",
        "schema": {"type": "string", "enum": ["error", "drop", "ignore", "pass-through"]},
    },
]

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

_OBJECTS: Json = {"type": "array", "items": {"type": "object"}}
_STREAM: Json = {"type": "boolean", "default": False}

_BODIES: dict[Operation | FreeOperation, tuple[list[str], Json]] = {
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
    "responses": (
        ["input"],
        {
            "model": _MODEL,
            "input": _TEXTS,
            "instructions": _STRING,
            "stream": _STREAM,
            "max_output_tokens": _INTEGER,
            "temperature": _NUMBER,
            "top_p": _NUMBER,
            "tools": _OBJECTS,
        },
    ),
    "messages": (
        ["messages", "max_tokens"],
        {
            "model": _MODEL,
            "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
            "max_tokens": {"type": "integer", "minimum": 1},
            "stream": _STREAM,
            "system": _TEXTS,
            "temperature": _NUMBER,
            "top_p": _NUMBER,
            "tools": _OBJECTS,
        },
    ),
    "messages.count_tokens": (
        ["messages"],
        {"model": _MODEL, "messages": {"type": "array", "minItems": 1, "items": _MESSAGE}, "system": _TEXTS},
    ),
    "rerank": (
        ["query", "documents"],
        {"model": _MODEL, "query": _TEXTS, "documents": _TEXTS, "top_n": _INTEGER},
    ),
    "score": ([], {"model": _MODEL, "text_1": _TEXTS, "text_2": _TEXTS}),
    "tokenize": ([], {"model": _MODEL, "prompt": _STRING, "messages": _OBJECTS}),
    "audio.transcriptions": (
        ["file"],
        {
            "model": _MODEL,
            "file": {"type": "string", "format": "binary"},
            "language": _STRING,
            "prompt": _STRING,
            "temperature": _NUMBER,
            "stream": _STREAM,
            "response_format": {"type": "string", "enum": ["json", "text", "verbose_json"]},
        },
    ),
}
_STREAMED = ("chat.completions", "completions", "responses", "messages", "audio.transcriptions")
_SUMMARIES: dict[Operation | FreeOperation, str] = {
    "chat.completions": "Answer a conversation",
    "completions": "Continue a text",
    "embeddings": "Embed texts",
    "responses": "Answer, in the format of OpenAI's Responses",
    "messages": "Answer, in Anthropic's format",
    "messages.count_tokens": "Count a conversation's tokens; costs nothing",
    "rerank": "Order documents by relevance",
    "score": "Score pairs of texts",
    "tokenize": "A text's or conversation's tokens; costs nothing",
    "audio.transcriptions": "Write down speech; billed by the second",
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
    402: "A budget or credit is used up.",
    403: "An admin key, which cannot call models.",
    404: "No such model for this key.",
    408: "The body did not arrive in time.",
    409: "The Idempotency-Key is in use, or was used with another request.",
    413: "The body is too large.",
    422: "A member or parameter that this API does not take.",
    429: "Over a limit; see Retry-After and x-ratelimit-*.",
    431: "Too many or too large headers.",
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


def summary(operation: Operation | FreeOperation) -> str:
    """One line on what a metered route does."""
    return _SUMMARIES[operation]


def operation_id(prefix: str, path: str) -> str:
    """Unique in the document."""
    name = path.strip("/").removeprefix("v1/").replace("/", "_")
    if path.startswith("/v1/"):
        return f"endpoint_{name}" if prefix else name
    return f"endpoint_own_{name}" if prefix else f"own_{name}"


def planned_route(path: str, plan: Plan, *, model_required: bool) -> Json:
    """What is added to the document for one route: its body, its answers, its keys."""
    operation = plan.operation
    required, properties = _BODIES[operation]
    schema = {
        "type": "object",
        "required": [*(["model"] if model_required else []), *required],
        "properties": properties,
        "additionalProperties": True,
    }
    content: Json = {"application/json": {"schema": {"type": "object"}}}
    if operation in _STREAMED:
        content["text/event-stream"] = {"schema": _STRING}
    body_type = "multipart/form-data" if operation == "audio.transcriptions" else "application/json"
    parameters = path_parameters(path)
    if plan.surface is AZURE:
        parameters = [*parameters, *AZURE_PARAMETERS]
    return {
        "requestBody": {"required": True, "content": {body_type: {"schema": schema}}},
        "responses": {"200": {"description": "The answer", "content": content}},
        "parameters": parameters,
        "security": [*SECURITY, {"anthropicKey": []}] if plan.surface is ANTHROPIC else SECURITY,
    }
