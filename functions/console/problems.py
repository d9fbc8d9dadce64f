"""Every failure as problem+json (RFC 9457): ours, the framework's and the database's."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from core.errors import BadRequest, Conflict, FareboxError, Invalid, NotFound, Unavailable
from core.log import get_logger
from functions.console.middleware import error_document, problem_headers
from functions.console.online_shapes import INLINE

_log = get_logger(__name__)
_SHOWN = 10


class MethodNotAllowed(FareboxError):
    """The path exists, but not with this method."""

    status, code = 405, "method_not_allowed"


def install_problems(app: FastAPI) -> None:
    """Let `app` answer every expected failure with a problem document."""
    app.add_exception_handler(FareboxError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid_input)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(IntegrityError, _race)
    app.add_exception_handler(OperationalError, _database_down)
    app.add_exception_handler(DataError, _odd_text)
    app.add_exception_handler(UnicodeEncodeError, _odd_text)


def render(request: Request, error: FareboxError, headers: dict[str, str] | None = None) -> Response:
    """The answer for `error`."""
    status, kind, body = error_document(error, request.state.request_id, request.url.path)
    headers = {**problem_headers(error), **(headers or {})}
    return Response(body, status_code=status, headers=headers, media_type=kind)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, FareboxError)
    if error.status >= 500:
        _log.warning(error.message, extra={"request_id": request.state.request_id, "code": error.code})
    return render(request, error)


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        allowed = ", ".join(_methods_of(request))
        message = f"{path[:200]} does not take {request.method}; it takes {allowed}"
        return render(request, MethodNotAllowed(message), {"allow": allowed})
    if error.status_code == 404:
        return render(request, NotFound(f"there is nothing at {path[:200]!r}; /api/docs lists the routes"))
    return render(request, BadRequest("the body is not valid JSON"))


def _methods_of(request: Request) -> list[str]:
    """What the path takes: the framework looks at the first route with that path only."""
    routes: Iterable[Route] = request.app.state.routes
    fitting = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in fitting for method in route.methods or ()})


async def _race(request: Request, error: Exception) -> Response:
    _log.warning("two changes at once", extra={"request_id": request.state.request_id, "error": str(error)})
    return render(request, Conflict("somebody else changed the same thing just now; try again"))


async def _database_down(request: Request, error: Exception) -> Response:
    _log.error("database", extra={"request_id": request.state.request_id, "error": str(error)})
    return render(request, Unavailable("the database does not answer or is busy; try again", retry_after_s=2))


async def _odd_text(request: Request, error: Exception) -> Response:
    """JSON can express half of a surrogate pair and a NUL, which no database can store."""
    return render(request, Invalid("a text holds a character that cannot be stored (NUL, or half a pair)"))


async def _invalid_input(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return render(request, _as_error(error, request.headers.get("content-type", "")))


def _as_error(error: RequestValidationError, content_type: str) -> FareboxError:
    found = [_fault(fault) for fault in list(error.errors())[:_SHOWN]]
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", "")
        return BadRequest(f"the body is not valid JSON: {why} at character {first['loc'][-1]}")
    if first["loc"] == ("body",) and isinstance(first.get("input"), bytes):
        return BadRequest(
            f"expected a JSON body with Content-Type: application/json, got {content_type[:80]!r}"
        )
    if first["loc"] == ("body",) and first["type"] == "missing":
        return BadRequest("expected a JSON object as body, got nothing")
    param, message = found[0]
    extra = {"errors": [{"param": p, "message": m} for p, m in found]} if len(found) > 1 else None
    return Invalid(f"{param}: {message}" if param else message, param=param or None, extra=extra)


def _fault(fault: Any) -> tuple[str, str]:
    """Which field, and what was expected of it."""
    context = fault.get("ctx", {})
    steps = [
        str(step)
        for step in fault["loc"]
        if step not in ("body", "query", "path", "header") and not str(step).startswith(INLINE)
    ]
    if "field" in context:  # our own check of names, see `shapes.Input`
        steps.append(str(context["field"]))
    message = str(fault["msg"])
    if fault["type"] == "missing":
        message = "the field is missing"
    elif fault["type"] in ("model_attributes_type", "model_type", "dict_type"):
        message = "expected a JSON object"
    else:
        message = message.replace("Input should be ", "expected ", 1)
        message = message[:1].lower() + message[1:]
    return ".".join(steps), message[:500]
