"""What can go wrong, as exceptions.

FareboxError
├── FareboxConfigError      the caller's own input: address, key, an empty name
├── FareboxConnectionError  nobody answered, or the answer broke off
└── FareboxAPIError         the server answered and refused
"""

from collections.abc import Mapping
from typing import Any


class FareboxError(Exception):
    """Base of everything this package raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class FareboxConfigError(FareboxError, ValueError):
    """The call could not be made: an address that is none, a key with a line break, an empty name."""


class FareboxConnectionError(FareboxError):
    """The server could not be reached, or the connection broke before the answer was whole.

    `refused` is true when nobody listens there: the server is most likely not running.
    """

    def __init__(self, message: str, *, url: str, refused: bool = False) -> None:
        super().__init__(message)
        self.url = url
        self.refused = refused


class FareboxAPIError(FareboxError):
    """The server refused: `status` is the HTTP status, `code` a stable word for programs, `param` the field.

    `extra` holds the remaining members of the server's problem document; `retry_after_s` is set where the
    server said when to try again.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        request_id: str | None = None,
        *,
        retry_after_s: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.extra = dict(extra or {})

    def __str__(self) -> str:
        field = f" (field {self.param})" if self.param else ""
        request = f" [request id {self.request_id}]" if self.request_id else ""
        return f"{self.status} {self.code}: {self.message}{field}{request}"
