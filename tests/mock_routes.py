"""The mock engine's answers beside chat, completions and embeddings, in the shapes that vLLM 0.32 gives them.

Shapes follow `vllm/entrypoints`: openai/responses/protocol.py, anthropic/protocol.py and serving.py,
pooling/scoring/protocol.py, speech_to_text/transcription/protocol.py, serve/tokenize/protocol.py.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

from aiohttp import web

from tests.mock_engine import Behaviour, Json, MockEngine, Seen, close_connection, vllm_error, watched


def add_routes(app: web.Application, engine: MockEngine) -> None:
    """Serve them beside the engine's own."""
    for path, answer in (
        ("/v1/responses", _Responses),
        ("/v1/messages", _Messages),
    ):
        app.router.add_post(path, _generating(engine, answer))
    for path, plain in (
        ("/v1/rerank", _rerank),
        ("/v1/score", _score),
        ("/v1/audio/transcriptions", _transcribe),
        ("/tokenize", _tokenize),
        ("/v1/messages/count_tokens", _count_tokens),
    ):
        app.router.add_post(path, _plain(engine, plain))


def _plain(engine: MockEngine, make: Any) -> Any:
    async def serve(request: web.Request) -> web.StreamResponse:
        if request.headers.get("x-request-id", "").endswith(":count"):
            return await _count(engine, request)
        seen, behaviour, early = await engine.open_request(request)
        with watched(seen):
            if early is None:
                await asyncio.sleep(behaviour.chunk_delay)
            seen.finished = True
        seen.ended.set()
        return early if early is not None else web.json_response(make(seen, behaviour))

    return serve


async def _count(engine: MockEngine, request: web.Request) -> web.StreamResponse:
    if engine.counts is None:
        return web.Response(status=404)
    body = await request.json()
    engine.asked.append(body)
    answer = engine.counts(body)
    return answer if isinstance(answer, web.StreamResponse) else await answer


def _generating(engine: MockEngine, kind: Any) -> Any:
    async def serve(request: web.Request) -> web.StreamResponse:
        seen, behaviour, early = await engine.open_request(request)
        if early is not None:
            seen.finished = True
            seen.ended.set()
            return early
        answer = kind(seen, behaviour)
        with watched(seen):
            if seen.body.get("stream"):
                return await _stream(request, seen, behaviour, answer)
            await asyncio.sleep(behaviour.chunk_delay * answer.tokens)
            seen.produced = answer.tokens
            seen.finished = True
            return web.json_response(answer.whole())

    return serve


async def _stream(request: web.Request, seen: Seen, behaviour: Behaviour, answer: Any) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)

    async def send(event: Json) -> None:
        await response.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())

    async for event in _paced(answer, behaviour):
        await send(event)
        seen.produced += answer.is_content(event)
        if behaviour.fail_after is not None and seen.produced >= behaviour.fail_after:
            if behaviour.fail_how == "cut":
                close_connection(request)
                await asyncio.sleep(0.01)
            elif behaviour.fail_how == "error_event":
                await send(answer.error())
            await response.write_eof()
            seen.finished = True
            return response
    await response.write_eof()
    seen.finished = True
    return response


async def _paced(answer: Any, behaviour: Behaviour) -> AsyncIterator[Json]:
    for event in answer.events():
        if answer.is_content(event):
            await asyncio.sleep(behaviour.chunk_delay)
        yield event


