"""Puts what a process has in memory into huge pages (2 MiB for 4 KiB), where Linux can.

To find where an address lies the processor reads tables, and with a hundred thousand keys in half a gigabyte each call
waits for tables that no cache holds, for nearly every object that is its own key's. In huge pages the tables are
five hundred times smaller. Where Linux gives them to those who ask, Python does not ask. So its memory is moved
afterwards, by madvise(2) with MADV_COLLAPSE (Linux 6.1; `Documentation/admin-guide/mm/transhuge.rst`).
"""

import asyncio
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from core.log import get_logger

_log: Final = get_logger(__name__)

LOOK_EVERY_S: Final = 5.0
GROWN_BYTES: Final = 32 * 1024 * 1024  # by so much since the last time: a small process is left alone
_MADV_COLLAPSE: Final = 25
_SIZE_FILE: Final = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_ADDRESSES, _ALLOWED, _INODE, _NAME = 0, 1, 4, 5  # fields of a line of maps


async def keep() -> None:
    """Move what there is whenever the process has grown, until cancelled. Ends at once where there are none."""
    size = page_bytes()
    if not size:
        return
    known = resident_bytes()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        now = resident_bytes()
        if now >= known + GROWN_BYTES:
            moved = await asyncio.to_thread(collapse, size)
            now = resident_bytes()
            _log.info("memory moved into huge pages", extra={"regions": moved, "resident_bytes": now})
            known = now
        known = min(known, now)


def page_bytes() -> int:
    """Of a huge page, 0: this system has none."""
    try:
        return int(_SIZE_FILE.read_text())
    except (OSError, ValueError):
        return 0


def resident_bytes() -> int:
    """What of this process is in memory and its own (proc_pid_statm(5))."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def collapse(size: int) -> int:
    """Move all of this process's memory; how many regions of it are in huge pages as far as they hold whole ones.

    What cannot be moved stays as it is: nobody but the processor notices a difference. A huge page takes some
    milliseconds at worst, in part of which others who need that memory wait.
    """
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    regions = whole_pages(Path("/proc/self/maps").read_text(), size)
    return sum(madvise(start, length, _MADV_COLLAPSE) == 0 for start, length in regions)


def whole_pages(maps: str, size: int) -> Iterator[tuple[int, int]]:
    """Start and length of what of a process's own memory is whole huge pages, by its maps (proc_pid_maps(5))."""
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if fields[_ALLOWED] != "rw-p" or fields[_INODE] != "0" or fields[_NAME:] not in ([], ["[heap]"]):
            continue
        start, end = (int(address, 16) for address in fields[_ADDRESSES].split("-"))
        start, end = -(-start // size) * size, end // size * size
        if start < end:
            yield start, end - start
