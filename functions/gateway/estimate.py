"""The worst case of a call before it is sent: what is reserved until the true figures are known. Pure.

Two figures of the input, because they answer two questions:

- tokens per minute: a token per three bytes of the body, and some for the chat template. More than prose, code
  and Chinese, Japanese or Korean text come to in the tokenizers in use; denser text (long runs of digits, base64)
  is corrected when the engine has counted.
- money: a token per byte, which no tokenizer with byte fallback can exceed, so that no hard budget is overdrawn.

Both end at the context length, which the engine enforces, and start there when the tokens do not show in the body's
size: it holds or points to pictures, sound or documents, or brings a chat template of its own.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

from serving.route import Route
from wire.openai import ModelRequest, Operation

BYTES_PER_TOKEN: Final = 3
TEMPLATE_TOKENS: Final = 64  # a default system prompt, the turns' marks
TEMPLATE_TOKENS_AT_MOST: Final = 512  # with a template's words about tools
LEAST_AUDIO_BYTES_PER_S: Final = 500  # speech codecs do not go below 4 kbit/s

_NO_OUTPUT: Final[frozenset[Operation]] = frozenset({"embeddings", "rerank", "score"})
_LISTS: Final[Mapping[Operation, str]] = {"completions": "prompt", "embeddings": "input"}
# As members of the body: within a text the quotes would be escaped.
_MEDIA: Final = (
    b'_url"',
    b'"image"',
    b'"document"',
    b'"audio"',
    b'"input_audio"',
    b'"input_image"',
    b'"input_file"',
    b'"file"',
)
# A letter of a mark written as \u0061, which engines read as the letter. No encoder does so without a reason.
_BACKSLASH: Final = 0x5C
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")
# Of a pair both sides: the shorter one is put before each of the other's texts.
_PAIRS: Final[frozenset[Operation]] = frozenset({"rerank", "score"})
_SIDES: Final = (("query", "queries", "text_1", "data_1"), ("documents", "items", "text_2", "data_2"))
_items: Final = msgspec.json.Decoder(list[Raw])


class WorstCase:
    """What a call can come to at most."""

    __slots__ = ("cost_pico", "tokens")

    def __init__(self, tokens: int, cost_pico: int | None) -> None:
        self.tokens = tokens
        self.cost_pico = cost_pico  # None: some of it has no price


def worst_case(
    operation: Operation,
    request: ModelRequest,
    route: Route,
    body: bytes,
    at_ms: int,
    *,
    priced: bool = True,
) -> WorstCase:
    """The worst case of a call that begins now; without its cost where nobody asks for it."""
    if operation == "scoring":
        return WorstCase(0, 0)
    if operation == "audio.transcriptions":
        seconds = len(body) // LEAST_AUDIO_BYTES_PER_S + 1
        return WorstCase(0, _audio_cost(seconds, route, at_ms) if priced else 0)
    prompts, size = prompt_count(operation, request), len(body)
    if operation in _PAIRS:
        prompts, size = _pairs(request, size)
    context = route.context_length
    room = context * prompts if context else 1 << 40  # of all prompts together
    if _has_media(body) or "chat_template" in request.members:
        given = bound = room if context else size
    else:
        given = min(size // BYTES_PER_TOKEN + TEMPLATE_TOKENS * prompts, room)
        bound = min(size + TEMPLATE_TOKENS_AT_MOST * prompts, room)
    each_prompt = request.choices if request.choices >= request.best_of else request.best_of
    answers = each_prompt * prompts
    output = 0
    if operation not in _NO_OUTPUT:
        each = request.max_tokens if request.max_tokens is not None else context
        output = (min(each, context) if context else each) * answers
    tokens = given + output
    if answers == prompts and tokens > room:
        tokens = room  # prompt and answer share the context
    return WorstCase(tokens, _token_cost(bound, output, route, at_ms) if priced else 0)


def _audio_cost(seconds: int, route: Route, at_ms: int) -> int | None:
    price = _dearest_prices(route, at_ms).get("audio_second")
    return None if price is None else seconds * price


def _token_cost(given: int, output: int, route: Route, at_ms: int) -> int | None:
    prices = _dearest_prices(route, at_ms)
    input_price, output_price = prices.get("input"), prices.get("output", None if output else 0)
    if input_price is None or output_price is None:
        return None
    return given * input_price + output * output_price


def _dearest_prices(route: Route, at_ms: int) -> Mapping[str, int]:
    """The prices now and those already decided: a call is priced by the minute in which it ends."""
    tariffs = route.tariffs
    if len(tariffs) == 1 and tariffs[0].starts_ms <= at_ms:
        return _with_input(tariffs[0].unit_prices)
    dearest = dict(_with_input(route.unit_prices(at_ms)))
    for tariff in tariffs:
        if tariff.starts_ms > at_ms:
            for sku, price in _with_input(tariff.unit_prices).items():
                dearest[sku] = max(price, dearest.get(sku, 0))
    return dearest


def _with_input(prices: Mapping[str, int]) -> Mapping[str, int]:
    """Cached input may be priced above other input; then all of it might be cached."""
    if prices.get("cached_input", 0) > prices.get("input", 0):
        return {**prices, "input": prices["cached_input"]}
    return prices


def prompt_count(operation: Operation, request: ModelRequest) -> int:
    """How many prompts a call holds: several only where the operation takes a list of them."""
    name = _LISTS.get(operation)
    raw = request.members.get(name) if name else None
    if raw is None or bytes(raw)[:1] != b"[":
        return 1
    try:
        items = _items.decode(raw)
    except msgspec.DecodeError:
        return 1  # the engine will refuse it
    # A list of numbers is one prompt of token ids.
    return len(items) if items and bytes(items[0])[:1] in (b'"', b"[") else 1


def _pairs(request: ModelRequest, size: int) -> tuple[int, int]:
    """How many pairs a call holds, and the bytes of all of them: what is not in a list is in each one."""
    pairs, once = 1, 0
    for names in _SIDES:
        for name in names:
            raw = request.members.get(name)
            if raw is None or bytes(raw)[:1] != b"[":
                continue
            try:
                items = len(_items.decode(raw))
            except msgspec.DecodeError:
                continue  # the engine will refuse it
            if items > 1:
                pairs = max(pairs, items)
                once += len(bytes(raw))
    return pairs, once + pairs * (size - once)


def _has_media(body: bytes) -> bool:
    # A letter is found many times faster than a word. By its number, and words by `find`: for bytes `in` first tries
    # whether they are a number, and throws the error away.
    if _BACKSLASH in body and b"\\u00" in body and _ESCAPED_LETTER.search(body):
        return True  # perhaps: none that hides its name is to be cheaper
    # Media come in a list within a list (the messages), or as a URL; nearly all bodies end here.
    if body.find(b"[", body.find(b"[") + 1) < 0 and body.find(b'_url"') < 0:
        return False
    for mark in _MEDIA:  # noqa: SIM110  # a generator would cost more than the search
        if mark in body:
            return True
    return False
