"""A model server of the simulation: speaks vLLM's HTTP, remembers what it produced, and breaks when told to."""

import json
from dataclasses import dataclass, field
from typing import Any

import httptools

from tests.sim.loop import SimLoop
from tests.sim.network import Network

ADDRESS = ("10.1.0.1", 8000)


@dataclass
class Work:
    """What the engine did for one attempt (by the gateway's id of it)."""

    attempt_id: str
    prompt: int
    cached: int
    produced: int = 0
    told: int = 0  # of that, in chunks that were written to the gateway
    finished: bool = False
    failed: bool = False
    began: float = 0.0
    history: list[tuple[float, int]] = field(
        default_factory=list
    )  # tokens in chunks that were written, by time


class Engine:
    """One server; `trouble` is the share of requests that go wrong in some way."""

    def __init__(self, loop: SimLoop, network: Network, trouble: float) -> None:
        self.loop = loop
        self.trouble = trouble
        self.work: dict[str, Work] = {}
        self._network = network
        self.start()

    def start(self) -> None:
        """Listen (again)."""
        self._network.listen(ADDRESS, "engine", lambda: _Connection(self))


class _Connection:
    """One connection of the gateway."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = engine.loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._lost = False
        self._id = ""
        self._url = b""
        self._body = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self._lost = True

    def eof_received(self) -> None:
        """The gateway told us to stop."""

    def pause_writing(self) -> None:
        """Chunks are small."""

    def resume_writing(self) -> None:
        """Likewise."""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._id, self._body = "", b""

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self._id = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        request = json.loads(self._body)
        chance = self._loop.chance
        if self._url == b"/tokenize":
            words = request.get("prompt") or " ".join(m["content"] for m in request["messages"])
            self._answer(200, {"count": len(words) // 4 + 5, "max_model_len": 8192, "tokens": []})
            return
        prompt = sum(len(m["content"]) for m in request["messages"]) // 4 + 5
        work = Work(self._id, prompt, chance.choice([0, 0, prompt // 2]), began=self._loop.now)
        assert self._id not in self._engine.work, "an attempt was sent twice"
        self._engine.work[self._id] = work
        wanted = chance.randint(1, request["max_tokens"])
        wrong = chance.random() < self._engine.trouble
        if wrong and chance.random() < 0.3:
            self._transport.close()  # before the first byte
            work.failed = True
        elif wrong and chance.random() < 0.3:
            work.failed = True
            self._answer(
                500, {"error": {"message": "out of memory", "type": "InternalServerError", "code": 500}}
            )
        elif request.get("stream"):
            self._stream(work, wanted, chance.randint(0, wanted) if wrong else -1)
        else:
            self._loop.call_later(chance.uniform(0.001, 0.2) * wanted / 10, self._plain, work, wanted)

    def _plain(self, work: Work, wanted: int) -> None:
        if self._lost:
            return
        work.produced = work.told = wanted
        work.finished = True
        message = {"role": "assistant", "content": "x " * wanted}
        self._answer(
            200,
            {
                "id": f"chatcmpl-{work.attempt_id}",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": _usage(work),
            },
        )

    def _answer(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)

    def _stream(self, work: Work, wanted: int, breaks_at: int) -> None:
        pace = self._loop.chance.choice([0.001, 0.01, 0.05, 0.3])

        def step() -> None:
            if self._lost:
                return
            if work.produced == breaks_at:
                work.failed = True
                self._transport.close()
                return
            if work.produced < wanted:
                work.produced += 1
                self._chunk(work, {"content": "x "}, None)
                work.told = work.produced
                work.history.append((self._loop.now, work.told))
                self._loop.call_later(pace, step)
                return
            self._chunk(work, {}, "stop")
            final = {"id": work.attempt_id, "object": "chat.completion.chunk", "created": 1, "model": "m"}
            usage = _event(final | {"choices": [], "usage": _usage(work)})
            work.finished = True
            self._transport.write(_chunked(usage + b"data: [DONE]\n\n") + b"0\r\n\r\n")

        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self._loop.call_later(pace, step)

    def _chunk(self, work: Work, delta: dict[str, str], finish: str | None) -> None:
        document = {
            "id": f"chatcmpl-{work.attempt_id}",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
            "usage": _usage(work, final=False),
        }
        self._transport.write(_chunked(_event(document)))


def _usage(work: Work, *, final: bool = True) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": work.prompt,
        "completion_tokens": work.produced,
        "total_tokens": work.prompt + work.produced,
    }
    if final:
        usage["prompt_tokens_details"] = {"cached_tokens": work.cached}
    return usage


def _event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
