"""The disk under the journal: it fills up, fails to sync, and after a power cut has lost what was not synced."""

import errno
import os
import random
from pathlib import Path
from typing import Any

from metering import journal, segment


class SimDisk:
    """Stands where the journal's modules have `os`, as long as it is entered."""

    def __init__(self, chance: random.Random, archive: Path) -> None:
        self._chance = chance
        self._archive = archive
        self._paths: dict[int, str] = {}
        self._synced: dict[str, int] = {}
        self.full = False
        self.sync_fails = False
        self.faults = 0
        archive.mkdir()

    def __enter__(self) -> "SimDisk":
        segment.os = journal.os = self  # type: ignore[assignment,attr-defined]
        return self

    def __exit__(self, *_: object) -> None:
        segment.os = journal.os = os  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    # -- what the journal calls --

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        fd = os.open(path, flags, mode)
        self._paths[fd] = str(path)
        if flags & os.O_TRUNC:
            self._synced[str(path)] = 0
        return fd

    def write(self, fd: int, data: Any) -> int:
        if self.full:
            self.faults += 1
            if len(data) > 10 and self._chance.random() < 0.5:
                return os.write(
                    fd, data[: self._chance.randrange(1, len(data))]
                )  # a full disk: a short write first
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        if self.sync_fails:
            self.faults += 1
            raise OSError(errno.EIO, "Input/output error")
        path = self._paths.get(fd, "")
        self._synced[path] = os.fstat(fd).st_size

    fdatasync = fsync

    def rename(self, source: Any, target: Any) -> None:
        os.rename(source, target)
        source, target = str(source), str(target)
        self._synced[target] = self._synced.pop(source, 0)
        self._paths = {fd: target if path == source else path for fd, path in self._paths.items()}
        os.link(target, self._archive / Path(target).name)  # stays when the relay has done with it

    def close(self, fd: int) -> None:
        self._paths.pop(fd, None)
        os.close(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)
        path = self._paths.get(fd, "")
        self._synced[path] = min(self._synced.get(path, 0), size)

    # -- what happens to it --

    def cut_power(self) -> None:
        """Of what was not synced, some is there: up to any byte."""
        for path, synced in self._synced.items():
            if path.endswith(".new") or not os.path.isfile(path):
                continue
            size = os.path.getsize(path)
            if size > synced:
                os.truncate(path, self._chance.randint(synced, size))
                self.faults += 1
