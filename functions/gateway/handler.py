"""The gateway as an ASGI application: FastAPI, with a lane of its own for the metered routes and the proxy.

Every answer carries `x-request-id`. Errors are OpenAI's error document under `/v1` and `/endpoints`, and
problem+json elsewhere.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from core.errors import FareboxError, Forbidden, NotFound, problem
from core.ids import new_id
from core.log import get_logger
from core.version import VERSION
from functions.api_page import install_api_page
from functions.gateway import openapi
from functions.gateway.azure_info import add_azure_info
from functions.gateway.comparison_page import add_comparison
from functions.gateway.dependencies import GatewayDependencies
from functions.gateway.exchange import Message, Receive, Scope, Send, error_headers
from functions.gateway.fast_lane import FastLane
from functions.gateway.fast_protocol import protocol_class
from functions.gateway.gateway import Gateway
from functions.gateway.hot import HotRoutes, authenticate, unknown_model
from functions.gateway.lookups import route_name
from functions.gateway.metrics_page import add_metrics
from functions.gateway.proxy import ControlProxy
from functions.gateway.reading import ENDPOINT_PLANS, PLANS, Plan, find_plan
from functions.gateway.scoring import ScoringRoutes, scoring_path
from serving.route import Route
from wire.openai import render_error

__all__ = ["Gateway", "GatewayDependencies", "create_gateway", "fast_protocol"]

_log = get_logger(__name__)

_REQUEST_ID = "farebox.request_id"
_CONTROL_PATHS = ("/api/", "/v1/organization/")
_MODEL_PATHS = ("/v1/", "/endpoints/")
_PREFIXES = ("", "/endpoints/{endpoint_name}")


def create_gateway(dependencies: GatewayDependencies) -> FastAPI:
    """The application; its `state.gateway` is the `Gateway`, for `drain`."""
    gateway = Gateway(dependencies)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    app = _GatewayApp(gateway, lifespan)
    app.state.gateway = gateway
    install_api_page(app, "/docs")
    _add_service_routes(app, gateway)
    for prefix in _PREFIXES:
        _add_model_routes(app, gateway, prefix)
        for path, plan in (ENDPOINT_PLANS if prefix else PLANS).items():
            _add_planned_route(app, prefix, path, plan)
    add_azure_info(app, gateway)
    add_comparison(app, gateway)
    add_metrics(app, gateway)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(FareboxError, _on_our_error)
    app.add_exception_handler(Exception, _on_unknown_error)
    return app


def fast_protocol(app: FastAPI) -> Any:
    """For `uvicorn.Config(http=...)`: the fast lane before the application. Needs a running event loop."""
    assert isinstance(app, _GatewayApp), "made by create_gateway"
    return protocol_class(FastLane(app.state.gateway), app.hot)


class _GatewayApp(FastAPI):
    """FastAPI for all but the hottest paths, which are told apart before it."""

    def __init__(self, gateway: Gateway, lifespan: Any) -> None:
        super().__init__(
            title="Farebox gateway",
            description="Models in OpenAI's wire format. The management API is documented at /api/docs.",
            version="1",
            lifespan=lifespan,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        self._gateway = gateway
        self.hot = HotRoutes(gateway)
        self._scoring = ScoringRoutes(gateway, self.hot)
        self._proxy = ControlProxy(gateway)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        path: str = scope["path"]
        managing = path.startswith(_CONTROL_PATHS) or path == "/api"
        try:
            self._gateway.reach.check(scope, management=managing)
        except Forbidden as refusal:
            scope = {**scope, "app": self, _REQUEST_ID: new_id("req", self._gateway.clock.now_ms())}
            await _render(Request(scope), refusal)(scope, receive, send)
            return
        found = find_plan(path) if scope["method"] == "POST" else None
        if found is not None:
            await self.hot(scope, receive, send, *found)
        elif managing:
            await self._proxy(scope, receive, send)
        elif (scored := scoring_path(scope["method"], path)) is not None:
            await self._scoring(scope, receive, send, *scored)
        else:
            await self._call_ordinary(scope, receive, send)

    async def _call_ordinary(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope[_REQUEST_ID] = new_id("req", self._gateway.clock.now_ms())
        header = (b"x-request-id", request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        try:
            await super().__call__(scope, receive, send_with_id)
        except Exception:
            # Answered by `_on_unknown_error`; Starlette raises it once more for the server's log.
            _log.exception("a request failed unexpectedly", extra={"request_id": request_id})

    def openapi(self) -> dict[str, Any]:
        """FastAPI's document, and what it cannot know: how callers identify themselves, how errors look."""
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {})
            components["securitySchemes"] = openapi.SECURITY_SCHEMES
            components.setdefault("schemas", {})["OpenAIError"] = openapi.ERROR_SCHEMA
        assert self.openapi_schema is not None, "made just above"
        return self.openapi_schema


class _HotAnswer(Response):
    """Hands a request that FastAPI routed to the hot lane, which then answers by itself."""

    def __init__(self, plan: Plan, endpoint_name: str) -> None:
        super().__init__()
        self._plan = plan
        self._endpoint_name = endpoint_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await scope["app"].hot(scope, receive, send, self._plan, self._endpoint_name)


