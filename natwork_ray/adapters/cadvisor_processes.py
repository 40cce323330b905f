"""What /proc tells of a container's processes: what cgroups do not count, and everything of a process without one.

Counters must not go back when a child ends, or the next rate would be taken for a restart. So the processor time of a
family includes that of children it has waited for, as the kernel's I/O counters do by themselves.

Left out: traffic of a process that shares the exporter's network namespace. It would be everybody's.

    >>> look(family_of(4711))
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from natwork_ray.adapters.testbed_state import started_ticks
from natwork_ray.domain.values import value

PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
# Read once: it follows corrections of the machine's clock, and a container that seems to begin anew seems restarted.
_BOOTED_S = psutil.boot_time()
_MAX_DESCRIPTORS = 100_000


@value
class InterfaceCounts:
    """Of one interface of a network namespace."""

    interface: str
    rx_bytes: float
    rx_packets: float
    rx_errors: float
    rx_dropped: float
    tx_bytes: float
    tx_packets: float
    tx_errors: float
    tx_dropped: float


@value
class ProcessCounts:
    """Sums over the processes that could be looked at.

    Attributes:
        started_s: when the oldest of them began, seconds since the epoch.
        read_bytes, written_bytes: from and to disks, None where the kernel refuses to tell.
        descriptors, sockets: None where they may not be looked at.
    """

    processes: int
    threads: int
    started_s: float
    cpu_user_s: float
    cpu_system_s: float
    rss_bytes: float
    vsize_bytes: float
    read_bytes: float | None
    written_bytes: float | None
    descriptors: int | None
    sockets: int | None


def family_of(pid: int) -> tuple[int, ...]:
    """A process and what descends from it; empty when it has ended."""
    try:
        first = psutil.Process(pid)
        if first.status() == psutil.STATUS_ZOMBIE:
            return ()
        return (pid, *(child.pid for child in first.children(recursive=True)))
    except psutil.NoSuchProcess:
        return ()


def look(pids: Iterable[int]) -> ProcessCounts | None:
    """One look at processes; None when none of them lives."""
    seen = threads = 0
    started = float("inf")
    user = system = rss = vsize = 0.0
    disk: list[tuple[int, int]] | None = []
    handles: list[tuple[int, int]] | None = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info()
                count = process.num_threads()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        ticks = started_ticks(pid)
        if ticks is None:
            continue
        seen, threads = seen + 1, threads + count
        started = min(started, _BOOTED_S + ticks / _TICKS)
        user += times.user + times.children_user
        system += times.system + times.children_system
        rss, vsize = rss + memory.rss, vsize + memory.vms
        disk = _added(disk, _disk(process))
        handles = _added(handles, _handles(pid))
    if not seen:
        return None
    return ProcessCounts(
        processes=seen,
        threads=threads,
        started_s=started,
        cpu_user_s=user,
        cpu_system_s=system,
        rss_bytes=rss,
        vsize_bytes=vsize,
        read_bytes=None if disk is None else float(sum(read for read, _ in disk)),
        written_bytes=None if disk is None else float(sum(written for _, written in disk)),
        descriptors=None if handles is None else sum(count for count, _ in handles),
        sockets=None if handles is None else sum(sockets for _, sockets in handles),
    )


def own_network(pid: int) -> bool:
    """Whether the process has a network namespace other than ours."""
    try:
        return (PROC / str(pid) / "ns/net").readlink() != (PROC / "self/ns/net").readlink()
    except OSError:
        return False


def interfaces(pid: int) -> tuple[InterfaceCounts, ...]:
    """The interfaces of a process's network namespace, without the loopback; empty when it cannot be read."""
    try:
        lines = (PROC / str(pid) / "net/dev").read_text(encoding="ascii", errors="replace").splitlines()[2:]
    except OSError:
        return ()
    found = []
    for line in lines:
        name, _, counts = line.partition(":")
        words = counts.split()
        if name.strip() == "lo" or len(words) < 12 or not all(word.isdigit() for word in words[:12]):
            continue
        rx, tx = [float(word) for word in words[:4]], [float(word) for word in words[8:12]]
        found.append(
            InterfaceCounts(
                interface=name.strip(),
                rx_bytes=rx[0],
                rx_packets=rx[1],
                rx_errors=rx[2],
                rx_dropped=rx[3],
                tx_bytes=tx[0],
                tx_packets=tx[1],
                tx_errors=tx[2],
                tx_dropped=tx[3],
            )
        )
    return tuple(found)


def _added(sums: list[tuple[int, int]] | None, more: tuple[int, int] | None) -> list[tuple[int, int]] | None:
    # A sum without one of its parts would go back when that part's owner can be looked at again.
    return None if sums is None or more is None else [*sums, more]


def _disk(process: psutil.Process) -> tuple[int, int] | None:
    try:
        counts = process.io_counters()
    except psutil.NoSuchProcess:
        return 0, 0
    except (psutil.AccessDenied, NotImplementedError):
        return None
    return counts.read_bytes, counts.write_bytes


def _handles(pid: int) -> tuple[int, int] | None:
    """Open descriptors and, of these, sockets."""
    count = sockets = 0
    try:
        for entry in (PROC / str(pid) / "fd").iterdir():
            count += 1
            if count > _MAX_DESCRIPTORS:
                break
            try:
                sockets += str(entry.readlink()).startswith("socket:")
            except FileNotFoundError:
                count -= 1  # closed just now
    except PermissionError:
        return None
    except OSError:
        return 0, 0
    return count, sockets


def first_of(pids: Sequence[int]) -> int | None:
    """The process that began first; None when none lives."""
    living = [(ticks, pid) for pid in pids if (ticks := started_ticks(pid)) is not None]
    return min(living)[1] if living else None
