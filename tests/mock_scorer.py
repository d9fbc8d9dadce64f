"""A scripted scoring server: answers as told, after a while if told, and remembers what it was asked.

with MockScorer("blue") as scorer:
    scorer.delay_s = 0.2
    scorer.seen[-1].headers
"""

import asyncio
import threading
from dataclasses import dataclass, field

from aiohttp import web

from tests.mock_engine import wait_until


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]  # by lower-case names
    body: bytes


@dataclass
class MockScorer:
    """Own thread, own port."""

    name: str
    status: int = 200
    body: bytes | None = None  # None: its name as JSON
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    pieces: list[bytes] = field(default_factory=list)  # instead of `body`: streamed
    seen: list[Asked] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    cancelled: int = 0
    url: str = ""

    def __enter__(self) -> "MockScorer":
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        wait_until(lambda: bool(self.url))
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append(
            Asked(request.method, request.raw_path, {k.lower(): v for k, v in request.headers.items()}, body)
        )
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1
        if self.pieces:
            streamed = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await streamed.prepare(request)
            for piece in self.pieces:
                await streamed.write(piece)
                await asyncio.sleep(0.05)
            return streamed
        shown = self.body if self.body is not None else b'{"from":"%b"}' % self.name.encode()
        headers = {"content-type": "application/json"} | self.headers
        return web.Response(status=self.status, body=shown, headers=headers)
