"""The texts of a request and of an answer, for a content check: of chats, completions, Responses and Messages.

Whatever is a text counts, but for members that name or address something, so that a member that is new does not
slip past the check. Pictures and sounds are not looked at.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Raw

from wire.dialects import decode_object
from wire.openai import Operation
from wire.sse import EventSplitter, event_data

SCREENED: tuple[Operation, ...] = ("chat.completions", "completions", "responses", "messages")

_ASKED = (
    "messages",
    "prompt",
    "suffix",
    "input",
    "instructions",
    "system",
    "tools",
    "functions",
    "documents",
)
_SAID: Mapping[Operation, str] = {
    "chat.completions": "choices",
    "completions": "choices",
    "responses": "output",
    "messages": "content",
}
# Strings under these names are ids, kinds and data; an object under one (a tool's parameter may be called so) is read.
_NO_TEXTS = frozenset(
    {"audio", "call_id", "data", "file_data", "file_id", "finish_reason", "format", "id", "image_url"}
    | {"media_type", "object", "role", "signature", "status", "stop_reason", "tool_call_id", "tool_use_id"}
    | {"type", "url"}
)

_anything = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


def texts_asked(members: Mapping[str, Raw]) -> list[str]:
    """Of a request, by its members."""
    return [text for name in _ASKED if name in members for text in _texts(_decoded(members[name]))]


def asks_in_tokens(operation: Operation, members: Mapping[str, Raw]) -> bool:
    """A completion's prompt is given as token ids, which no check can read."""
    if operation != "completions" or "prompt" not in members:
        return False
    prompt = _decoded(members["prompt"])
    return isinstance(prompt, list) and not all(isinstance(each, str) for each in prompt)


def texts_said(operation: Operation, body: bytes) -> list[str]:
    """Of a whole answer."""
    said = (decode_object(body) or {}).get(_SAID[operation])
    return list(_texts(_said(said) if _SAID[operation] == "choices" else said))


def withheld(operation: Operation, body: bytes) -> bytes:
    """A whole answer without what was said, in its API's own words for that; counts and ids stay."""
    document = decode_object(body) or {}
    if operation == "responses":
        why = {"reason": "content_filter"}
        document |= {"status": "incomplete", "incomplete_details": why, "output": []}
    elif operation == "messages":
        document |= {"content": [], "stop_reason": "refusal"}
    else:
        document["choices"] = [_emptied(operation, each) for each in _objects(document.get("choices"))]
    return _encoder.encode(document)


def _emptied(operation: Operation, choice: Mapping[str, Any]) -> dict[str, Any]:
    empty = {"index": choice.get("index", 0), "finish_reason": "content_filter", "logprobs": None}
    if operation == "completions":
        return empty | {"text": ""}
    return empty | {"message": {"role": "assistant", "content": ""}}


class StreamTexts:
    """Reads the caller's events of a stream: what was said, by choice or block, since the last `take`."""

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._splitter = EventSplitter()
        self._head: dict[str, Any] = {}
        self._new: dict[int, list[str]] = {}
        self._before: dict[int, str] = {}
        self.size = 0  # characters since the last `take`

    def feed(self, data: bytes) -> None:
        """Events as they go out."""
        for event in self._splitter.split(data):
            document = decode_object(event_data(event) or b"")
            if document is not None:
                self._note(document)

    def take(self, overlap: int) -> list[str]:
        """What is to be checked: what is new, each with up to `overlap` characters of what was before it."""
        found = []
        for index, pieces in self._new.items():
            text = self._before.get(index, "") + "".join(pieces)
            self._before[index] = text[-overlap:]
            found.append(text)
        self._new, self.size = {}, 0
        return found

    def finish_event(self) -> bytes:
        """The event that ends a chat's or completion's stream as withheld; b"" in other APIs, which have none."""
        if self._operation not in ("chat.completions", "completions"):
            return b""
        head = {name: self._head[name] for name in ("id", "object", "created", "model") if name in self._head}
        nothing: dict[str, Any] = {"text": ""} if self._operation == "completions" else {"delta": {}}
        ends = [
            {"index": index, **nothing, "logprobs": None, "finish_reason": "content_filter"}
            for index in sorted(self._before) or [0]
        ]
        return b"data: %b\n\n" % _encoder.encode(head | {"choices": ends})

    def _note(self, document: dict[str, Any]) -> None:
        if self._operation in ("chat.completions", "completions"):
            self._head = self._head or document
            for choice in _said(document.get("choices")):
                self._add(choice.get("index"), choice)
        elif self._operation == "messages":
            self._add(document.get("index"), [document.get("delta"), document.get("content_block")])
        elif str(document.get("type", "")).endswith(".delta"):  # the .done events say it all again
            self._add(document.get("output_index"), document.get("delta"))

    def _add(self, index: object, value: object) -> None:
        key = index if isinstance(index, int) else 0
        for text in _texts(value):
            self._new.setdefault(key, []).append(text)
            self.size += len(text)


def _texts(value: object) -> Iterator[str]:
    """In order, however deep; `whole`: within a tool's input no name says anything."""
    waiting: list[tuple[object, bool]] = [(value, False)]
    while waiting:
        found, whole = waiting.pop()
        if isinstance(found, str):
            if found:
                yield found
        elif isinstance(found, list):
            waiting += [(each, whole) for each in reversed(found)]
        elif isinstance(found, dict):
            waiting += [
                (each, whole or (name == "input" and isinstance(each, dict)))
                for name, each in reversed(found.items())
                if whole or not _is_no_text(found, name, each)
            ]


def _is_no_text(within: dict[str, Any], name: str, value: object) -> bool:
    # The data of a document of Anthropic's may be a text.
    if name == "data" and within.get("type") == "text":
        return False
    return name in _NO_TEXTS and isinstance(value, str)


def _said(choices: object) -> list[dict[str, Any]]:
    """Choices without their logprobs, which say it all again."""
    return [{name: value for name, value in each.items() if name != "logprobs"} for each in _objects(choices)]


def _objects(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _decoded(raw: Raw) -> Any:
    try:
        return _anything.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
