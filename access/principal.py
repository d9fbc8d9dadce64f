"""Who makes a call. Compiled, hence a dataclass without slots: mypyc replaces them by its own."""

from dataclasses import dataclass, field
from typing import Any

from mypy_extensions import mypyc_attr

from access.model import KeyKind


@mypyc_attr(acyclic=True)
class LastCall:
    """What was found for a holder's last call. The next one, which nearly always goes the same way, looks here first.

    Each finding holds as long as its number is still that of whoever found it.
    """

    __slots__ = ("endpoint_name", "model", "path", "path_number", "route", "route_number")

    def __init__(self) -> None:
        self.route_number = -1
        self.endpoint_name = ""
        self.model = ""
        self.route: Any = None  # `functions.gateway.lookups` knows what it is
        self.path_number = -1
        self.path: Any = None  # `access.admission.memory` knows


@mypyc_attr(acyclic=True)
@dataclass(frozen=True)
class Principal:
    """Who holds a valid key. An admin key has no organization; an endpoint key reaches one endpoint only."""

    kind: KeyKind
    key_id: str
    org_id: str = ""
    project_id: str = ""
    endpoint_id: str = ""
    expires_ms: int = 0  # 0: never
    last_call: LastCall = field(default_factory=LastCall, init=False, repr=False, compare=False)
