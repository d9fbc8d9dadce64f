"""Making and hashing keys. A key is random, so a plain SHA-256 of it is enough: there is nothing to guess."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Final

from access.model import KeyKind

_RANDOM_BYTES: Final = 33  # 264 bits, 44 characters without padding
_PREFIXES: Final[dict[KeyKind, str]] = {"admin": "fbx_admin_", "project": "fbx_sk_", "endpoint": "fbx_ep_"}
_KEY: Final = re.compile(r"fbx_(?:admin|sk|ep)_[A-Za-z0-9_-]{44}")
_HINT_TAIL: Final = 4

MAX_KEY_LENGTH: Final = 256  # of what a caller may present; longer is refused before it is hashed
MAX_TOKEN_LENGTH: Final = 16 * 1024  # of an identity provider's token


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made: the only time its text exists on our side. Never log it (hence the short repr)."""

    text: str
    key_hash: str
    hint: str

    def __repr__(self) -> str:
        return f"NewKey({self.hint})"


def make_key(kind: KeyKind) -> NewKey:
    """A new random key of `kind`."""
    return key_of(_PREFIXES[kind] + secrets.token_urlsafe(_RANDOM_BYTES))


def key_of(text: str) -> NewKey:
    """The parts of a key whose text is known."""
    return NewKey(text, hash_key(text), hint_of(text))


def hash_key(text: str) -> str:
    """The SHA-256 of a key in hex: what is stored and looked up."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def hint_of(text: str) -> str:
    """Prefix and last characters of a key, for display: `fbx_sk_…a1B2`."""
    maker, kind, _ = text.split("_", 2)  # the random part may hold underscores too
    return f"{maker}_{kind}_…{text[-_HINT_TAIL:]}"


def looks_like_token(text: str) -> bool:
    """True when `text` can be a signed JSON Web Token (RFC 7519); our own keys have no dots."""
    return text.startswith("eyJ") and text.count(".") == 2


def looks_like_key(text: str) -> bool:
    """True when `text` has the form of a key that `make_key` makes."""
    return _KEY.fullmatch(text) is not None
