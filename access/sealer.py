"""Sealing what must be shown again (endpoint keys): AES-256-GCM under the home's own secret.

The one file that knows the `cryptography` package, imported when first used: the gateway never needs it.
"""

import base64
import binascii
import os
import secrets
from pathlib import Path

from access.files import read_secret_file, write_secret_file
from core.errors import FareboxError

_SECRET_BYTES = 32
_NONCE_BYTES = 12
_VERSION = "v1."


class SealBrokenError(FareboxError):
    """A sealed value does not open: another secret.key, or a damaged row."""

    code = "seal_broken"


class Sealer:
    """Seals short texts. `context` (a row's id) is bound in: a sealed value opens in no other row."""

    def __init__(self, secret: bytes) -> None:
        assert len(secret) == _SECRET_BYTES, "a 256-bit secret"
        self._secret = secret

    def __repr__(self) -> str:
        return "Sealer()"

    def seal(self, text: str, context: str) -> str:
        """`text` encrypted and authenticated, as printable text."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(self._secret).encrypt(nonce, text.encode(), context.encode())
        return _VERSION + base64.urlsafe_b64encode(nonce + sealed).decode()

    def open(self, sealed: str, context: str) -> str:
        """The text again; SealBrokenError when the secret, the context or the value is another."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            if not sealed.startswith(_VERSION):
                raise ValueError("unknown version")
            raw = base64.urlsafe_b64decode(sealed[len(_VERSION) :].encode())
            plain = AESGCM(self._secret).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], context.encode())
        except (InvalidTag, ValueError, binascii.Error) as error:
            raise SealBrokenError(
                "a stored endpoint key cannot be decrypted: secret.key (or keyring.json) is not the one it was sealed "
                "with. Put the old one back, or regenerate the endpoint's keys"
            ) from error
        return plain.decode()


def ensure_secret(path: Path) -> bytes:
    """The home's 256-bit secret, made on first use (hex, mode 0600)."""
    text = read_secret_file(path, "secret")
    if text is None:
        text = secrets.token_hex(_SECRET_BYTES)
        write_secret_file(path, text, "secret")
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != _SECRET_BYTES:
        raise FareboxError(
            f"{path} is damaged: expected {_SECRET_BYTES * 2} hexadecimal digits. Put the original back "
            "from a backup; without it stored endpoint keys cannot be shown (delete the file to make a new "
            "secret, then regenerate the endpoints' keys)",
            code="secret_damaged",
            param=str(path),
        )
    return secret
