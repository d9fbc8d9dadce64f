"""What an engine left uncounted, counted with the model's own tokenizer before the call is settled.

The engine is asked first (vLLM's `/tokenize` has the true chat template), then the control process, which knows
tokenizers on disk. All of it is bounded: what does not answer within two seconds stays an estimate, and who has
failed is left alone for a while. The texts are in memory only, and forgotten afterwards.
"""

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from core.errors import FareboxError, NotFound
from core.log import get_logger
from functions.gateway.control import ControlClient
from functions.gateway.estimate import prompt_count
from functions.gateway.figures import Tally
from functions.gateway.record import CallRecord
from functions.gateway.upstream import ServerGone, Upstream, read_answer
from metering.model import UsageEvent
from wire.prompts import Prompt, most_tokens_of_text, read_prompt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = get_logger(__name__)

COUNT_S = 2.0  # for all of it
_ENGINE_S = 1.0  # for the engine's part
_MAX_AT_ONCE = 64  # calls that are counted; more are estimated
_MAX_ASKS = 32  # requests to the engine for one call
_ASKS_AT_ONCE = 8
_MAX_ANSWER_BYTES = 4 * 1024 * 1024  # it lists every token
_PAUSE_S = 60.0  # after a failure
_SHORT_PAUSE_S = 3.0  # while the control process is busy, or loads a tokenizer
_MAX_PAUSES = 1024
_BILLED = ("completed", "client_disconnect")  # other ends cost nothing, or must not wait

_encoder = msgspec.json.Encoder()


class _Count(msgspec.Struct):
    """Of `/tokenize`'s answer."""

    count: int


class _Useless(Exception):
    """The one asked cannot count, or its answer cannot be true."""


class _Work(NamedTuple):
    """What is still to be counted of a call."""

    record: CallRecord
    prompt: Prompt | None
    texts: list[str] | None


_count = msgspec.json.Decoder(_Count)


