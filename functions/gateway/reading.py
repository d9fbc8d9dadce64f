"""Which path is which operation of whose API, and how a request to it is read."""

from typing import Final, NamedTuple, cast

from access.principal import Principal
from functions.gateway.dialect_record import DialectRecord
from functions.gateway.exchange import Exchange
from functions.gateway.record import CallRecord
from functions.gateway.surfaces import ANTHROPIC, AZURE, OPENAI, RESPONSES, Surface
from serving.route import Route
from wire import azure
from wire.openai import (
    COMPLETION_LIMITS,
    FREE_OPERATIONS,
    OUTPUT_LIMITS,
    FreeOperation,
    ModelRequest,
    Operation,
    parse_request,
)
from wire.operations import DIALECTS


class Plan(NamedTuple):
    """What a path stands for."""

    operation: Operation | FreeOperation
    surface: Surface

    @property
    def free(self) -> FreeOperation | None:
        """The operation, if it costs nothing."""
        return next((name for name in FREE_OPERATIONS if name == self.operation), None)

    @property
    def metered(self) -> Operation:
        """The operation, if it costs something."""
        assert self.free is None, "free operations are told apart before"
        return cast(Operation, self.operation)


PLANS: Final = {
    "/v1/chat/completions": Plan("chat.completions", OPENAI),
    "/v1/completions": Plan("completions", OPENAI),
    "/v1/embeddings": Plan("embeddings", OPENAI),
    "/v1/responses": Plan("responses", RESPONSES),
    "/v1/messages": Plan("messages", ANTHROPIC),
    "/v1/rerank": Plan("rerank", OPENAI),
    "/v1/score": Plan("score", OPENAI),
    "/v1/audio/transcriptions": Plan("audio.transcriptions", OPENAI),
    "/v1/messages/count_tokens": Plan("messages.count_tokens", ANTHROPIC),
    "/v1/tokenize": Plan("tokenize", OPENAI),
    "/tokenize": Plan("tokenize", OPENAI),
}
ENDPOINT_PLANS: Final = PLANS | {
    "/chat/completions": Plan("chat.completions", AZURE),
    "/completions": Plan("completions", AZURE),
    "/embeddings": Plan("embeddings", AZURE),
}
OPERATIONS_OF_TASK: Final[dict[str, tuple[Operation | FreeOperation, ...]]] = {
    "chat": ("chat.completions", "completions", "responses", "messages", *FREE_OPERATIONS),
    "completion": ("completions", "tokenize"),
    "embedding": ("embeddings", "rerank", "score", "tokenize"),
    "rerank": ("rerank", "score", "tokenize"),
    "transcription": ("audio.transcriptions",),
}


def find_plan(path: str) -> tuple[Plan, str] | None:
    """The plan of a path, and the endpoint's name ("" where the path names none)."""
    plan = PLANS.get(path)
    if plan is not None:
        return plan, ""
    if path.startswith("/endpoints/"):
        name, slash, rest = path[11:].partition("/")
        plan = ENDPOINT_PLANS.get(slash + rest)
        if plan is not None and name:
            return plan, name
    return None


def read_request(exchange: Exchange, plan: Plan, body: bytes) -> ModelRequest:
    """What is known of a request. BadRequest names what is wrong with it."""
    dialect = DIALECTS.get(plan.operation)
    if dialect is not None:
        return dialect.parse(body, exchange.headers.get(b"content-type", b""))
    if plan.surface is AZURE:
        azure.check_api_version(exchange.query)
        body = azure.openai_body(body, plan.metered, exchange.headers.get(b"extra-parameters", b""))
    return parse_request(body, COMPLETION_LIMITS if plan.operation == "completions" else OUTPUT_LIMITS)


def new_record(
    exchange: Exchange,
    operation: Operation,
    principal: Principal,
    request: ModelRequest,
    route: Route,
    received_ms: int,
) -> CallRecord:
    """The record of a call that begins."""
    return record_of(exchange.request_id, operation, principal, request, route, received_ms)


def record_of(
    request_id: str,
    operation: Operation,
    principal: Principal,
    request: ModelRequest,
    route: Route,
    received_ms: int,
) -> CallRecord:
    """The same for a call that no caller waits for."""
    kind = DialectRecord if operation in DIALECTS else CallRecord
    return kind(request_id, operation, principal, request, route, received_ms)
