"""Principals: what a key stands for."""

from dataclasses import dataclass
from typing import Literal

KeyKind = Literal["admin", "project", "endpoint"]


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a valid key. An admin key has no organization; an endpoint key reaches one endpoint only."""

    kind: KeyKind
    key_id: str
    org_id: str = ""
    project_id: str = ""
    endpoint_id: str = ""
    expires_ms: int = 0  # 0: never
