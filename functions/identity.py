"""Which tokens of an identity provider open what: one audience for calls, another for management, roles for both."""

from typing import TYPE_CHECKING

from access.principal import Principal
from core.clock import Clock
from core.errors import Forbidden, Invalid, Unauthenticated
from core.settings import Settings

if TYPE_CHECKING:
    from access.oidc import Identity, IdentityProvider

# A token is looked at again after this long: a key that the provider withdrew opens nothing for longer.
_REMEMBERED_MS = 300_000


class TokenAccess:
    """The identity provider of an installation, with the roles that count here. Thread-safe."""

    def __init__(self, settings: Settings, clock: Clock, provider: "IdentityProvider") -> None:
        self._settings, self._clock, self._provider = settings, clock, provider

    def identity_for_calls(self, token: str) -> "Identity":
        """Who calls an endpoint. Unauthenticated: the token is not good, or was issued for something else."""
        return self._provider.check(token, self._settings.oidc_audience)

    def check_may_call(self, identity: "Identity", endpoint_name: str) -> None:
        """Forbidden unless a role allows calls to the endpoint."""
        role = self._settings.oidc_score_role
        if not identity.roles & {role, f"{role}.{endpoint_name}"}:
            raise Forbidden(
                f"This token's holder may not call `{endpoint_name}`: it needs the role {role} or "
                f"{role}.{endpoint_name}.",
                code="missing_role",
            )

    def remembered_until(self, identity: "Identity") -> int:
        """When a token that was found good must be checked again, in ms."""
        return min(identity.expires_ms, self._clock.now_ms() + _REMEMBERED_MS)

    def manager(self, token: str) -> Principal:
        """Who manages. Unauthenticated: not a token for the management. Forbidden: without the role."""
        audience, role = self._settings.oidc_control_audience, self._settings.oidc_admin_role
        if not audience:
            raise Unauthenticated(
                "the management API takes no tokens here (FAREBOX_OIDC_CONTROL_AUDIENCE); send a key"
            )
        identity = self._provider.check(token, audience)
        if role not in identity.roles:
            raise Forbidden(
                f"this token's holder may not manage: it needs the role {role}", code="missing_role"
            )
        return Principal("admin", identity.subject, expires_ms=identity.expires_ms)


def token_access(settings: Settings, clock: Clock) -> TokenAccess | None:
    """None where no identity provider is configured. Invalid: it is configured by halves."""
    if not settings.oidc_issuer:
        return None
    from access.oidc import IdentityProvider  # heavy, and most installations have none

    calls, control = settings.oidc_audience, settings.oidc_control_audience
    if not calls or calls == control:
        raise Invalid(
            "FAREBOX_OIDC_AUDIENCE: expected the audience of tokens for calls, another than that of the management "
            "(FAREBOX_OIDC_CONTROL_AUDIENCE)",
            param="FAREBOX_OIDC_AUDIENCE",
        )
    return TokenAccess(
        settings, clock, IdentityProvider(settings.oidc_issuer, settings.oidc_roles_claim, clock)
    )
