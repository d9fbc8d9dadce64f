"""A scripted model server that speaks OpenAI's wire format as vLLM does, for tests of what stands before it.

    with MockEngine() as engine:                       # own thread, own port; engine.url
        engine.default = Behaviour(tokens=5)           # what every request gets
        engine.script.append(Behaviour(status=500))    # what the next request gets, once
        ...
        engine.seen[-1].body, .headers, .disconnected, .produced

By hand: `python -m tests.mock_engine --port 9100 --chunk-delay 0.05`.
Figures are simple to check: the prompt is `prompt_tokens` long or, by default, one token a word; the answer
has `tokens` tokens (the request's token limit lowers it) named `tok0 tok1 …`.
"""

import argparse
import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aiohttp import web
from multidict import CIMultiDict

Json = dict[str, Any]


@dataclass
class Behaviour:
    """How one request is answered."""

    tokens: int = 4  # output tokens per choice
    prompt_tokens: int | None = None  # None: one per word
    cached_tokens: int = 0
    audio_seconds: float = 1.5  # of a transcription
    reasoning_tokens: int = 0
    details: bool = True  # prompt_tokens_details and completion_tokens_details in the final usage
    usage: Literal["normal", "missing", "null", "zero"] = "normal"
    continuous: bool = True  # honours stream_options.continuous_usage_stats (vLLM does, most others do not)
    force_usage: bool = False  # usage on every chunk whatever was asked, like --enable-force-include-usage
    tool_calls: bool = False  # deltas carry tool calls, no visible text
    finish_reason: str = "stop"
    # time
    first_delay: float = 0.0  # seconds before the first byte
    chunk_delay: float = 0.0  # before each further chunk
    ping_delay: float = 0.0  # between a first `: ping` and the first chunk
    tail_delay: float = 0.0  # between the last content chunk and the usage chunk
    hold: threading.Event | None = None  # nothing is answered before this is set
    # trouble before the first byte
    status: int = 200
    error: Any = (
        None  # body of a status other than 200 (str: as text), or inside an error event; None: vLLM's
    )
    headers: dict[str, str] = field(default_factory=dict)
    reset: bool = False  # connection closed without an answer
    # trouble after it
    fail_after: int | None = None  # after this many content chunks (0: after the head) ...
    fail_how: Literal["cut", "clean_end", "error_event", "error_object"] = "cut"
    done: bool = True  # `data: [DONE]` at the end
    empty: bool = False  # a stream of nothing but [DONE]
    # framing
    newline: str = "\n"
    comments: bool = False  # `: ping` before every frame
    write_size: int = 0  # bytes per write; 0: a frame per write
    burst: bool = False  # all frames in one write
    raw_body: bytes | None = None  # a plain answer's body, instead of a proper one


@dataclass
class Seen:
    """What the engine saw of one request and did with it."""

    path: str
    headers: CIMultiDict[str]
    raw: bytes
    body: Json
    at: float = field(default_factory=time.monotonic)
    produced: int = 0  # content tokens sent, all choices
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled: bool = False  # it began to answer
    finished: bool = False
    disconnected: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


