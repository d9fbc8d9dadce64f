"""From readings of engines' counters to what a deployment's engines counted between two instants. Pure.

Counters begin at zero with each process and are lost with it. What was counted after the last reading of a process
nobody knows: such times are *gaps*. Times in which some process was read before and after are *covered*.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from metering.engine_counters import Reading

COUNTS = ("input", "cached_input", "output")
Counts = tuple[int, int, int]  # of COUNTS; input includes cached_input

_HOUR_MS = 3_600_000
_BETWEEN_READINGS_MS = 90_000  # read every minute; a little late on a busy machine
_SAME_START_MS = 1_000
ZERO: Counts = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Edge:
    """An instant between hours at which counters were read: in [at_ms, read_ms]."""

    at_ms: int
    read_ms: int


@dataclass(frozen=True, slots=True)
class EngineSpan:
    """What a deployment's engines counted from one edge to another."""

    start: Edge
    end: Edge
    counted: Counts
    counts_cached: bool
    requests: int
    running: int  # at the end: requests that were not finished
    covered: tuple[tuple[int, int], ...]
    gaps: tuple[tuple[int, int], ...]
    near_restarts: Counts  # of `counted`: in these times about a gateway's start
    restarts: tuple[tuple[int, int], ...]
    problem: str = ""  # why nothing can be compared; "" when it can


@dataclass(slots=True)
class _Process:
    """One engine process: its readings, and from when on they tell everything."""

    readings: list[Reading] = field(default_factory=list)
    since_ms: int = 0
    from_zero: bool = False
    silent_until_ms: int = 0  # it lived on after the last reading, at most until then

    def value(self, at_ms: int) -> Reading | None:
        """The newest reading at an instant; None before the first."""
        found = None
        for reading in self.readings:
            if reading.at_ms > at_ms:
                break
            found = reading
        return found

    def counted(self, start_ms: int, end_ms: int) -> tuple[Counts, int]:
        """Tokens and requests from one instant to another, as far as they were read."""
        last = self.value(end_ms)
        if last is None:
            return ZERO, 0
        first = self.value(start_ms) or (None if self.from_zero else self.readings[0])
        if first is None:
            return _counts(last), last.requests
        a, b = _counts(first), _counts(last)
        return (b[0] - a[0], b[1] - a[1], b[2] - a[2]), last.requests - first.requests


def engine_spans(
    readings: Sequence[Reading], boundaries: Sequence[int], restarts: Sequence[int] = ()
) -> list[EngineSpan]:
    """The spans between neighbouring boundaries, of one deployment. `restarts`: when gateways began."""
    processes, unstable = _processes(readings)
    gaps = _gaps(processes, readings)
    edges = [_edge(processes, boundary) for boundary in boundaries]
    problem = ""
    if unstable:
        problem = "its address leads to more than one server, each with counters of its own"
    elif not processes:
        problem = _why_none(readings)
    return [_span(processes, gaps, start, end, restarts, problem) for start, end in pairwise(edges)]


def _why_none(readings: Sequence[Reading]) -> str:
    if any(reading.state == "failed" for reading in readings):
        return "its counters could not be read"
    if readings:
        return "the engine has no counters at /metrics that we know"
    return "no readings of its counters are kept for this time"


def _span(
    processes: Sequence[_Process],
    gaps: Sequence[tuple[int, int]],
    start: Edge,
    end: Edge,
    restarts: Sequence[int],
    problem: str,
) -> EngineSpan:
    counted, requests = _total(processes, start.at_ms, end.at_ms)
    near = ZERO
    windows = _near(processes, start, end, restarts)
    for low, high in windows:
        near = _plus(near, _total(processes, low, high)[0])
    covered = []
    for process in processes:
        low = max(process.since_ms, start.read_ms)
        high = min(process.readings[-1].at_ms, end.at_ms)
        if low <= high:
            covered.append((low, high))
    return EngineSpan(
        start=start,
        end=end,
        counted=counted,
        counts_cached=all(r.cached_input is not None for p in processes for r in p.readings[-1:]),
        requests=requests,
        running=sum(r.running for p in processes if (r := p.value(end.at_ms)) and r.at_ms == end.at_ms),
        covered=tuple(covered),
        gaps=tuple((a, b) for a, b in gaps if a <= end.at_ms and b >= start.at_ms),
        near_restarts=near,
        restarts=tuple(windows),
        problem=problem,
    )


def _near(
    processes: Sequence[_Process], start: Edge, end: Edge, restarts: Sequence[int]
) -> list[tuple[int, int]]:
    """The times about gateways' starts. They do not overlap: what was lost was lost once."""
    windows: list[tuple[int, int]] = []
    for restart in sorted(restarts):
        if not start.at_ms <= restart <= end.at_ms:
            continue
        low = max(start.at_ms, _tick_before(processes, restart))
        high = min(end.at_ms, restart + _BETWEEN_READINGS_MS)
        if windows and low <= windows[-1][1]:
            windows[-1] = (windows[-1][0], max(windows[-1][1], high))
        else:
            windows.append((low, high))
    return windows


