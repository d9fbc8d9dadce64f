"""The customer's key for the operator: which one it is, and changing it."""

from pydantic import BaseModel, Field

from access.keyring import KeyringState
from core.audit import record_audit
from core.errors import Conflict
from functions.console.dependencies import Caller, Deps
from functions.console.routing import console_router
from functions.console.shapes import iso_or_none

router = console_router("customer key")


class CustomerKeyOut(BaseModel):
    """Public halves only."""

    enabled: bool = Field(description="Whether what is stored is encrypted under a customer's key.")
    customer_key: str | None = Field(
        description="The key that the data keys are encrypted for.", examples=["age1…"]
    )
    data_key: str | None = Field(description="What is stored now is encrypted with this one.")
    data_keys: int = Field(description="With those before it, which open what was stored earlier.")
    since: str | None
    rotated_at: str | None


@router.get("/customer-key", summary="Show the customer's key")
def show(deps: Deps) -> CustomerKeyOut:
    """Nothing secret is in the answer."""
    return _out(None if deps.keyring is None else deps.keyring.state)


@router.post("/customer-key/rotate", summary="Rotate the customer's key")
def rotate(caller: Caller, deps: Deps) -> CustomerKeyOut:
    """Reads FAREBOX_CUSTOMER_KEY_FILE anew: the data keys are encrypted for the first key in it, and a new one is used.

    Nothing that is stored is written anew: the older data keys open it.
    """
    if deps.keyring is None:
        raise Conflict(
            "there is no customer's key: set FAREBOX_CUSTOMER_KEY_FILE for the platform and start it again",
            code="no_customer_key",
        )
    now_ms = deps.clock.now_ms()
    before, state = deps.keyring.state, deps.keyring.rotate(now_ms)
    with deps.db.begin() as connection:
        record_audit(
            connection,
            now_ms=now_ms,
            actor=caller.key_id,
            action="customer_key.rotate",
            object_id=state.customer_key,
            detail={"before": before.customer_key, "data_keys": state.data_keys},
        )
    return _out(state)


def _out(state: KeyringState | None) -> CustomerKeyOut:
    return CustomerKeyOut(
        enabled=state is not None,
        customer_key=state.customer_key if state else None,
        data_key=state.data_key if state else None,
        data_keys=state.data_keys if state else 0,
        since=iso_or_none(state.made_ms if state else None),
        rotated_at=iso_or_none(state.rotated_ms if state else None),
    )
