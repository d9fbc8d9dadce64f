"""Lists of networks: who may connect from where."""

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from core.errors import Invalid

_MAX = 1000


class Networks:
    """Some networks. Loopback has no special place: it is among them or not."""

    def __init__(self, text: str, what: str) -> None:
        """`text`: addresses and networks in CIDR notation, commas between. Invalid names `what`."""
        self._networks = tuple(_network(part.strip(), what) for part in text.split(",") if part.strip())
        if len(self._networks) > _MAX:
            raise Invalid(f"{what}: expected at most {_MAX} networks, got {len(self._networks)}", param=what)
        self._holds = lru_cache(maxsize=10_000)(self._look)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: str) -> bool:
        """Whether the address is in one of them; what is no address is in none."""
        return self._holds(address)

    def _look(self, text: str) -> bool:
        try:
            address = ip_address(text.partition("%")[0])  # a link-local one may name its interface
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped  # an IPv4 caller of a socket that takes both
        return any(address in network for network in self._networks)


def _network(text: str, what: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise Invalid(
            f"{what}: expected networks like 10.0.0.0/8, commas between; {error}", param=what
        ) from None
