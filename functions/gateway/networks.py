"""Who may connect from where: allow-lists of the installation, and endpoints that are private."""

from collections.abc import Mapping
from typing import Any, Final

from core.errors import Forbidden
from core.networks import Networks
from core.settings import Settings
from serving.route import Route

_SUSPENDED: Final = {
    "subscription_missing": "serves an offer that its project is not subscribed to; who manages it can accept the terms."
}


class Reach:
    """The settings' networks. An address is that of the connection: a proxy in between is who connects."""

    def __init__(self, settings: Settings) -> None:
        self._calls = Networks(settings.allowed_networks, "FAREBOX_ALLOWED_NETWORKS")
        self._management = Networks(settings.management_networks, "FAREBOX_MANAGEMENT_NETWORKS")
        self._private = Networks(settings.private_networks, "FAREBOX_PRIVATE_NETWORKS")

    def may_connect(self, address: str) -> bool:
        """Whether anything at all is answered."""
        return not self._calls or address in self._calls

    def check(self, scope: Mapping[str, Any], *, management: bool) -> None:
        """Forbidden unless the caller's network is allowed to call, or to manage."""
        address = address_of(scope)
        if not self.may_connect(address):
            raise Forbidden(
                f"Connections from {address or 'there'} are not allowed here.", code="network_not_allowed"
            )
        if management and self._management and address not in self._management:
            raise Forbidden(
                f"The management API is not open to connections from {address or 'there'}.",
                code="network_not_allowed",
            )

    def check_endpoint(self, route: Route, address: str) -> None:
        """Forbidden when the endpoint is suspended, or private and the caller is not in a private network."""
        if route.suspended:
            why = _SUSPENDED.get(route.suspended, "is suspended; who manages it can reinstate it.")
            raise Forbidden(f"The endpoint `{route.endpoint_name}` {why}", code=route.suspended)
        if route.private and address not in self._private:
            raise Forbidden(
                f"The endpoint `{route.endpoint_name}` has public_network_access: disabled; it answers callers in "
                "private networks only.",
                code="private_endpoint",
            )


def address_of(scope: Mapping[str, Any]) -> str:
    """The caller's IP address; "" where the server does not know it."""
    client = scope.get("client")
    return str(client[0]) if client else ""
