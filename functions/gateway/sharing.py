"""What remembered answers have in common is kept once.

A hundred thousand keys have few organizations, and ten thousand endpoints few models: read from SQL one by one, each
would come with texts and prices of its own, and every call would read them from another place in memory.
"""

from dataclasses import replace
from sys import intern
from typing import TypeVar

from access.principal import Principal
from serving.route import Route, Tariff

_T = TypeVar("_T")
_MAX_SHARED = 256
_tariffs: dict[tuple[Tariff, ...], tuple[Tariff, ...]] = {}
_urls: dict[tuple[str, ...], tuple[str, ...]] = {}


def share_principal(principal: Principal) -> Principal:
    """The same principal, of shared parts."""
    return replace(
        principal,
        org_id=intern(principal.org_id),
        project_id=intern(principal.project_id),
        endpoint_id=intern(principal.endpoint_id),
    )


def share_route(route: Route) -> Route:
    """The same route, of shared parts."""
    return replace(
        route,
        org_id=intern(route.org_id),
        project_id=intern(route.project_id),
        model_id=intern(route.model_id),
        task=intern(route.task),
        deployment_id=intern(route.deployment_id),
        served_model=intern(route.served_model),
        urls=_shared(_urls, route.urls),
        tariffs=_shared(_tariffs, route.tariffs),
    )


def _shared(known: dict[_T, _T], value: _T) -> _T:
    if len(known) >= _MAX_SHARED:
        known.clear()
    return known.setdefault(value, value)
