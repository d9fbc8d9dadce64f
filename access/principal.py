"""Who makes a call. Compiled, hence a dataclass without slots: mypyc replaces them by its own."""

from dataclasses import dataclass

from mypy_extensions import mypyc_attr

from access.model import KeyKind


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
