"""Changes that take time: what the server began is followed until it has ended."""

import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from farebox.errors import FareboxAPIError, FareboxError
from farebox.transport import Transport

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_STATES = {"Running": "InProgress"}


class OperationFailed(FareboxError):
    """What was begun has failed: `code` is a stable word (OutOfQuota, UserScriptInitFailed, …)."""

    def __init__(self, code: str, message: str, operation: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.operation = operation


class OperationTimeout(FareboxError):
    """It goes on, but the caller did not want to wait any longer."""


class LROPoller(Generic[T]):
    """Follows one operation."""

    def __init__(self, transport: Transport, answer: dict[str, Any], fetch: Callable[[], T]) -> None:
        self._transport = transport
        self._operation: dict[str, Any] = answer["operation"]
        self._fetch = fetch
        self.answer = answer  # what the server said when it began

    @property
    def operation(self) -> dict[str, Any]:
        """The operation as it was last read."""
        return self._operation

    @property
    def phase(self) -> str:
        """What the server is doing, for people."""
        return str(self._operation.get("phase") or "")

    def status(self) -> str:
        """`InProgress`, `Succeeded` or `Failed`; asks the server while it is in progress."""
        if self._operation["state"] == "Running":
            self._operation = self._transport.json("GET", self._operation["url"])
        state = str(self._operation["state"])
        return _STATES.get(state, state)

    def done(self) -> bool:
        """Whether it has ended."""
        return self.status() != "InProgress"

    def wait(self, timeout: float | None = None, progress: Callable[[str], None] | None = None) -> None:
        """Until it has ended, or for `timeout` seconds. `progress` is told each phase that is seen."""
        pause, until = _FIRST_PAUSE_S, None if timeout is None else time.monotonic() + timeout
        while not self.done():
            if progress is not None:
                progress(self.phase)
            left = _LONGEST_PAUSE_S if until is None else until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)

    def result(self, timeout: float | None = None) -> T:
        """What was made. OperationFailed says why there is nothing, OperationTimeout that it is not ready yet."""
        self.wait(timeout)
        if self._operation["state"] == "Running":
            raise OperationTimeout(f"still in progress after {timeout:g} s: {self.phase or 'no phase told'}")
        error = self._operation.get("error")
        if error:
            raise OperationFailed(
                str(error.get("code")), str(error.get("message")), str(self._operation["id"])
            )
        return self._fetch()


def begun(answer: object) -> dict[str, Any]:
    """An answer that names its operation."""
    if not isinstance(answer, dict) or not isinstance(answer.get("operation"), dict):
        raise FareboxAPIError(200, "unexpected_answer", "the answer names no operation; is the server older?")
    return answer
