"""Signatures of Standard Webhooks 1.0, symmetric: `v1,` and the base64 of an HMAC-SHA256."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

PREFIX = "whsec_"
_SECRET_BYTES = 32  # the specification: 24 to 64


def new_secret() -> str:
    """A new secret, as the receiver's library takes it."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signature_headers(keys: Sequence[str], message_id: str, now_s: int, body: bytes) -> dict[str, str]:
    """Headers of an attempt at `now_s` (epoch seconds): one signature for each secret."""
    signed = b".".join((message_id.encode(), str(now_s).encode(), body))
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": " ".join(f"v1,{_signature(key, signed)}" for key in keys),
    }


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
