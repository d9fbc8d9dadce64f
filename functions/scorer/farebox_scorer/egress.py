"""Without a way out: the process moves into a network namespace of its own, in which there is nothing but loopback.

A socket stays in the namespace that it was made in, so what was bound before still takes calls. Without privileges this
needs a user namespace too; with one, even root in the script has no way back. Source: network_namespaces(7),
user_namespaces(7), netdevice(7).
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys

NOT_POSSIBLE = 6  # exit status
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_SET_FLAGS, _UP_AND_RUNNING = 0x8914, 0x1 | 0x40


def close():
    """Do it. OSError: the system does not let us. Needs a process of one thread."""
    user, group = os.geteuid(), os.getegid()
    try:
        _unshare(_NEW_USER | _NEW_NET)
    except OSError:
        if user != 0:
            raise
        _unshare(_NEW_NET)  # where user namespaces are switched off, root needs none
    else:
        # Nobody else in there: files are ours as before.
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH22x", b"lo", _UP_AND_RUNNING))


def explain(error):
    """Say on stderr that it is not possible here; the platform looks for this line."""
    text = f"EgressNotRestricted: a process without network needs namespaces: {error}"
    print(text, file=sys.stderr, flush=True)


def _unshare(flags):
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        raise OSError("this system has no network namespaces")
    if libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _write(path, text):
    with open(path, "w") as file:
        file.write(text)
