"""From the Authorization header to a principal; every refusal says which of the possible reasons it is."""

from fastapi import Request

from access.keys import MAX_KEY_LENGTH, MAX_TOKEN_LENGTH, hash_key, looks_like_token
from access.principal import Principal
from access.store import key_status, principal_by_hash
from core.errors import Unauthenticated
from functions.console.dependencies import ConsoleDependencies

_WHERE = "the file admin.key in the Farebox home holds the admin key"


def authenticate(request: Request, dependencies: ConsoleDependencies) -> Principal:
    """Who sent the request. Unauthenticated: no key, not a key, unknown, expired or revoked."""
    key = _bearer(request)
    if dependencies.tokens is not None and looks_like_token(key):
        return dependencies.tokens.manager(key)
    key_hash = hash_key(key)
    now_ms = dependencies.clock.now_ms()
    with dependencies.db.read() as connection:
        principal = principal_by_hash(connection, key_hash, now_ms)
        status = "ok" if principal else key_status(connection, key_hash, now_ms)
    if principal is not None:
        return principal
    if status == "expired":
        raise Unauthenticated("this API key has expired; create another one", code="expired_api_key")
    if status == "revoked":
        raise Unauthenticated("this API key was revoked; use another one", code="revoked_api_key")
    raise Unauthenticated(f"this API key is not known here; {_WHERE}")


def _bearer(request: Request) -> str:
    values = request.headers.getlist("authorization")
    if not values:
        raise Unauthenticated(
            f"no API key: send the header Authorization: Bearer KEY; {_WHERE}", code="missing_api_key"
        )
    scheme, _, key = values[0].partition(" ")
    key = key.strip()
    longest = MAX_TOKEN_LENGTH if looks_like_token(key) else MAX_KEY_LENGTH
    if len(values) > 1 or scheme.lower() != "bearer" or not key or len(key) > longest or " " in key:
        raise Unauthenticated("expected one header Authorization: Bearer KEY", code="malformed_api_key")
    return key
