"""`Idempotency-Key`: the outcome of a call is kept for a day, and told again to who asks with the same key.

Outcomes hold answers, so they are in memory only and bounded; a restart forgets them, and so does another
gateway not know them. Only a call that was answered whole is kept: one that failed cost nothing, and one that
was broken off has no answer to repeat; the same key then makes a new call.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from access.principal import Principal
from core.clock import Clock
from core.errors import BadRequest, Conflict
from functions.gateway.exchange import Header, Message, Send
from wire.sse import WAITING_COMMENT

IDEMPOTENCY_KEY: Final = b"idempotency-key"
MAX_KEY = 255
MAX_OUTCOMES = 10_000
MAX_BYTES = 64 * 1024 * 1024  # of all outcomes
MAX_OUTCOME_BYTES = 4 * 1024 * 1024  # of one; a larger one is remembered but cannot be repeated
KEEP_MS = 24 * 60 * 60 * 1000
_ENTRY_BYTES = 512  # what an entry costs beside its answer

_Name = tuple[str, str, bytes]  # organization, project, hash of the key


@dataclass(slots=True)
class Outcome:
    """An answer as it went out. `parts` is None when it was too large to keep."""

    fingerprint: bytes
    status: int = 0
    headers: list[Header] = field(default_factory=list)
    parts: list[bytes] | None = field(default_factory=list)
    size: int = 0
    ended_ms: int = 0  # 0: still in flight


class Replayed(Exception):  # not a failure: the answer is known
    """The call was made before; `outcome` is what came of it."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


class Outcomes:
    """The outcomes of one gateway process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._outcomes: dict[_Name, Outcome] = {}  # oldest first
        self._bytes = 0

    def claim(self, principal: Principal, header: bytes, path: str, body: bytes) -> "Claim":
        """Begin a call under a key. Replayed: it was made before. Conflict: in flight, or it is another call."""
        if not 0 < len(header) <= MAX_KEY or not all(0x20 < byte < 0x7F for byte in header):
            raise BadRequest(
                f"'Idempotency-Key' must have 1 to {MAX_KEY} printable ASCII characters.",
                param="Idempotency-Key",
                code="invalid_value",
            )
        name = (principal.org_id, principal.project_id, hashlib.sha256(header).digest())
        fingerprint = hashlib.sha256(path.encode("utf-8", "replace") + b"\0" + body).digest()
        self._forget_old()
        known = self._outcomes.get(name)
        if known is not None and self._is_old(known):
            self._drop(name)
            known = None
        if known is None:
            self._outcomes[name] = outcome = Outcome(fingerprint)
            return Claim(self, name, outcome)
        if known.fingerprint != fingerprint:
            raise _conflict("This Idempotency-Key was used with another request.", "idempotency_key_reused")
        if not known.ended_ms:
            raise _conflict("The call with this Idempotency-Key is still running.", "idempotency_key_in_use")
        if known.parts is None:
            raise _conflict(
                f"The call was made, but its answer of over {MAX_OUTCOME_BYTES} bytes was not kept.",
                "idempotency_outcome_not_kept",
            )
        raise Replayed(known)

    def keep(self, name: _Name, outcome: Outcome) -> None:
        """The call was answered whole."""
        outcome.ended_ms = self._clock.now_ms()
        self._outcomes.pop(name, None)
        self._outcomes[name] = outcome  # now the youngest
        self._bytes += outcome.size + _ENTRY_BYTES
        for other in list(self._outcomes):
            if self._bytes <= MAX_BYTES and len(self._outcomes) <= MAX_OUTCOMES:
                break
            if self._outcomes[other].ended_ms:
                self._drop(other)

    def release(self, name: _Name) -> None:
        """The call came to nothing that could be repeated."""
        self._outcomes.pop(name, None)

    def _forget_old(self) -> None:
        """The oldest ones; what lies behind a call that has been running for a day goes when it is asked for."""
        while self._outcomes:
            name, outcome = next(iter(self._outcomes.items()))
            if not self._is_old(outcome):
                return
            self._drop(name)

    def _is_old(self, outcome: Outcome) -> bool:
        return 0 < outcome.ended_ms <= self._clock.now_ms() - KEEP_MS

    def __len__(self) -> int:
        return len(self._outcomes)

    def _drop(self, name: _Name) -> None:
        self._bytes -= self._outcomes.pop(name).size + _ENTRY_BYTES


class Claim:
    """A key in the hands of the call that is made under it."""

    def __init__(self, outcomes: Outcomes, name: _Name, outcome: Outcome) -> None:
        self._outcomes, self._name, self._outcome = outcomes, name, outcome

    def end(self, recorder: "Recorder", *, completed: bool) -> None:
        """The call is over: its answer is kept if it is whole."""
        outcome = self._outcome
        if not completed or recorder.status != 200 or not recorder.whole:
            self._outcomes.release(self._name)
            return
        outcome.status, outcome.headers = recorder.status, recorder.headers
        outcome.parts, outcome.size = recorder.parts, recorder.size
        self._outcomes.keep(self._name, outcome)


class Recorder:
    """An ASGI `send` that notes what goes through it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.claim: Claim | None = None
        self.status = 0
        self.headers: list[Header] = []
        self.parts: list[bytes] | None = []
        self.size = 0
        self.whole = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            self._note(message.get("body", b""))
            self.whole = not message.get("more_body", False)
        await self._send(message)

    def end(self, *, completed: bool) -> None:
        """The exchange is over."""
        if self.claim is not None:
            self.claim.end(self, completed=completed)

    def _note(self, body: bytes) -> None:
        if self.parts is None or not body or body == WAITING_COMMENT:
            return
        self.size += len(body)
        if self.size > MAX_OUTCOME_BYTES:
            self.parts, self.size = None, 0
        else:
            self.parts.append(body)


async def replay(outcome: Outcome, send: Callable[[Message], Awaitable[None]]) -> None:
    """Tell an outcome again: status, headers and body, a stream in its pieces."""
    headers = [*outcome.headers, (b"idempotent-replayed", b"true")]
    await send({"type": "http.response.start", "status": outcome.status, "headers": headers})
    for part in outcome.parts or ():
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _conflict(message: str, code: str) -> Conflict:
    return Conflict(message, code=code, param="Idempotency-Key")
