"""The gateway's side of admission, for both lanes: admit a call, tell what is left, settle it once.

Policies come from SQL when the gateway starts and when the change feed names one; balances beside them. No call
is taken before the first load.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from access.admission.book import PolicyBook
from access.admission.memory import MemoryAdmission
from access.admission.model import ALL_BALANCES, NEVER_MS, Decision, Refusal, ScopePolicy, describe, seconds
from access.admission.port import Admission, answered
from access.admission.values import AdmitRequest, Balance, Figures, Grant, Outcome
from core.changes import Change
from core.clock import Clock
from core.errors import FareboxError, PaymentRequired, RateLimited, Unavailable
from core.log import get_logger
from core.settings import Settings
from functions.gateway.control import ControlClient
from functions.gateway.estimate import BYTES_PER_TOKEN, worst_case
from functions.gateway.figures import Header, headers_of
from functions.gateway.record import CallRecord

_log: Final = get_logger(__name__)

_EXCHANGE_EVERY_S: Final = 1.0
_TRY_AGAIN_S: Final = 0.5
_LONGEST_SENSIBLE_WAIT_MS: Final = 60_000  # the official clients do not wait longer; they need not try before
_MARGIN_S: Final = 60
EVERYTHING: Final = "*"


class PolicySource(Protocol):
    """Reads of SQL, called in threads."""

    def read_policies(self) -> list[ScopePolicy]: ...

    def read_policy(self, scope_id: str) -> ScopePolicy: ...

    def read_balances(self, after: int) -> tuple[list[Balance], int]: ...


class Limiting(NamedTuple):
    """What a limiter is made of. Without a `source` the book stays as it is."""

    admission: Admission
    book: PolicyBook
    gateway: str
    last_sequence: Callable[[], int]  # number of the newest durable usage event
    source: PolicySource | None = None
    waits: bool = False  # whether the admission answers with awaitables


def no_limits() -> Limiting:
    """Everything is admitted."""
    book = PolicyBook(endpoint_default=None)
    return Limiting(MemoryAdmission(book, ""), book, "", lambda: 0)


class Limiter:
    """One per gateway process."""

    def __init__(self, parts: "Limiting", clock: Clock, settings: Settings, control: ControlClient) -> None:
        self._admission = parts.admission
        self._book = parts.book
        self._source = parts.source
        self._gateway = parts.gateway
        self._last_sequence = parts.last_sequence
        self._clock = clock
        self._control = control
        self._hold_ms = _hold_ms(settings)
        self.waits = parts.waits
        self.ready = parts.source is None
        self._stale: set[str] = set()  # scopes whose policy changed, or EVERYTHING
        self._stale_balances = False
        self._moved = ALL_BALANCES  # the number of the last balance that was taken over
        self._held: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._pending: set[asyncio.Task[None]] = set()

    # -- a call --

    def admit(self, record: CallRecord, body: bytes) -> Awaitable[None] | None:
        """Reserve for the call, or raise what it is refused with. An awaitable where the answer takes a while."""
        if not self.ready:
            raise Unavailable("Limits and budgets are being loaded; try again.", retry_after_s=1)
        route, now_ms = record.route, record.received_ms
        priced = self._book.any_budget
        worst = worst_case(record.operation, record.request, route, body, now_ms, priced=priced)
        record.reserved_tokens = worst.tokens or len(body) // BYTES_PER_TOKEN
        request = AdmitRequest(
            record.request_id,
            route.org_id,
            route.project_id,
            record.principal.key_id,
            route.endpoint_id,
            worst.tokens,
            worst.cost_pico,
            now_ms,
            now_ms + self._hold_ms,
            route.scoring is not None and not route.scoring.serverless,
            record.principal.last_call,
        )
        decision = self._admission.admit(request)
        # Not `isawaitable`: it costs more than the rest of this function.
        if isinstance(decision, (Grant, Refusal)):
            self._note(record, decision)
            return None
        return self._wait(record, decision)

    async def _wait(self, record: CallRecord, decision: Awaitable[Decision]) -> None:
        # A caller who leaves meanwhile must not leave a reservation behind.
        asked = asyncio.ensure_future(decision)
        try:
            self._note(record, await asyncio.shield(asked))
        except asyncio.CancelledError:
            with contextlib.suppress(FareboxError):
                self._note(record, await asked)
            self.release(record)
            raise

    def _note(self, record: CallRecord, decision: Decision) -> None:
        if isinstance(decision, Refusal):
            raise refused(decision)
        record.grant = decision
        record.figures = decision.requests, decision.tokens
        record.renew_at_ms = record.received_ms + self._hold_ms // 2

    def held_pico(self) -> int:
        """Pico-dollars reserved under budgets, as of a second ago."""
        return sum(self._held.values())

    def keep(self, record: CallRecord, now_ms: int) -> None:
        """A stream still lives; called about once a second."""
        if record.grant is not None and now_ms >= record.renew_at_ms:
            record.renew_at_ms = now_ms + self._hold_ms // 2
            self._finish(self._admission.renew(record.grant, now_ms + self._hold_ms))

    def settle(self, record: CallRecord) -> None:
        """The call's last usage event is durable."""
        grant, event = record.grant, record.last_event
        if record.copy is not None and event is not None:
            record.copy.original_ended(event.http_status, event.ended_ms - (event.sent_ms or event.ended_ms))
        if grant is None or event is None:
            return
        record.grant = None
        billed = event.status != "error"
        usage = event.usage
        tokens = usage.input + usage.output if billed else 0
        cost_pico = 0
        if billed and self._book.any_budget:
            cost_pico = record.cost().pico
        # The number may be that of a later event: then the record must be a little further on before this call
        # is left to it, and nothing is missed.
        outcome = Outcome(tokens, cost_pico, self._last_sequence(), event.ended_ms)
        self._finish(self._admission.settle(grant, outcome))

    def settle_later(self, record: CallRecord) -> Callable[[], None]:
        """What is reserved stays so until what is returned is called: the event is not durable yet."""
        grant, record.grant = record.grant, None

        def settle() -> None:
            record.grant = grant
            self.settle(record)

        return settle

    def release(self, record: CallRecord) -> None:
        """The call left no usage behind. Harmless after `settle`."""
        if record.grant is not None:
            grant, record.grant = record.grant, None
            self._finish(self._admission.settle(grant, Outcome(0, 0, 0, self._clock.now_ms())))

    def _finish(self, done: Awaitable[None] | None) -> None:
        if done is not None:
            task = asyncio.ensure_future(done)
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)

    # -- policies and balances --

    def changed(self, change: Change | None) -> None:
        """The change feed names a policy or balances; None: it has a gap."""
        if change is None:
            self._stale.add(EVERYTHING)
        elif change.kind == "limit":
            self._stale.add(change.ref)
        else:
            self._stale_balances = True
        self._wake.set()

    async def start(self) -> None:
        """Load, if that can be done now; else `run` goes on trying, and no call is taken until then."""
        if not self.ready:
            await self._try_to_load()

    async def run(self) -> None:
        """Follow the changes until cancelled."""
        if self._source is None:
            return
        while True:
            patience = _EXCHANGE_EVERY_S if self.ready else _TRY_AGAIN_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if not self.ready:
                    await self._try_to_load()
                else:
                    await self._follow()
            except Exception as error:
                _log.warning("limits and budgets cannot be read", extra={"reason": str(error)})
                await asyncio.sleep(_TRY_AGAIN_S)

    async def stop(self) -> None:
        """Let what is on its way arrive."""
        if self._pending:
            await asyncio.wait(self._pending, timeout=_EXCHANGE_EVERY_S)

    async def _try_to_load(self) -> None:
        try:
            await self._load()
        except Exception as error:
            _log.warning("limits and budgets cannot be loaded yet", extra={"reason": str(error)})

    async def _load(self) -> None:
        assert self._source is not None, "without one there is nothing to load"
        policies = await asyncio.to_thread(self._source.read_policies)
        if any(policy.budgets for policy in policies):
            # What an earlier process of this gateway left in the journal must be on record first.
            await self._control.catch_up()
        await self._take_all()
        self.ready = True

    async def _take_all(self) -> None:
        assert self._source is not None, "without one there is nothing to load"
        self._stale.discard(EVERYTHING)
        policies = await asyncio.to_thread(self._source.read_policies)
        balances, moved = await asyncio.to_thread(self._source.read_balances, ALL_BALANCES)
        self._book.replace(policies)
        await self._exchange(balances, every=True)
        self._moved = moved

    async def _follow(self) -> None:
        source = self._source
        assert source is not None, "checked by run"
        balances, moved = list[Balance](), self._moved
        if EVERYTHING in self._stale:
            self._stale.clear()
            await self._take_all()
            return
        if self._stale:
            stale, self._stale = self._stale, set()
            try:
                policies = [await asyncio.to_thread(source.read_policy, scope_id) for scope_id in stale]
                balances, moved = await asyncio.to_thread(source.read_balances, ALL_BALANCES)
            except Exception:
                self._stale |= stale
                raise
            for policy in policies:
                self._book.put(policy)
        elif self._stale_balances:
            self._stale_balances = False
            try:
                balances, moved = await asyncio.to_thread(source.read_balances, self._moved)
            except Exception:
                self._stale_balances = True
                raise
        if balances or self._book.any_budget:
            await self._exchange(balances)
        self._moved = moved

    async def _exchange(self, balances: Sequence[Balance], *, every: bool = False) -> None:
        """Take over balances and tell the control process what is held."""
        uses = await answered(self._admission.exchange(balances, self._clock.now_ms(), every=every))
        held = {budget_id: use.held_pico for budget_id, use in uses.items() if use.held_pico}
        if held or self._held:
            self._held = held
            with contextlib.suppress(Unavailable):
                await self._control.report_held(self._gateway, held)


