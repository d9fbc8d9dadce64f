"""Calls that generate nothing and cost nothing (tokenizing): a key, a bound, and no usage event."""

import asyncio
import contextlib
from typing import TYPE_CHECKING

from core.errors import FareboxError, Timeout, Unavailable
from functions.gateway.exchange import Exchange
from functions.gateway.record import refusal
from functions.gateway.upstream import MAX_ERROR_BYTES, Answer, ServerGone, read_answer
from serving.route import Route
from wire.dialects import forward_members
from wire.openai import FreeOperation, ModelRequest

if TYPE_CHECKING:
    from functions.gateway.gateway import Gateway

MAX_FREE_CALLS = 64  # in one gateway at once, so that free work does not crowd out paid work
MAX_ANSWER_BYTES = 16 * 1024 * 1024
_TIMEOUT_S = 30.0


class FreeCall:
    """A free call that passed every check."""

    completed = False  # there is no outcome to keep: asking again costs nothing

    def __init__(
        self,
        gateway: "Gateway",
        exchange: Exchange,
        operation: FreeOperation,
        request: ModelRequest,
        route: Route,
    ) -> None:
        if gateway.free_calls >= MAX_FREE_CALLS:
            raise Unavailable("Too many calls of this kind are in flight; try again.", retry_after_s=1)
        self._gateway, self._exchange, self._operation = gateway, exchange, operation
        self._request, self._route = request, route
        self._answer: Answer | None = None

    async def run(self) -> None:
        """Serve the call to its end."""
        gateway, exchange = self._gateway, self._exchange
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        left = False

        def on_hang_up() -> None:
            nonlocal left
            left = True
            task.cancel()

        exchange.watch(on_hang_up)
        gateway.free_calls += 1
        gateway.activity.begin(self._route.deployment_id)
        try:
            data = await self._ask()
            await exchange.answer(200, data)
        except asyncio.CancelledError:
            if not left:
                raise
            task.uncancel()
        except FareboxError as error:
            gateway.metrics.refused(error)
            if not exchange.started:
                await exchange.answer_error(error)
        finally:
            gateway.free_calls -= 1
            gateway.activity.end(self._route.deployment_id)
            if self._answer is not None:
                self._answer.close()

    async def _ask(self) -> bytes:
        gateway, route, exchange = self._gateway, self._route, self._exchange
        server = gateway.places.of(route).look()
        if server is not None:
            url = server.url
        else:
            url = await gateway.waiting.wait(route.deployment_id, gateway.settings.hold_plain_call_s)
        body = forward_members(self._request, route.served_model, None)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                self._answer = answer = await gateway.upstream.post(
                    url,
                    self._operation,
                    body.data,
                    route=route,
                    attempt_id=exchange.request_id,
                    caller_headers=exchange.headers,
                )
                if answer.status != 200:
                    raise refusal(answer.status, answer.headers, await read_answer(answer, MAX_ERROR_BYTES))
                return await read_answer(answer, MAX_ANSWER_BYTES)
        except ServerGone as gone:
            with contextlib.suppress(KeyError):
                gateway.lookups.routes.forget(route.deployment_id)
            raise Unavailable(
                "The model server does not answer; try again in a moment.",
                code="model_unavailable",
                retry_after_s=2,
            ) from gone
        except TimeoutError:
            raise Timeout("The model server did not answer in time.") from None
