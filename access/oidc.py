"""Tokens of an OpenID Connect identity provider: its keys found by discovery, each token checked with them.

Sources: OpenID Connect Discovery 1.0, sections 3 and 4; RFC 7517 (key sets); RFC 7519 (tokens); RFC 8725 (best practice:
algorithms are ours to choose, never the token's). Microsoft Entra is one such provider, Keycloak another.
"""

import hashlib
import json
import threading
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import jwt

from access.keys import MAX_TOKEN_LENGTH
from core.clock import Clock
from core.errors import Invalid, Unauthenticated, Unavailable
from core.log import get_logger

_log = get_logger(__name__)

# Asymmetric ones only: with `none` or a shared secret anybody could sign with what is public.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_LEEWAY_S = 60  # of two machines' clocks
_FETCH_S = 5.0
_LAST_S = 253_402_300_799  # the end of the year 9999: a later `exp` is as good as that
_MAX_DOCUMENT_BYTES = 512 * 1024
_MAX_KEYS = 200
_KEYS_LIFE_MS = 3_600_000  # then they are asked for again
_KEYS_STALE_MS = 24 * 3_600_000  # with the provider away, known keys are good for this long
_NEXT_TRY_MS = 15_000  # after an unknown key, or a provider that does not answer
_WAIT_S = 1.0  # for a fetch that another thread is making

Fetch = Callable[[str], Any]
"""The JSON document at a URL. OSError: it cannot be read; ValueError: it is not JSON."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token stands for."""

    subject: str  # `sub_…`, the same for the same person or program; not what the provider calls it
    roles: frozenset[str]
    expires_ms: int


@dataclass(frozen=True, slots=True)
class _Keys:
    by_id: Mapping[str, jwt.PyJWK]
    read_ms: int