def _hold_ms(settings: Settings) -> int:
    """Longer than a call can be silent at any step, so that no living call loses its hold."""
    waiting = max(settings.wait_for_start_s, settings.hold_plain_call_s)
    silent = settings.upstream_first_byte_timeout_s + settings.upstream_between_bytes_timeout_s
    return (waiting + settings.upstream_connect_timeout_s + silent + _MARGIN_S) * 1000


def refused(refusal: Refusal) -> FareboxError:
    """What the caller is told."""
    message = describe(refusal)
    wait_ms = refusal.retry_after_ms
    retry_after_s = None if wait_ms == NEVER_MS else wait_ms / 1000
    error: FareboxError
    if refusal.reason in ("budget", "no_price"):
        error = PaymentRequired(message)
    elif refusal.reason == "unavailable":
        error = Unavailable(message, code="limits_unavailable", retry_after_s=retry_after_s)
    else:
        error = RateLimited(message, retry_after_s=retry_after_s)
    headers = headers_of(limit_lines(refusal.requests, refusal.tokens))
    if error.status == 429 and not 0 <= wait_ms <= _LONGEST_SENSIBLE_WAIT_MS:
        headers.append((b"x-should-retry", b"false"))  # the official clients heed it
    error.headers = headers
    return error


def limit_headers(record: CallRecord) -> list[Header]:
    """What an answer says of the limits of its call."""
    return headers_of(limit_lines(*record.figures))


def limit_lines(requests: Figures | None, tokens: Figures | None) -> str:
    """OpenAI's headers as lines of a head: whole figures, and durations such as `6m0s`."""
    lines = ""
    if requests is not None:
        lines = (
            f"x-ratelimit-limit-requests: {requests.limit}\r\n"
            f"x-ratelimit-remaining-requests: {requests.remaining}\r\n"
            f"x-ratelimit-reset-requests: {_duration(requests.reset_ms)}\r\n"
        )
    if tokens is not None:
        lines += (
            f"x-ratelimit-limit-tokens: {tokens.limit}\r\nx-ratelimit-remaining-tokens: {tokens.remaining}\r\n"
            f"x-ratelimit-reset-tokens: {_duration(tokens.reset_ms)}\r\n"
        )
    return lines


# Just after an admission a window resets in a whole minute, so nearly all calls ask for the same.
_duration: Final = lru_cache(maxsize=1024)(seconds)