class Counting:
    """The counting of one gateway process."""

    def __init__(self, upstream: Upstream, control: ControlClient) -> None:
        self._upstream, self._control = upstream, control
        self._busy = 0
        self._paused: dict[str, float] = {}  # who failed, and until when it is not asked (the loop's time)

    async def recount(self, record: CallRecord, event: UsageEvent) -> UsageEvent:
        """The event of a call that was estimated: counted if that can be done in time, else as it was."""
        if event.status not in _BILLED or event.usage.audio_ms or self._busy >= _MAX_AT_ONCE:
            record.forget_texts()
            return event
        self._busy += 1
        try:
            async with asyncio.timeout(COUNT_S):
                await self._count(record)
        except TimeoutError:
            pass
        except Exception as error:
            # Only the kind: a message could hold some of the text.
            _log.warning(
                "a call could not be counted",
                extra={"request_id": record.request_id, "reason": type(error).__name__},
            )
        finally:
            self._busy -= 1
            record.forget_texts()
        return record.event(event.status, event.http_status, event.ended_ms)

    async def _count(self, record: CallRecord) -> None:
        counts = record.chunks.counts() if record.chunks is not None else record.counts
        prompt = None
        if counts is None or not counts.input:
            prompt = read_prompt(record.operation, record.request.members)
        said = record.uncounted
        work = _Work(record, prompt, said.texts() if said is not None else None)
        asked: list[Callable[[_Work], Awaitable[Tally]]] = [self._ask_engine, self._ask_control]
        if prompt is not None and prompt.pairs:
            asked.reverse()  # an engine tokenizes single texts only, without what is between the two of a pair
        most = _most_output(record)
        for ask in asked:
            if work.prompt is None and not work.texts:
                return
            found = await ask(work)
            before = record.tally or Tally(None, None)
            output = before.output if found.output is None else min(found.output, most)
            record.tally = Tally(before.input if found.input is None else found.input, output)
            work = _Work(
                record,
                work.prompt if found.input is None else None,
                work.texts if found.output is None else None,
            )

    # -- the engine --

    async def _ask_engine(self, work: _Work) -> Tally:
        record = work.record
        name = f"engine {record.route.deployment_id}"
        if self._is_paused(name):
            return Tally(None, None)
        model = record.route.served_model
        ins = [] if work.prompt is None else list(_prompt_asks(work.prompt, model))
        outs = [_text_ask(text, model, special=False) for text in work.texts or ()]
        if len(ins) > _MAX_ASKS:
            ins = []
        if len(outs) > _MAX_ASKS:
            outs = []
        try:
            async with asyncio.timeout(_ENGINE_S):
                found = await self._tokenize(record, ins + outs)
        except (TimeoutError, FareboxError, ServerGone, _Useless, msgspec.DecodeError):
            self._pause(name, _PAUSE_S)
            return Tally(None, None)
        given = sum(found[: len(ins)]) + (work.prompt.ids if work.prompt is not None else 0)
        known = work.prompt is not None and (bool(ins) or not work.prompt.asks)
        return Tally(given if known else None, sum(found[len(ins) :]) if outs else None)

    async def _tokenize(self, record: CallRecord, asks: list[tuple[dict[str, Any], int]]) -> list[int]:
        found: list[int] = []
        for first in range(0, len(asks), _ASKS_AT_ONCE):
            some = asks[first : first + _ASKS_AT_ONCE]
            # A group: when one fails, the others are not left behind with their connections.
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._tokenize_one(record, body, most)) for body, most in some]
            counts = [task.result() for task in tasks]
            if None in counts:
                raise _Useless
            found += [count for count in counts if count is not None]
        return found

    async def _tokenize_one(self, record: CallRecord, body: dict[str, Any], most: int) -> int | None:
        """The count of one text; None: no answer, or one that cannot be true."""
        route = record.route
        try:
            answer = await self._upstream.post(
                record.server or route.urls[0],
                "tokenize",
                _encoder.encode(body),
                route=route,
                attempt_id=f"{record.attempt_id}:count",
                caller_headers={},
            )
            try:
                data = await read_answer(answer, _MAX_ANSWER_BYTES)
            finally:
                answer.close()
            count = _count.decode(data).count if answer.status == 200 else -1
        except (FareboxError, ServerGone, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return count if 0 <= count <= most else None

    # -- the control process --

    async def _ask_control(self, work: _Work) -> Tally:
        name = f"tokenizer {work.record.route.model_id}"
        if self._is_paused(name):
            return Tally(None, None)
        try:
            found = await self._control.count_tokens(work.record.route.model_id, work.prompt, work.texts)
        except NotFound:
            self._pause(name, _PAUSE_S)
        except asyncio.CancelledError:  # the time is over; not every call shall wait for it
            self._pause(name, _SHORT_PAUSE_S)
            raise
        except FareboxError:
            self._pause(name, _SHORT_PAUSE_S)
        else:
            return Tally(*found)
        return Tally(None, None)

    # -- who is left alone --

    def _is_paused(self, name: str) -> bool:
        until = self._paused.get(name)
        if until is None:
            return False
        if until > asyncio.get_running_loop().time():
            return True
        del self._paused[name]
        return False

    def _pause(self, name: str, seconds: float) -> None:
        if len(self._paused) >= _MAX_PAUSES:
            del self._paused[next(iter(self._paused))]
        self._paused[name] = asyncio.get_running_loop().time() + seconds


def _prompt_asks(prompt: Prompt, model: str) -> "list[tuple[dict[str, Any], int]]":
    """The bodies for `/tokenize`, each with the most that its count can truly be."""
    if prompt.messages:
        body = (
            {"add_generation_prompt": True} | prompt.options | {"model": model, "messages": prompt.messages}
        )
        return [(body, prompt.most_tokens())]
    singles = [_text_ask(text, model, special=prompt.special_tokens) for text in prompt.texts]
    both = [_text_ask(text, model, special=False) for pair in prompt.pairs for text in pair]
    return singles + both


def _text_ask(text: str, model: str, *, special: bool) -> tuple[dict[str, Any], int]:
    body = {"model": model, "prompt": text, "add_special_tokens": special}
    return body, most_tokens_of_text(text)


def _most_output(record: CallRecord) -> int:
    """What the engine may have produced at most: a text can be tokenized in more pieces than it was made of."""
    request, context = record.request, record.route.context_length
    each = request.max_tokens or context
    if not each:
        return 1 << 40
    return min(each, context or each) * request.choices * prompt_count(record.operation, request)
