"""Which addresses may be called: a customer's URL must not reach into the network that Farebox stands in."""

import ipaddress
from urllib.parse import urlsplit

from core.errors import Invalid

MAX_URL = 2000
_INSIDE = ("localhost", "local", "internal", "localdomain", "home.arpa")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def check_url(url: str, *, allow_private: bool, param: str = "url") -> str:
    """`url` when it may be called as far as can be seen from the outside; Invalid says why not."""
    fault = _fault(url, allow_private)
    if fault:
        raise Invalid(f"{param}: {fault}", param=param)
    return url


def _fault(url: str, allow_private: bool) -> str:
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        return f"expected at most {MAX_URL} printable ASCII characters"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        parts.port  # noqa: B018  # raises for what is no port
    except ValueError as error:
        return f"not an address ({error})"
    schemes = ("https", "http") if allow_private else ("https",)
    if parts.scheme not in schemes or not host:
        return f"expected an address such as https://example.com/hooks, got {url[:100]!r}"
    if parts.username is not None or parts.password is not None:
        return "no user name or password in the address; the signature proves who sends"
    if parts.fragment:
        return "no '#' in the address"
    if allow_private:
        return ""
    if host.rpartition(".")[2] in _INSIDE or host in _INSIDE or host.endswith(".home.arpa"):
        return f"{host} is inside this network"
    return "" if _literal_is_public(host) else f"{host} is a private or reserved address"


def _literal_is_public(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True  # a name: looked at when it is resolved
    return is_public(host)


def is_public(address: str) -> bool:
    """Whether an IP address is somewhere on the internet, also one that is wrapped into another."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found.teredo is not None:
            return False
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        if inner is not None:
            found = inner
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)
