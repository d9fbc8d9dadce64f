"""From an answer's counts to what is metered, and to what the caller is told it cost. Pure."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from core.money import format_pico
from metering.model import Usage, UsageSource
from serving.route import Route
from wire.openai import TokenCounts

Header = tuple[bytes, bytes]


class Tally(NamedTuple):
    """Tokens counted with the model's tokenizer, in place of an engine. None: not counted."""

    input: int | None
    output: int | None


def metered(
    counts: TokenCounts | None,
    produced: int,
    estimate: Callable[[], TokenCounts],
    tally: Tally | None = None,
) -> tuple[Usage, UsageSource]:
    """The engine's counts as usage; what it left out is counted, or else estimated, and the whole is marked so.

    `produced` is what came out by our own guess, for an engine that gave none; `estimate` what went in.
    """
    if counts is not None and counts.input and (counts.output or not produced):
        return Usage(counts.input, counts.cached_input, counts.output, counts.reasoning), "engine"
    if counts is not None and counts.audio_ms:
        return Usage(audio_ms=counts.audio_ms), "engine"
    if tally is not None:
        return _tallied(counts, produced, estimate, tally)
    guess = estimate()
    if guess.audio_ms:
        return Usage(audio_ms=guess.audio_ms), "estimated"
    if counts is None:
        return Usage(input=guess.input, output=produced), "estimated"
    given = counts.input or guess.input
    return Usage(given, min(counts.cached_input, given), counts.output or produced), "estimated"


def _tallied(
    counts: TokenCounts | None, produced: int, estimate: Callable[[], TokenCounts], tally: Tally
) -> tuple[Usage, UsageSource]:
    source: UsageSource = "counted"
    given = counts.input if counts is not None else 0
    output = counts.output if counts is not None else 0
    if not given:
        given = tally.input if tally.input is not None else estimate().input
        source = "counted" if tally.input is not None else "estimated"
    if not output and tally.output is not None:
        output = tally.output
    elif not output and produced:
        output, source = produced, "estimated"
    return Usage(given, min(counts.cached_input if counts is not None else 0, given), output), source


class Cost:
    """What has no price costs nothing until it has one; then, or where no prices are known here, it is not `known`."""

    __slots__ = ("known", "pico")

    def __init__(self, pico: int, known: bool) -> None:
        self.pico = pico
        self.known = known

    @property
    def usd(self) -> str:
        """The exact cost in US dollars, "" when it is not known."""
        return format_pico(self.pico) if self.known else ""


def prices_at(route: Route, at_ms: int) -> Mapping[str, int]:
    """`route.unit_prices(at_ms)`, found without a call where no change is in sight, as for nearly all routes."""
    tariffs = route.tariffs
    if len(tariffs) == 1 and tariffs[0].starts_ms <= at_ms:
        return tariffs[0].unit_prices
    return route.unit_prices(at_ms)


def cost_of(usage: Usage, route: Route, at_ms: int) -> Cost:
    """The cost of a call that ended at an instant."""
    prices = prices_at(route, at_ms)
    fresh_price = prices.get("input")
    given, cached, output, audio_ms = usage.input, usage.cached_input, usage.output, usage.audio_ms
    # Spelled out, not looped over `billable()`: this is on the way of every call.
    fresh = _part(given - cached, fresh_price)
    again = _part(cached, prices.get("cached_input", fresh_price))
    answer = _part(output, prices.get("output"))
    audio = _part(-(-audio_ms // 1000), prices.get("audio_second"))
    known = bool(prices) and fresh >= 0 and again >= 0 and answer >= 0 and audio >= 0
    return Cost(max(fresh, 0) + max(again, 0) + max(answer, 0) + max(audio, 0), known)


def _part(quantity: int, price: int | None) -> int:
    """What so much of one kind costs; -1: it has no price."""
    if quantity <= 0:
        return 0
    return -1 if price is None else quantity * price


def cost_lines(usage: Usage, cost: Cost) -> str:
    """The counts and the cost of a plain answer, as lines of its head."""
    usd = cost.usd
    told = f"x-farebox-cost-usd: {usd}\r\n" if usd else ""
    if usage.audio_ms:
        return f"x-farebox-audio-seconds: {usage.billable()['audio_second']}\r\n{told}"
    return (
        f"x-farebox-input-tokens: {usage.input}\r\nx-farebox-cached-input-tokens: {usage.cached_input}\r\n"
        f"x-farebox-output-tokens: {usage.output}\r\n{told}"
    )


def headers_of(lines: str) -> list[Header]:
    """The lines of a head as ASGI has them."""
    pairs = [line.partition(b": ") for line in lines.encode("latin-1").splitlines()]
    return [(name, value) for name, _, value in pairs]