class IdentityProvider:
    """One issuer. Thread-safe; at most one thread asks it for its keys, and a provider that hangs costs little."""

    def __init__(self, issuer: str, roles_claim: str, clock: Clock, fetch: Fetch | None = None) -> None:
        """`roles_claim`: where in the claims the roles are, with dots between levels. Invalid: not an issuer."""
        self._issuer = _checked_address(issuer, "FAREBOX_OIDC_ISSUER")
        self._roles_claim = roles_claim.split(".")
        self._clock = clock
        self._fetch = fetch or fetch_json
        self._lock = threading.Lock()
        self._keys: _Keys | None = None
        self._next_try_ms = 0

    def check(self, token: str, audience: str) -> Identity:
        """Who sent `token`, if it is meant for `audience`. Unauthenticated says what is wrong with it.

        Unavailable: the provider's keys cannot be had now.
        """
        if len(token) > MAX_TOKEN_LENGTH:
            raise _refused(f"it is longer than {MAX_TOKEN_LENGTH} characters")
        claims = self._claims(token, audience)
        subject = hashlib.sha256(f"{self._issuer}\n{claims['sub']}".encode()).hexdigest()
        return Identity(f"sub_{subject[:26]}", self._roles(claims), min(int(claims["exp"]), _LAST_S) * 1000)

    def _claims(self, token: str, audience: str) -> dict[str, Any]:
        key = self._key_of(token)
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=audience,
                issuer=self._issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("This token has expired; get a new one.", code="expired_api_key") from None
        except jwt.InvalidAudienceError:
            raise Unauthenticated(
                f"This token is for another audience; get one for {audience}.", code="wrong_audience"
            ) from None
        except jwt.InvalidIssuerError:
            raise Unauthenticated(
                f"This token is not of the identity provider {self._issuer}.", code="wrong_issuer"
            ) from None
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError) as error:
            raise _refused(str(error)[:200]) from None
        if not isinstance(claims["exp"], int | float) or not str(claims["sub"]):
            raise _refused("`exp` and `sub` are expected")
        return claims

    def _roles(self, claims: Mapping[str, Any]) -> frozenset[str]:
        value: Any = claims
        for part in self._roles_claim:
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str):  # as `scope` is: words with spaces between
            return frozenset(value.split())
        return (
            frozenset(each for each in value if isinstance(each, str))
            if isinstance(value, list)
            else frozenset()
        )

    # -- keys --

    def _key_of(self, token: str) -> jwt.PyJWK:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise _refused("it is not a JSON Web Token") from None
        if header.get("alg") not in ALGORITHMS:
            raise _refused(
                f"it is signed with {str(header.get('alg'))[:20]!r}; expected one of {', '.join(ALGORITHMS)}"
            )
        key_id = header.get("kid")
        if not isinstance(key_id, str):
            raise _refused("its header names no key (`kid`)")
        key = self._known(key_id)
        if key is None:
            self._refresh()
            key = self._known(key_id, stale=True)
        if key is None:
            raise _refused("the identity provider has no such signing key")
        return key

    def _known(self, key_id: str, *, stale: bool = False) -> jwt.PyJWK | None:
        keys, life = self._keys, _KEYS_STALE_MS if stale else _KEYS_LIFE_MS
        if keys is None or self._clock.now_ms() - keys.read_ms > life:
            return None
        return keys.by_id.get(key_id)

    def _refresh(self) -> None:
        """Read the keys anew unless that was tried just now. Unavailable: there are none to go on with."""
        began_ms = self._clock.now_ms()
        if self._lock.acquire(timeout=_WAIT_S):
            try:
                if began_ms >= self._next_try_ms:  # else another thread has just tried
                    self._next_try_ms = began_ms + _NEXT_TRY_MS
                    self._keys = _Keys(self._read_keys(), self._clock.now_ms())
            except (OSError, ValueError) as error:
                about = {"issuer": self._issuer, "reason": str(error)[:200]}
                _log.warning("the identity provider's keys cannot be read", extra=about)
            finally:
                self._lock.release()
        if self._keys is None or self._clock.now_ms() - self._keys.read_ms > _KEYS_STALE_MS:
            raise Unavailable(
                "The identity provider's keys cannot be read now; try again.",
                code="identity_provider_unavailable",
                retry_after_s=5,
            )

    def _read_keys(self) -> dict[str, jwt.PyJWK]:
        configuration = self._fetch(self._issuer.rstrip("/") + "/.well-known/openid-configuration")
        if not isinstance(configuration, dict) or configuration.get("issuer") != self._issuer:
            raise ValueError("its configuration names another issuer")
        try:
            address = _checked_address(str(configuration.get("jwks_uri")), "jwks_uri")
        except Invalid as error:
            raise ValueError(error.message) from None
        document = self._fetch(address)
        found = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(found, list):
            raise ValueError("its key set has no `keys`")
        return dict(pair for pair in map(_usable, found[:_MAX_KEYS]) if pair is not None)


def _usable(entry: Any) -> tuple[str, jwt.PyJWK] | None:
    """A key by its id; None for what signs nothing that we take: keys to encrypt with, secrets, unknown kinds."""
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("kid"), str)
        or entry.get("use", "sig") != "sig"
    ):
        return None
    try:
        key = jwt.PyJWK.from_dict(entry)
    except (jwt.PyJWTError, ValueError):
        return None
    return (entry["kid"], key) if key.algorithm_name in ALGORITHMS else None


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(f"This token is refused: {why}.", code="invalid_token")


def _checked_address(text: str, what: str) -> str:
    """`text` when it is an https address, or http on this machine: keys that anybody could change prove nothing."""
    parts = urlsplit(text)
    local = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        raise Invalid(f"{what}: expected an https address, got {text[:200]!r}", param=what)
    return text


def fetch_json(address: str) -> Any:
    """The JSON document at `address`, of bounded size. OSError: it cannot be read; ValueError: it is not JSON."""
    request = urllib.request.Request(address, headers={"accept": "application/json", "user-agent": "farebox"})
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=_FETCH_S) as answer:
        body = answer.read(_MAX_DOCUMENT_BYTES + 1)
    if len(body) > _MAX_DOCUMENT_BYTES:
        raise ValueError(f"the document at {address} is larger than {_MAX_DOCUMENT_BYTES} bytes")
    return json.loads(body)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to an address that is not https; urllib then raises HTTPError, an OSError."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
