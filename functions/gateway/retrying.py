"""When a call may be sent again, how often and after which pause: the same in both lanes.

Only before the first byte of an answer, and only when the server cannot have done the work: it refused or closed the
connection, or said that it is too busy (503).
"""

import random
from typing import Final

from functions.gateway.record import CallRecord
from functions.gateway.upstream_protocol import ServerGone

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 1.0
_LONGEST_ASKED_FOR_S: Final = 2.0  # a busy server that wants more is not waited for: the caller is told
_chance: Final = random.Random()


def may_try_again(record: CallRecord) -> bool:
    """Whether another attempt is left: two in all, three where there are several servers."""
    server = record.place
    several = server is not None and len(server.group.urls) > 1
    return record.attempt < (3 if several else 2)


def pause_s(attempt: int) -> float:
    """How long to wait after the attempt with that number, from 1: full jitter, at most a second."""
    return _chance.uniform(0, min(_FIRST_PAUSE_S * 2 ** (attempt - 1), _LONGEST_PAUSE_S))


def busy(record: CallRecord, status: int, headers: dict[bytes, bytes]) -> ServerGone | None:
    """What a server's answer means when it is "too busy" and the call may be sent again; else None."""
    server = record.place
    if status != 503 or server is None or not may_try_again(record):
        return None
    if server.group.another(server) is not None:
        return ServerGone("busy", 503)
    after = headers.get(b"retry-after", b"")
    if not after.isdigit() or len(after) > 3 or int(after) > _LONGEST_ASKED_FOR_S:
        return None
    return ServerGone("busy", 503, float(after))