class MockEngine:
    """An OpenAI-compatible server on loopback in its own thread; `stop` and `start` again keep the port."""

    def __init__(self, *, port: int = 0, host: str = "127.0.0.1", model: str = "mock") -> None:
        self.host, self.port, self.model = host, port, model
        self.default = Behaviour()
        self.script: deque[Behaviour] = deque()
        self.seen: list[Seen] = []
        self.started_s = time.time()  # as its metrics say; another start has counters of its own
        self.counts_from = 0  # what was seen before is not counted
        # How the gateway's own questions to /tokenize are answered; None: this engine has no such route.
        self.counts: Callable[[Json], web.StreamResponse | Awaitable[web.StreamResponse]] | None = None
        self.asked: list[Json] = []  # these questions
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()

    @property
    def url(self) -> str:
        """Base URL without a path."""
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> "MockEngine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; returns when connections are accepted."""
        ready = threading.Event()
        failure: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(ready, failure), daemon=True)
        self._thread.start()
        ready.wait(10)
        if failure:
            raise failure[0]

    def stop(self) -> None:
        """Close the port and every connection."""
        if self._loop and self._thread:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)
            self._loop = self._thread = None

    def wait_seen(self, count: int, timeout: float = 20.0) -> Seen:
        """The request number `count` (from 1), once it has arrived."""
        wait_until(lambda: len(self.seen) >= count, timeout)
        return self.seen[count - 1]

    def _run(self, ready: threading.Event, failure: list[BaseException]) -> None:
        try:
            asyncio.run(self._serve(ready))
        except BaseException as error:
            failure.append(error)
            ready.set()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._generate)
        app.router.add_post("/v1/completions", self._generate)
        app.router.add_post("/v1/embeddings", self._embed)
        from tests.mock_routes import add_routes  # which is made of what is in this file

        add_routes(app, self)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, self.host, self.port, reuse_address=True).start()
        self.port = runner.addresses[0][1]
        ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text=metrics_page(self.seen[self.counts_from :], self.started_s))

    def restart_counters(self) -> None:
        """As if its process had been started anew."""
        self.started_s, self.counts_from = time.time(), len(self.seen)

    async def _models(self, _request: web.Request) -> web.Response:
        entry = {"id": self.model, "object": "model", "created": 0, "owned_by": "mock"}
        return web.json_response({"object": "list", "data": [entry]})

    # -- one request --

    async def open_request(self, request: web.Request) -> tuple[Seen, Behaviour, web.StreamResponse | None]:
        raw = await request.read()
        behaviour = self.script.popleft() if self.script else self.default
        seen = Seen(request.path, request.headers.copy(), raw, _read_body(request, raw))
        words = len(_prompt_text(seen.body).split())
        seen.prompt_tokens = words if behaviour.prompt_tokens is None else behaviour.prompt_tokens
        self.seen.append(seen)
        with watched(seen):
            while behaviour.hold and not behaviour.hold.is_set():  # noqa: ASYNC110  # set by another thread
                await asyncio.sleep(0.005)
            await asyncio.sleep(behaviour.first_delay)
        if behaviour.reset:
            close_connection(request)
            return seen, behaviour, web.Response()
        if behaviour.status != 200:
            return seen, behaviour, _error_response(behaviour)
        if behaviour.raw_body is not None:
            response = web.Response(body=behaviour.raw_body, content_type="application/json")
            return seen, behaviour, response
        seen.prefilled, seen.cached_tokens = True, behaviour.cached_tokens
        return seen, behaviour, None

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        seen, behaviour, early = await self.open_request(request)
        if early is not None:
            seen.finished = True
            seen.ended.set()
            return early
        answer = _Answer(seen, behaviour, chat=request.path.endswith("chat/completions"))
        with watched(seen):
            if seen.body.get("stream"):
                return await answer.stream(request)
            await asyncio.sleep(behaviour.chunk_delay * answer.tokens)
            seen.produced = answer.tokens * answer.choices
            seen.finished = True
            return web.json_response(answer.whole(), headers=behaviour.headers)

    async def _embed(self, request: web.Request) -> web.StreamResponse:
        seen, behaviour, early = await self.open_request(request)
        seen.finished = True
        seen.ended.set()
        if early is not None:
            return early
        inputs = seen.body.get("input")
        count = len(inputs) if isinstance(inputs, list) else 1
        data = [{"object": "embedding", "index": i, "embedding": [0.0, 0.5, 1.0]} for i in range(count)]
        body: Json = {"id": "embd-mock", "object": "list", "model": seen.body.get("model"), "data": data}
        if behaviour.usage == "normal":
            body["usage"] = {"prompt_tokens": seen.prompt_tokens, "total_tokens": seen.prompt_tokens}
        return web.json_response(body, headers=behaviour.headers)


