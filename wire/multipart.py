"""multipart/form-data (RFC 7578) as bytes: parts as they came, so that they can be sent on unchanged."""

import re
from dataclasses import dataclass

from core.errors import BadRequest

MAX_PARTS = 64
_MAX_BOUNDARY = 200
_BOUNDARY = re.compile(rb'boundary="?([0-9A-Za-z\'()+_,./:=?-]+)"?', re.IGNORECASE)
_NAME = re.compile(rb';\s*name="((?:[^"\\\r\n]|\\.)*)"', re.IGNORECASE)
_FILE = re.compile(rb";\s*filename\*?=", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """One field: its headers as they came, and its value."""

    name: str
    is_file: bool
    head: bytes
    value: bytes


def parse(body: bytes, content_type: bytes) -> tuple[list[Part], bytes]:
    """The parts and the boundary. BadRequest: it is no form."""
    kind = content_type.partition(b";")[0].strip().lower()
    match = _BOUNDARY.search(content_type)
    if kind != b"multipart/form-data" or match is None or len(match[1]) > _MAX_BOUNDARY:
        raise _malformed("the Content-Type must be multipart/form-data with a boundary")
    boundary = match[1]
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise _malformed("it has no closing boundary")
    if len(pieces) > MAX_PARTS + 2:
        raise _malformed(f"it has more than {MAX_PARTS} parts")
    return [_part(piece) for piece in pieces[1:-1]], boundary


def _part(piece: bytes) -> Part:
    head, blank, value = piece.partition(b"\r\n\r\n")
    name = _NAME.search(head)
    if not blank or not head.startswith(b"\r\n") or name is None:
        raise _malformed("a part has no name")
    return Part(name[1].decode("utf-8", "replace"), _FILE.search(head) is not None, head, value)


def field(name: str, value: bytes) -> Part:
    """A plain field of our own."""
    return Part(name, False, b'\r\nContent-Disposition: form-data; name="%b"' % name.encode(), value)


def encode(parts: list[Part], boundary: bytes) -> bytes:
    """The form again. The boundary must be one that the values were parsed with, so that none contains it."""
    pieces = [b"--%b%b\r\n\r\n%b\r\n" % (boundary, part.head, part.value) for part in parts]
    return b"".join(pieces) + b"--%b--\r\n" % boundary


def _malformed(why: str) -> BadRequest:
    return BadRequest(f"The request body is not a form: {why}.", code="invalid_form")
