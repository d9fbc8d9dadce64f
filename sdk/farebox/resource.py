"""What the classes of the API's collections share."""

from collections.abc import Iterator
from typing import Any

from farebox.errors import FareboxAPIError
from farebox.transport import Transport

_PAGES_MAX = 1000  # a list that never ends is a bug, not data


class Resource:
    """Base: a transport and the reading of whole lists."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def _all(self, path: str, **params: Any) -> list[Any]:
        return list(self._pages(path, **params))

    def _pages(self, path: str, **params: Any) -> Iterator[Any]:
        """Every row of a list, page after page, as it is asked for."""
        for _ in range(_PAGES_MAX):
            page = self._transport.json("GET", path, params=params)
            yield from rows_of(page, path)
            if not page.get("next"):
                return
            params["after"] = page["next"]
        raise FareboxAPIError(
            200, "unexpected_answer", f"the list at {path} has more than {_PAGES_MAX} pages"
        )


def given(**values: object) -> dict[str, object]:
    """What was given, for a body: what is None was not."""
    return {name: value for name, value in values.items() if value is not None}


def rows_of(page: object, path: str) -> list[Any]:
    """The rows of a page."""
    rows = page.get("data") if isinstance(page, dict) else None
    if not isinstance(rows, list):
        raise FareboxAPIError(
            200, "unexpected_answer", f"the answer from {path} is no list; is the address right?"
        )
    return rows
