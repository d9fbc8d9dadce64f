"""Usage events against what engines counted, for one deployment and one span. Pure, in bounded memory.

Every event says what the engine must have counted for it: exactly, or (a call that was broken off, or was under way when
the counters were read) from a least to a most. A difference within the sum of these is explained and says by what.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from metering.engine_spans import COUNTS, ZERO, Counts, EngineSpan

CauseKind = Literal[
    "hour_edge",
    "not_counted",
    "repeated_prompt",
    "in_flight",
    "hang_up",
    "interrupted",
    "unbilled_error",
    "estimated",
    "unread",
    "gateway_restart",
    "other_unit",
    "other_meter",
    "cached_not_told",
    "unmetered",
    "overmetered",
]
UNEXPLAINED: Final[frozenset[CauseKind]] = frozenset({"unmetered", "overmetered"})

MEANINGS: Final[dict[CauseKind, str]] = {
    "hour_edge": "calls that ended between the hour's edge and the reading of the counters nearest to it",
    "not_counted": "calls at a time for which there are no readings",
    "repeated_prompt": "calls with n > 1: the engine counts the prompt once for each answer, the bill once",
    "in_flight": "calls under way when the counters were read",
    "hang_up": "callers who left: the engine produced a little more before it was told",
    "interrupted": "streams that the gateway could not finish: billed as last noted",
    "unbilled_error": "failed attempts: the engine worked, nobody pays",
    "estimated": "calls that the engine told no counts of: counted with the model's tokenizer, or estimated",
    "unread": "calls to an engine that ended before it was read again",
    "gateway_restart": "calls in flight when a gateway ended without having noted them",
    "other_unit": "calls that are billed by another unit than tokens",
    "other_meter": "usage that another meter reported",
    "cached_not_told": "the engine counts cached tokens but does not tell them in its answers: billed as input",
    "unmetered": "the engine counted more than all calls on record explain: lost events, or calls past the gateway",
    "overmetered": "the engine counted less than the calls on record: events doubled or wrong",
}

# Bounds for what the engine may have counted beyond what an event says.
SLACK_MS = 500  # an answer may reach the gateway this long before the engine's own counters show it
NOTICED_MS = 1_000  # an engine that is left notices within this time
NOTED_MS = 3_000  # progress is noted every second, and was the last thing that is known
FEW_TOKENS = 16
MOST_TOKENS_PER_S = 1_000  # that one answer can have
UNKNOWN_CONTEXT = 1_000_000
MAX_IDS = 20
_SOON_MS = 600_000
_NO_END = 2**62

# What a difference is explained by, in this order; all but the first few have a least and a most.
_FLEXIBLE: Final[tuple[CauseKind, ...]] = (
    "in_flight",
    "hang_up",
    "interrupted",
    "unbilled_error",
    "estimated",
    "unread",
    "other_unit",
    "gateway_restart",
)


@dataclass(frozen=True, slots=True)
class CountedEvent:
    """What matters of a usage event, or of a call under way (`ended_ms` 0)."""

    event_id: str
    deployment_id: str
    operation: str
    stream: bool
    status: str
    usage_source: str
    http_status: int
    input: int
    cached_input: int
    output: int
    audio_ms: int
    choices: int
    sent_ms: int
    first_byte_ms: int
    ended_ms: int
    other_meter: bool = False  # not of a gateway: no engine of ours

    @property
    def billed(self) -> bool:
        return self.status != "error" and self.ended_ms != 0

    @property
    def counts(self) -> Counts:
        return self.input, self.cached_input, self.output


@dataclass(frozen=True, slots=True)
class Cause:
    """A part of the difference engine - events, with some of the events it comes from."""

    kind: CauseKind
    tokens: Counts
    events: int
    ids: tuple[str, ...]

    @property
    def explained(self) -> bool:
        return self.kind not in UNEXPLAINED


@dataclass(frozen=True, slots=True)
class EngineMatch:
    """A deployment's hour: engine = events + all causes, for each of `COUNTS`."""

    deployment_id: str
    engine: Counts | None  # None: it could not be read; `problem` says why
    events: Counts  # billed in this hour, as engines count: input includes cached_input
    requests: int  # that the engine finished
    causes: tuple[Cause, ...]
    problem: str = ""

    @property
    def explained(self) -> bool:
        return all(cause.explained for cause in self.causes)


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the engine counts for an event: surely `nominal`, but for `low` to `high` because of `kind`."""

    nominal: Counts
    low: Counts
    high: Counts
    kind: CauseKind | None


@dataclass(slots=True)
class _Part:
    fixed: list[int] = field(default_factory=lambda: [0, 0, 0])
    up: list[int] = field(default_factory=lambda: [0, 0, 0])
    down: list[int] = field(default_factory=lambda: [0, 0, 0])
    events: int = 0
    ids: list[str] = field(default_factory=list)

    def note(self, event_id: str) -> None:
        self.events += 1
        if len(self.ids) < MAX_IDS:
            self.ids.append(event_id)


class EngineMatcher:
    """Takes the events of one deployment and span one by one. `context_length` bounds a prompt (0: unknown)."""

    def __init__(self, deployment_id: str, span: EngineSpan, context_length: int, external: bool) -> None:
        self._deployment_id, self._span = deployment_id, span
        self._context = context_length or UNKNOWN_CONTEXT
        self._external = external
        self._events = [0, 0, 0]
        self._parts: dict[CauseKind, _Part] = {}
        self._unfinished = span.running
        self._near_restarts = list(span.near_restarts)

    def add(self, event: CountedEvent, in_hour: bool) -> None:
        """`in_hour`: it is billed in the hour that the span stands for."""
        if in_hour and event.billed:
            _add(self._events, event.counts, 1)
            if event.other_meter:
                self._fix("other_meter", event.counts, -1, event.event_id)
        if self._span.problem or not event.sent_ms or event.other_meter:
            return
        place = self._place(event)
        said = event.counts if in_hour and event.billed else ZERO
        if place == "outside" or place == "not_counted":
            if any(said):
                kind: CauseKind = "not_counted" if place == "not_counted" else "hour_edge"
                self._fix(kind, said, -1, event.event_id)
            return
        expected = self._expected(event)
        if place == "inside":
            self._take_inside(event, expected, said, in_hour)
            return
        if event.sent_ms <= self._span.end.at_ms < (event.ended_ms or _NO_END):
            self._unfinished -= 1
        nominal = expected.nominal if in_hour and event.ended_ms else ZERO
        self._take(event, "in_flight" if place == "partly" else "unread", nominal, said, ZERO, expected.high)

    def _take_inside(self, event: CountedEvent, expected: _Expected, said: Counts, in_hour: bool) -> None:
        kind = expected.kind
        if not in_hour:
            self._fix("hour_edge", expected.nominal, 1, event.event_id)
            said = expected.nominal
        elif event.status == "error" and any(expected.nominal):
            self._fix("unbilled_error", expected.nominal, 1, event.event_id)
            said = expected.nominal
        elif expected.nominal[0] != said[0]:
            self._fix("repeated_prompt", (expected.nominal[0] - said[0], 0, 0), 1, event.event_id)
        for low, high in self._span.restarts:  # what is on record was not lost
            if low < event.ended_ms <= high:
                _add(self._near_restarts, expected.nominal, -1)
        if kind is not None:
            part = self._part(kind)
            part.note(event.event_id)
            self._stretch(part, expected.nominal, expected.low, expected.high)

    def _take(
        self, event: CountedEvent, kind: CauseKind, nominal: Counts, said: Counts, low: Counts, high: Counts
    ) -> None:
        part = self._part(kind)
        part.note(event.event_id)
        _add(part.fixed, nominal, 1)
        _add(part.fixed, said, -1)
        self._stretch(part, nominal, low, high)

    @staticmethod
    def _stretch(part: _Part, nominal: Counts, low: Counts, high: Counts) -> None:
        for i in range(3):
            part.up[i] += max(0, high[i] - nominal[i])
            part.down[i] += max(0, nominal[i] - low[i])

    def _fix(self, kind: CauseKind, tokens: Counts, sign: int, event_id: str) -> None:
        part = self._part(kind)
        part.note(event_id)
        _add(part.fixed, tokens, sign)

    def _part(self, kind: CauseKind) -> _Part:
        return self._parts.setdefault(kind, _Part())

    def _place(self, event: CountedEvent) -> Literal["inside", "partly", "unread", "not_counted", "outside"]:
        span, began, ended = self._span, event.sent_ms, event.ended_ms or _NO_END
        if ended <= span.start.at_ms - SLACK_MS or began >= span.end.read_ms:
            return "outside"
        for low, high in span.gaps:
            successors = [each for each in span.covered if each[0] > low]
            if began <= high and ended >= low and not _within(began, ended, successors):
                return "unread"
        if _within(began, ended, span.covered):
            return "inside"
        if any(began <= high and ended > low - SLACK_MS for low, high in span.covered):
            return "partly"
        if ended <= span.start.at_ms or began >= span.end.at_ms:
            return "outside"
        return "not_counted"

    def _expected(self, event: CountedEvent) -> _Expected:
        n = max(1, event.choices)
        nominal = (event.input * n, event.cached_input, event.output)
        if event.audio_ms or event.operation.startswith("audio"):
            return _Expected(nominal, ZERO, (_NO_END >> 20,) * 3, "other_unit")
        if event.status == "error":
            return self._expected_of_error(event, nominal, n)
        low, high, kind = nominal, nominal, None
        if event.usage_source == "counted":
            low, high, kind = _about(nominal, -1), _about(nominal, 1), "estimated"
        elif event.usage_source != "engine":
            low, high, kind = ZERO, _estimate(nominal), "estimated"
        elif n > 1:
            high, kind = (nominal[0], nominal[0], nominal[2]), "repeated_prompt"
            low = (nominal[0], 0, nominal[2])
        if event.status == "completed" and event.ended_ms:
            return _Expected(nominal, low, high, kind)  # type: ignore[arg-type]  # one of the literals
        late = NOTICED_MS if event.status == "client_disconnect" else NOTED_MS
        kind = "hang_up" if event.status == "client_disconnect" else "interrupted"
        if not event.first_byte_ms:  # perhaps it was not even looked at
            low = ZERO
        more = self._more_output(event, late, n)
        high = (max(high[0], nominal[0]), max(high[1], nominal[0]), high[2] + more)
        return _Expected(nominal, (low[0], 0, low[2]), high, kind)  # type: ignore[arg-type]

    def _expected_of_error(self, event: CountedEvent, nominal: Counts, n: int) -> _Expected:
        if 400 <= event.http_status < 500:  # the engine refused it before it did anything
            return _Expected(nominal, nominal, nominal, None)
        prompt = max(nominal[0], self._context * n)
        high = (prompt, prompt, nominal[2] + self._more_output(event, NOTICED_MS, n))
        return _Expected(nominal, ZERO, high, "unbilled_error")

    def _more_output(self, event: CountedEvent, late_ms: int, n: int) -> int:
        """Tokens that came out unseen: at the pace so far, or at any pace where nothing was seen."""
        ended_ms = event.ended_ms or self._span.end.read_ms
        if event.first_byte_ms and event.output:
            took_ms = max(NOTICED_MS, ended_ms - event.first_byte_ms)
            return FEW_TOKENS * n + -(-event.output * late_ms // took_ms)
        took_ms = max(0, ended_ms - event.sent_ms) + late_ms
        return FEW_TOKENS * n + min(self._context, took_ms * MOST_TOKENS_PER_S // 1000) * n

    def result(self, now_ms: int) -> EngineMatch:
        """When all events were given."""
        span = self._span
        events: Counts = (self._events[0], self._events[1], self._events[2])
        if span.problem:
            return EngineMatch(self._deployment_id, None, events, 0, (), span.problem)
        if any(count > 0 for count in self._near_restarts):
            self._part("gateway_restart").up = [max(0, count) for count in self._near_restarts]
        if self._unfinished > 0 and now_ms - span.end.at_ms < _SOON_MS:
            part = self._part("in_flight")
            part.events += self._unfinished
            part.up = [_NO_END >> 20] * 3
        spent: dict[CauseKind, list[int]] = {kind: list(part.fixed) for kind, part in self._parts.items()}
        for i in range(3):
            if i != 1 or span.counts_cached:
                fixed = sum(part.fixed[i] for part in self._parts.values())
                self._spend(spent, i, span.counted[i] - events[i] - fixed)
        engine = span.counted if span.counts_cached else (span.counted[0], events[1], span.counted[2])
        return EngineMatch(self._deployment_id, engine, events, span.requests, self._causes(spent))

    def _spend(self, spent: dict[CauseKind, list[int]], i: int, rest: int) -> None:
        for kind in (*_FLEXIBLE, "repeated_prompt"):
            part = self._parts.get(kind)
            if part is None or not rest:
                continue
            taken = min(rest, part.up[i]) if rest > 0 else -min(-rest, part.down[i])
            spent[kind][i] += taken
            rest -= taken
        if rest:
            untold = COUNTS[i] == "cached_input" and self._external and rest > 0 and not self._events[1]
            over: CauseKind = "unmetered" if rest > 0 else "overmetered"
            spent.setdefault("cached_not_told" if untold else over, [0, 0, 0])[i] += rest

    def _causes(self, spent: dict[CauseKind, list[int]]) -> tuple[Cause, ...]:
        causes = []
        for kind in MEANINGS:
            tokens = spent.get(kind, [0, 0, 0])
            if any(tokens):
                part = self._parts.get(kind, _Part())
                causes.append(Cause(kind, (tokens[0], tokens[1], tokens[2]), part.events, tuple(part.ids)))
        return tuple(causes)


def _within(began: int, ended: int, covered: Iterable[tuple[int, int]]) -> bool:
    return any(began >= low and ended <= high - SLACK_MS for low, high in covered)


def _estimate(said: Counts) -> Counts:
    """The most that an engine counted where we counted for it."""
    return 4 * said[0] + 64, 4 * said[0] + 64, 4 * said[2] + 64


def _about(said: Counts, sign: int) -> Counts:
    """What the model's own tokenizer counted may differ a little: a template, a token that is not shown."""
    prompt, output = (max(0, count + sign * (count // 10 + FEW_TOKENS)) for count in (said[0], said[2]))
    return prompt, prompt if sign > 0 else 0, output


def _add(total: list[int], counts: Counts, sign: int) -> None:
    for i in range(3):
        total[i] += sign * counts[i]