class _Answer:
    """The bodies of one answer."""

    def __init__(self, seen: Seen, behaviour: Behaviour, *, chat: bool) -> None:
        self.seen, self.behaviour, self.chat = seen, behaviour, chat
        body = seen.body
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or behaviour.tokens
        self.tokens = min(behaviour.tokens, limit)
        prompts = body.get("prompt")
        several = len(prompts) if isinstance(prompts, list) and prompts and isinstance(prompts[0], str) else 1
        self.choices = (body.get("n") or 1) * several
        self.id = ("chatcmpl-" if chat else "cmpl-") + f"mock{id(seen):x}"
        options = body.get("stream_options") or {}
        asked = bool(options.get("include_usage"))
        self.final_usage = behaviour.usage != "missing" and (asked or behaviour.force_usage)
        continuous = behaviour.continuous and asked and bool(options.get("continuous_usage_stats"))
        self.every_chunk = behaviour.usage == "normal" and (continuous or behaviour.force_usage)

    def usage(self, output: int, *, final: bool) -> Json | None:
        behaviour = self.behaviour
        if behaviour.usage == "null":
            return None
        prompt = 0 if behaviour.usage == "zero" else self.seen.prompt_tokens
        output = 0 if behaviour.usage == "zero" else output
        usage: Json = {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}
        if final and behaviour.details:
            usage["prompt_tokens_details"] = {"cached_tokens": behaviour.cached_tokens}
            usage["completion_tokens_details"] = {"reasoning_tokens": behaviour.reasoning_tokens}
        return usage

    def head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": 1, "model": self.seen.body.get("model")}

    def whole(self) -> Json:
        text = " ".join(f"tok{i}" for i in range(self.tokens))
        choices = []
        for index in range(self.choices):
            end: Json = {"index": index, "finish_reason": self.behaviour.finish_reason, "logprobs": None}
            choices.append(end | ({"message": self.message(text)} if self.chat else {"text": text}))
        body = self.head("chat.completion" if self.chat else "text_completion") | {"choices": choices}
        if self.behaviour.usage != "missing":
            body["usage"] = self.usage(self.tokens * self.choices, final=True)
        return body

    def message(self, text: str) -> Json:
        if not self.behaviour.tool_calls:
            return {"role": "assistant", "content": text}
        call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": text}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    def chunk(self, index: int, delta: Json | str, output: int, finish: str | None = None) -> Json:
        choice: Json = {"index": index, "finish_reason": finish, "logprobs": None}
        choice |= {"delta": delta} if self.chat else {"text": delta}
        body = self.head("chat.completion.chunk" if self.chat else "text_completion") | {"choices": [choice]}
        if self.every_chunk:
            body["usage"] = self.usage(output, final=False)  # per choice and cumulative, as vLLM does it
        return body

    def delta(self, i: int) -> Json | str:
        if not self.chat:
            return f"tok{i} "
        if self.behaviour.tool_calls:
            return {"tool_calls": [{"index": 0, "function": {"arguments": f"tok{i} "}}]}
        return {"content": f"tok{i} "}

    async def stream(self, request: web.Request) -> web.StreamResponse:
        behaviour, seen = self.behaviour, self.seen
        headers = {"Content-Type": "text/event-stream; charset=utf-8"} | behaviour.headers
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        writer = _Writer(response, behaviour)
        if behaviour.ping_delay:
            await response.write(b": ping\n\n")
            await asyncio.sleep(behaviour.ping_delay)
        if not behaviour.empty and await self.frames(writer):
            seen.finished = True
            return await self.fail(writer, request)
        if behaviour.done:
            await writer.send("[DONE]")
        await writer.flush()
        await response.write_eof()
        seen.finished = True
        return response

    async def frames(self, writer: "_Writer") -> bool:
        """Send all chunks; True when the script wants it to fail here."""
        behaviour, seen = self.behaviour, self.seen
        if behaviour.fail_after == 0:
            return True
        if self.chat:
            for index in range(self.choices):
                await writer.send(self.chunk(index, {"role": "assistant", "content": ""}, 0))
        for i in range(self.tokens):
            for index in range(self.choices):
                await asyncio.sleep(behaviour.chunk_delay)
                last = i == self.tokens - 1
                finish = behaviour.finish_reason if last else None
                await writer.send(self.chunk(index, self.delta(i), i + 1, finish))
                seen.produced += 1
                if seen.produced == behaviour.fail_after:
                    return True
        await asyncio.sleep(behaviour.tail_delay)
        if self.final_usage:
            kind = "chat.completion.chunk" if self.chat else "text_completion"
            usage = self.usage(self.tokens * self.choices, final=True)
            await writer.send(self.head(kind) | {"choices": [], "usage": usage})
        return False

    async def fail(self, writer: "_Writer", request: web.Request) -> web.StreamResponse:
        how = self.behaviour.fail_how
        if how == "error_event":  # vLLM: an error object in the data, then [DONE]
            await writer.send({"error": self.behaviour.error or vllm_error("engine died", 500)})
            await writer.send("[DONE]")
        elif how == "error_object":
            await writer.send({"object": "error", "message": "engine died", "type": "Internal", "code": 500})
        await writer.flush()
        if how == "cut":
            close_connection(request)
            await asyncio.sleep(0.01)
        else:
            await writer.response.write_eof()
        return writer.response


