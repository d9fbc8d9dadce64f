"""What a gateway process counts for `GET /metrics`: plain integers, a few additions a call, and no library.

`settled` is where both lanes end, `refused` where refusals are answered. `docs/metrics.md` lists what comes out.
"""

from collections.abc import Iterable
from typing import Final

from core.errors import FareboxError
from functions.gateway.exposition import Family, Labels, Sample
from metering.model import UsageEvent

MAX_MODELS: Final = 1000
MAX_REFUSALS: Final = 200  # codes are ours, but one that an engine made up must not fill the memory either
OTHER: Final = "other"

_US: Final = 1_000_000
# Upper bounds in microseconds.
CALL_TIMES: Final = tuple(
    ms * 1000
    for ms in (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000)
)
_OWN_TIMES: Final = (
    10,
    20,
    50,
    100,
    200,
    500,
    1000,
    2000,
    5000,
    10_000,
    25_000,
    50_000,
    100_000,
    500_000,
    2_000_000,
)
_START_TIMES: Final = tuple(
    ms * 1000 for ms in (50, 250, 1000, 2500, 5000, 10_000, 20_000, 40_000, 60_000, 120_000, 300_000, 600_000)
)


class Histogram:
    """Counts by upper bounds, in microseconds."""

    __slots__ = ("_bounds", "_counts", "_sum_us")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum_us = 0

    def note(self, us: int) -> None:
        """One more; a clock that stepped back makes no negative time."""
        if us < 0:
            us = 0
        index = 0
        for bound in self._bounds:  # most values are small ones: faster than to bisect
            if us <= bound:
                break
            index += 1
        self._counts[index] += 1
        self._sum_us += us

    def samples(self, labels: Labels = ()) -> Iterable[Sample]:
        """As Prometheus has them: cumulative, in seconds."""
        total = 0
        for bound, count in zip(self._bounds, self._counts, strict=False):
            total += count
            yield "_bucket", (*labels, ("le", f"{bound / _US:g}")), total
        total += self._counts[-1]
        yield "_bucket", (*labels, ("le", "+Inf")), total
        yield "_sum", labels, self._sum_us / _US
        yield "_count", labels, total


class _Model:
    """One model's figures."""

    __slots__ = ("audio_ms", "cached_input", "calls", "duration", "first_byte", "input", "output")

    def __init__(self) -> None:
        self.calls: dict[tuple[str, str, int], int] = {}  # by operation, status and HTTP status
        self.input = self.cached_input = self.output = self.audio_ms = 0
        self.first_byte = Histogram(CALL_TIMES)
        self.duration = Histogram(CALL_TIMES)


class Metrics:
    """The figures of one process, from one event loop."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._refusals: dict[tuple[int, str], int] = {}
        self.prepare = Histogram(_OWN_TIMES)
        self.commit = Histogram(_OWN_TIMES)
        self.queue = Histogram(_START_TIMES)
        self.cold_start = Histogram(_START_TIMES)
        self.failed_starts = 0
        self.unrecorded = 0

    # -- what is counted --

    def settled(self, event: UsageEvent | None, now_ms: int) -> None:
        """An attempt's usage event is durable."""
        if event is None:
            return
        model = self._models.get(event.model_id) or self._begin(event.model_id)
        name = (event.operation, event.status, event.http_status)
        model.calls[name] = model.calls.get(name, 0) + 1
        if event.status != "error":  # by the policy these are not billed
            usage = event.usage
            cached = usage.cached_input
            model.input += usage.input - cached
            model.cached_input += cached
            model.output += usage.output
            model.audio_ms += usage.audio_ms
        first_byte_ms, ended_ms = event.first_byte_ms, event.ended_ms
        if first_byte_ms:
            model.first_byte.note((first_byte_ms - event.sent_ms) * 1000)
        model.duration.note((ended_ms - event.received_ms) * 1000)
        self.commit.note((now_ms - ended_ms) * 1000)

    def refused(self, error: FareboxError) -> None:
        """A request was answered with an error, and nothing was done for it."""
        name = (error.status, error.code)
        if name not in self._refusals and len(self._refusals) >= MAX_REFUSALS:
            name = (error.status // 100 * 100, OTHER)
        self._refusals[name] = self._refusals.get(name, 0) + 1

    def _begin(self, model_id: str) -> _Model:
        if len(self._models) >= MAX_MODELS:
            model_id = OTHER
        return self._models.setdefault(model_id, _Model())

    # -- what is told --

    def families(self) -> Iterable[Family]:
        """Everything that is counted here."""
        yield Family(
            "farebox_gateway_calls_total", "counter", "Attempts at calls that ended, by how", self._calls()
        )
        yield Family(
            "farebox_gateway_tokens_total", "counter", "Tokens metered, but of failed calls", self._tokens()
        )
        yield Family(
            "farebox_gateway_audio_seconds_total",
            "counter",
            "Seconds of audio transcribed",
            (
                ("", (("model", name),), model.audio_ms / 1000)
                for name, model in list(self._models.items())
                if model.audio_ms
            ),
        )
        yield Family(
            "farebox_gateway_refusals_total",
            "counter",
            "Requests answered with an error before anything was done for them",
            (
                ("", (("http_status", str(status)), ("code", code)), count)
                for (status, code), count in list(self._refusals.items())
            ),
        )
        yield from self._times()
        yield Family(
            "farebox_gateway_start_failures_total",
            "counter",
            "Model servers that were waited for and did not start",
            [("", (), self.failed_starts)],
        )
        yield Family(
            "farebox_gateway_unrecorded_events_total",
            "counter",
            "Usage events that could not be made durable when their call ended",
            [("", (), self.unrecorded)],
        )

    def _calls(self) -> Iterable[Sample]:
        for model_id, model in list(self._models.items()):
            for (operation, status, http_status), count in list(model.calls.items()):
                labels = (
                    ("operation", operation),
                    ("model", model_id),
                    ("status", status),
                    ("http_status", str(http_status)),
                )
                yield "", labels, count

    def _tokens(self) -> Iterable[Sample]:
        for name, model in list(self._models.items()):
            yield "", (("model", name), ("sku", "input")), model.input
            yield "", (("model", name), ("sku", "cached_input")), model.cached_input
            yield "", (("model", name), ("sku", "output")), model.output

    def _times(self) -> Iterable[Family]:
        models = list(self._models.items())
        for name, text, histograms in (
            (
                "first_byte",
                "From sending a call to the first byte of its answer",
                [((("model", name),), model.first_byte) for name, model in models],
            ),
            (
                "duration",
                "From receiving a call to the end of its answer",
                [((("model", name),), model.duration) for name, model in models],
            ),
            ("prepare", "The gateway's own time before a call was sent", [((), self.prepare)]),
            ("commit", "From the end of an answer until its usage event was durable", [((), self.commit)]),
            ("queue", "What callers waited for a model server", [((), self.queue)]),
            ("cold_start", "What starts of model servers took", [((), self.cold_start)]),
        ):
            samples = (sample for labels, each in histograms for sample in each.samples(labels))
            yield Family(f"farebox_gateway_{name}_seconds", "histogram", text, samples)
