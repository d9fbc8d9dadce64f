"""Remembered answers share what they have in common, and say the same as before."""

from dataclasses import asdict

from access.principal import Principal
from functions.gateway.sharing import share_principal, share_route
from serving.route import Tariff
from tests.gateway_fixture import make_route


def text(value: str) -> str:
    """Another object with the same letters."""
    return "".join(list(value))


def test_keys_of_one_project() -> None:
    keys = [
        Principal("project", f"key_{n}", text("org_1"), text("proj_1"), text("ep_1"), 5) for n in range(2)
    ]
    assert keys[0].org_id is not keys[1].org_id
    first, second = map(share_principal, keys)
    assert [first, second] == keys
    assert first.org_id is second.org_id and first.project_id is second.project_id
    assert first.endpoint_id is second.endpoint_id


def test_endpoints_of_one_model() -> None:
    routes = [make_route(text("http://one:1"), tariffs=(Tariff(0, {"input": 7}),)) for _ in range(2)]
    assert routes[0].tariffs is not routes[1].tariffs
    first, second = map(share_route, routes)
    assert [asdict(first), asdict(second)] == [asdict(route) for route in routes]
    assert first.tariffs is second.tariffs and first.urls is second.urls
    dearer = share_route(make_route("http://one:1", tariffs=(Tariff(0, {"input": 8}),)))
    assert dearer.tariffs[0].unit_prices == {"input": 8}, "the same instant, other prices"
