"""The data collector: payloads of calls, where a deployment asks for them, as lines of CloudEvents in files (R7.5).

A call is never touched by it: what is to be written goes to a bounded queue, a thread writes, and what does not fit into
the queue or onto the disk is left out and counted.
"""

import json
import os
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from access.keyring import PublicKey
from access.sealed_files import SEALED, SEALED_LINES
from core.clock import iso
from core.ids import new_id
from core.log import get_logger
from serving.online.collecting import Collecting, Rolling

_log = get_logger(__name__)

MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024
MAX_INLINE_BYTES: Final = 4 * 1024 * 1024  # a larger payload is a file of its own, and the line points to it
_MAX_FIGURES: Final = 2000
_PATTERNS: Final[dict[Rolling, str]] = {
    "year": "%Y",
    "month": "%Y/%m",
    "day": "%Y/%m/%d",
    "hour": "%Y/%m/%d/%H",
    "minute": "%Y/%m/%d/%H/%M",
}


@dataclass(frozen=True, slots=True)
class Payload:
    """A body that is to be kept, and what it is of. Times in epoch milliseconds."""

    endpoint: str
    deployment: str
    collection: str  # request | response
    rolling: Rolling
    at_ms: int
    request_id: str
    client_request_id: str
    content_type: str
    body: bytes


class Collector:
    """Of one gateway; files are below `folder`. The thread begins with the first payload."""

    def __init__(self, folder: Path, instance: str, max_bytes: int, key: PublicKey | None = None) -> None:
        """`max_bytes`: of everything below the folder together; beyond, payloads are left out. `key`: to encrypt with."""
        self._folder, self._instance, self._max_bytes, self._key = folder, instance, max_bytes, key
        self._queue: deque[Payload] = deque()
        self._queued_bytes = 0
        self._written_bytes = -1  # not known yet
        self._wanted = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self.kept: dict[tuple[str, str], int] = {}  # payloads by endpoint and deployment
        self.left_out: dict[tuple[str, str], int] = {}

    @staticmethod
    def chosen(collecting: Collecting, draw: Callable[[], float] = random.random) -> bool:
        """Whether this call is in the sample."""
        return collecting.sampling_rate >= 1 or draw() < collecting.sampling_rate

    def offer(self, payload: Payload) -> None:
        """Have it written soon; never waits for the disk."""
        with self._wanted:
            if self._closing or self._queued_bytes + _cost(payload) > MAX_QUEUED_BYTES:
                _count(self.left_out, payload)
                return
            self._queue.append(payload)
            self._queued_bytes += _cost(payload)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
                self._thread.start()
            self._wanted.notify()

    def close(self, patience_s: float = 5.0) -> None:
        """Write what waits, for at most so long."""
        with self._wanted:
            self._closing = True
            self._wanted.notify()
        if self._thread is not None:
            self._thread.join(patience_s)

    # -- the thread --

    def _run(self) -> None:
        while True:
            with self._wanted:
                while not self._queue:
                    if self._closing:
                        return
                    self._wanted.wait()
                payload = self._queue.popleft()
            figures = self.kept
            try:
                self._write(payload)
            except Exception as error:  # whatever it is: the thread has to go on with the next
                figures = self.left_out
                _log.warning("a payload cannot be collected", extra={"reason": type(error).__name__})
            with self._wanted:
                _count(figures, payload)
                self._queued_bytes -= _cost(payload)

    def _write(self, payload: Payload) -> None:
        if self._written_bytes < 0:
            self._written_bytes = sum(
                file.stat().st_size for file in self._folder.rglob("*") if file.is_file()
            )
        if self._written_bytes + len(payload.body) > self._max_bytes:
            raise OSError("the folder of collected data is full")
        at = datetime.fromtimestamp(payload.at_ms / 1000, UTC)
        folder = self._folder / payload.endpoint / payload.deployment / payload.collection
        folder /= at.strftime(_PATTERNS[payload.rolling])
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = self._line(payload, folder)
        name = f"{self._instance}.jsonl"
        if self._key is not None:
            name, line = name + SEALED_LINES, self._key.seal_line(line)
        self._written_bytes += _append(folder / name, line)

    def _line(self, payload: Payload, folder: Path) -> bytes:
        size = len(payload.body)
        event: dict[str, Any] = {
            "specversion": "1.0",
            "id": new_id("col", payload.at_ms),
            "source": f"/endpoints/{payload.endpoint}/deployments/{payload.deployment}",
            "type": f"ai.farebox.inference.{payload.collection}",
            "time": iso(payload.at_ms),
            "datacontenttype": payload.content_type or "application/octet-stream",
            "xrequestid": payload.request_id,
            "correlationid": payload.client_request_id or payload.request_id,
            "contentrange": f"bytes 0-{size - 1}/{size}" if size else "bytes */0",
        }
        data = _json_of(payload)
        if data is not None:
            return json.dumps({**event, "data": data}, ensure_ascii=False).encode() + b"\n"
        raw = folder / "raw" / f"{event['id']}.bin"
        raw.parent.mkdir(exist_ok=True, mode=0o700)
        if self._key is None:
            self._written_bytes += _append(raw, payload.body)
        else:
            self._written_bytes += _append(raw.with_name(raw.name + SEALED), self._key.seal(payload.body))
        pointer = {**event, "data": str(raw.relative_to(self._folder)), "datainblob": "true"}
        return json.dumps(pointer, ensure_ascii=False).encode() + b"\n"


def _json_of(payload: Payload) -> Any:
    """The body as JSON; None when it is none, or too large for a line."""
    if len(payload.body) > MAX_INLINE_BYTES or "json" not in payload.content_type:
        return None
    try:
        return json.loads(payload.body)
    except (ValueError, RecursionError):
        return None


def _cost(payload: Payload) -> int:
    """Bytes of memory that it takes while it waits."""
    return len(payload.body) + 500


def _append(path: Path, data: bytes) -> int:
    """A line is whole or not there: what a full disk took only a part of is taken back."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        before = os.fstat(file).st_size
        if os.write(file, data) != len(data):
            os.ftruncate(file, before)
            raise OSError("the disk is full")
    finally:
        os.close(file)
    return len(data)


def _count(figures: dict[tuple[str, str], int], payload: Payload) -> None:
    key = (payload.endpoint, payload.deployment)
    if key in figures or len(figures) < _MAX_FIGURES:
        figures[key] = figures.get(key, 0) + 1
