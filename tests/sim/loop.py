"""An event loop whose time passes only when nobody has anything to do, and whose processes can be killed.

A *process* is everything that was started within `run_as(name)`: its callbacks, tasks and timers carry the name in
their context. After `kill(name)` none of them ever runs again, in whatever state they were.
"""

import asyncio
import contextlib
import contextvars
import heapq
import random
from collections.abc import Callable, Iterator
from typing import Any

_process: contextvars.ContextVar[str] = contextvars.ContextVar("process", default="")


class Deadlock(Exception):
    """Nothing is left to happen, and what was awaited did not."""


class _Selector:
    """Where a real loop would sleep, the clock is put forward."""

    def __init__(self, loop: "SimLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Deadlock("nothing is scheduled any more")
        if timeout > 0:
            self._loop.now += timeout
        return []

    def close(self) -> None:
        """Nothing is open."""


class SimLoop(asyncio.BaseEventLoop):
    """Deterministic: the same seed gives the same run."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.now = 0.0
        self.chance = random.Random(seed)
        self._selector = _Selector(self)
        self._clock_resolution = 1e-9
        self._dead: set[str] = set()
        self._graveyard: list[Any] = []  # a task that is collected would run its `finally`
        self._tasks: dict[str, list[asyncio.Task[Any]]] = {}
        self.failures: list[dict[str, Any]] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    # -- processes --

    @contextlib.contextmanager
    def run_as(self, name: str) -> Iterator[None]:
        """What is started inside belongs to the process `name`."""
        token = _process.set(name)
        try:
            yield
        finally:
            _process.reset(token)

    def context_of(self, name: str) -> contextvars.Context:
        """A context in which a callback belongs to the process `name`."""
        context = contextvars.copy_context()
        context.run(_process.set, name)
        return context

    def alive(self, name: str) -> bool:
        return name not in self._dead

    def kill(self, name: str) -> None:
        """As `kill -9`: nothing of it runs any more."""
        self._dead.add(name)
        for task in self._tasks.pop(name, ()):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            self._graveyard.append(task)
            self._graveyard.append(task.get_coro())
        ready = [handle for handle in self._ready if self._belongs(handle)]  # type: ignore[has-type]
        self._graveyard += [handle for handle in self._ready if not self._belongs(handle)]  # type: ignore[has-type]
        self._ready.clear()  # type: ignore[has-type]
        self._ready.extend(ready)  # type: ignore[has-type]
        self._graveyard += [handle for handle in self._scheduled if not self._belongs(handle)]  # type: ignore[has-type]
        self._scheduled = [handle for handle in self._scheduled if self._belongs(handle)]  # type: ignore[has-type]
        heapq.heapify(self._scheduled)

    def _belongs(self, handle: Any) -> bool:
        context = handle._context
        return context is None or context.get(_process, "") not in self._dead

    def _make_task(self, loop: Any, coroutine: Any, **named: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **named)
        mine = self._tasks.setdefault(_process.get(), [])
        mine.append(task)
        if len(mine) > 256:
            mine[:] = [each for each in mine if not each.done()]
        return task

    # -- what a real loop gets from the operating system --

    def time(self) -> float:
        return self.now

    def _write_to_self(self) -> None:
        """There is no other thread to be woken by."""

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _add_callback_of_dead(self, context: contextvars.Context | None) -> bool:
        name = _process.get() if context is None else context.get(_process, "")
        return name in self._dead

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        if self._dead and self._add_callback_of_dead(context):
            return asyncio.Handle(callback, args, self, context)  # never run
        return super().call_soon(callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        if self._dead and self._add_callback_of_dead(context):
            return asyncio.TimerHandle(when, callback, args, self, context)
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """A thread takes a moment, and then runs at one go."""
        future: asyncio.Future[Any] = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except Exception as error:
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self.call_later(self.chance.uniform(0.0001, 0.003), run)
        return future
