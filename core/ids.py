"""Ids: text, made by us, ordered by time, with a prefix that names the kind."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32: no i, l, o, u
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]


def new_id(prefix: str, now_ms: int | None = None) -> str:
    """`prefix_` and 26 characters: 48 bits of epoch milliseconds, then 80 random bits (the ULID layout)."""
    at_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    value = (at_ms << 80) | int.from_bytes(secrets.token_bytes(10))
    pairs = _PAIRS
    text = "".join([pairs[(value >> shift) & 1023] for shift in range(120, -1, -10)])
    return f"{prefix}_{text}"


def is_id(text: str, prefix: str) -> bool:
    """True when `text` has the form that `new_id(prefix)` makes."""
    head, _, body = text.partition("_")
    return head == prefix and len(body) == 26 and all(c in _ALPHABET for c in body)
