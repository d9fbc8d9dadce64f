"""The operations whose bodies are not read by `wire/openai.py`, each with its dialect."""

from collections.abc import Mapping

from wire.anthropic import MessagesDialect
from wire.audio import TranscriptionDialect
from wire.dialects import Dialect
from wire.pooling import PoolingDialect
from wire.responses import ResponsesDialect

DIALECTS: Mapping[str, Dialect] = {
    "responses": ResponsesDialect(),
    "messages": MessagesDialect(),
    "rerank": PoolingDialect(results="results"),
    "score": PoolingDialect(results="data"),
    "audio.transcriptions": TranscriptionDialect(),
}
