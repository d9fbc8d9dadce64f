"""The attributes of a CloudEvent, as values: apart from `cloudevents.py`, which is compiled, as these cannot be."""

from typing import Annotated, Any, Literal

import msgspec

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
# A URI reference: taken as anything without blanks and control characters.
_Source = Annotated[str, msgspec.Meta(min_length=1, max_length=512, pattern=r"^[^\s\x00-\x1f\x7f]+$")]
_Type = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=r"^[^\s\x00-\x1f\x7f]+$")]
_Sequence = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,20}$")]


class Incoming(msgspec.Struct, frozen=True):
    specversion: Literal["1.0"]
    id: _Id
    source: _Source
    type: _Type
    time: str
    subject: str = ""
    datacontenttype: str = "application/json"
    partitionkey: str = ""
    sequence: _Sequence | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")


class Outgoing(msgspec.Struct, frozen=True):
    specversion: str
    id: str
    source: str
    type: str
    time: str
    subject: str
    datacontenttype: str
    partitionkey: str
    sequence: str
    data: Any


class CloudEvent(msgspec.Struct, frozen=True):
    """One event, its attributes checked; `data` is still JSON text, for the owner of `type` to decode."""

    id: str
    source: str
    type: str
    time_ms: int
    subject: str
    partitionkey: str
    sequence: int | None
    data: msgspec.Raw
