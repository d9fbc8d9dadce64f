"""What passes between a caller and a scoring server: which headers, in which bytes. Pure."""

import re
from collections.abc import Mapping

from functions.gateway.origin import Target
from serving.traffic import DEPLOYMENT_HEADER

Header = tuple[bytes, bytes]

SCORE_PATH = "/score"
SWAGGER_PATH = "/swagger.json"
# Of one connection (RFC 9110, section 7.6.1), or set by us.
_NOT_PASSED_ON = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
        b"host",
        b"expect",
        b"x-request-id",
        b"x-ms-request-id",
    }
)
_SECRETS = frozenset({b"authorization", b"api-key", b"x-api-key", b"cookie", DEPLOYMENT_HEADER})
# Ours, and the server's own way of saying who it is.
_NOT_FROM_SERVERS = _NOT_PASSED_ON | {
    b"server",
    b"date",
    b"set-cookie",
    b"x-ms-client-request-id",
    b"x-client-request-id",
}
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_PATH = re.compile(r"/[A-Za-z0-9\-._~!$&'()*+,;=:@%/]*")


def is_path(path: str) -> bool:
    """Whether a path may be asked of a server as it is: ASCII, percent-encoded, nothing that climbs up."""
    return bool(_PATH.fullmatch(path)) and ".." not in path and "//" not in path


def scoring_head(
    target: Target,
    method: str,
    path: str,
    query: bytes,
    headers: Mapping[bytes, bytes],
    length: int,
    request_id: str,
) -> bytes:
    """The head of a request to a scoring server: the caller's headers but for its secrets and those of its connection."""
    dropped = _NOT_PASSED_ON | _SECRETS | _connection_headers(headers.get(b"connection", b""))
    lines = [
        b"%b %b%b%b HTTP/1.1"
        % (method.encode(), target.path_prefix, path.encode(), b"?" + query if query else b""),
        b"host: " + target.host_header,
    ]
    lines += [
        b"%b: %b" % (name, value)
        for name, value in headers.items()
        if name not in dropped and _TOKEN.fullmatch(name) and _VALUE.fullmatch(value)
    ]
    lines.append(b"x-request-id: " + request_id.encode())
    if length or method not in ("GET", "HEAD", "OPTIONS"):
        lines.append(b"content-length: %d" % length)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def answer_headers(headers: Mapping[bytes, bytes]) -> list[Header]:
    """What a caller gets of a scoring server's headers, without its content type."""
    dropped = _NOT_FROM_SERVERS | _connection_headers(headers.get(b"connection", b""))
    return [
        (name, value)
        for name, value in headers.items()
        if name not in dropped and name != b"content-type" and _VALUE.fullmatch(value)
    ]


def _connection_headers(value: bytes) -> frozenset[bytes]:
    return frozenset(part.strip().lower() for part in value.split(b","))