def _total(processes: Sequence[_Process], start_ms: int, end_ms: int) -> tuple[Counts, int]:
    total, requests = ZERO, 0
    for process in processes:
        counts, more = process.counted(start_ms, end_ms)
        total, requests = _plus(total, counts), requests + more
    return total, requests


def _tick_before(processes: Sequence[_Process], at_ms: int) -> int:
    """The last reading but one before an instant: a call that ended about then began after it, most likely."""
    before = sorted({r.at_ms for p in processes for r in p.readings if r.at_ms <= at_ms})
    return before[-2] if len(before) > 1 else 0


def _processes(readings: Sequence[Reading]) -> tuple[list[_Process], bool]:
    """The processes behind the readings; True when one address answers for several at a time."""
    by_series: dict[str, list[Reading]] = {}
    for reading in sorted(readings, key=lambda each: (each.at_ms, each.read_ms)):
        by_series.setdefault(reading.series, []).append(reading)
    found: list[_Process] = []
    unstable = False
    for series in by_series.values():
        processes = _split(series)
        starts = [process.readings[0].started_ms for process in processes]
        unstable |= len({start for start in starts if start}) < len([start for start in starts if start])
        found += processes
    return found, unstable


def _split(series: Sequence[Reading]) -> list[_Process]:
    processes: list[_Process] = []
    for reading in series:
        current = processes[-1] if processes else None
        if reading.state != "read":
            if current is not None:
                current.silent_until_ms = reading.read_ms
        elif current is None:
            processes.append(_Process([reading], reading.read_ms))
        elif _restarted(current.readings[-1], reading):
            # Its counters began at zero after the last reading of the one before.
            since = reading.started_ms if current.readings[-1].at_ms < reading.started_ms else reading.read_ms
            current.silent_until_ms = max(current.readings[-1].at_ms, min(since, reading.read_ms))
            processes.append(_Process([reading], min(since, reading.read_ms), from_zero=True))
        else:
            current.readings.append(reading)
            current.silent_until_ms = 0
    return processes


def _restarted(before: Reading, after: Reading) -> bool:
    if (
        before.started_ms
        and abs(before.started_ms - (after.started_ms or before.started_ms)) > _SAME_START_MS
    ):
        return True
    return after.input < before.input or after.output < before.output or after.requests < before.requests


def _gaps(processes: Sequence[_Process], readings: Sequence[Reading]) -> list[tuple[int, int]]:
    newest = max((reading.at_ms for reading in readings), default=0)
    gaps: list[tuple[int, int]] = []
    for process in processes:
        last = process.readings[-1]
        if process.silent_until_ms:
            more = 0 if _has_successor(process, processes) else _BETWEEN_READINGS_MS
            gaps.append((last.at_ms, process.silent_until_ms + more))
        elif last.reason != "stop" and last.at_ms < newest:
            gaps.append((last.at_ms, last.at_ms + _BETWEEN_READINGS_MS))
        first = process.readings[0]
        failed = [r.at_ms for r in readings if r.series == first.series and r.state == "failed"]
        if any(at_ms < first.at_ms for at_ms in failed) and not process.from_zero:
            gaps.append((min(failed), first.read_ms))
    return gaps


def _has_successor(process: _Process, processes: Sequence[_Process]) -> bool:
    last = process.readings[-1]
    return any(
        p.from_zero and p.readings[0].series == last.series and p.since_ms >= last.at_ms for p in processes
    )


def _edge(processes: Sequence[_Process], boundary: int) -> Edge:
    """The round of readings nearest to the boundary that read every process then alive."""
    if not any(p.readings[0].at_ms <= boundary <= p.readings[-1].at_ms for p in processes):
        nearest_end = min(
            (p.readings[-1] for p in processes if p.readings[-1].at_ms < boundary),
            key=lambda r: boundary - r.at_ms,
            default=None,
        )
        if nearest_end is None or nearest_end.reason == "stop":
            return Edge(boundary, boundary)
    rounds = {r.at_ms for p in processes for r in p.readings if r.reason in ("minute", "asked")}
    for at_ms in sorted(rounds, key=lambda each: abs(each - boundary)):
        if abs(at_ms - boundary) > _HOUR_MS:
            break
        if all(_read_at(p, at_ms) for p in processes if p.readings[0].at_ms <= at_ms <= p.readings[-1].at_ms):
            read_ms = max(r.read_ms for p in processes for r in p.readings if r.at_ms == at_ms)
            return Edge(at_ms, read_ms)
    return Edge(boundary, boundary)


def _read_at(process: _Process, at_ms: int) -> bool:
    found = process.value(at_ms)
    return found is not None and found.at_ms == at_ms


def _counts(reading: Reading) -> Counts:
    return reading.input, reading.cached_input or 0, reading.output


def _plus(a: Counts, b: Counts) -> Counts:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]
