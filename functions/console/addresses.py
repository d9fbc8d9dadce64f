"""An endpoint's addresses, as the caller who asks for them reaches this installation."""

import re
from collections.abc import Mapping

from fastapi import Request

from catalog.model import Task
from core.settings import Settings

_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")

_OPERATIONS: Mapping[Task, str] = {
    "chat": "chat/completions",
    "completion": "completions",
    "embedding": "embeddings",
    "rerank": "rerank",
    "transcription": "audio/transcriptions",
}


def base_address(request: Request, settings: Settings) -> str:
    """Scheme and host of the request; the listening address when it names no sensible host."""
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        host = f"{host}:{settings.port}"
    # Set by the gateway or by a proxy before it that ends TLS.
    forwarded = request.headers.get("x-forwarded-proto", "")
    return f"{forwarded if forwarded in ('http', 'https') else 'http'}://{host}"


def openai_base_url(base: str, endpoint: str) -> str:
    """What an OpenAI client takes as its base URL."""
    return f"{base}/endpoints/{endpoint}/v1"


def scoring_uri(base: str, endpoint: str, task: Task) -> str:
    """The full address of the endpoint's main operation."""
    return f"{openai_base_url(base, endpoint)}/{_OPERATIONS[task]}"
