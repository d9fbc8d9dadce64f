"""Server processes of this machine: begin one, recognise it later, and end it with everything it began.

A server leads its own session and process group, and it and its descendants carry `FAREBOX_REPLICA_ID` in
their environment, so that they are found even when the leader is gone or its record was never finished. A pid
alone is never trusted: `process_mark` tells a process from a later one with the same number.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from core.log import get_logger
from serving.launch import Launch

MARKER = "FAREBOX_REPLICA_ID"
# Below what systems hand out by themselves (Linux: from 32768) and below the node ports of Kubernetes.
PORTS = range(20_000, 30_000)
_PORT_ATTEMPTS = 50
_NO_PID = 0
_POLL_S = 0.05
_KILL_PATIENCE_S = 5.0
_LOW_PRIORITY = 10  # nice(2): about a tenth of the CPU that others want too
_GONE = (psutil.NoSuchProcess, psutil.ZombieProcess, ProcessLookupError)
_log = get_logger(__name__)


@dataclass(slots=True)
class Server:
    """A server process, begun by us (`popen`) or found running (None)."""

    replica_id: str
    pid: int
    mark: str
    popen: subprocess.Popen[bytes] | None = None

    def ended(self) -> bool:
        """True once the leader is gone; reaps it when it is our child."""
        if self.popen is not None:
            return self.popen.poll() is not None
        return self.mark == "" or process_mark(self.pid) != self.mark

    @property
    def exit_code(self) -> int | None:
        """Status of an ended child (negative: the signal); None for one that was only found."""
        return None if self.popen is None else self.popen.returncode


def process_mark(pid: int) -> str:
    """What tells this process from another with the same pid; "" when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        # After the name, which may hold blanks and parentheses: state is field 3, start in ticks field 22.
        fields = text[text.rindex(")") + 2 :].split()
        if fields[0] in ("Z", "X", "x"):
            return ""
        return f"{_boot_id()}/{fields[19]}"
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    except (OSError, ValueError, IndexError):
        return ""
    try:  # a system without /proc
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"created/{process.create_time():.2f}"
    except psutil.Error:
        return ""


def _boot_id() -> str:
    # Ticks count from the boot: unlike a date they survive a clock that steps, but the boot must be named.
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment.

    Not one that the system gives to whoever asks for any: a server binds its port many seconds after it was chosen
    here, and until then every other program's connections and listeners take ports out of that range.
    """
    # Not the shared generator: who seeds that would get the same ports each time.
    for port in random.SystemRandom().sample(PORTS, min(_PORT_ATTEMPTS, len(PORTS))):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(launch: Launch, replica_id: str, log_path: Path) -> Server:
    """Begin the server; its output is appended to `log_path`. OSError when the program cannot be run."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    env = dict(launch.env) | {
        MARKER: replica_id,
        # Else a process that sets its title overwrites the marker where others read it (setproctitle does).
        "SPT_NOENV": "1",
    }
    # The server writes to the file itself (no pipe): it must live on when this process is killed.
    descriptor = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        popen = subprocess.Popen(
            launch.argv,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=launch.cwd,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    if launch.low_priority:
        with contextlib.suppress(OSError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, popen.pid, _LOW_PRIORITY)
    return Server(replica_id, popen.pid, process_mark(popen.pid), popen)


# --- finding --------------------------------------------------------------------------------------


def marked_processes() -> dict[str, set[int]]:
    """Pids by the replica id in their environment, for every process of this user (zombies have none)."""
    found: dict[str, set[int]] = {}
    for pid in psutil.pids():
        replica_id = _marker_of(pid)
        if replica_id and pid != os.getpid():
            found.setdefault(replica_id, set()).add(pid)
    return found


def _marker_of(pid: int) -> str:
    try:
        return psutil.Process(pid).environ().get(MARKER, "")
    except (psutil.Error, OSError):
        return ""


def members(replica_id: str, leader_pid: int, leader_mark: str) -> set[int]:
    """Every living process of the run: those with its marker, and those of its session.

    The session's number proves nothing by itself, since numbers are used again: the leader must be the very
    process that was recorded, or a member must carry the marker.
    """
    marked = marked_processes().get(replica_id, set())
    if leader_pid == _NO_PID or leader_pid == os.getsid(0):
        return marked
    ours = leader_mark != "" and process_mark(leader_pid) == leader_mark
    if ours or any(_session_of(pid) == leader_pid for pid in marked):
        return marked | {pid for pid in psutil.pids() if _session_of(pid) == leader_pid and process_mark(pid)}
    return marked


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def listens(pids: set[int], port: int) -> bool:
    """True when one of `pids` listens on the port, or when this system does not tell."""
    for pid in pids:
        try:
            connections = psutil.Process(pid).net_connections(kind="tcp")
        except _GONE:
            continue
        except (psutil.Error, OSError):
            return True
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                return True
    return False


# --- ending ---------------------------------------------------------------------------------------


def end(server: Server, grace_s: float) -> bool:
    """End the run: SIGTERM to its leader, then SIGKILL to what remains. Blocks; True when nothing is left.

    A run whose leader is gone has its other processes ended the same way.
    """
    if not server.ended():
        _signal(server.pid, server.mark, signal.SIGTERM)
    else:
        for pid in members(server.replica_id, server.pid, server.mark):
            _signal(pid, process_mark(pid), signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        if server.ended() and not members(server.replica_id, server.pid, server.mark):
            return True
        # An orderly leader ends its helpers itself; the wait for them is part of the same grace.
        time.sleep(_POLL_S)
    return _kill(server)


def end_marked(replica_id: str, grace_s: float) -> bool:
    """End every process with the marker of a run of which no leader is known."""
    return end(Server(replica_id, _NO_PID, ""), grace_s)


def _kill(server: Server) -> bool:
    deadline = time.monotonic() + _KILL_PATIENCE_S
    while time.monotonic() < deadline:
        # Again and again: a member may have forked between the listing and the signal.
        remaining = members(server.replica_id, server.pid, server.mark)
        for pid in remaining:
            _signal(pid, process_mark(pid), signal.SIGKILL)
        if server.ended() and not remaining:
            return True
        time.sleep(_POLL_S)
    _log.error("a model server cannot be ended", extra={"replica": server.replica_id, "pid": server.pid})
    return False


def _signal(pid: int, mark: str, number: signal.Signals) -> None:
    """Signal the process that has this pid and this mark, and no other that got the pid since."""
    if not mark:
        return
    try:
        descriptor = os.pidfd_open(pid)
    except AttributeError:  # not Linux: a moment in which the pid could change hands remains
        if process_mark(pid) == mark:
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        return
    except OSError:
        return
    try:
        # The descriptor holds on to one process: what is true of it now stays true until the signal.
        if process_mark(pid) == mark:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)
