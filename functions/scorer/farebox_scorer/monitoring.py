"""`azureml.ai.monitoring`: a script hands data frames to a `Collector`, a thread writes them as lines of CloudEvents.

Sources: R7.4 and R7.5 of our reference (Azure Machine Learning, "Collect production data"). The deployment's
`data_collector` says which collections are kept; FAREBOX_COLLECT has it as JSON. Handing over never waits for the disk.
"""

import base64
import json
import os
import queue
import sys
import threading
import time
import types
import uuid
import zlib

MAX_WAITING = 1000  # frames
MAX_FRAME_BYTES = 4 * 1024 * 1024
_PATTERNS = {
    "year": "%Y",
    "month": "%Y/%m",
    "day": "%Y/%m/%d",
    "hour": "%Y/%m/%d/%H",
    "minute": "%Y/%m/%d/%H/%M",
}
_current = threading.local()  # the request id of the call that the thread serves


class CorrelationContext:
    """What belongs together has the same id."""

    def __init__(self, id=None):  # noqa: A002  the name that scripts use
        self._id = str(id or uuid.uuid4())

    def get_id(self):
        return self._id

    @property
    def id(self):
        return self._id


BasicCorrelationContext = CorrelationContext


class Collector:
    """Takes data frames for one collection; what is not enabled takes them too, and keeps nothing.

    `on_error` is called with the exception in place of its being raised.
    """

    def __init__(self, *, name, on_error=None):
        self.name, self._on_error = name, on_error
        self._writer = _writer_for(name)

    def collect(self, data, correlation_context=None):
        """Keep the frame. The context that goes to the collection of the answers; TypeError: it is no data frame."""
        context = correlation_context or CorrelationContext(getattr(_current, "request_id", None))
        try:
            if not hasattr(data, "to_dict") or not hasattr(data, "columns"):
                raise TypeError(f"{self.name}: a data frame of pandas is expected, got {type(data).__name__}")
            if self._writer is not None:
                self._writer.offer(self.name, data, context.get_id())
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(error)
        return context


def serving(request_id):
    """Called in the script's thread before each call."""
    _current.request_id = request_id


def install():
    """Make `from azureml.ai.monitoring import Collector` find these."""
    from farebox_scorer import api

    for name in ("azureml", "azureml.ai"):
        api._package(name)
    package = types.ModuleType("azureml.ai.monitoring")
    package.__path__ = []
    package.Collector = Collector
    context = types.ModuleType("azureml.ai.monitoring.context")
    context.CorrelationContext, context.BasicCorrelationContext = CorrelationContext, BasicCorrelationContext
    package.context = context
    sys.modules[package.__name__], sys.modules[context.__name__] = package, context
    sys.modules["azureml.ai"].monitoring = package


def close(patience_s=5.0):
    """Write what waits."""
    if _Writer.only is not None:
        _Writer.only.close(patience_s)


def _writer_for(name):
    text = os.environ.get("FAREBOX_COLLECT", "")
    settings = json.loads(text) if text else {}
    if name not in settings.get("collections", ()):
        return None
    if _Writer.only is None:
        _Writer.only = _Writer(settings)
    return _Writer.only


class _Writer:
    """Of one process; its files are its own."""

    only = None

    def __init__(self, settings):
        self._settings = settings
        self._name = f"{uuid.uuid4().hex[:12]}.jsonl"
        self._waiting = queue.Queue(MAX_WAITING)
        self._written = -1
        self._key = self._key_mark = None
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._thread.start()

    def offer(self, collection, data, correlation_id):
        """Take a share of the frames: the same of all collections, so that inputs and outputs stay together."""
        if zlib.crc32(correlation_id.encode()) >= self._settings["sampling_rate"] * 2**32:
            return
        rows = json.dumps(data.to_dict(orient="records"), default=str)
        if len(rows) > MAX_FRAME_BYTES:
            raise ValueError(
                f"{collection}: a frame of {len(rows)} bytes is too large; {MAX_FRAME_BYTES} at most"
            )
        try:
            self._waiting.put_nowait((collection, rows, correlation_id, time.time()))
        except queue.Full:
            raise RuntimeError(f"{collection}: {MAX_WAITING} frames wait to be written already") from None

    def close(self, patience_s):
        """Write what waits, for at most so long."""
        try:
            self._waiting.put(None, timeout=patience_s)
        except queue.Full:
            return
        self._thread.join(patience_s)

    def _run(self):
        while True:
            item = self._waiting.get()
            if item is None:
                return
            try:
                self._write(*item)
            except Exception as error:  # a full disk, a folder that is gone: calls go on
                print(f"collected data was left out: {error}", file=sys.stderr, flush=True)

    def _write(self, collection, rows, correlation_id, at):
        root = self._settings["folder"]
        if self._written < 0:
            files = (os.path.join(where, each) for where, _, names in os.walk(root) for each in names)
            self._written = sum(os.path.getsize(each) for each in files)
        if self._written + len(rows) > self._settings["max_bytes"]:
            raise OSError("the folder of collected data is full")
        folder = os.path.join(
            root, collection, time.strftime(_PATTERNS[self._settings["rolling"]], time.gmtime(at))
        )
        os.makedirs(folder, mode=0o700, exist_ok=True)
        line, name = self._line(collection, rows, correlation_id, at), self._name
        if "keyring" in self._settings:
            line, name = self._sealed(line), f"{name}.agelines"
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            before = os.fstat(file).st_size
            if os.write(file, line) != len(line):
                os.ftruncate(file, before)
                raise OSError("the disk is full")
        finally:
            os.close(file)
        self._written += len(line)

    def _sealed(self, line):
        """Encrypted with the data key that is in use now: its public half stands in the platform's keyring.json."""
        import pyrage  # in the environment only where there is a customer's key

        mark = os.stat(self._settings["keyring"]).st_mtime_ns
        if mark != self._key_mark:
            with open(self._settings["keyring"], encoding="utf-8") as file:
                self._key = pyrage.x25519.Recipient.from_str(json.load(file)["data_key"])
            self._key_mark = mark
        return base64.b64encode(pyrage.encrypt(line, [self._key])) + b"\n"

    def _line(self, collection, rows, correlation_id, at):
        event = {
            "specversion": "1.0",
            "id": f"col_{uuid.uuid4().hex}",
            "source": self._settings["source"],
            "type": f"ai.farebox.inference.{collection}",
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}Z",
            "datacontenttype": "application/json",
            "xrequestid": correlation_id,
            "correlationid": correlation_id,
            "collectdatatype": "pandas.core.frame.DataFrame",
            "agent": "farebox-scorer",
        }
        return f'{json.dumps(event)[:-1]}, "data": {rows}}}\n'.encode()
