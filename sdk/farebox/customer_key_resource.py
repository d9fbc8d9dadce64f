"""The customer's key, for operators."""

from typing import TypedDict, cast

from farebox.resource import Resource


class CustomerKeyState(TypedDict):
    """Public halves of keys, and when."""

    enabled: bool
    customer_key: str | None
    data_key: str | None
    data_keys: int
    since: str | None
    rotated_at: str | None


class CustomerKey(Resource):
    """What is stored is encrypted under it."""

    def get(self) -> CustomerKeyState:
        """Which key it is."""
        return cast(CustomerKeyState, self._transport.json("GET", "/api/customer-key"))

    def rotate(self) -> CustomerKeyState:
        """Have the platform read the key's file anew, and use a new data key."""
        return cast(CustomerKeyState, self._transport.json("POST", "/api/customer-key/rotate"))
