"""What an engine's Prometheus page (text format 0.0.4) says it has done: counters, summed over their labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

_MAX_COUNT = 2**62  # what a BIGINT holds, with room for sums

# vLLM's names; `_total` is the client library's. Those in the second line are its names for gauges.
_INPUT, _CACHED, _OUTPUT = (
    "vllm:prompt_tokens_total",
    "vllm:prompt_tokens_cached_total",
    "vllm:generation_tokens_total",
)
_REQUESTS, _STARTED = "vllm:request_success_total", "process_start_time_seconds"
_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
_WANTED = frozenset((_INPUT, _CACHED, _OUTPUT, _REQUESTS, _STARTED, _RUNNING, _WAITING))


@dataclass(frozen=True, slots=True)
class EngineCounts:
    """Since the engine's process began, over all its models. `input` includes `cached_input`."""

    input: int
    cached_input: int | None  # None: it does not count them
    output: int
    requests: int
    running: int  # requests it is working on, or that wait for it, now
    started_ms: int  # epoch milliseconds; 0: it does not say


def engine_counts(page: bytes) -> EngineCounts | None:
    """The counters on vLLM's page; None when it is none, or lacks the tokens."""
    sums = _sums(page)
    if _INPUT not in sums or _OUTPUT not in sums:
        return None
    cached = sums.get(_CACHED)
    return EngineCounts(
        input=_whole(sums[_INPUT]),
        cached_input=None if cached is None else _whole(cached),
        output=_whole(sums[_OUTPUT]),
        requests=_whole(sums.get(_REQUESTS, Decimal(0))),
        running=_whole(sums.get(_RUNNING, Decimal(0)) + sums.get(_WAITING, Decimal(0))),
        started_ms=_whole(sums.get(_STARTED, Decimal(0)) * 1000),
    )


def _sums(page: bytes) -> Mapping[str, Decimal]:
    sums: dict[str, Decimal] = {}
    for raw in page.decode(errors="replace").split("\n"):
        if raw[:1] in ("#", ""):
            continue
        # A label's value may hold blanks and braces, so what comes behind it is looked for from the end.
        name = raw.partition("{")[0].partition(" ")[0]
        if name not in _WANTED:
            continue
        fields = (raw.rpartition("}")[2] if "{" in raw else raw.partition(" ")[2]).split()
        try:
            value = Decimal(fields[0])
        except (InvalidOperation, IndexError):
            continue
        if value.is_finite():
            sums[name] = sums.get(name, Decimal(0)) + value
    return sums


def _whole(value: Decimal) -> int:
    return min(max(0, round(value)), _MAX_COUNT)
