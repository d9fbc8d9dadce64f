"""What is known of a request and its answer: plain classes, because these are compiled and every call makes one."""

from typing import Final

from msgspec import Raw

from wire.multipart import Part


class ModelRequest:
    """A request's body: `members` are its top-level members, still encoded."""

    __slots__ = ("best_of", "choices", "max_tokens", "members", "model", "stream", "wants_usage")

    def __init__(
        self,
        members: dict[str, Raw],
        model: str | None,
        stream: bool,
        wants_usage: bool,
        choices: int,
        max_tokens: int | None,
        best_of: int = 1,
    ) -> None:
        self.members = members
        self.model = model
        self.stream = stream
        self.wants_usage = wants_usage  # the caller asked for the usage chunk of a stream
        self.choices = choices  # n
        self.max_tokens = max_tokens
        self.best_of = best_of  # answers that are made for a prompt, if more than are shown


class TokenCounts:
    """Counts of one answer; `input` includes `cached_input`, `output` includes `reasoning`."""

    __slots__ = ("audio_ms", "cached_input", "input", "output", "reasoning")

    def __init__(self, given: int, cached: int, output: int, reasoning: int, audio_ms: int = 0) -> None:
        self.input: Final = given
        self.cached_input: Final = cached
        self.output: Final = output
        self.reasoning: Final = reasoning
        self.audio_ms: Final = audio_ms  # of audio that was transcribed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenCounts) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return f"TokenCounts{self._all()}"

    def _all(self) -> tuple[int, int, int, int, int]:
        return self.input, self.cached_input, self.output, self.reasoning, self.audio_ms


class AudioRequest(ModelRequest):
    """A parsed form. `stream` stays False: the engine is not asked to."""

    __slots__ = ("as_events", "boundary", "parts", "response_format")

    def __init__(self, model: str | None) -> None:
        super().__init__({}, model, stream=False, wants_usage=False, choices=1, max_tokens=None)
        self.parts: list[Part] = []
        self.boundary = b""
        self.response_format = "json"
        self.as_events = False
