"""The metered POST routes as one bare ASGI callable: who calls, what, where to; `MeteredCall` does the rest.

Refused calls end here and leave no usage event: nothing was produced.
"""

from collections.abc import Awaitable
from time import perf_counter_ns
from typing import Final

from access.keys import MAX_KEY_LENGTH, MAX_TOKEN_LENGTH, hash_key, looks_like_token
from access.principal import Principal
from core.errors import BadRequest, FareboxError, Forbidden, NotFound, Unauthenticated
from core.ids import new_id
from core.log import get_logger
from functions.gateway.call import MeteredCall
from functions.gateway.content_safety import Screen
from functions.gateway.exchange import Exchange, HangUp, Receive, Scope, Send
from functions.gateway.free_call import FreeCall
from functions.gateway.gateway import Gateway
from functions.gateway.idempotency import IDEMPOTENCY_KEY, Recorder, Replayed, replay
from functions.gateway.limiter import limit_headers
from functions.gateway.lookups import route_name
from functions.gateway.observed_call import make_call
from functions.gateway.reading import OPERATIONS_OF_TASK, Plan, new_record, read_request
from functions.gateway.record import CallRecord
from functions.gateway.traffic import choose
from functions.gateway.upstream import ServerGone
from serving.route import Route
from wire.openai import (
    COMPLETION_LIMITS,
    OUTPUT_LIMITS,
    FreeOperation,
    ModelRequest,
    Operation,
    parse_request,
)

_log: Final = get_logger(__name__)

