"""Callers without pause, and kill -9, for tests of what a crash leaves behind."""

import http.client
import json
import signal
import threading
import time
import urllib.request
from typing import Any

import psutil

from tests import platform as platforms


class Caller(threading.Thread):
    """Calls without pause until told to stop; remembers every answer it saw whole."""

    def __init__(
        self, url: str, key: str, stream: bool, stop: threading.Event, max_tokens: int | None = None
    ) -> None:
        super().__init__(daemon=True)
        self._max_tokens = max_tokens
        self._url, self._key, self._stream, self._stop_event = url + "/v1/chat/completions", key, stream, stop
        self.completed: dict[str, int] = {}

    def run(self) -> None:
        while not self._stop_event.is_set():
            try:
                self._call()
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.02)

    def _call(self) -> None:
        body: dict[str, Any] = {
            "model": "my-chat",
            "messages": [{"role": "user", "content": "one two three"}],
        }
        if self._max_tokens:
            body["max_tokens"] = self._max_tokens
        if self._stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read().decode()
            request_id = answer.headers["x-request-id"]
        if self._stream:
            frames = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
            if frames[-1] != "[DONE]":
                raise ValueError("cut")
            usage = json.loads(frames[-2])["usage"]
        else:
            usage = json.loads(text)["usage"]
        self.completed[request_id] = usage["completion_tokens"]


def kill(platform: platforms.Platform, *, only_gateway: bool) -> None:
    """`kill -9` of the gateway, or of the platform; then nothing of it may be left."""
    children = platform.children()
    if only_gateway:
        gateways = platform.running("functions.gateway")
        assert gateways, "a gateway runs"
        gateways[0].send_signal(signal.SIGKILL)
        gateways[0].wait(5)
        return
    platform.process.kill()
    platform.process.wait(10)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, f"the gateway outlived its supervisor: {alive}"
