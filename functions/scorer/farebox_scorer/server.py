"""The HTTP server: one call of the script at a time in a thread of its own, everything else in the event loop.

Source: R4.16 and R4.17 of our reference (azureml-inference-server-http's routes and headers).
"""

import asyncio
import json
import queue
import sys
import threading
import time
import traceback
import uuid

import httptools

from farebox_scorer import VERSION, monitoring, swagger
from farebox_scorer.api import Headers
from farebox_scorer.script import Answer, BadInput

MAX_HEAD = 64 * 1024
MAX_WAITING = 1000  # calls that wait for the script; more are told to come again
MAX_ID = 100
MAX_CONNECTIONS = 4096
MAX_HELD = 512 * 1024 * 1024  # bytes of bodies that are read or wait, of all connections
IDLE_S = 75.0
READ_S = 300.0  # a request must have arrived after so long, however slowly
DRAIN_S = 180.0  # after SIGTERM: the longest time that a call may take on the platform
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 413: "Content Too Large",
            415: "Unsupported Media Type", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
            503: "Service Unavailable"}  # fmt: skip


class Runner:
    """The thread that the script runs in."""

    def __init__(self, script, loop):
        self._script, self._loop = script, loop
        self._calls = queue.SimpleQueue()
        self.waiting = 0
        threading.Thread(target=self._work, name="script", daemon=True).start()

    def submit(self, request, done, request_id):
        """Run it; `done(answer or exception, milliseconds)` is called in the event loop."""
        self.waiting += 1
        self._calls.put((request, done, request_id))

    def _work(self):
        while True:
            request, done, request_id = self._calls.get()
            monitoring.serving(request_id)
            began = time.perf_counter()
            try:
                found = self._script.run(*request)
            except BaseException as error:
                found = error
            self._loop.call_soon_threadsafe(self._done, done, found, (time.perf_counter() - began) * 1000)

    def _done(self, done, found, ms):
        self.waiting -= 1
        done(found, ms)


class Server:
    """What all connections share."""

    def __init__(self, script, root, *, origins, timeout_s, max_body):
        self.script, self.root, self.origins = script, root, origins
        self.timeout_s, self.max_body = timeout_s, max_body
        self.runner = None
        self.connections = set()
        self.held = 0  # bytes
        self.stopping = False

    async def run(self, sock):
        """Until SIGTERM; then what is under way is finished."""
        loop = asyncio.get_running_loop()
        self.runner = Runner(self.script, loop)
        stop = asyncio.Event()
        import signal

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        server = await loop.create_server(lambda: Connection(self, loop), sock=sock, backlog=2048)
        await stop.wait()
        self.stopping = True
        server.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        until = loop.time() + DRAIN_S
        while any(each.busy for each in self.connections) and loop.time() < until:  # noqa: ASYNC110  seldom
            await asyncio.sleep(0.02)

    def headers_of(self, ids, extra=()):
        """Of every answer. `ids`: of the request, the older of the client's ids, the client's, a trace's."""
        names = ("x-request-id", "x-ms-request-id", "x-ms-client-request-id", "TraceId")
        found = [(name, value) for name, value in zip(names, ids) if value]  # noqa: B905  Python 3.9
        return [("x-ms-server-version", f"farebox-scorer/{VERSION}"), *found, *extra]


