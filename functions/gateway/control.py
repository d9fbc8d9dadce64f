"""The gateway's line to the control process: a Unix socket, so that nothing of it is on the network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from core.errors import NotFound, Unavailable
from serving.model import WakeStatus
from wire.prompts import Prompt

# The host is not looked up: the connector always opens the socket.
_BASE = "http://control"
_CONNECT_S = 2.0
_CATCH_UP_S = 60.0  # a crash may have left much
_MARGIN_S = 5.0  # how much longer than asked an answer may take


class _Tokens(msgspec.Struct):
    prompt: Annotated[int, msgspec.Meta(ge=0)] | None = None
    texts: Annotated[int, msgspec.Meta(ge=0)] | None = None


class OnlineFigures(msgspec.Struct):
    """Of one deployment of an online endpoint, in percent on average over its instances."""

    endpoint: str
    deployment: str
    instances: dict[str, int]  # by state
    cpu_percent: float | None = None
    memory_percent: float | None = None
    disk_percent: float | None = None
    gpu_percent: float | None = None
    gpu_memory_percent: float | None = None
    gpu_energy_j: float | None = None


class ControlClient:
    """Calls the control process. Unavailable: it cannot be reached or answers nonsense."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the session; needs a running event loop."""
        connector = aiohttp.UnixConnector(str(self._path), limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """For the reverse proxy, which streams."""
        assert self._session is not None, "open() was not called"
        return self._session

    @staticmethod
    def url(raw_path: str) -> URL:
        """Where `raw_path` (still percent-encoded, with its query) is, untouched by any normalisation."""
        return URL(_BASE + raw_path, encoded=True)

    async def wake(self, deployment_id: str, wait_ms: int) -> WakeStatus:
        """Ask for a server of the deployment; answers when ready or failed, at the latest after `wait_ms`."""
        path = f"/internal/deployments/{quote(deployment_id, safe='')}/wake?wait_ms={wait_ms}"
        status, body = await self._call("POST", path, None, wait_ms / 1000 + _MARGIN_S)
        if status != 200:
            raise Unavailable(f"the control process answered {status} to a wake", retry_after_s=2)
        try:
            return msgspec.json.decode(body, type=WakeStatus)
        except msgspec.DecodeError as error:
            raise Unavailable(f"the control process answered a wake with nonsense: {error}") from error

    async def report_activity(self, activity: Mapping[str, Mapping[str, Any]]) -> None:
        """Tell how busy deployments are: `{deployment id: {"in_flight": n, "last_ms": t}}`."""
        status, _ = await self._call("POST", "/internal/activity", msgspec.json.encode(activity), _MARGIN_S)
        if status >= 300:
            raise Unavailable(f"the control process answered {status} to an activity report")

    async def catch_up(self) -> None:
        """Return when everything that is durable in the journals is on record."""
        status, _ = await self._call("POST", "/internal/catch-up", None, _CATCH_UP_S)
        if status >= 300:
            raise Unavailable(f"the control process answered {status} to a request to catch up")

    async def report_held(self, gateway: str, held: Mapping[str, int]) -> None:
        """Tell what calls in flight hold of budgets: pico-dollars by budget id."""
        body = msgspec.json.encode({"gateway": gateway, "held": held})
        status, _ = await self._call("POST", "/internal/budgets/held", body, _MARGIN_S)
        if status >= 300:
            raise Unavailable(f"the control process answered {status} to a report of holds")

    async def count_tokens(
        self, model_id: str, prompt: Prompt | None, texts: list[str] | None
    ) -> tuple[int | None, int | None]:
        """Tokens of a prompt, and of generated texts together, by a tokenizer on disk. NotFound: there is none."""
        body = msgspec.json.encode({"model": model_id, "prompt": prompt, "texts": texts})
        status, answer = await self._call("POST", "/internal/tokens", body, _MARGIN_S)
        if status == 404:
            raise NotFound(f"no tokenizer of {model_id} is here")
        if status != 200:
            raise Unavailable(f"the control process answered {status} to a question for tokens")
        try:
            found = msgspec.json.decode(answer, type=_Tokens)
        except msgspec.DecodeError as error:
            raise Unavailable("the control process counted tokens with nonsense") from error
        return found.prompt, found.texts

    async def online_figures(self) -> list[OnlineFigures]:
        """What online deployments' instances use; nothing where that cannot be had now."""
        try:
            status, answer = await self._call("GET", "/internal/online-figures", None, _CONNECT_S)
            return msgspec.json.decode(answer, type=list[OnlineFigures]) if status == 200 else []
        except (Unavailable, msgspec.DecodeError):
            return []

    async def ping(self) -> None:
        """Return when the control process answers at all."""
        await self._call("GET", "/healthz", None, _CONNECT_S)

    async def _call(self, method: str, path: str, body: bytes | None, total_s: float) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=_CONNECT_S)
        headers = {"content-type": "application/json"} if body is not None else {}
        try:
            async with self.session.request(
                method, self.url(path), data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unavailable("the control process cannot be reached", retry_after_s=2) from error
