"""What the resource files share: inputs that refuse unknown fields, pages, times."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from core.clock import iso, parse_iso
from core.errors import Invalid
from wire.suggestions import unknown_name

MAX_LIMIT = 200
_MAX_MS = 253_402_300_800_000  # the year 10000

T = TypeVar("T")
S = TypeVar("S")


class Input(BaseModel):
    """A JSON body. Unknown fields are refused with a suggestion; `"1"` is no number and 1 no text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known_fields(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name in value:
                if name not in cls.model_fields:
                    # Through a placeholder, for the message is a template.
                    said = unknown_name(str(name), cls.model_fields)
                    field = str(name)[:80].encode("utf-8", "backslashreplace").decode()
                    raise PydanticCustomError("unknown_field", "{said}", {"said": said, "field": field})
        return value


class Page(BaseModel, Generic[T]):
    """One page of a list. `next` is what `after` must be to get the page behind it; null at the end."""

    data: list[T]
    next: str | None = Field(default=None, examples=[None])


class Problem(BaseModel):
    """RFC 9457 problem details: what every refusal looks like."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:farebox:error:invalid_field",
                "title": "Invalid",
                "status": 422,
                "detail": "name: the field is missing",
                "code": "invalid_field",
                "param": "name",
                "request_id": "req_01kafn3m8hzq4v6p9x2c7d5b1w",
            }
        }
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    param: str | None = None
    errors: list[dict[str, Any]] | None = None


async def _raw_body(request: Request) -> bytes:
    return await request.body()


RawBody = Annotated[bytes, Depends(_raw_body)]
"""The body as it came, for what is no plain JSON resource."""

Text = Annotated[str, Field(max_length=1000)]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="How many entries at most.")]
After = Annotated[str, Query(max_length=200, description="`next` of the page before.")]


def page(found: Sequence[S], limit: int, shape: Callable[[S], T], cursor: Callable[[S], str]) -> Page[T]:
    """A page of `found`, for which one more than `limit` was asked: that one tells whether there is more."""
    shown = found[:limit]
    following = cursor(shown[-1]) if len(found) > limit else None
    return Page(data=[shape(entry) for entry in shown], next=following)


def iso_or_none(ms: int | None) -> str | None:
    """The instant as text; None for one that is not set (0 or None)."""
    return iso(ms) if ms else None


def instant(text: str, param: str) -> int:
    """Epoch milliseconds of a time, or of a UTC day's first instant; Invalid names `param`."""
    try:
        ms = parse_iso(f"{text}T00:00:00Z" if len(text) == 10 else text)
    except (ValueError, OverflowError):
        ms = -1
    if not 0 <= ms <= _MAX_MS:
        expected = "expected a time such as 2026-11-23T12:00:00Z or a day such as 2026-11-23"
        raise Invalid(f"{param}: {expected}, got {text[:60]!r}", param=param)
    return ms