class _Responses:
    def __init__(self, seen: Seen, behaviour: Behaviour) -> None:
        self.seen, self.behaviour = seen, behaviour
        self.tokens = min(behaviour.tokens, seen.body.get("max_output_tokens") or behaviour.tokens)
        self.id = f"resp_mock{id(seen):x}"
        self._number = -1

    def usage(self) -> Json | None:
        if self.behaviour.usage in ("missing", "null"):
            return None
        zero = self.behaviour.usage == "zero"
        given, output = (0, 0) if zero else (self.seen.prompt_tokens, self.tokens)
        return {
            "input_tokens": given,
            "input_tokens_details": {
                "cached_tokens": self.behaviour.cached_tokens,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": output,
            "output_tokens_details": {
                "reasoning_tokens": self.behaviour.reasoning_tokens,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": given + output,
        }

    def text(self) -> str:
        return " ".join(f"tok{i}" for i in range(self.tokens))

    def part(self, text: str) -> Json:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}

    def item(self, text: str | None) -> Json:
        content = [] if text is None else [self.part(text)]
        status = "in_progress" if text is None else "completed"
        return {
            "id": "msg_mock",
            "content": content,
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def response(self, status: str, text: str | None) -> Json:
        return {
            "id": self.id,
            "created_at": 1,
            "incomplete_details": None,
            "instructions": None,
            "metadata": None,
            "model": self.seen.body.get("model"),
            "object": "response",
            "output": [] if text is None else [self.item(text)],
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0,
            "background": False,
            "max_output_tokens": 100,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": status,
            "text": None,
            "top_logprobs": 0,
            "truncation": "disabled",
            "user": None,
            "usage": None if text is None else self.usage(),
        }

    def whole(self) -> Json:
        return self.response("completed", self.text())

    def numbered(self, kind: str, **more: Any) -> Json:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **more}

    def events(self) -> Iterator[Json]:
        place: Json = {"item_id": "msg_mock", "output_index": 0, "content_index": 0}
        yield self.numbered("response.created", response=self.response("in_progress", None))
        yield self.numbered("response.in_progress", response=self.response("in_progress", None))
        yield self.numbered("response.output_item.added", output_index=0, item=self.item(None))
        yield self.numbered("response.content_part.added", **place, part=self.part(""))
        for i in range(self.tokens):
            delta = f"{' ' if i else ''}tok{i}"
            yield self.numbered("response.output_text.delta", **place, delta=delta, logprobs=[])
        yield self.numbered("response.output_text.done", **place, text=self.text(), logprobs=[])
        yield self.numbered("response.content_part.done", **place, part=self.part(self.text()))
        yield self.numbered("response.output_item.done", output_index=0, item=self.item(self.text()))
        yield self.numbered("response.completed", response=self.whole())

    @staticmethod
    def is_content(event: Json) -> bool:
        return bool(event["type"] == "response.output_text.delta")

    def error(self) -> Json:
        return {"type": "error", "error": self.behaviour.error or vllm_error("engine died", 500)}


class _Messages:
    def __init__(self, seen: Seen, behaviour: Behaviour) -> None:
        self.seen, self.behaviour = seen, behaviour
        self.tokens = min(behaviour.tokens, seen.body.get("max_tokens") or behaviour.tokens)
        self.id = f"chatcmpl-mock{id(seen):x}"
        self.stop = "tool_use" if behaviour.tool_calls else "end_turn"

    def usage(self, output: int, *, final: bool) -> Json:
        """Cached tokens are told at the end only, and left out of `input_tokens` then."""
        if self.behaviour.usage != "normal":
            return {"input_tokens": 0, "output_tokens": 0}
        given: int = self.seen.prompt_tokens
        if not final:
            return {"input_tokens": given, "output_tokens": output}
        cached = self.behaviour.cached_tokens
        return {"input_tokens": given - cached, "output_tokens": output, "cache_read_input_tokens": cached}

    def text(self) -> str:
        return " ".join(f"tok{i}" for i in range(self.tokens))

    def block(self, *, empty: bool) -> Json:
        if self.behaviour.tool_calls:
            return {"type": "tool_use", "id": "call_1", "name": "f", "input": {} if empty else {"a": 1}}
        return {"type": "text", "text": "" if empty else self.text()}

    def message(self, content: list[Json], usage: Json, stop: str | None) -> Json:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.seen.body.get("model"),
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": usage,
        }

    def whole(self) -> Json:
        message = self.message([self.block(empty=False)], self.usage(self.tokens, final=True), self.stop)
        return {name: value for name, value in message.items() if value is not None}

    def events(self) -> Iterator[Json]:
        yield {"type": "message_start", "message": self.message([], self.usage(0, final=False), None)}
        yield {"type": "content_block_start", "index": 0, "content_block": self.block(empty=True)}
        for i in range(self.tokens):
            delta: Json = {"type": "text_delta", "text": f"{' ' if i else ''}tok{i}"}
            if self.behaviour.tool_calls:
                delta = {"type": "input_json_delta", "partial_json": '{"a": 1}' if not i else ""}
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
        yield {"type": "content_block_stop", "index": 0}
        end: Json = {"stop_reason": self.stop, "stop_sequence": None}
        yield {"type": "message_delta", "delta": end, "usage": self.usage(self.tokens, final=True)}
        yield {"type": "message_stop"}

    @staticmethod
    def is_content(event: Json) -> bool:
        return bool(event["type"] == "content_block_delta")

    def error(self) -> Json:
        return {"type": "error", "error": {"type": "internal_error", "message": "engine died"}}


def _pooling_usage(seen: Seen, behaviour: Behaviour) -> Json:
    if behaviour.usage != "normal":
        return {}
    return {"usage": {"prompt_tokens": seen.prompt_tokens, "total_tokens": seen.prompt_tokens}}


def _rerank(seen: Seen, behaviour: Behaviour) -> Json:
    documents = seen.body.get("documents") or []
    results = [
        {"index": i, "document": {"text": text, "multi_modal": None}, "relevance_score": 1.0 / (i + 1)}
        for i, text in enumerate(documents)
    ]
    kept = results[: seen.body.get("top_n") or len(results)]
    head = {"id": "rerank-mock", "model": seen.body.get("model"), "results": kept}
    return head | _pooling_usage(seen, behaviour)


def _score(seen: Seen, behaviour: Behaviour) -> Json:
    texts = seen.body.get("text_2")
    count = len(texts) if isinstance(texts, list) else 1
    data = [{"index": i, "object": "score", "score": 0.5} for i in range(count)]
    head: Json = {"id": "score-mock", "object": "list", "created": 1, "model": seen.body.get("model")}
    return head | {"data": data} | _pooling_usage(seen, behaviour)


def _transcribe(seen: Seen, behaviour: Behaviour) -> Json:
    seconds = behaviour.audio_seconds
    if seen.body.get("response_format") == "verbose_json":
        segment = {
            "id": 0,
            "avg_logprob": -0.1,
            "compression_ratio": 1.0,
            "end": seconds,
            "no_speech_prob": None,
            "seek": 0,
            "start": 0.0,
            "temperature": 0.0,
            "text": "tok0 tok1",
            "tokens": [1, 2],
        }
        head: Json = {"language": "en", "text": "tok0 tok1", "segments": [segment], "words": None}
        return head | ({"duration": seconds} if behaviour.usage == "normal" else {})
    usage = {"type": "duration", "seconds": math.ceil(seconds)}
    return {"text": "tok0 tok1"} | ({"usage": usage} if behaviour.usage == "normal" else {})


def _tokenize(seen: Seen, _: Behaviour) -> Json:
    count = seen.prompt_tokens
    return {"count": count, "max_model_len": 8192, "tokens": list(range(count)), "token_strs": None}


def _count_tokens(seen: Seen, _: Behaviour) -> Json:
    count = seen.prompt_tokens
    return {"input_tokens": count, "context_management": {"original_input_tokens": count}}
