"""The content check: prompts and answers are shown to a moderation service, which says what must not pass.

The service speaks OpenAI's `POST /moderations` (https://platform.openai.com/docs/api-reference/moderations):
`{"input": [texts]}` is answered with `{"results": [{"flagged": true, "categories": {"violence": true}}]}`. Off
unless `content_safety_url` is set. Texts are neither stored nor logged.
"""

import asyncio
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import aiohttp
import msgspec

from core.errors import BadRequest, Unavailable
from core.log import get_logger
from wire.openai import Operation
from wire.texts import SCREENED, StreamTexts, asks_in_tokens, texts_asked, texts_said, withheld

if TYPE_CHECKING:
    from core.settings import Settings
    from functions.gateway.record import CallRecord

_log = get_logger(__name__)

FILTERED = "content_filter"
STREAM_PIECE = 500  # characters of a streamed answer that are held until they are checked
OVERLAP = 500  # of those before them, shown again: what is meant may lie across the cut
_MAX_HELD_BYTES = 1024 * 1024  # events may carry much that is no text
_PIECE = 8_000  # characters of one input
_INPUTS = 32  # of one request
_CONNECTIONS = 64
_MAX_ANSWER_BYTES = 1024 * 1024
_PARAM = {"completions": "prompt", "responses": "input"}


class _Result(msgspec.Struct):
    flagged: bool
    categories: dict[str, bool | None] = {}


class _Results(msgspec.Struct):
    results: list[_Result]


class ContentWithheld(Exception):  # not a failure: a finding
    """A streamed answer must not go on."""


class ContentSafety:
    """The moderation service of one gateway."""

    def __init__(self, settings: "Settings") -> None:
        self._url = settings.content_safety_url
        self._model = settings.content_safety_model
        self._key = os.environ.get(settings.content_safety_key_env, "")
        self._timeout_s = settings.content_safety_timeout_s
        self._fail_open = bool(settings.content_safety_fail_open)
        self._session: aiohttp.ClientSession | None = None

    def applies(self, screened: bool, operation: str) -> bool:
        """A call of this kind to an endpoint that wants it is checked."""
        return screened and operation in SCREENED

    async def open(self) -> None:
        """Make the session; needs a running event loop."""
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def check_request(self, record: "CallRecord") -> None:
        """BadRequest `content_filter`: the prompt must not pass, or cannot be read. Unavailable: nobody can tell."""
        members, operation = record.request.members, record.operation
        param = _PARAM.get(operation, "messages")
        if asks_in_tokens(operation, members):
            raise BadRequest(
                "This endpoint's content filter reads texts: send `prompt` as a text, not as token ids.",
                param=param,
                code=FILTERED,
            )
        found = await self.flagged(texts_asked(members))
        if found is not None:
            _log.info("a prompt was filtered", extra={"request_id": record.request_id, "categories": found})
            named = f" ({', '.join(found)})" if found else ""
            raise BadRequest(
                f"The prompt was refused by this endpoint's content filter{named}; change it and try again.",
                param=param,
                code=FILTERED,
            )

    async def flagged(self, texts: Iterable[str]) -> list[str] | None:
        """Names of the categories that were found (perhaps none is named); None: nothing is wrong. Or Unavailable."""
        inputs = [text[at : at + _PIECE] for text in texts for at in range(0, len(text), _PIECE)]
        try:
            async with asyncio.timeout(self._timeout_s):
                for at in range(0, len(inputs), _INPUTS):
                    results = await self._ask(inputs[at : at + _INPUTS])
                    bad = [each for each in results if each.flagged]
                    if bad:
                        return sorted(
                            {name[:64] for each in bad for name, on in each.categories.items() if on}
                        )
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError, ValueError) as error:
            _log.warning("the content filter does not answer", extra={"reason": repr(error)[:200]})
            if not self._fail_open:
                raise Unavailable(
                    "The content filter of this endpoint does not answer; try again in a moment.",
                    code="content_safety_unavailable",
                    retry_after_s=2,
                ) from error
        return None

    async def _ask(self, inputs: list[str]) -> list[_Result]:
        assert self._session is not None, "open() was not called"
        asked = {"input": inputs} | ({"model": self._model} if self._model else {})
        body = msgspec.json.encode(asked)
        headers = {"content-type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            data = await answer.content.read(_MAX_ANSWER_BYTES)
            while more := await answer.content.read(_MAX_ANSWER_BYTES):
                data += more
                if len(data) > _MAX_ANSWER_BYTES:
                    raise ValueError("an answer without end")
        results = msgspec.json.decode(data, type=_Results).results
        if len(results) != len(inputs):
            raise ValueError(f"{len(results)} results for {len(inputs)} inputs")
        return results


class Screen:
    """The check of one call's answer."""

    def __init__(self, safety: ContentSafety, operation: Operation, request_id: str) -> None:
        self._safety = safety
        self._operation = operation
        self._request_id = request_id
        self._texts = StreamTexts(operation)
        self._held: list[bytes] = []
        self._held_bytes = 0

    async def whole(self, body: bytes) -> tuple[bytes, bool]:
        """An answer that is not streamed as the caller gets it, and whether that is without what was said."""
        found = await self._safety.flagged(texts_said(self._operation, body))
        if found is None:
            return body, False
        self._log(found)
        return withheld(self._operation, body), True

    async def release(self, data: bytes, *, last: bool = False) -> bytes:
        """What of the stream may go out now that `data` came. ContentWithheld: nothing more."""
        self._held.append(data)
        self._held_bytes += len(data)
        self._texts.feed(data)
        if not last and self._texts.size < STREAM_PIECE and self._held_bytes < _MAX_HELD_BYTES:
            return b""
        found = await self._safety.flagged(self._texts.take(OVERLAP))
        if found is not None:
            self._log(found)
            raise ContentWithheld
        out = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return out

    def finish_event(self) -> bytes:
        """The event that tells so, in APIs that have one."""
        return self._texts.finish_event()

    def _log(self, found: list[str]) -> None:
        _log.info("an answer was filtered", extra={"request_id": self._request_id, "categories": found})
