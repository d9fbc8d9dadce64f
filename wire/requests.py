"""What is known of a request: plain classes, because these are compiled and every call makes one."""

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


class AudioRequest(ModelRequest):
    """A parsed form. `stream` stays False: the engine is not asked to."""

    __slots__ = ("as_events", "boundary", "parts", "response_format")

    def __init__(self, model: str | None) -> None:
        super().__init__({}, model, stream=False, wants_usage=False, choices=1, max_tokens=None)
        self.parts: list[Part] = []
        self.boundary = b""
        self.response_format = "json"
        self.as_events = False
