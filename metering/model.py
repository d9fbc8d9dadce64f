"""What is metered: one usage event for one finished attempt.

Source of the shapes: CloudEvents 1.0 for the envelope; OpenTelemetry's GenAI conventions for the counts
(`input` includes `cached_input`, `output` includes `reasoning`).
"""

from typing import Literal

import msgspec

Operation = Literal[
    "chat.completions",
    "completions",
    "embeddings",
    "responses",
    "messages",
    "rerank",
    "score",
    "audio.transcriptions",
    "scoring",
]
Status = Literal["completed", "client_disconnect", "error", "interrupted"]
UsageSource = Literal["engine", "counted", "estimated", "none"]

USAGE_EVENT_TYPE = "ai.farebox.usage.v1"
ENDPOINT_MINUTE_TYPE = "ai.farebox.endpoint.minute.v1"
CORRECTION_TYPE = "ai.farebox.usage.correction.v1"
BATCH_SKUS = ("batch_input", "batch_cached_input", "batch_output")  # tokens of batch calls, which cost less
CALL_SKUS = ("input", "cached_input", "output", "audio_second", *BATCH_SKUS)  # what a call can use


class Usage(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Counts as the engine reports them. All ≥ 0; cached_input ≤ input, reasoning ≤ output."""

    input: int = 0
    cached_input: int = 0
    output: int = 0
    reasoning: int = 0
    audio_ms: int = 0  # of audio that was transcribed
    choices: int = (
        1  # answers per prompt: the engine itself counts the prompt once for each, `input` does not
    )
    batch: bool = False  # of a batch job: its tokens are sold as SKUs of their own

    def billable(self) -> dict[str, int]:
        """Disjoint quantities by SKU: what is multiplied by a price."""
        uncached, cached, output = self.input - self.cached_input, self.cached_input, self.output
        seconds = -(-self.audio_ms // 1000)  # each call's are rounded up, not their sum
        if self.batch:
            return {
                "input": 0, "cached_input": 0, "output": 0, "audio_second": seconds,
                "batch_input": uncached, "batch_cached_input": cached, "batch_output": output,
            }  # fmt: skip
        return {
            "input": uncached, "cached_input": cached, "output": output, "audio_second": seconds,
            "batch_input": 0, "batch_cached_input": 0, "batch_output": 0,
        }  # fmt: skip


class UsageEvent(msgspec.Struct, frozen=True, gc=False):
    """One attempt at one call. Times are epoch milliseconds. No prompt, no completion, no price, no key."""

    request_id: str
    org_id: str
    project_id: str
    key_id: str
    endpoint_id: str
    deployment_id: str
    model_id: str
    operation: Operation
    stream: bool
    status: Status
    http_status: int
    usage: Usage
    usage_source: UsageSource
    received_ms: int  # the request's first byte reached the gateway
    sent_ms: int  # forwarded to the engine; 0 when it never was
    first_byte_ms: int  # the engine's first byte, of a stream its first event; 0 when there was none
    ended_ms: int  # the event's `time`: decides the minute and the price version
    attempt: int = 1
    engine_request_id: str = ""
    finish_reason: str = ""

    @property
    def event_id(self) -> str:
        """CloudEvents `id`: the request id, with the attempt's number from the second attempt on."""
        return self.request_id if self.attempt == 1 else f"{self.request_id}:{self.attempt}"


class EndpointMinute(msgspec.Struct, frozen=True):
    """One UTC minute in which an endpoint existed. Its `time` is the minute's start."""

    org_id: str
    project_id: str
    endpoint_id: str
    model_id: str
    sku: str

    def event_id(self, minute: str) -> str:
        """CloudEvents `id`, with the minute as `20261123T1201Z`."""
        return f"{self.endpoint_id}/{minute}/{self.sku}"


class Correction(msgspec.Struct, frozen=True):
    """What a usage event should have said. Absolute, so that sending it twice changes nothing more."""

    org_id: str  # of the corrected event
    corrects_source: str
    corrects_id: str
    usage: Usage
    reason: str
