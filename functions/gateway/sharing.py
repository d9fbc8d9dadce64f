"""What remembered answers have in common is kept once.

A hundred thousand keys have few organizations, and ten thousand endpoints few models: read from SQL one by one, each
would come with texts and prices of its own, and every call would read them from another place in memory.
"""

from dataclasses import replace
from sys import intern

from access.model import Principal
from serving.model import Route, Tariff

_MAX_TARIFFS = 256
_tariffs: dict[tuple[Tariff, ...], tuple[Tariff, ...]] = {}


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
        urls=tuple([intern(url) for url in route.urls]),
        tariffs=_shared(route.tariffs),
    )


def _shared(tariffs: tuple[Tariff, ...]) -> tuple[Tariff, ...]:
    if len(_tariffs) >= _MAX_TARIFFS:
        _tariffs.clear()
    return _tariffs.setdefault(tariffs, tariffs)
