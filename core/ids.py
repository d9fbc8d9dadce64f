"""Ids: text, made by us, ordered by time, with a prefix that names the kind."""

import os
import time
from functools import lru_cache

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32: no i, l, o, u
# Five bits of a random byte, and the letter for them: translating is far cheaper than arithmetic.
_LETTERS = bytes(ord(_ALPHABET[byte & 31]) for byte in range(256))


def new_id(prefix: str, now_ms: int | None = None) -> str:
    """`prefix_` and 26 characters: 48 bits of epoch milliseconds, then 80 random bits (the ULID layout)."""
    at_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    return f"{prefix}_{_time_part(at_ms)}{os.urandom(16).translate(_LETTERS).decode()}"


@lru_cache(maxsize=64)  # many are made in one millisecond
def _time_part(at_ms: int) -> str:
    return "".join([_ALPHABET[(at_ms >> shift) & 31] for shift in range(45, -1, -5)])


def is_id(text: str, prefix: str) -> bool:
    """True when `text` has the form that `new_id(prefix)` makes."""
    head, _, body = text.partition("_")
    return head == prefix and len(body) == 26 and all(c in _ALPHABET for c in body)
