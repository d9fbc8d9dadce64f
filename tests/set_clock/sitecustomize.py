"""On the PYTHONPATH of a platform that a test starts: its wall clock is ahead by what a file says, from then on.

Python runs this first in each process, before anything has asked for the time. Time that passes (monotonic) is the
machine's own. The file holds eight bytes: nanoseconds, little-endian.
"""

import mmap
import os
import struct
import time

_path = os.environ.get("TEST_CLOCK_AHEAD")
if _path:
    with open(_path, "rb") as _file:
        _ahead = mmap.mmap(_file.fileno(), 8, access=mmap.ACCESS_READ)
    _time_ns = time.time_ns

    def _set_time_ns() -> int:
        return int(_time_ns() + struct.unpack_from("<q", _ahead)[0])

    time.time_ns = _set_time_ns
    time.time = lambda: _set_time_ns() / 1e9
