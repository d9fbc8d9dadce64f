"""Archives that come piece by piece, unpacked as they arrive."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from farebox.errors import FareboxConfigError


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        while not self._left:
            try:
                self._left = next(self._pieces)
            except StopIteration:
                return 0
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def unpack(pieces: Iterator[bytes], folder: Path) -> Path:
    """The files of a tar archive below `folder`, which must not be there yet; the folder.

    Links and paths that lead elsewhere are refused (tarfile's `data` filter). FareboxConfigError: it is there, or cannot
    be written.
    """
    if folder.exists():
        raise FareboxConfigError(f"{folder}: is there already; give another folder, or remove it")
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Pieces(pieces)), mode="r|") as archive:
            archive.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise FareboxConfigError(f"{folder}: cannot be written whole: {error}") from error
    return folder
