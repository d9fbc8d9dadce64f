"""What was generated in an answer whose engine has not counted it: kept in memory until somebody counts it.

Bounded, never stored, never logged. Where an engine gives its counts, nothing is kept at all.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from wire.sse import event_data

MAX_BYTES = 256 * 1024  # of text, in one answer
MAX_TEXTS = 256  # choices, thoughts, tool calls
_READ_FROM = 16 * 1024  # bytes of events; as text they are far smaller
_JOIN_FROM = 512  # pieces of one text

Key = tuple[int | str, ...]
_FIRST_CONTENT: Key = (0, "content")
Add = Callable[[Key, object], None]

_anything = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


class Transcript:
    """The texts of one answer, each put together from its pieces."""

    __slots__ = ("_escaped", "_events", "_pieces", "_size", "_unread", "lost")

    def __init__(self) -> None:
        self._pieces: dict[Key, list[str]] = {}
        self._size = 0
        self._escaped: list[bytes] = []
        self._events: list[bytes] = []
        self._unread = 0
        self.lost = False  # there was more than is kept: it cannot be counted

    def note(self, event: bytes) -> None:
        """An event with a chunk of a chat or a completion; read later, if ever."""
        if self._escaped:
            self._unescape()
        self._events.append(event)
        self._unread += len(event)
        if self._unread > _READ_FROM:
            self._read()

    def note_escaped(self, text: bytes) -> None:
        """A piece of the first choice's content, as it is in JSON between its quotes."""
        if self._events:
            self._read()
        self._escaped.append(text)
        self._unread += len(text)
        if len(self._escaped) > _JOIN_FROM or self._unread > _READ_FROM:
            self._unescape()

    def add(self, key: Key, text: object) -> None:
        """A piece of the text `key`. What is no text is left out."""
        if not isinstance(text, str) or not text or self.lost:
            return
        pieces = self._pieces.setdefault(key, [])
        pieces.append(text)
        self._size += len(text)
        if self._size > MAX_BYTES or len(self._pieces) > MAX_TEXTS:
            self.lost = True
            self._pieces.clear()
        elif len(pieces) > _JOIN_FROM:
            pieces[:] = ["".join(pieces)]

    def add_chunk(self, document: object) -> None:
        """A chunk, or a whole answer, of a chat or a completion."""
        choices = document.get("choices") if isinstance(document, dict) else None
        for place, choice in enumerate(_objects(choices)):
            index = choice.get("index")
            _add_choice(self.add, index if isinstance(index, int) else place, choice)

    def texts(self) -> list[str] | None:
        """All texts, None when there was more than is kept."""
        self._unescape()
        self._read()
        return None if self.lost else ["".join(pieces) for pieces in self._pieces.values()]

    def text_bytes(self) -> int | None:
        """The size of all texts as UTF-8."""
        texts = self.texts()
        return None if texts is None else sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)

    def _unescape(self) -> None:
        escaped, self._escaped, self._unread = self._escaped, [], 0
        try:
            self.add(_FIRST_CONTENT, _anything.decode(b'"%b"' % b"".join(escaped)))
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.lost = True

    def _read(self) -> None:
        events, self._events, self._unread = self._events, [], 0
        for event in events:
            try:
                self.add_chunk(_anything.decode(event_data(event) or b"null"))
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                self.lost = True


def of_answer(body: bytes) -> Transcript:
    """Of a whole answer to a chat or a completion."""
    transcript = Transcript()
    try:
        transcript.add_chunk(_anything.decode(body))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        transcript.lost = True
    return transcript


def of_response(document: dict[str, Any]) -> Transcript:
    """Of a whole object of OpenAI's Responses API."""
    transcript = Transcript()
    for place, item in enumerate(_objects(document.get("output"))):
        for name in ("name", "arguments", "input"):
            transcript.add((place, name), item.get(name))
        for list_name in ("content", "summary"):
            for inner, part in enumerate(_objects(item.get(list_name))):
                transcript.add((place, list_name, inner), part.get("text") or part.get("refusal"))
    return transcript


def of_message(document: dict[str, Any]) -> Transcript:
    """Of a whole message of Anthropic's."""
    transcript = Transcript()
    for place, block in enumerate(_objects(document.get("content"))):
        add_block(transcript.add, place, block)
        if block.get("type") == "tool_use" and block.get("input"):
            transcript.add((place, "input"), _encoder.encode(block["input"]).decode())
    return transcript


def add_block(add: Add, place: int, block: dict[str, Any]) -> None:
    """The texts of a content block of Anthropic's, or of a delta to one."""
    for name in ("text", "thinking", "partial_json"):
        add((place, name), block.get(name))
    if block.get("type") == "tool_use":
        add((place, "name"), block.get("name"))


def _add_choice(add: Add, index: int, choice: dict[str, Any]) -> None:
    add((index, "text"), choice.get("text"))
    said = choice.get("delta") or choice.get("message")
    if not isinstance(said, dict):
        return
    content = said.get("content")
    if isinstance(content, list):
        for place, part in enumerate(_objects(content)):
            add((index, "part", place), part.get("text"))
    add((index, "content"), content)
    # Some engines give the same thoughts under both names.
    add((index, "reasoning"), said.get("reasoning_content") or said.get("reasoning"))
    add((index, "refusal"), said.get("refusal"))
    _add_function(add, (index, "function"), said.get("function_call"))
    for place, call in enumerate(_objects(said.get("tool_calls"))):
        number = call.get("index")
        _add_function(
            add, (index, "tool", number if isinstance(number, int) else place), call.get("function")
        )


def _add_function(add: Add, key: Key, function: object) -> None:
    if isinstance(function, dict):
        add((*key, "name"), function.get("name"))
        add((*key, "arguments"), function.get("arguments"))


def _objects(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))
