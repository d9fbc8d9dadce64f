"""What is read of OpenAI's answers, as values: apart from `openai.py`, which is compiled, as these cannot be."""

from typing import Any

import msgspec
from msgspec import Raw

_anything = msgspec.json.Decoder()


def text_bytes(value: Any) -> int:
    """Bytes of text in messages, prompts or inputs; a token id counts as four, so that it is one token."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, int) and not isinstance(value, bool):
        return 4
    if isinstance(value, list):
        return sum(text_bytes(item) for item in value)
    if isinstance(value, dict):
        return sum(text_bytes(value[name]) for name in ("content", "text") if name in value)
    return 0


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | float | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | float | None = None


class EngineUsage(msgspec.Struct):
    """A `usage` object as engines write it."""

    prompt_tokens: int | float | None = None
    completion_tokens: int | float | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    text: Raw = Raw()
    message: Raw = Raw()


class PlainAnswer(msgspec.Struct):
    """What is read of an answer that is not streamed."""

    id: str | int | None = None
    choices: list[_Choice] = []
    usage: EngineUsage | None = None

    def estimate_output_tokens(self) -> int:
        """A token per four bytes of the answer's text."""
        size = 0
        for choice in self.choices:
            for raw in (choice.text, choice.message):
                if bytes(raw):
                    size += text_bytes(_anything.decode(raw))
        return (size + 3) // 4
