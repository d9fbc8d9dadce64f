"""What online endpoints may move a second: who is over it waits, and is not refused (R2.3 and R2.6 in our reference).

Calls, their answers and copies of them count together, by endpoint and in each gateway. Of OpenAI's calls the answer is
not held up: what it took is waited for by the next call. Off unless `online_bandwidth_bytes_per_s` is set. Azure tells
the delays in trailers; uvicorn has none, so they are headers here, and an answer that is passed on in pieces tells only
that of its request.
"""

from collections.abc import Mapping

from core.errors import Invalid

REQUEST_DELAY = b"ms-azureml-bandwidth-request-delay-ms"
RESPONSE_DELAY = b"ms-azureml-bandwidth-response-delay-ms"
BURST_S = 1.0  # an endpoint that was quiet may move this long's worth at once
_FORGET_AFTER = 10_000  # endpoints


class Bandwidth:
    """Of one gateway. Pure: it says how long to wait, and waits for nobody."""

    def __init__(self, bytes_per_s: int, exceptions: Mapping[str, int]) -> None:
        """`exceptions`: other rates by endpoint's name, in bytes a second; 0: any."""
        self._rate, self._exceptions = bytes_per_s, exceptions
        self._free_at: dict[str, float] = {}  # by endpoint's id: when what was taken is paid off

    def bounds(self, endpoint_name: str) -> bool:
        """Whether the endpoint has a rate at all."""
        return self._exceptions.get(endpoint_name, self._rate) > 0

    def take(self, endpoint_id: str, endpoint_name: str, size: int, now_s: float) -> float:
        """Seconds to wait before `size` bytes may go. They are taken: the next one waits longer."""
        rate = self._exceptions.get(endpoint_name, self._rate)
        if not rate:
            return 0.0
        free_at = max(self._free_at.get(endpoint_id, 0.0), now_s) + size / rate
        if len(self._free_at) >= _FORGET_AFTER:
            self._free_at = {each: at for each, at in self._free_at.items() if at > now_s}
        self._free_at[endpoint_id] = free_at
        return max(0.0, free_at - now_s - BURST_S)


def parse_exceptions(text: str) -> dict[str, int]:
    """`NAME=BYTES,NAME=BYTES`. Invalid says which part is none."""
    found = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, equals, number = part.partition("=")
        if not equals or not name.strip() or not number.strip().isdecimal():
            raise Invalid(
                f"FAREBOX_ONLINE_BANDWIDTH_EXCEPTIONS: expected NAME=BYTES_PER_SECOND, got {part[:80]!r}",
                param="FAREBOX_ONLINE_BANDWIDTH_EXCEPTIONS",
            )
        found[name.strip()] = int(number)
    return found


def delay_header(name: bytes, delay_s: float) -> list[tuple[bytes, bytes]]:
    """How long it waited; nothing where it did not."""
    return [(name, b"%d" % round(delay_s * 1000))] if delay_s else []
