"""Memory is moved into huge pages when a process has grown, and holds what it held."""

import asyncio
import contextlib
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import huge_pages

MIB = 1024 * 1024
MAPS = """\
5645b4bee000-5645b4bef000 r-xp 00000000 fe:00 1234 /usr/bin/python3.11
5645b5000000-5645b5900000 rw-p 00000000 00:00 0    [heap]
7f0000100000-7f0000700000 rw-p 00000000 00:00 0
7f0000800000-7f0000a00000 rw-p 00000000 00:00 0
7f0000b00000-7f0000f00000 ---p 00000000 00:00 0
7f0001000000-7f0001400000 rw-p 00000000 fe:00 99 /home/some data
7f0002000000-7f0002400000 rw-s 00000000 00:05 77 /dev/zero (deleted)
7f0003000000-7f0003100000 rw-p 00000000 00:00 0
7ffc00000000-7ffc00400000 rw-p 00000000 00:00 0    [stack]
"""


def test_of_a_process_only_its_own_memory_and_whole_pages_of_it_are_moved() -> None:
    assert [(hex(start), length) for start, length in huge_pages.whole_pages(MAPS, 2 * MIB)] == [
        ("0x5645b5000000", 8 * MIB),
        ("0x7f0000200000", 4 * MIB),
        ("0x7f0000800000", 2 * MIB),
    ]


def _in_huge_pages() -> int:
    found = re.search(r"^AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


@contextlib.contextmanager
def _grown(size: int) -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as grown:
        for at in range(0, size, mmap.PAGESIZE):
            grown[at : at + 8] = at.to_bytes(8, "little")
        yield grown


def _possible() -> bool:
    """Whether this system moves memory at all, found out without the code under test."""
    if sys.platform != "linux" or not huge_pages.page_bytes():
        return False
    with _grown(8 * MIB) as grown:
        try:
            grown.madvise(25)
        except OSError:
            return False
    return True


needs_huge_pages = pytest.mark.skipif(
    not _possible(), reason="this system cannot move memory into huge pages"
)


@needs_huge_pages
def test_memory_that_was_moved_holds_what_it_held() -> None:
    before = _in_huge_pages()  # of the whole process; some systems give huge pages unasked
    with _grown(16 * MIB) as grown:
        assert huge_pages.collapse(huge_pages.page_bytes()) >= 1
        assert _in_huge_pages() >= before + 12 * MIB
        for at in range(0, len(grown), mmap.PAGESIZE):
            assert grown[at : at + 8] == at.to_bytes(8, "little")


@needs_huge_pages
async def test_a_process_that_grows_is_moved_and_one_that_does_not_is_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(huge_pages, "LOOK_EVERY_S", 0.01)
    moves = asyncio.Queue[int]()
    real = huge_pages.collapse

    def noted(size: int) -> int:
        moved = real(size)
        loop.call_soon_threadsafe(moves.put_nowait, moved)
        return moved

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(huge_pages, "collapse", noted)
    keeping = asyncio.create_task(huge_pages.keep())
    try:
        await asyncio.sleep(0.2)
        assert moves.empty()
        with _grown(huge_pages.GROWN_BYTES + 8 * MIB):
            assert await asyncio.wait_for(moves.get(), 30) >= 1
            await asyncio.sleep(0.2)
            assert moves.empty(), "once is enough"
    finally:
        keeping.cancel()


async def test_where_there_are_no_huge_pages_nothing_is_tried(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages, "_SIZE_FILE", tmp_path / "none")
    await asyncio.wait_for(huge_pages.keep(), 1)
