"""Figures out of samples: medians with their range, ratios round by round, and whether the targets are met."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and its range."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Figure:
    """What one row of the table shows. `compared`: less is better and a ratio to Envoy says something."""

    key: str
    title: str
    unit: str
    digits: int = 0
    compared: bool = False


FIGURES = (
    Figure("rps", "plain, 32 connections: requests/s", ""),
    Figure("p50", "… latency p50", "ms", 2),
    Figure("p99", "… latency p99", "ms", 2),
    Figure("cpu", "… CPU per request, the process alone", "µs", 1, compared=True),
    Figure("platform_cpu", "… CPU per request, the whole platform", "µs", 1, compared=True),
    Figure("load_busy", "… load generator and engine, share of their core", "%"),
    Figure("same_rate", "plain, as many a second of each of our own: requests/s", ""),
    Figure("same_cpu", "… CPU per request, the process alone", "µs", 1),
    Figure("one_p50", "plain, 1 connection: latency p50", "ms", 3),
    Figure("one_cpu", "… CPU per request", "µs", 1, compared=True),
    Figure("half_p50", "plain, half its load: added to a direct call p50", "ms", 2),
    Figure("half_p99", "… p99", "ms", 2),
    Figure("chunk", "64 streams, 10 ms a chunk: CPU per chunk", "µs", 1, compared=True),
    Figure("chunk_vllm", "… usage in every chunk, as vLLM is asked", "µs", 1, compared=True),
    Figure("ttft_p50", "streams, half its load: added to the first token p50", "ms", 2),
    Figure("ttft_p99", "… p99", "ms", 2),
    Figure("stream_kb", "1,000 slow streams: memory each", "KB", 1),
)

Values = dict[str, list[float]]  # figure → one value per round


@dataclass
class Samples:
    """Everything measured, by target and figure."""

    by_target: dict[str, Values] = field(default_factory=dict)

    def add(self, target: str, found: Mapping[str, float]) -> None:
        """One round's figures of a target."""
        values = self.by_target.setdefault(target, {})
        for key, value in found.items():
            values.setdefault(key, []).append(value)

    def of(self, target: str, key: str) -> list[float]:
        return self.by_target.get(target, {}).get(key, [])

    def spread(self, target: str, key: str) -> Spread | None:
        values = self.of(target, key)
        return spread(values) if values else None

    def ratio(self, target: str, key: str, base: str, base_key: str = "") -> Spread | None:
        """Round by round, so that what slows a whole round down cancels out."""
        pairs = zip(self.of(target, key), self.of(base, base_key or key), strict=False)
        ratios = [value / other for value, other in pairs if other > 0]
        return spread(ratios) if ratios else None

    def difference(self, target: str, key: str, base: str) -> Spread | None:
        """Round by round, as `ratio`."""
        pairs = zip(self.of(target, key), self.of(base, key), strict=False)
        differences = [value - other for value, other in pairs]
        return spread(differences) if differences else None


@dataclass(frozen=True, slots=True)
class Check:
    """A target of the project beside what was measured; `met` is judged on the median."""

    what: str
    measured: Spread
    unit: str
    at_most: float
    aim: float | None = None

    @property
    def met(self) -> bool:
        return self.measured.median <= self.at_most


def checks(samples: Samples) -> list[Check]:
    """Every target whose figures were measured in this run."""
    share = samples.ratio("memory-journal", "cpu", "farebox")
    same_share = samples.ratio("memory-journal", "same_cpu", "farebox")
    candidates: tuple[tuple[str, Spread | None, str, float, float | None], ...] = (
        ("CPU per plain request ÷ Envoy", samples.ratio("farebox", "cpu", "envoy"), "×", 1.5, 1.0),
        ("CPU per chunk ÷ Envoy", samples.ratio("farebox", "chunk", "envoy"), "×", 1.5, 1.0),
        (
            "CPU per chunk, usage in every chunk ÷ Envoy without",
            samples.ratio("farebox", "chunk_vllm", "envoy", "chunk"),
            "×",
            1.5,
            1.0,
        ),
        (
            "added to the first token at half load, p50",
            samples.spread("farebox", "ttft_p50"),
            "ms",
            1.0,
            None,
        ),
        (
            "added to the first token at half load, p99",
            samples.spread("farebox", "ttft_p99"),
            "ms",
            5.0,
            None,
        ),
        ("memory per slow stream", samples.spread("farebox", "stream_kb"), "KB", 40.0, None),
        (
            "CPU per request, many keys and endpoints ÷ one",
            samples.ratio("many-keys", "cpu", "farebox"),
            "×",
            1.1,
            None,
        ),
        (
            "many keys and endpoints ÷ one, as many requests a second of both",
            samples.ratio("many-keys", "same_cpu", "farebox"),
            "×",
            1.1,
            None,
        ),
        ("durable metering's share of CPU per request", _share(share), "%", 25.0, None),
        ("durable metering's share, as many requests a second of both", _share(same_share), "%", 25.0, None),
        (
            "added to an answer by the commit at half load, p50",
            samples.difference("farebox", "half_p50", "memory-journal"),
            "ms",
            5.0,
            None,
        ),
    )
    return [
        Check(what, found, unit, at_most, aim)
        for what, found, unit, at_most, aim in candidates
        if found is not None
    ]


def _share(without: Spread | None) -> Spread | None:
    """From the ratio of a run without to one with, the percentage that `with` adds of its own total."""
    if without is None:
        return None
    return Spread(100 * (1 - without.median), 100 * (1 - without.high), 100 * (1 - without.low))
