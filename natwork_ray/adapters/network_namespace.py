"""Network namespaces with a name, as `ip netns` keeps them, without starting a program for each.

A namespace belongs to a thread; so whatever is done in one is done by a thread that ends with it, and the rest of the
process never leaves its own. The name is a file that the namespace is bind-mounted on. A file that is none, left by
whoever died between making and mounting it, counts as absent.

Left out: the folder of the names itself, which `ip netns add` makes with the testbed's first node.

    make(Path("/run/netns/nw3f9a-node-0-web"))
    inside(Path("/run/netns/nw3f9a-node-0-web"), socket.if_nameindex)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_CLONE_NEWNET, _MS_BIND, _MNT_DETACH = 0x40000000, 0x1000, 2
_OWN = Path("/proc/thread-self/ns/net")


def is_namespace(path: Path) -> bool:
    """Whether a namespace is mounted there."""
    try:
        return path.stat().st_dev == _OWN.stat().st_dev
    except OSError:
        return False


def make(path: Path) -> None:
    """A new namespace of that name, in which nothing is up; harmless when there is one.

    Raises:
        OSError: the kernel refused; nothing is left.
    """
    if is_namespace(path):
        return
    path.unlink(missing_ok=True)

    def work() -> None:
        path.touch(mode=0o444, exist_ok=False)
        try:
            _call("unshare", _CLONE_NEWNET)
            _call("mount", os.fsencode(_OWN), os.fsencode(path), b"none", ctypes.c_ulong(_MS_BIND), None)
        except OSError:
            path.unlink()
            raise

    _apart(work)


def delete(path: Path) -> None:
    """Take the name away; the namespace ends with the last process in it. Harmless when there is none.

    Raises:
        OSError: the kernel refused.
    """
    if is_namespace(path):
        _call("umount2", os.fsencode(path), _MNT_DETACH)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def inside(path: Path, work: Callable[[], T]) -> T:
    """What `work` returns, called in a namespace. Sockets that it opens stay there.

    Raises:
        OSError: there is no such namespace, or entering it was refused.
    """

    def entered() -> T:
        with path.open("rb") as stream:
            _call("setns", stream.fileno(), _CLONE_NEWNET)
        return work()

    return _apart(entered)


def _apart(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1, thread_name_prefix="network-namespace") as thread:
        return thread.submit(work).result()


def _call(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
