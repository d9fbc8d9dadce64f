"""Where a model server is, taken apart once: what a connection needs, and the request line of every call."""

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit


class Origin(NamedTuple):
    """One server to keep connections to."""

    host: str
    port: int
    tls: bool


class Target(NamedTuple):
    """A server's base URL: its origin, the `Host` it is called by, and what goes before a call's path."""

    origin: Origin
    host_header: bytes
    path_prefix: bytes


@lru_cache(maxsize=4096)
def target_of(base_url: str) -> Target:
    """The parts of a base URL, with or without `/v1` at its end. ValueError: it is none."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{base_url!r} is not an http or https URL")
    tls = parts.scheme == "https"
    host = parts.hostname.encode("idna").decode()
    bracketed = f"[{host}]" if ":" in host else host
    shown = f"{bracketed}:{parts.port}" if parts.port else bracketed
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    if not prefix.isascii() or any(c.isspace() or not c.isprintable() for c in prefix):
        raise ValueError(f"the path of {base_url!r} is not percent-encoded")
    return Target(Origin(host, parts.port or (443 if tls else 80), tls), shown.encode(), prefix.encode())
