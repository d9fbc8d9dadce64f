"""The operations whose bodies are not read by `wire/openai.py`, each with its dialect."""

from wire.anthropic import MessagesDialect
from wire.audio import TranscriptionDialect
from wire.dialects import Dialect
from wire.openai import Operation
from wire.pooling import PoolingDialect
from wire.responses import ResponsesDialect

DIALECTS: dict[Operation, Dialect] = {
    "responses": ResponsesDialect(),
    "messages": MessagesDialect(),
    "rerank": PoolingDialect(results="results"),
    "score": PoolingDialect(results="data"),
    "audio.transcriptions": TranscriptionDialect(),
}
