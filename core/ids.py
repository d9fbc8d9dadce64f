"""Ids: text, made by us, ordered by time, with a prefix that names the kind."""

import os
import time
from functools import lru_cache
from typing import Final

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32: no i, l, o, u
# Five bits of a random byte, and the letter for them: translating is far cheaper than arithmetic.
_LETTERS: Final = bytes(ord(_ALPHABET[byte & 31]) for byte in range(256))


def new_id(prefix: str, now_ms: int | None = None) -> str:
    """`prefix_` and 26 characters: 48 bits of epoch milliseconds, then 80 random bits (the ULID layout)."""
    at_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    return f"{prefix}_{_time_part(at_ms)}{_random_part()}"


_random: Final[list[str]] = []
_RANDOM_AT_ONCE: Final = 64  # the kernel is asked once for so many ids
os.register_at_fork(after_in_child=_random.clear)  # or the child would make its parent's ids


def _random_part() -> str:
    """16 random letters, 80 bits."""
    try:
        return _random.pop()
    except IndexError:  # also when another thread took the last one
        letters = os.urandom(16 * _RANDOM_AT_ONCE).translate(_LETTERS).decode()
        _random.extend([letters[at : at + 16] for at in range(16, len(letters), 16)])
        return letters[:16]


@lru_cache(maxsize=64)  # many are made in one millisecond
def _time_part(at_ms: int) -> str:
    return "".join([_ALPHABET[(at_ms >> shift) & 31] for shift in range(45, -1, -5)])


def is_id(text: str, prefix: str) -> bool:
    """True when `text` has the form that `new_id(prefix)` makes."""
    head, _, body = text.partition("_")
    return head == prefix and len(body) == 26 and all(c in _ALPHABET for c in body)