def _add_planned_route(app: FastAPI, prefix: str, path: str, plan: Plan) -> None:
    async def serve(request: Request) -> Response:
        return _HotAnswer(plan, request.path_params.get("endpoint_name", ""))

    app.add_api_route(
        prefix + path,
        serve,
        methods=["POST"],
        summary=openapi.summary(plan.operation),
        operation_id=openapi.operation_id(prefix, path),
        tags=["endpoint" if prefix else "models"],
        response_class=Response,
        responses=openapi.error_responses(),
        openapi_extra=openapi.planned_route(prefix + path, plan, model_required=not prefix),
    )


def _add_service_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/healthz", tags=["service"], summary="The process is alive")
    async def healthz() -> Response:
        return _json({"status": "ok", "version": VERSION})

    @app.get(
        "/readyz",
        tags=["service"],
        summary="Calls are served",
        responses={503: {"description": "They are not"}},
    )
    async def readyz() -> Response:
        problems = await gateway.problems()
        return _json(
            {"status": "not ready" if problems else "ready", "problems": problems}, 503 if problems else 200
        )

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        links = {
            "docs": "/docs",
            "openapi": "/openapi.json",
            "management_docs": "/api/docs",
            "models": "/v1/models",
        }
        return _json({"service": "farebox", **links})

    for path, serve in (("/healthz", healthz), ("/readyz", readyz), ("/", root)):
        app.add_api_route(path, serve, methods=["HEAD"], include_in_schema=False)


def _add_model_routes(app: FastAPI, gateway: Gateway, prefix: str) -> None:
    name = "endpoint_" if prefix else ""
    documented: dict[str, Any] = {
        "tags": ["endpoint" if prefix else "models"],
        "responses": {
            status: text for status, text in openapi.error_responses().items() if status in (401, 403, 404)
        },
    }

    async def list_models(request: Request) -> Response:
        endpoint_name = request.path_params.get("endpoint_name", "")
        principal = await authenticate(gateway, dict(request.scope["headers"]), endpoint_name)
        wanted = route_name(principal, endpoint_name, "")
        routes = await asyncio.to_thread(gateway.list_routes, wanted)
        if endpoint_name:
            routes = [route for route in routes if route.endpoint_name == endpoint_name]
            if not routes:
                raise unknown_model("", endpoint_name)
        # A caller may use either name: the catalog's, or the endpoint's own.
        models = {
            name: _model(name, route) for route in routes for name in (route.model_id, route.endpoint_name)
        }
        return _json({"object": "list", "data": list(models.values())})

    async def retrieve_model(request: Request) -> Response:
        endpoint_name = request.path_params.get("endpoint_name", "")
        model = request.path_params["model"]
        principal = await authenticate(gateway, dict(request.scope["headers"]), endpoint_name)
        route = await gateway.lookups.routes.find(route_name(principal, endpoint_name, model[:1024]))
        if route is None:
            raise unknown_model(model[:1024], endpoint_name)
        return _json(_model(model, route))

    for path, serve, operation, summary in (
        ("/v1/models", list_models, "list_models", "What the key may call"),
        ("/v1/models/{model:path}", retrieve_model, "retrieve_model", "One model"),
    ):
        app.add_api_route(
            prefix + path,
            serve,
            methods=["GET"],
            operation_id=name + operation,
            summary=summary,
            openapi_extra={
                "security": openapi.SECURITY,
                "parameters": openapi.path_parameters(prefix + path),
            },
            **documented,
        )
        app.add_api_route(prefix + path, serve, methods=["HEAD"], include_in_schema=False)


def _model(name: str, route: Route) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": route.created_ms // 1000,
        "owned_by": "farebox",
        "task": route.task,
        "max_model_len": route.context_length,
    }


def _json(body: Any, status: int = 200, media_type: str = "application/json") -> Response:
    return Response(msgspec.json.encode(body), status, media_type=media_type)


def _render(request: Request, error: FareboxError, headers: dict[str, str] | None = None) -> Response:
    request.app.state.gateway.metrics.refused(error)
    path = request.scope["path"]
    if path.startswith(_MODEL_PATHS) or path == "/v1":
        response = _json(render_error(error), error.status)
    else:
        body = problem(error, request_id=request.scope[_REQUEST_ID], instance=path)
        response = _json(body, error.status, "application/problem+json")
    for name, value in error_headers(error):
        response.headers[name.decode()] = value.decode()
    response.headers.update(headers or {})
    return response


async def _on_our_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FareboxError), "registered for these"
    return _render(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for these"
    path = request.scope["path"]
    if error.status_code == 404:
        ours: FareboxError = NotFound(
            f"Nothing is at {request.method} {path[:200]}; /docs and /api/docs list what there is.",
            code="unknown_url",
        )
    else:
        text = f"{error.detail}: {request.method} {path[:200]}"
        ours = FareboxError(text, code="method_not_allowed" if error.status_code == 405 else "http_error")
        ours.status = error.status_code
    return _render(request, ours, dict(error.headers or {}))


async def _on_unknown_error(request: Request, _error: Exception) -> Response:
    return _render(request, FareboxError(f"Internal error in request {request.scope[_REQUEST_ID]}."))
