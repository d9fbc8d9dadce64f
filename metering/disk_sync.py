"""Making a file durable without stopping the event loop, and without a Python thread where Linux can do it.

A thread that syncs costs little by itself, but it has to take Python's lock three times a commit from a loop that
gives it up after every callback: on a full core that came to about a millisecond of CPU a commit. Linux's
asynchronous I/O (io_submit(2) with IOCB_CMD_FDSYNC, kernel 4.18) syncs in the kernel and tells an eventfd(2), which
the loop watches as it watches sockets. Elsewhere, or where it is not allowed, a thread does it.
"""

import asyncio
import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from core.log import get_logger

_log = get_logger(__name__)

OnSynced = Callable[[OSError | None], None]


class DiskWork(Protocol):
    """What the journal has done for it while the loop goes on."""

    def sync(self, fd: int, done: OnSynced) -> None:
        """Call `done` in the loop when what was written to `fd` is on disk, or why it is not; one at a time."""
        ...

    def offload(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Run `work`, which may block, and call `done` in the loop with what it raised."""
        ...

    def close(self) -> None:
        """Nothing is on its way any more."""
        ...


def open_disk_work(loop: asyncio.AbstractEventLoop) -> DiskWork:
    """The best that this machine has."""
    try:
        return KernelSync(loop)
    except (OSError, KeyError, AttributeError) as error:
        _log.info("syncing in a thread", extra={"reason": str(error)})
        return ThreadSync(loop)


class ThreadSync:
    """One thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="disk")

    def sync(self, fd: int, done: OnSynced) -> None:
        """See `DiskWork`."""

        def told(error: BaseException | None) -> None:
            if error is None or isinstance(error, OSError):
                done(error)
            else:
                done(OSError(str(error)))

        self.offload(lambda: _fdatasync(fd), told)

    def offload(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """See `DiskWork`."""

        def finished(future: Future[None]) -> None:
            # The loop may be closed already when the process is on its way out; nobody waits then.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(done, future.exception())

        self._thread.submit(work).add_done_callback(finished)

    def close(self) -> None:
        """See `DiskWork`."""
        self._thread.shutdown()


def _fdatasync(fd: int) -> None:
    sync = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter
    sync(fd)


# -- Linux: include/uapi/linux/aio_abi.h, and the numbers of the calls on the machines we know --

_CALLS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}  # setup, destroy, submit, getevents
_FDSYNC, _TELL_EVENTFD = 3, 1


class _Iocb(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("resfd", ctypes.c_uint32),
    )


class _IoEvent(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("iocb", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class KernelSync:
    """The kernel's own queue for syncs; a thread for the rest."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """OSError, KeyError or AttributeError: not on this machine."""
        if sys.platform != "linux":
            raise OSError("Linux only")
        self._setup, self._destroy, self._submit, self._getevents = _CALLS[platform.machine()]
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._context = ctypes.c_ulong(0)
        if self._call(self._setup, 4, ctypes.byref(self._context)) != 0:
            raise _failure()
        self._loop = loop
        self._others = ThreadSync(loop)
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._iocb = _Iocb(opcode=_FDSYNC, flags=_TELL_EVENTFD, resfd=self._eventfd)
        self._iocbs = (ctypes.POINTER(_Iocb) * 1)(ctypes.pointer(self._iocb))
        self._found = _IoEvent()
        self._done: OnSynced | None = None
        loop.add_reader(self._eventfd, self._told)

    def sync(self, fd: int, done: OnSynced) -> None:
        """See `DiskWork`."""
        assert self._done is None, "one at a time"
        self._iocb.fd = fd
        if self._call(self._submit, self._context, ctypes.c_long(1), self._iocbs) == 1:
            self._done = done
        else:  # a kernel or a file system that cannot: the thread can
            self._others.sync(fd, done)

    def _told(self) -> None:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return
        found = self._call(
            self._getevents,
            self._context,
            ctypes.c_long(0),
            ctypes.c_long(1),
            ctypes.byref(self._found),
            None,
        )
        done, self._done = self._done, None
        if done is None:
            return
        if found != 1:
            done(_failure() if found < 0 else OSError("the kernel lost a sync"))
        elif self._found.result < 0:
            code = -self._found.result
            done(OSError(code, os.strerror(code)))
        else:
            done(None)

    def offload(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """See `DiskWork`."""
        self._others.offload(work, done)

    def close(self) -> None:
        """See `DiskWork`."""
        self._loop.remove_reader(self._eventfd)
        self._call(self._destroy, self._context)
        os.close(self._eventfd)
        self._others.close()


def _failure() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