class _Writer:
    """Frames to bytes in the wanted portions."""

    def __init__(self, response: web.StreamResponse, behaviour: Behaviour) -> None:
        self.response, self.behaviour = response, behaviour
        self.held = bytearray()

    async def send(self, data: Json | str) -> None:
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        end = self.behaviour.newline
        frame = f"{': ping' + end + end if self.behaviour.comments else ''}data: {text}{end}{end}".encode()
        if self.behaviour.burst:
            self.held += frame
        elif size := self.behaviour.write_size:
            for start in range(0, len(frame), size):
                await self.response.write(frame[start : start + size])
                await asyncio.sleep(0)
        else:
            await self.response.write(frame)

    async def flush(self) -> None:
        if self.held:
            await self.response.write(bytes(self.held))
            self.held.clear()


class watched:  # noqa: N801  # reads as a statement
    """Note on `seen` that the caller went away."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, (asyncio.CancelledError, ConnectionError)):
            self.seen.disconnected = True
        if kind is not None or self.seen.finished:
            self.seen.ended.set()


def metrics_page(seen: list[Seen], started_s: float) -> str:
    """vLLM's counters as its page has them. It counts the prompt once for each of `n` answers."""
    counted = [one for one in seen if one.prefilled]
    each = [int(one.body.get("n") or 1) if isinstance(one.body, dict) else 1 for one in counted]
    labels = '{engine="0",model_name="mock"}'
    values = {
        "vllm:prompt_tokens_total": sum(one.prompt_tokens * n for one, n in zip(counted, each, strict=True)),
        "vllm:prompt_tokens_cached_total": sum(one.cached_tokens for one in counted),
        "vllm:generation_tokens_total": sum(one.produced for one in counted),
        "vllm:request_success_total": sum(each),
        "vllm:num_requests_running": sum(not one.finished and not one.disconnected for one in counted),
    }
    lines = [f"process_start_time_seconds {started_s}", "# HELP vllm:prompt_tokens_total Prefill tokens."]
    return "\n".join(lines + [f"{name}{labels} {float(value)!r}" for name, value in values.items()]) + "\n"


def vllm_error(message: str, status: int, param: str | None = None) -> Json:
    """The inner error object as vLLM writes it (integer code)."""
    kind = "BadRequestError" if status == 400 else "InternalServerError"
    return {"message": message, "type": kind, "param": param, "code": status}


def wait_until(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    """Return once `condition` holds; AssertionError after `timeout` seconds. Blocks: not for event loops."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.005)


def _error_response(behaviour: Behaviour) -> web.Response:
    status, error = behaviour.status, behaviour.error
    if isinstance(error, str):
        return web.Response(status=status, text=error, headers=behaviour.headers)
    body = error if error is not None else {"error": vllm_error(f"scripted {status}", status)}
    return web.json_response(body, status=status, headers=behaviour.headers)


def close_connection(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


def _read_body(request: web.Request, raw: bytes) -> Json:
    """JSON, or a form's fields (files by their size)."""
    if request.content_type != "multipart/form-data":
        body: Json = json.loads(raw)
        return body
    boundary = b"--" + request.headers["Content-Type"].split("boundary=")[1].strip('"').encode()
    fields: Json = {}
    for piece in raw.split(boundary)[1:-1]:
        head, _, value = piece.partition(b"\r\n\r\n")
        name = head.split(b'name="')[1].split(b'"')[0].decode()
        value = value.removesuffix(b"\r\n")
        fields[name] = len(value) if b"filename" in head else value.decode()
    return fields


def _prompt_text(body: Json) -> str:
    parts: list[str] = []
    for message in body.get("messages") or []:
        content = message.get("content") if isinstance(message, dict) else None
        pieces = content if isinstance(content, list) else [{"text": content}]
        parts += [str(piece.get("text") or "") for piece in pieces if isinstance(piece, dict)]
    for name in ("prompt", "input", "query", "documents", "text_1", "text_2", "system"):
        value = body.get(name)
        parts += [str(v) for v in value] if isinstance(value, list) else [str(value or "")]
    return " ".join(parts)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible model server.")
    parser.add_argument("--port", type=int, default=9100)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--cached-tokens", type=int, default=0)
    parser.add_argument("--first-delay", type=float, default=0.0)
    parser.add_argument("--chunk-delay", type=float, default=0.0)
    options = parser.parse_args()
    engine = MockEngine(port=options.port)
    engine.default = replace(
        engine.default,
        tokens=options.tokens,
        cached_tokens=options.cached_tokens,
        first_delay=options.first_delay,
        chunk_delay=options.chunk_delay,
    )
    with engine:
        print(f"mock engine on {engine.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
