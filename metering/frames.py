"""One frame of a journal segment, as bytes: apart from `segment.py`, because every usage event runs through here.

A frame is `length u32 | crc32 u32 | seq u64 | kind u8 | payload`, little-endian; the checksum covers all but itself.
"""

import os
import struct
import zlib
from typing import Final

HEADER: Final = 1
USAGE: Final = 2
PROGRESS: Final = 3
CORRUPT: Final = 255  # never written: the reader's mark for a damaged frame
MAX_PAYLOAD: Final = 64 * 1024

FRAME: Final = struct.Struct("<IIQB")
CHECKED: Final = struct.Struct("<IQB")


def frame(kind: int, seq: int, payload: bytes) -> bytes:
    """The bytes of one record."""
    checked = CHECKED.pack(len(payload), seq, kind)
    return FRAME.pack(len(payload), zlib.crc32(payload, zlib.crc32(checked)), seq, kind) + payload


def write_all(fd: int, data: bytes) -> None:
    """Write every byte: a full disk first shows as a short write, and only then as an error."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])
