"""Tokens of an identity provider: what is taken, what is refused and with which words, and how its keys are kept."""

import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from access.oidc import IdentityProvider
from core.clock import ManualClock
from core.errors import Invalid, Unauthenticated, Unavailable
from core.settings import Settings
from functions.identity import token_access
from tests.oidc_provider import CALLS, CONTROL, Provider, provider


@pytest.fixture
def there() -> Iterator[Provider]:
    with provider() as one:
        yield one


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(int(time.time() * 1000))


@pytest.fixture
def known(there: Provider, clock: ManualClock) -> IdentityProvider:
    return IdentityProvider(there.issuer, "roles", clock)


def test_a_good_token_says_who_and_what(there: Provider, known: IdentityProvider) -> None:
    identity = known.check(there.token(CALLS, "farebox.score", "other"), CALLS)
    assert identity.roles == {"farebox.score", "other"}
    assert identity.subject.startswith("sub_") and "somebody" not in identity.subject
    assert identity.subject == known.check(there.token(), CALLS).subject
    assert identity.subject != known.check(there.token(sub="another"), CALLS).subject
    assert there.reads == ["/.well-known/openid-configuration", "/keys"], "once for all of them"


def test_elliptic_keys_too(there: Provider, known: IdentityProvider) -> None:
    there.rotate("curve", elliptic=True)
    assert known.check(there.token(), CALLS)


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"aud": "api://something-else"}, "wrong_audience"),
        ({"aud": None}, "invalid_token"),
        ({"iss": "https://another.example"}, "wrong_issuer"),
        ({"iss": None}, "invalid_token"),
        ({"exp": int(time.time()) - 3600}, "expired_api_key"),
        ({"exp": None}, "invalid_token"),
        ({"exp": float("inf")}, "invalid_token"),
        ({"nbf": int(time.time()) + 3600}, "invalid_token"),
        ({"sub": None}, "invalid_token"),
        ({"sub": ""}, "invalid_token"),
    ],
)
def test_claims_that_do_not_fit(
    there: Provider, known: IdentityProvider, claims: dict[str, Any], code: str
) -> None:
    with pytest.raises(Unauthenticated) as refused:
        known.check(there.token(**claims), CALLS)
    assert refused.value.code == code


def test_nobody_signs_but_the_provider(there: Provider, known: IdentityProvider) -> None:
    good = there.token()
    claims = jwt.decode(good, options={"verify_signature": False})
    public = there.keys["first"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    other = rsa.generate_private_key(65537, 2048)
    head, body, _ = good.split(".")
    for forged in (
        jwt.encode(claims, None, algorithm="none", headers={"kid": "first"}),
        # The oldest trick: the public key as a shared secret. The library refuses to sign so, hence by hand.
        _signed_with_secret(claims, public),
        jwt.encode(claims, other, algorithm="RS256", headers={"kid": "first"}),
        jwt.encode(claims, other, algorithm="RS256", headers={"kid": "unknown"}),
        jwt.encode(claims, there.keys["first"], algorithm="RS256"),  # names no key
        f"{head}.{body}.",
        f"{head}.{body[:-2]}.sig",
        "eyJ.eyJ.x",
        "eyJ" + "a" * 20_000 + ".a.b",
    ):
        with pytest.raises(Unauthenticated) as refused:
            known.check(forged, CALLS)
        assert refused.value.code == "invalid_token"


def _signed_with_secret(claims: dict[str, Any], secret: bytes) -> str:
    import base64
    import hashlib
    import hmac
    import json

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    head = part(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "first"}).encode())
    text = f"{head}.{part(json.dumps(claims).encode())}"
    return f"{text}.{part(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


def test_keys_are_rotated(there: Provider, known: IdentityProvider, clock: ManualClock) -> None:
    old = there.token()
    known.check(old, CALLS)
    there.rotate("second")
    clock.advance(20_000)
    known.check(there.token(), CALLS)
    with pytest.raises(Unauthenticated, match="no such signing key"):
        known.check(old, CALLS)


def test_unknown_keys_do_not_make_us_ask_again_and_again(
    there: Provider, known: IdentityProvider, clock: ManualClock
) -> None:
    known.check(there.token(), CALLS)
    forged = jwt.encode({"sub": "x"}, rsa.generate_private_key(65537, 2048), "RS256", {"kid": "unknown"})
    clock.advance(20_000)
    for _ in range(50):
        with pytest.raises(Unauthenticated):
            known.check(forged, CALLS)
    assert there.reads.count("/keys") == 2


def test_a_provider_that_is_away(there: Provider, known: IdentityProvider, clock: ManualClock) -> None:
    there.down = True
    with pytest.raises(Unavailable) as away:
        known.check(there.token(), CALLS)
    assert away.value.code == "identity_provider_unavailable" and away.value.retry_after_s
    there.down = False
    clock.advance(20_000)
    known.check(there.token(exp=int(time.time()) + 10**6), CALLS)
    there.down = True
    clock.advance(2 * 3_600_000)
    assert known.check(there.token(exp=int(time.time()) + 10**6), CALLS), "with the keys it gave"
    clock.advance(24 * 3_600_000)
    with pytest.raises(Unavailable):
        known.check(there.token(exp=int(time.time()) + 10**6), CALLS)


def test_a_configuration_of_another_issuer_is_not_taken(there: Provider, known: IdentityProvider) -> None:
    there.named_issuer = "https://another.example"
    with pytest.raises(Unavailable):
        known.check(there.token(), CALLS)


def test_roles_may_be_anywhere(there: Provider, clock: ManualClock) -> None:
    nested = IdentityProvider(there.issuer, "realm_access.roles", clock)
    assert nested.check(there.token(realm_access={"roles": ["a", 1]}), CALLS).roles == {"a"}
    assert nested.check(there.token(realm_access="none"), CALLS).roles == frozenset()
    words = IdentityProvider(there.issuer, "scope", clock)
    assert words.check(there.token(scope="a b"), CALLS).roles == {"a", "b"}


@pytest.mark.parametrize(
    "issuer", ["http://login.example", "login.example", "https://", "file:///etc/passwd"]
)
def test_an_issuer_is_an_https_address(issuer: str, clock: ManualClock) -> None:
    with pytest.raises(Invalid, match="https address"):
        IdentityProvider(issuer, "roles", clock)


def test_the_two_audiences_differ(tmp_path: Any, clock: ManualClock) -> None:
    for calls in ("", CONTROL):
        settings = Settings(
            home=tmp_path, oidc_issuer="https://a.example", oidc_audience=calls, oidc_control_audience=CONTROL
        )
        with pytest.raises(Invalid, match="FAREBOX_OIDC_AUDIENCE"):
            token_access(settings, clock)
    assert token_access(Settings(home=tmp_path), clock) is None
