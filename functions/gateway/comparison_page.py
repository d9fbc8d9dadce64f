"""`GET /endpoints/{name}/comparison`: what calls and their mirrored copies came to; and the same for Prometheus."""

from collections.abc import Iterable
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response

from functions.gateway import openapi
from functions.gateway.comparison import Comparison
from functions.gateway.exposition import Family
from functions.gateway.gateway import Gateway
from functions.gateway.hot import authenticate, unknown_model
from functions.gateway.lookups import route_name
from functions.gateway.networks import address_of

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Since the gateway started: pairs of calls and copies, statuses, times, how often the answers "
        "were alike. No bodies.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    **{status: text for status, text in openapi.error_responses().items() if status in (401, 403, 404)},
}


def add_comparison(app: FastAPI, gateway: Gateway) -> None:
    """Serve it to who may call the endpoint."""

    async def comparison(request: Request) -> Response:
        name = request.path_params["endpoint_name"]
        principal = await authenticate(gateway, dict(request.scope["headers"]), name)
        route = await gateway.lookups.routes.find(route_name(principal, name, ""))
        if route is None:
            raise unknown_model("", name)
        gateway.reach.check_endpoint(route, address_of(request.scope))
        found = gateway.mirrors.comparisons(route.endpoint_id)
        body: dict[str, Any] = {"object": "list", "data": [each.document() for each in found]}
        return Response(msgspec.json.encode(body), media_type="application/json")

    path = "/endpoints/{endpoint_name}/comparison"
    app.add_api_route(
        path,
        comparison,
        methods=["GET"],
        tags=["endpoint"],
        operation_id="endpoint_comparison",
        summary="How a deployment and its shadow compare",
        response_class=Response,
        responses=_RESPONSES,
        openapi_extra={"security": openapi.SECURITY, "parameters": openapi.path_parameters(path)},
    )


def comparison_families(comparisons: Iterable[Comparison]) -> Iterable[Family]:
    """Copies by endpoint, deployment and shadow."""
    known = list(comparisons)
    for name, text, values in (
        ("mirrored", "Calls whose copy was answered by a shadow deployment", [each.pairs for each in known]),
        ("mirror_left_out", "Copies that could not be sent", [each.left_out for each in known]),
        ("mirror_same", "Pairs of answers that say the same", [each.same for each in known]),
        ("mirror_different", "Pairs of answers that differ", [each.different for each in known]),
    ):
        samples = [
            (
                "",
                (("endpoint", each.endpoint_name), ("deployment", each.deployment), ("shadow", each.shadow)),
                value,
            )
            for each, value in zip(known, values, strict=True)
        ]
        yield Family(f"farebox_gateway_{name}_total", "counter", text, samples)
