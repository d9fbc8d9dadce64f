"""HTTP: one connection pool, the key in a header, problem documents as exceptions, bounded retries."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx

import farebox
from farebox.config import Connection
from farebox.errors import FareboxAPIError, FareboxConfigError, FareboxConnectionError

_RETRY_WAITS_S = (0.1, 0.4)
_RETRY_AFTER_MAX_S = 5.0  # a server that asks for more patience than this is reported instead
_ERROR_BODY_MAX_BYTES = 1024 * 1024
_CONNECT_TIMEOUT_S = 5.0


class Transport:
    """Sends requests to one server. Not a public interface: use `farebox.Client`."""

    def __init__(
        self, connection: Connection, timeout: float, http_transport: httpx.BaseTransport | None = None
    ) -> None:
        self.connection = connection
        plain_local = connection.is_loopback and connection.url.startswith("http://")
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_TIMEOUT_S)),
            headers={"User-Agent": f"farebox-python/{farebox.__version__}", "Accept": "application/json"},
            follow_redirects=False,  # the key must not travel to another host
            transport=http_transport,
            # Nothing is encrypted to plain http on this machine: do not spend 30 ms on reading certificates,
            # and do not send it through a proxy. Everywhere else certificates are checked.
            verify=not plain_local,
            trust_env=not plain_local,
        )

    def close(self) -> None:
        self._http.close()

    def json(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of a successful answer; None for an empty one."""
        response = self.send(method, path, **options)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise not_farebox(response) from None

    def text(self, path: str, **options: Any) -> str:
        """The text of a successful answer."""
        return self.send("GET", path, **options).text

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: object = None,
        content: bytes | None = None,
        content_type: str | None = None,
        check: bool = True,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """One request, read whole. Only GET is repeated: anything else may have done its work already."""
        request = self.build(
            method, path, params=params, json=json, content=content, content_type=content_type
        )
        if timeout_s is not None:
            request.extensions["timeout"] = httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S).as_dict()
        waits = list(_RETRY_WAITS_S) if method == "GET" and check else []
        while True:
            try:
                response = self._http.send(request)
            except httpx.TransportError as error:
                if not waits or isinstance(error, httpx.TimeoutException):
                    raise _unreachable(error, self.connection.url) from error
                time.sleep(waits.pop(0))
                continue
            except (httpx.InvalidURL, httpx.HTTPError, UnicodeError) as error:
                raise FareboxConnectionError(
                    f"the answer cannot be read: {error}", url=self.connection.url
                ) from error
            wait = _wait_before_repeat(response, waits)
            if wait is not None:
                time.sleep(wait)
                continue
            if check and not response.is_success:
                raise api_error(response)
            return response

    def build(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: object = None,
        content: bytes | None = None,
        content_type: str | None = None,
        api_key: str | None = None,
    ) -> httpx.Request:
        """The request with the key (`api_key` instead of the usual one, where given)."""
        headers = {}
        key = api_key or self.connection.api_key
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if content_type:
            headers["Content-Type"] = content_type
        query = {name: value for name, value in (params or {}).items() if value is not None}
        return self._http.build_request(
            method,
            self.connection.url + path,
            params=query or None,
            headers=headers,
            json=json,
            content=content,
        )

    def send_request(self, request: httpx.Request) -> httpx.Response:
        """The answer to a request that was built before, whatever it says; sent once."""
        try:
            return self._http.send(request)
        except httpx.HTTPError as error:
            raise _unreachable(error, self.connection.url) from error

    @contextmanager
    def stream(self, request: httpx.Request, read_timeout_s: float) -> Iterator[httpx.Response]:
        """A successful answer, to be read as it arrives."""
        request.extensions["timeout"] = httpx.Timeout(read_timeout_s, connect=_CONNECT_TIMEOUT_S).as_dict()
        try:
            response = self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    response.read()
                    raise api_error(response)
                yield response
            finally:
                response.close()
        except httpx.HTTPError as error:
            raise _unreachable(error, self.connection.url) from error


def path_of(*parts: str) -> str:
    """A URL path of names; slashes inside a name (model ids) stay. Refuses what would reach another route."""
    for part in parts:
        if not part or any(segment in ("", ".", "..") for segment in part.split("/")):
            raise FareboxConfigError(f"not a name or id: {part!r}")
    return "/" + "/".join(quote(part, safe="/") for part in parts)


def api_error(response: httpx.Response) -> FareboxAPIError:
    """The refusal as an exception, from problem+json or from OpenAI's error object."""
    if len(response.content) > _ERROR_BODY_MAX_BYTES:
        return not_farebox(response)
    try:
        body = response.json()
    except ValueError:
        return not_farebox(response)
    return error_of(response.status_code, body, response.headers) or not_farebox(response)


def error_of(status: int, body: object, headers: Mapping[str, str]) -> FareboxAPIError | None:
    """The refusal in `body`; None when it is in neither of the two forms."""
    if not isinstance(body, dict):
        return None
    inner = body.get("error")
    source: dict[str, Any] = inner if isinstance(inner, dict) else body
    message = source.get("message") or source.get("detail") or source.get("title")
    if not isinstance(message, str):
        return None
    known = {"type", "title", "status", "detail", "message", "code", "request_id", "param", "instance"}
    return FareboxAPIError(
        status,
        str(source.get("code") or source.get("type") or "error"),
        message,
        None if source.get("param") is None else str(source["param"]),
        source.get("request_id") or headers.get("x-request-id"),
        retry_after_s=_retry_after(headers),
        extra={name: value for name, value in source.items() if name not in known},
    )


def not_farebox(response: httpx.Response) -> FareboxAPIError:
    """The refusal to read what another server said."""
    kind = response.headers.get("content-type", "no content type").split(";")[0]
    return FareboxAPIError(
        response.status_code,
        "unexpected_answer",
        f"the answer from {response.request.url} is not Farebox's (HTTP {response.status_code}, {kind}); "
        "is the address right?",
        request_id=response.headers.get("x-request-id"),
        retry_after_s=_retry_after(response.headers),
    )


def _wait_before_repeat(response: httpx.Response, waits: list[float]) -> float | None:
    """Seconds to wait before a 503 that names a near time is asked again; None: take the answer as it is."""
    if response.status_code != 503 or not waits:
        return None
    asked = _retry_after(response.headers)
    if asked is None or asked > _RETRY_AFTER_MAX_S:
        return None
    return max(asked, waits.pop(0))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("retry-after", "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 8 else None


def _unreachable(error: httpx.HTTPError, url: str) -> FareboxConnectionError:
    if isinstance(error, httpx.ConnectTimeout):
        return FareboxConnectionError(
            f"cannot connect to {url}: no answer within {_CONNECT_TIMEOUT_S:g} s", url=url
        )
    if isinstance(error, httpx.TimeoutException):
        return FareboxConnectionError(f"{url} accepted the call but did not answer in time", url=url)
    if isinstance(error, httpx.ConnectError):
        return FareboxConnectionError(f"cannot connect to {url}: {error}", url=url, refused=True)
    reason = str(error) or type(error).__name__
    return FareboxConnectionError(f"the connection to {url} broke: {reason}", url=url)
