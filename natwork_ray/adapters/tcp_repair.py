"""TCP sockets that a killed CRIU has left in repair mode are put back to work.

While CRIU reads a connection, its socket is in repair mode (tcp(7), TCP_REPAIR): it neither sends nor answers, and
what its owner writes fails. CRIU killed in that moment leaves it so, and a container that goes on then loses its
connections, which was seen in one of ten kills. The mode belongs to the socket, so whoever gets hold of a copy of the
descriptor (`pidfd_getfd`) can end it.

    end_repair((1234, 1235))
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
_PIDFD_GETFD = 438  # the same on every architecture
_TCP_REPAIR, _OFF = 19, 0


def end_repair(pids: Iterable[int]) -> int:
    """End the repair mode of all TCP sockets of these processes; how many were in it."""
    ended = 0
    for pid in pids:
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            for number in _sockets(pid):
                ended += _end(process, number)
        finally:
            os.close(process)
    return ended


def _sockets(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for entry in (PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(entry.readlink()).startswith("socket:"):
                    found.append(int(entry.name))
    return found


def _end(process: int, number: int) -> int:
    copy = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, number, 0)
    if copy < 0:
        return 0  # closed meanwhile
    try:
        kept = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return 0
    with kept:
        if kept.family not in (socket.AF_INET, socket.AF_INET6) or kept.type != socket.SOCK_STREAM:
            return 0
        try:
            if kept.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR) == 0:
                return 0
            kept.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _OFF)
        except OSError:
            return 0  # another protocol of that family
        return 1