OPERATIONS: Final[dict[str, Operation]] = {
    "/v1/chat/completions": "chat.completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
_REFUSALS: Final = {
    "unknown": "Incorrect API key provided: it is not a key of this installation.",
    "expired": "This API key has expired; ask for a new one.",
    "revoked": "This API key was revoked; ask for a new one.",
}


def hot_route(path: str) -> tuple[Operation, str] | None:
    """The operation and the endpoint's name ("" where the path names none) of a metered path."""
    operation = OPERATIONS.get(path)
    if operation is not None:
        return operation, ""
    if path.startswith("/endpoints/"):
        name, slash, rest = path[11:].partition("/")
        operation = OPERATIONS.get(slash + rest)
        if operation is not None and name:
            return operation, name
    return None


async def authenticate(gateway: Gateway, headers: dict[bytes, bytes], endpoint_name: str = "") -> Principal:
    """The holder of the key in the headers, or of a token for the endpoint. Unauthenticated says what is wrong."""
    key = presented_key(headers)
    if not key:
        raise Unauthenticated(
            "You did not provide an API key. Send it in the header 'Authorization: Bearer YOUR_KEY'."
        )
    if looks_like_token(key) and gateway.find_bearer is not None:
        return await _bearer(gateway, key, endpoint_name)
    if len(key) > MAX_KEY_LENGTH:
        raise Unauthenticated(_REFUSALS["unknown"])
    answer = await gateway.lookups.principal(hash_key(key))
    if isinstance(answer, Principal):
        if answer.kind == "admin":
            raise Forbidden(
                "This is an admin key: it manages and cannot call models. Use a project's or endpoint's key."
            )
        return answer
    raise Unauthenticated(_REFUSALS.get(answer, _REFUSALS["unknown"]))


async def _bearer(gateway: Gateway, token: str, endpoint_name: str) -> Principal:
    if not endpoint_name:
        raise Unauthenticated(
            "A token of an identity provider opens one endpoint by its own address: /endpoints/NAME/…",
            code="token_without_endpoint",
        )
    if len(token) > MAX_TOKEN_LENGTH:
        raise Unauthenticated(
            f"This token is longer than {MAX_TOKEN_LENGTH} characters.", code="invalid_token"
        )
    find = gateway.find_bearer
    assert find is not None, "checked by authenticate"
    return await gateway.lookups.bearer(_token_hash(token, endpoint_name), lambda: find(token, endpoint_name))


def _token_hash(token: str, endpoint_name: str) -> str:
    """One token may open several endpoints, as another principal each."""
    return hash_key(f"{endpoint_name}\n{token}")


def presented_key(headers: dict[bytes, bytes]) -> str:
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if credentials and scheme.lower() == b"bearer":
        return credentials.strip().decode("latin-1")
    return (headers.get(b"api-key") or headers.get(b"x-api-key", b"")).strip().decode("latin-1")


def unknown_model(model: str, endpoint_name: str) -> NotFound:
    """OpenAI's answer to a model that is not there, with what to do about it."""
    if endpoint_name:
        serve = f", does not serve `{model}`" if model else ""
        text = f"The endpoint `{endpoint_name}` does not exist{serve} or this key may not use it."
    else:
        text = f"The model `{model}` does not exist or this key may not use it."
    advice = "GET /v1/models lists what it may use; `farebox serverless-endpoint create` deploys a model."
    return NotFound(f"{text} {advice}", code="model_not_found", param="model")


def warm_call(
    gateway: Gateway, headers: dict[bytes, bytes], body: bytes, operation: Operation, endpoint_name: str
) -> CallRecord | None:
    """What `HotRoutes` finds out about a call, if all of it is known already and a server is ready; else None.

    May also raise what `HotRoutes` would refuse the call with: either way it is the one to ask.
    """
    received_ms = gateway.clock.now_ms()
    if IDEMPOTENCY_KEY in headers:  # the slow lane records and repeats outcomes
        return None
    if gateway.limits.waits:
        return None
    key = presented_key(headers)
    if len(key) > MAX_KEY_LENGTH:
        if len(key) > MAX_TOKEN_LENGTH or gateway.find_bearer is None:
            return None
        key_hash = _token_hash(key, endpoint_name)
    elif key:
        key_hash = hash_key(key)
    else:
        return None
    principal = gateway.lookups.principals.peek(key_hash)
    if principal is None or principal.kind == "admin" or 0 < principal.expires_ms <= received_ms:
        return None
    request = parse_request(body, COMPLETION_LIMITS if operation == "completions" else OUTPUT_LIMITS)
    model = request.model or ""
    if not model and not endpoint_name:
        return None
    route = gateway.lookups.known_route(principal, endpoint_name, model)
    if route is None or route.private or route.suspended:  # the slow lane knows where the caller is
        return None
    shadow = None
    if route.split is not None:
        route, shadow = choose(route, headers)
    if route.suspended or not route.urls or operation not in OPERATIONS_OF_TASK.get(route.task, ()):
        return None
    if gateway.safety is not None and gateway.safety.applies(route.screened, operation):
        return None
    servers = gateway.places.of(route)
    if servers.free <= 0:  # others may wait already
        return None
    scoring = route.scoring
    if scoring is not None and (scoring.logged or scoring.collecting is not None):
        return None
    if scoring is not None and not scoring.serverless and gateway.bandwidth.bounds(route.endpoint_name):
        return None
    record = CallRecord(new_id("req", received_ms), operation, principal, request, route, received_ms)
    record.body_bytes = len(body)
    gateway.limits.admit(record, body)
    record.place = servers.take()
    if shadow is not None:
        gateway.mirrors.copy_call(record, shadow, parse_request(body))
    return record


class HotRoutes:
    """Serves every path that `hot_route` knows."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, plan: Plan, endpoint_name: str
    ) -> None:
        received_ms = self._gateway.clock.now_ms()
        recorder = None
        if any(name == IDEMPOTENCY_KEY for name, _ in scope["headers"]):
            recorder = send = Recorder(send)
        exchange = Exchange(scope, receive, send, new_id("req", received_ms), plan.surface)
        self._gateway.in_flight += 1
        admitted = self._admitted(exchange, plan, endpoint_name, received_ms, recorder)
        await self.serve(exchange, admitted, recorder)

    async def resume(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        record: CallRecord,
        gone: ServerGone,
        *,
        started: bool,
    ) -> None:
        """Go on with a call of the fast lane, which counted it in: its server was gone before the first byte."""
        exchange = Exchange(scope, receive, send, record.request_id)
        exchange.started = started
        exchange.more_headers = limit_headers(record)
        try:
            await self.serve(exchange, self._resumed(exchange, record, gone))
        finally:
            record.leave_place()
            self._gateway.limits.release(record)

    async def _resumed(self, exchange: Exchange, record: CallRecord, gone: ServerGone) -> MeteredCall:
        await exchange.read_body(self._gateway.settings.max_body_bytes)  # empty: it was read
        return make_call(self._gateway, exchange, record, gone=gone)

    async def serve(
        self,
        exchange: Exchange,
        admitted: Awaitable[MeteredCall | FreeCall],
        recorder: Recorder | None = None,
    ) -> None:
        """Answer a request, whatever comes of it; it was counted in."""
        call = None
        try:
            call = await admitted
            await call.run()
        except HangUp:
            pass  # before anything was done for the caller
        except Replayed as known:
            assert recorder is not None, "only a recorded call is looked up"
            await replay(known.outcome, recorder)
        except FareboxError as error:
            self._gateway.metrics.refused(error)
            await exchange.answer_error(error)
        except Exception:
            _log.exception("a request failed unexpectedly", extra={"request_id": exchange.request_id})
            if not exchange.started:
                await exchange.answer_error(FareboxError(f"Internal error in request {exchange.request_id}."))
        finally:
            self._gateway.in_flight -= 1
            if recorder is not None:
                recorder.end(completed=call is not None and call.completed)
            await exchange.close()

    async def _admitted(
        self,
        exchange: Exchange,
        plan: Plan,
        endpoint_name: str,
        received_ms: int,
        recorder: Recorder | None,
    ) -> MeteredCall | FreeCall:
        gateway = self._gateway
        gateway.check_admission()
        exchange.check_headers()
        principal = await authenticate(gateway, exchange.headers, endpoint_name)
        body = await exchange.read_body(gateway.settings.max_body_bytes)
        began_ns = perf_counter_ns()
        if recorder is not None:
            key = exchange.headers[IDEMPOTENCY_KEY]
            recorder.claim = gateway.outcomes.claim(principal, key, exchange.path, body)
        request = read_request(exchange, plan, body)
        route, shadow = await self._route(exchange, principal, plan.operation, endpoint_name, request)
        if plan.free is not None:
            return FreeCall(gateway, exchange, plan.free, request, route)
        gateway.places.check_room(route)
        record = new_record(exchange, plan.metered, principal, request, route, received_ms)
        if (waiting := gateway.limits.admit(record, body)) is not None:
            await waiting
        exchange.more_headers = limit_headers(record)
        screen = await self._screen(record)
        if shadow is not None:
            gateway.mirrors.copy_call(record, shadow, read_request(exchange, plan, body))
        gateway.metrics.prepare.note((perf_counter_ns() - began_ns) // 1000)
        record.body_bytes = len(body)
        return make_call(gateway, exchange, record, screen=screen, body=body)

    async def _screen(self, record: CallRecord) -> Screen | None:
        """The check of the answer, once the prompt has passed. BadRequest or Unavailable: it did not."""
        safety = self._gateway.safety
        if safety is None or not safety.applies(record.route.screened, record.operation):
            return None
        try:
            await safety.check_request(record)
        except BaseException:
            self._gateway.limits.release(record)
            raise
        return Screen(safety, record.operation, record.request_id)

    async def _route(
        self,
        exchange: Exchange,
        principal: Principal,
        operation: Operation | FreeOperation,
        endpoint_name: str,
        request: ModelRequest,
    ) -> tuple[Route, Route | None]:
        """The route of a call, and that of a copy of it."""
        model = request.model or ""
        if not model and not endpoint_name:
            raise BadRequest("You must provide a model parameter.", param="model", code="missing_parameter")
        route = await self._gateway.lookups.routes.find(route_name(principal, endpoint_name, model))
        if route is None:
            raise unknown_model(model, endpoint_name)
        self._gateway.reach.check_endpoint(route, exchange.address)
        route, shadow = choose(route, exchange.headers)
        self._gateway.reach.check_endpoint(route, exchange.address)  # a deployment can be closed by itself
        if operation not in OPERATIONS_OF_TASK.get(route.task, ()):
            raise NotFound(
                f"The model `{model or route.model_id}` does {route.task}, which {operation} is not.",
                code="model_not_found",
                param="model",
            )
        return route, shadow
