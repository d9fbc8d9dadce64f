"""One tree of expected failures; everything else is a bug and shows only the request id.

FareboxError
├── BadRequest 400          ├── PaymentRequired 402
│   └── Invalid 422         ├── RateLimited 429
├── Unauthenticated 401     ├── Unavailable 503
├── Forbidden 403           │   └── JournalFull 503
├── NotFound 404            ├── UpstreamFailed 502
├── Conflict 409            └── Timeout 504
└── TooLarge 413
"""

from collections.abc import Mapping, Sequence
from typing import Any


class FareboxError(Exception):
    """Base: `status` is the HTTP status, `code` a stable word for programs, `message` for people.

    `param` names the offending field (dotted path), `retry_after_s` is given where a retry makes sense, and
    `extra` holds further members for the two renderers (problem+json and OpenAI's error object), `headers`
    further headers of the answer.
    """

    status = 500
    code = "internal_error"
    retryable = False
    headers: Sequence[tuple[bytes, bytes]] = ()

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param
        self.retry_after_s = retry_after_s
        self.extra = dict(extra or {})


class BadRequest(FareboxError):
    """The request cannot be understood: not JSON, a missing header."""

    status, code = 400, "bad_request"


class Invalid(BadRequest):
    """Well-formed, but a field is wrong; `param` names it."""

    status, code = 422, "invalid_field"


class Unauthenticated(FareboxError):
    """No key, or one that is unknown, expired or revoked."""

    status, code = 401, "invalid_api_key"


class PaymentRequired(FareboxError):
    """Money is the reason."""

    status, code = 402, "insufficient_quota"


class Forbidden(FareboxError):
    """The key is known but may not do this."""

    status, code = 403, "permission_denied"


class NotFound(FareboxError):
    """Nothing by that name that the caller may see."""

    status, code = 404, "not_found"


class Conflict(FareboxError):
    """The state forbids it: a name in use, a change under way."""

    status, code = 409, "conflict"


class TooLarge(FareboxError):
    """A body or a header over its bound."""

    status, code = 413, "too_large"


class RateLimited(FareboxError):
    """Over a limit; comes with a retry time."""

    status, code, retryable = 429, "rate_limit_exceeded", True


class UpstreamFailed(FareboxError):
    """The model server failed or answered nonsense."""

    status, code, retryable = 502, "upstream_error", True


class Unavailable(FareboxError):
    """Not now: starting, stopping, out of memory or disk; comes with a retry time where one is known."""

    status, code, retryable = 503, "unavailable", True


class JournalFull(Unavailable):
    """Usage could not be made durable, so no call may be served."""

    code = "metering_unavailable"


class Timeout(FareboxError):
    """A bound on time was reached."""

    status, code, retryable = 504, "timeout", True


def problem(error: FareboxError, *, request_id: str, instance: str = "") -> dict[str, Any]:
    """The error as an RFC 9457 problem document (extension members at the top level)."""
    body: dict[str, Any] = {
        "type": f"urn:farebox:error:{error.code}",
        "title": type(error).__name__,
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "request_id": request_id,
    }
    if instance:
        body["instance"] = instance
    if error.param is not None:
        body["param"] = error.param
    return body | error.extra
