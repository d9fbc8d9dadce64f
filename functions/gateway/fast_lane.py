"""The fast lane: metered calls about which everything is known, from parser callback to parser callback.

What is not warm or not usual goes to the ASGI application instead (`fast_protocol.py` does that), so that
refusals, cold starts, second attempts and odd requests are written once.
"""

import asyncio
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from core.errors import FareboxError
from core.log import get_logger
from functions.gateway.exchange import (
    STREAM_HEADERS,
    Header,
    encode_error,
    error_headers,
    log_client_id,
    printable,
)
from functions.gateway.fast_call import FastCall
from functions.gateway.gateway import Gateway
from functions.gateway.hot import warm_call
from functions.gateway.limiter import limit_lines
from functions.gateway.record import CallRecord
from functions.gateway.upstream import ServerGone
from wire.openai import Operation

if TYPE_CHECKING:
    from functions.gateway.fast_protocol import FastLaneProtocol as Caller

_log: Final = get_logger(__name__)
MAX_FAST_BODY: Final = 1024 * 1024
_JSON_HEADERS: Final = [(b"content-type", b"application/json")]


class FastLane:
    """What all calls of the lane share."""

    def __init__(self, gateway: Gateway) -> None:
        self.may_connect = gateway.reach.may_connect
        self.gateway = gateway
        self.deadlines = gateway.deadlines
        self.loop = asyncio.get_running_loop()
        self.max_body_bytes = min(MAX_FAST_BODY, gateway.settings.max_body_bytes)
        self.served = 0
        self._default_headers: list[Header] | None = None
        self._prefixes: dict[tuple[int, bool], bytes] = {}
        gateway.interrupt_fast_calls = self.interrupt

    def begin(
        self,
        caller: "Caller",
        headers: dict[bytes, bytes],
        body: bytes,
        operation: Operation,
        endpoint_name: str,
    ) -> bool:
        """Serve a request, or False: the slow lane has to, and nothing has been done for it here."""
        began_ns = perf_counter_ns()
        gateway = self.gateway
        gateway.in_flight += 1
        record = None
        try:
            gateway.check_admission()
            record = warm_call(gateway, headers, body, operation, endpoint_name)
        except FareboxError:
            pass  # refused; the slow lane says why
        except Exception:
            _log.exception("the fast lane failed; the slow one goes on")
        if record is None:
            gateway.in_flight -= 1
            return False
        client_id = headers.get(b"x-client-request-id")
        caller.client_request_id = printable(client_id) if client_id else b""
        if client_id:
            log_client_id(record.request_id, caller.client_request_id)
        call = caller.call = FastCall(self, caller, record)
        self.served += 1
        call.begin(headers.get(b"traceparent"), headers.get(b"tracestate"))
        gateway.metrics.prepare.note((perf_counter_ns() - began_ns) // 1000)
        return True

    def over(self, call: FastCall, caller: "Caller") -> None:
        """A call is over, its answer written."""
        self.gateway.in_flight -= 1
        if not caller.gone:
            caller.answer_over()

    def hand_over(self, call: FastCall, caller: "Caller", gone: ServerGone, *, started: bool) -> None:
        """The call needs a second attempt. It stays in flight: the slow lane counts it out."""
        caller.go_on_slowly(call.record, gone, started=started)

    def interrupt(self) -> None:
        """Settle and end every call now: the process is about to."""
        for waiting in self.deadlines.watched():
            if isinstance(waiting, FastCall):
                waiting.interrupt()

    # -- heads of answers, as uvicorn writes them --

    def plain_answer(
        self, caller: "Caller", record: CallRecord, status: int, body: bytes, lines: str = ""
    ) -> bytes:
        """A whole JSON answer, with further lines in its head."""
        rest = f"content-length: {len(body)}\r\n{lines}{_own_lines(caller, record)}"
        return b"%b%b%b" % (self._prefix(caller, status, stream=False), rest.encode("latin-1"), body)

    def error_answer(self, caller: "Caller", record: CallRecord, error: FareboxError) -> bytes:
        """An error as OpenAI's document."""
        lines = b"".join([b"%b: %b\r\n" % header for header in error_headers(error)])
        return self.plain_answer(caller, record, error.status, encode_error(error), lines.decode("latin-1"))

    def stream_head(self, caller: "Caller", record: CallRecord) -> bytes:
        """The head of a streamed answer."""
        rest = f"transfer-encoding: chunked\r\n{_own_lines(caller, record)}"
        return self._prefix(caller, 200, stream=True) + rest.encode("latin-1")

    def _prefix(self, caller: "Caller", status: int, *, stream: bool) -> bytes:
        """What is the same for all answers of a second: uvicorn makes new default headers when the date changes."""
        headers = caller.default_headers()
        if headers is not self._default_headers:
            self._default_headers = headers
            self._prefixes.clear()
        prefix = self._prefixes.get((status, stream))
        if prefix is None:
            lines = [
                b"%b: %b\r\n" % header
                for header in (*headers, *(STREAM_HEADERS if stream else _JSON_HEADERS))
            ]
            prefix = self._prefixes[status, stream] = STATUS_LINE[status] + b"".join(lines)
        return prefix


def _own_lines(caller: "Caller", record: CallRecord) -> str:
    """What is of this call alone, to the end of the head. As text: that is put together faster than bytes are."""
    client_id = caller.client_request_id
    told = f"x-client-request-id: {client_id.decode('latin-1')}\r\n" if client_id else ""
    close = "" if caller.keep_alive else "connection: close\r\n"
    requests, tokens = record.figures
    return f"{limit_lines(requests, tokens)}x-request-id: {record.request_id}\r\n{told}{close}\r\n"
