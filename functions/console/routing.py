"""The console's kind of route: who calls is decided before a byte of the body is looked at."""

import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from core.errors import Invalid
from functions.console.authentication import authenticate
from functions.console.authorization import check_allowed
from wire.suggestions import unknown_name

_BRACKETS = re.compile(rb"((?:^|&)[a-z_]+)(?:\[\]|%5[bB]%5[dD])=")
_Handle = Callable[[Request], Coroutine[Any, Any, Response]]


class AuthorizedRoute(APIRoute):
    """Checks the key, the authorization table and the names of the query's parameters, in this order."""

    def get_route_handler(self) -> _Handle:
        """The framework's handler behind our checks."""
        inner = super().get_route_handler()
        known = [field.alias for field in self.dependant.query_params]
        route = self.path

        async def handle(request: Request) -> Response:
            principal = await run_in_threadpool(authenticate, request, request.app.state.dependencies)
            check_allowed(principal, request.method, route)
            for name in request.query_params:
                if name not in known:
                    raise Invalid(unknown_name(name, known, "parameter"), param=name[:80])
            request.state.principal = principal
            return await inner(request)

        return handle


class OpenAIErrorDocument(BaseModel):
    """How these routes refuse; `param` names what is wrong. They answer 400 where others answer 422."""

    error: dict[str, Any]


class OpenAIRoute(AuthorizedRoute):
    """Takes lists as their clients write them, `models[]=a&models[]=b`, as well as `models=a&models=b`."""

    def get_route_handler(self) -> _Handle:
        """The checks behind a query that is written one way."""
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            query: bytes = request.scope["query_string"]
            request.scope["query_string"] = _BRACKETS.sub(rb"\1=", query)
            return await inner(request)

        return handle


def console_router(tag: str) -> APIRouter:
    """A router of one resource group, under /api."""
    return APIRouter(prefix="/api", tags=[tag], route_class=AuthorizedRoute)


def openai_router(tag: str) -> APIRouter:
    """A router of what is OpenAI's own API, for operators rather than callers of models."""
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": OpenAIErrorDocument, "description": "OpenAI's error object."}
        for status in (400, 401, 403, 404, 413, 422)
    }
    return APIRouter(prefix="/v1/organization", tags=[tag], route_class=OpenAIRoute, responses=refusals)
