"""`GET /endpoints/{name}/info`: what Azure's Model Inference clients ask an endpoint first."""

import msgspec
from fastapi import FastAPI, Request, Response

from core.errors import FareboxError, NotFound
from functions.gateway import openapi
from functions.gateway.exchange import error_headers
from functions.gateway.gateway import Gateway
from functions.gateway.hot import authenticate, unknown_model
from functions.gateway.lookups import route_name
from functions.gateway.networks import address_of
from functions.gateway.surfaces import AZURE
from serving.route import Route
from wire.azure import MODEL_TYPES, check_api_version

_PATH = "/endpoints/{endpoint_name}/info"
_ERRORS = (400, 401, 403, 404)


def add_azure_info(app: FastAPI, gateway: Gateway) -> None:
    """Add the route."""

    async def info(request: Request) -> Response:
        try:
            check_api_version(request.scope["query_string"])
            body = _describe(await _route(gateway, request))
        except FareboxError as error:
            gateway.metrics.refused(error)
            status, data, headers = AZURE.error(error, "")
            response = Response(data, status, media_type="application/json")
            for name, value in (*headers, *error_headers(error)):
                response.headers[name.decode()] = value.decode()
            return response
        return Response(msgspec.json.encode(body), media_type="application/json")

    app.add_api_route(
        _PATH,
        info,
        methods=["GET"],
        operation_id="endpoint_info",
        summary="What the endpoint's model is",
        tags=["endpoint"],
        response_class=Response,
        responses={status: text for status, text in openapi.error_responses().items() if status in _ERRORS},
        openapi_extra={
            "security": openapi.SECURITY,
            "parameters": [*openapi.path_parameters(_PATH), openapi.AZURE_PARAMETERS[0]],
        },
    )


async def _route(gateway: Gateway, request: Request) -> Route:
    endpoint_name = request.path_params["endpoint_name"]
    principal = await authenticate(gateway, dict(request.scope["headers"]), endpoint_name)
    route = await gateway.lookups.routes.find(route_name(principal, endpoint_name, ""))
    if route is None:
        raise unknown_model("", endpoint_name)
    gateway.reach.check_endpoint(route, address_of(request.scope))
    return route


def _describe(route: Route) -> dict[str, str]:
    kind = MODEL_TYPES.get(route.task)
    if kind is None:
        raise NotFound(f"This API has no word for a model that does {route.task}.", code="model_not_found")
    publisher, slash, name = route.model_id.partition("/")
    return {
        "model_name": name if slash else publisher,
        "model_type": kind,
        "model_provider_name": publisher if slash else "",
    }
