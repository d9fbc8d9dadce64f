"""Organizations, projects and keys, and principals: what a key stands for."""

import unicodedata
from dataclasses import dataclass
from typing import Literal

from core.errors import Invalid
from core.ids import is_id

KeyKind = Literal["admin", "project", "endpoint"]
KeyStatus = Literal["ok", "unknown", "expired", "revoked"]
KeySlot = Literal["primary", "secondary"]

NAME_MAX = 64


@dataclass(frozen=True, slots=True)
class Organization:
    """Who is billed."""

    id: str
    name: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class Project:
    """What an organization divides its keys and endpoints into."""

    id: str
    name: str
    org_id: str
    org_name: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key after it was shown once; `hint` is enough to recognise it, not to use it."""

    id: str
    kind: KeyKind
    name: str
    hint: str
    org_id: str
    project_id: str
    endpoint_id: str
    slot: str
    created_ms: int
    expires_ms: int
    revoked_ms: int

    def status(self, now_ms: int) -> KeyStatus:
        """Whether the key opens anything at `now_ms`; revoked wins over expired."""
        if self.revoked_ms:
            return "revoked"
        return "expired" if self.expires_ms and self.expires_ms <= now_ms else "ok"


def valid_name(text: str, param: str = "name") -> str:
    """`text` trimmed, when it is 1 to 64 printable characters that cannot be taken for a path or an id."""
    name = unicodedata.normalize("NFC", text).strip()
    if not 1 <= len(name) <= NAME_MAX:
        raise Invalid(f"{param}: expected 1 to {NAME_MAX} characters, got {len(name)}", param=param)
    # Printable keeps separators other than the space, controls and lone surrogates out.
    if not name.isprintable():
        raise Invalid(f"{param}: expected printable characters only, got {name!r}", param=param)
    if "/" in name:
        raise Invalid(f"{param}: '/' is not allowed, it parts an organization from its project", param=param)
    if is_id(name, "org") or is_id(name, "proj"):
        raise Invalid(f"{param}: {name!r} looks like an id; choose a name that does not", param=param)
    return name