class Connection:
    """One caller's connection; requests are answered in turn."""

    def __init__(self, server, loop):
        self._server, self._loop = server, loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport = None
        self._queue = []  # complete requests that wait for their turn
        self.busy = False
        self._paused = False  # the caller does not read its answers
        self._timer = self._reading = None
        self._held = 0  # of the server's: by what is read, waits or runs
        self._running = 0  # of these, by the request that is answered now
        self._ids, self._cors, self._keep_alive = (), "", True
        self._in_head, self._unfinished, self._heads = False, 0, 0
        self._reset()

    def _reset(self):
        self._url, self._headers, self._body, self._size = b"", [], [], 0
        self._head = 0
        self._too_large = self._too_much = False

    # -- the transport --

    def connection_made(self, transport):
        if len(self._server.connections) >= MAX_CONNECTIONS:
            transport.abort()
            return
        self._transport = transport
        self._server.connections.add(self)
        self._rest()

    def connection_lost(self, exc):
        self._server.connections.discard(self)
        self._cancel_timer()
        self._read()
        self._queue.clear()
        self._hold(self._running - self._held)  # the script still has what it was given
        self._transport = None

    def data_received(self, data):
        if self._transport is None:
            return  # one connection too many
        self._cancel_timer()
        unfinished, heads = self._in_head, self._heads
        try:
            self._parser.feed_data(data)
            # A header without end is kept by the parser, which does not call us. One that began in between is another.
            if unfinished and self._in_head and self._heads == heads:
                self._unfinished += len(data)
                if self._unfinished > MAX_HEAD:
                    self._refuse_head()
                    return
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError:
            if self._transport is None or self._transport.is_closing():
                return  # refused already: see _bound_head
            self._write(Answer(b'{"message": "Invalid HTTP request"}', 400), [], close=True)
            return
        if not self.busy and not self._queue:
            self._rest()

    def eof_received(self):
        return None

    def pause_writing(self):
        self._paused = True

    def resume_writing(self):
        self._paused = False
        if not self.busy:
            self._next()

    def close_if_idle(self):
        if not self.busy and not self._queue and self._transport is not None:
            self._transport.close()

    def _rest(self):
        self._timer = self._loop.call_later(IDLE_S, self._idle)

    def _idle(self):
        if self._transport is not None and not self.busy:
            self._transport.close()

    def _too_slow(self):
        if self._transport is not None:
            self._transport.abort()

    def _read(self):
        """The request is whole, or none is read any more."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _hold(self, more):
        self._held += more
        self._server.held += more

    def _cancel_timer(self):
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- the parser --

    def on_message_begin(self):
        self._reset()
        self._begin_head()
        self._read()
        self._reading = self._loop.call_later(READ_S, self._too_slow)

    def _begin_head(self):
        self._in_head, self._unfinished = True, 0
        self._heads += 1

    def on_url(self, url):
        self._url += url
        self._bound_head(len(url))

    def on_header(self, name, value):
        self._bound_head(len(name) + len(value))
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def _bound_head(self, more):
        """The parser has no limit of its own; what it raises here ends the connection."""
        self._head += more
        if self._head > MAX_HEAD:
            self._refuse_head()
            raise ValueError("head too large")

    def _refuse_head(self):
        message = b'{"message": "the request line and headers are larger than 64 KiB"}'
        self._write(Answer(message, 431), [], close=True)

    def on_headers_complete(self):
        self._in_head = False
        length = next((v for k, v in self._headers if k == "content-length"), "0")
        self._too_large = length.isdigit() and int(length) > self._server.max_body
        if (
            any(k == "expect" and v.lower() == "100-continue" for k, v in self._headers)
            and not self._too_large
        ):
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_chunk_header(self):
        # Behind the last chunk come trailers; one without end is kept by the parser, like a header.
        self._begin_head()

    def on_chunk_complete(self):
        self._in_head = False

    def on_body(self, body):
        self._in_head = False
        self._size += len(body)
        if self._size > self._server.max_body:
            self._too_large = True
            self._drop_body()
        elif self._server.held + len(body) > MAX_HELD:
            self._too_much = True
            self._drop_body()
        elif not self._too_large and not self._too_much:
            self._body.append(body)
            self._hold(len(body))

    def _drop_body(self):
        self._hold(-sum(map(len, self._body)))
        self._body = []

    def on_message_complete(self):
        self._read()
        parser = self._parser
        parsed = httptools.parse_url(self._url) if self._url else None
        path = (parsed.path or b"/").decode("latin-1") if parsed else "/"
        query = (parsed.query or b"").decode("latin-1") if parsed else ""
        request = (
            parser.get_method().decode(), path, query, Headers(self._headers), b"".join(self._body),
            parser.should_keep_alive(), self._too_large, self._too_much,
        )  # fmt: skip
        self._queue.append(request)
        if self.busy:
            if len(self._queue) > 64 and self._transport is not None:
                self._transport.pause_reading()
        else:
            self._next()

    # -- requests --

    def _next(self):
        if not self._queue or self._transport is None or self._paused:
            return
        method, path, query, headers, body, keep_alive, too_large, too_much = self._queue.pop(0)
        self._transport.resume_reading()
        self.busy, self._running = True, len(body)
        self._keep_alive = keep_alive and not self._server.stopping and not too_large
        given, older = headers.get("x-request-id", ""), headers.get("x-ms-request-id", "")
        client = headers.get("x-ms-client-request-id", "") or older
        request_id = given or str(uuid.uuid4())
        self._ids = request_id, older or client or request_id, client, headers.get("TraceId", "")
        self._cors = ""
        if max(len(given), len(older), len(client)) > MAX_ID:
            self._ids = str(uuid.uuid4()), "", "", ""
            self._fail(431, f"request ids may have {MAX_ID} characters")
        elif too_large:
            self._fail(413, f"the request body is larger than {self._server.max_body} bytes")
        elif too_much:
            self._fail(
                503, "the bodies of all calls together are too large; try again", [("retry-after", "1")]
            )
        else:
            self._route(method, path, query, headers, body)

    def _route(self, method, path, query, headers, body):
        origin = headers.get("origin")
        self._cors = (
            origin if origin and ("*" in self._server.origins or origin in self._server.origins) else ""
        )
        if path == "/score" and method in ("GET", "POST"):
            self._score(method, path, query, headers, body)
        elif path == "/score" and method == "OPTIONS":
            more = [("access-control-allow-methods", "GET, OPTIONS, POST")] if self._cors else []
            asked = headers.get("access-control-request-headers")
            more += [("access-control-allow-headers", asked)] if self._cors and asked else []
            self._finish(Answer(b"", 200, content_type="text/html"), more)
        elif path == "/score" or (path in ("/", "/swagger.json") and method not in ("GET", "HEAD")):
            self._fail(405, f"{method} is not taken at {path}")
        elif path == "/":
            self._finish(Answer(b"Healthy", content_type="text/plain"))
        elif path == "/swagger.json":
            self._swagger(query)
        else:
            self._fail(404, f"nothing is at {path[:200]}; there are /score, /swagger.json and /")

    def _swagger(self, query):
        from farebox_scorer.api import Values

        version = Values(query).get("version", "2")
        found = swagger.document(version, self._server.root, self._server.script.schemas())
        if found is None:
            self._fail(
                404, f"Swagger version {version[:20]} is not there; there are {', '.join(swagger.VERSIONS)}"
            )
        else:
            self._finish(Answer(found))

    def _score(self, method, path, query, headers, body):
        runner = self._server.runner
        if runner.waiting >= MAX_WAITING:
            self._fail(503, "too many calls wait for the script")
            return
        answered = False

        def done(found, ms):
            nonlocal answered
            timer.cancel()
            if not answered:
                answered = True
                self._ran(found, ms)

        def too_late():
            nonlocal answered
            if not answered:
                answered = True
                self._fail(
                    500,
                    f"the script took longer than {self._server.timeout_s:g} s",
                    [("x-ms-run-function-failed", "True")],
                )

        timer = self._loop.call_later(self._server.timeout_s, too_late)
        runner.submit((method, path, query, headers, body), done, self._ids[0])

    def _ran(self, found, ms):
        more = [("x-ms-run-fn-exec-ms", f"{ms:.3f}")]
        if isinstance(found, Answer):
            self._finish(found, [*more, ("x-ms-run-function-failed", str(found.failed))])
        elif isinstance(found, BadInput):
            self._fail(found.status, str(found), [*more, ("x-ms-run-function-failed", "False")])
        else:
            traceback.print_exception(type(found), found, found.__traceback__, file=sys.stderr)
            sys.stderr.flush()
            # What it says may be of the model's inside: for the log.
            self._fail(
                500,
                f"The scoring script raised {type(found).__name__}; see its log.",
                [*more, ("x-ms-run-function-failed", "True")],
            )

    # -- answers --

    def _fail(self, status, message, more=()):
        self._finish(Answer(json.dumps({"message": message[:4000]}).encode(), status), more)

    def _finish(self, answer, more=()):
        self._hold(-self._running)
        self._running = 0
        if self._transport is None:
            self.busy = False
            return
        cors = [("access-control-allow-origin", self._cors)] if self._cors else []
        self._write(answer, self._server.headers_of(self._ids, [*more, *cors]), close=not self._keep_alive)
        self.busy = False
        if self._queue:
            self._loop.call_soon(self._next)
        else:
            self._rest()

    def _write(self, answer, headers, *, close):
        reason = _REASONS.get(answer.status, "Status")
        own = {str(name).lower() for name in answer.headers}
        lines = [f"HTTP/1.1 {answer.status} {reason}", f"content-type: {answer.content_type}"]
        lines += [
            f"{name}: {_clean(value)}"
            for name, value in answer.headers.items()
            if str(name).lower() != "content-length"
        ]
        lines += [f"{name}: {_clean(value)}" for name, value in headers if name not in own]
        lines.append(f"content-length: {len(answer.body)}")
        if close:
            lines.append("connection: close")
        head = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"
        self._transport.write(head + answer.body)
        if close:
            self._transport.close()


def _clean(value):
    return str(value).replace("\r", " ").replace("\n", " ")
