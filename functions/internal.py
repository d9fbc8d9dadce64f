"""What the gateway asks of the control process, over its Unix socket: wake a server, hear of activity, count."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from core.errors import FareboxError, NotFound, TooLarge, problem
from core.ids import new_id
from functions.tokens import MAX_BYTES, TokenCounter
from serving.model import WakeStatus
from serving.online.calls import MAX_DURATIONS

MAX_WAIT_MS = 3_600_000
MAX_DEPLOYMENTS = 10_000
MAX_BUDGETS = 100_000


class Runtime(Protocol):
    """The part of the runtime that the gateway needs."""

    async def wake(self, deployment_id: str, wait_ms: int) -> WakeStatus: ...

    def report_activity(self, activity: dict[str, dict[str, Any]]) -> None: ...


class Activity(BaseModel):
    """The calls to one deployment."""

    in_flight: int = Field(ge=0)
    last_ms: int = Field(ge=0)
    ended: int = Field(default=0, ge=0)  # since the last report, of an online deployment
    durations_ms: list[int] = Field(default_factory=list, max_length=MAX_DURATIONS)  # of some of these


class HeldReport(BaseModel):
    """What the calls in flight of one gateway hold of budgets, in pico-dollars."""

    gateway: str = Field(max_length=200)
    held: dict[str, Annotated[int, Field(ge=0)]] = Field(max_length=MAX_BUDGETS)


class Accounts(Protocol):
    """The part of the books that the gateway needs."""

    def catch_up(self) -> None: ...

    def report_held(self, gateway: str, held: dict[str, int]) -> None: ...


def internal_router(
    runtime: Runtime,
    accounts: Accounts | None = None,
    tokens: TokenCounter | None = None,
    figures: Callable[[], Awaitable[list[dict[str, Any]]]] | None = None,
) -> APIRouter:
    """The routes, for an app that renders FareboxError itself."""
    router = APIRouter(prefix="/internal", include_in_schema=False)

    @router.post("/deployments/{deployment_id}/wake")
    async def wake(
        deployment_id: str, wait_ms: Annotated[int, Query(ge=0, le=MAX_WAIT_MS)] = 0
    ) -> WakeStatus:
        """Answers when the server is ready or failed, at the latest after `wait_ms`."""
        return await runtime.wake(deployment_id, wait_ms)

    @router.post("/activity", status_code=204)
    async def report_activity(
        activity: Annotated[dict[str, Activity], Field(max_length=MAX_DEPLOYMENTS)],
    ) -> Response:
        """How busy deployments are, for those where something changed."""
        runtime.report_activity({name: calls.model_dump() for name, calls in activity.items()})
        return Response(status_code=204)

    @router.get("/online-figures")
    async def online_figures() -> list[dict[str, Any]]:
        """What online deployments' instances use."""
        return [] if figures is None else await figures()

    @router.post("/catch-up", status_code=204)
    def catch_up() -> Response:
        """Answers when everything in the journals is on record, and charged to budgets."""
        if accounts is not None:
            accounts.catch_up()
        return Response(status_code=204)

    @router.post("/budgets/held", status_code=204)
    def report_held(report: HeldReport) -> Response:
        """For whoever looks at a budget."""
        if accounts is not None:
            accounts.report_held(report.gateway, report.held)
        return Response(status_code=204)

    @router.post("/tokens")
    async def count_tokens(request: Request) -> Response:
        """Tokens of texts by a model's tokenizer; 404 where there is none."""
        if tokens is None:
            raise NotFound("No tokens are counted here.")
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > MAX_BYTES:
                raise TooLarge(f"A question for tokens has at most {MAX_BYTES} bytes.")
        return Response(await tokens.count(bytes(data)), media_type="application/json")

    return router


def create_internal(
    runtime: Runtime,
    accounts: Accounts | None = None,
    tokens: TokenCounter | None = None,
    figures: Callable[[], Awaitable[list[dict[str, Any]]]] | None = None,
) -> FastAPI:
    """The routes as an app of their own."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(internal_router(runtime, accounts, tokens, figures))

    @app.exception_handler(FareboxError)
    async def failed(request: Request, error: FareboxError) -> JSONResponse:
        body = problem(error, request_id=new_id("req"), instance=request.url.path)
        return JSONResponse(body, status_code=error.status, media_type="application/problem+json")

    return app
