"""What a running container burns, measured from outside before a migration (`ContainerLoad`, D3.3 section 2.1).

How often its memory is written decides between the methods. The kernel offers soft-dirty bits where it was built with
them; asking for them clears CRIU's own, and other kernels have nothing but "referenced", which counts reading. So
pages are *compared*: at five moments every page that a checkpoint would hold is read (/proc/PID/mem, about 3 GB/s, the
container runs on) and a 64-bit fingerprint of it kept. A page that changed between two moments was written. What this
misses: pages written with what they held, and pages written and put back in between; so it is a lower bound, and it is
just what a transfer of differences has to carry. Above 256 MiB every n-th page is looked at.

    load = await measure(pids, cgroup, rootfs, observe_s=0.5, cpu_limit_cores=1.0)
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from natwork_ray.adapters.container_cgroup import ContainerCgroup
from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.domain.values import value
from natwork_ray.errors import ConflictError, UsageError

PROC = Path("/proc")
PAGE = 4096
MOST_PAGES = 65_536
LOOKS = 5
_WORDS = PAGE // 8
_BLOCK_PAGES = 1024
_PRESENT, _FILE = np.uint64(1 << 63), np.uint64(1 << 61)
# Odd numbers: multiplying by one is a bijection, so any change of a single word changes the sum.
_WEIGHTS = (np.random.default_rng(3).integers(0, 2**63, _WORDS, dtype=np.uint64) << np.uint64(1)) | np.uint64(1)

Pages = dict[tuple[int, int], int]


@value
class Memory:
    """What five looks at a container's memory tell.

    Attributes:
        held_bytes: pages that a checkpoint holds: present, and not to be read from a file again.
        written_bytes: sum over the intervals of what changed within each; distinct_bytes: what changed at least once.
    """

    held_bytes: float
    written_bytes: float
    distinct_bytes: float


def fingerprints(data: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One 64-bit number per page; `data` has shape (pages, 512)."""
    return np.asarray((data * _WEIGHTS).sum(axis=1, dtype=np.uint64))


def compare(looks: Sequence[Pages], *, every: int) -> tuple[float, float]:
    """(bytes written, summed over the intervals; bytes of distinct pages written) from looks at every n-th page.

    A page that is new was written; one that is gone was not.
    """
    changed: list[set[tuple[int, int]]] = []
    for before, after in pairwise(looks):
        changed.append({page for page, mark in after.items() if before.get(page) != mark})
    distinct = len(set().union(*changed)) if changed else 0
    return float(PAGE * every * sum(map(len, changed))), float(PAGE * every * distinct)


def held_pages(pid: int) -> npt.NDArray[np.int64]:
    """Numbers of the virtual pages of a process that a checkpoint holds, ascending; none when it has ended."""
    found: list[npt.NDArray[np.int64]] = []
    try:
        lines = (PROC / str(pid) / "maps").read_text(encoding="utf-8", errors="replace").splitlines()
        with (PROC / str(pid) / "pagemap").open("rb", buffering=0) as pagemap:
            for line in lines:
                words = line.split(None, 5)
                begin, _, end = words[0].partition("-")
                if len(words) == 6 and words[5] in ("[vsyscall]", "[vvar]", "[vdso]", "[vvar_vclock]"):
                    continue
                first, last = int(begin, 16) // PAGE, int(end, 16) // PAGE
                entries = np.frombuffer(os.pread(pagemap.fileno(), 8 * (last - first), 8 * first), dtype=np.uint64)
                here = (entries & _PRESENT != 0) & (entries & _FILE == 0)
                found.append(np.flatnonzero(here).astype(np.int64) + first)
    except (FileNotFoundError, ProcessLookupError):
        return np.empty(0, dtype=np.int64)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def look(pids: Sequence[int], *, every: int) -> tuple[Pages, int]:
    """Fingerprints of every n-th page held, by (process, page), and how many pages are held in all."""
    seen: Pages = {}
    held = 0
    buffer = np.empty((_BLOCK_PAGES, _WORDS), dtype=np.uint64)
    for pid in pids:
        pages = held_pages(pid)
        held += len(pages)
        pages = pages[pages % every == 0]
        # Runs of neighbours are read at once.
        for run in np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1) if len(pages) else ():
            for start in range(0, len(run), _BLOCK_PAGES):
                part = run[start : start + _BLOCK_PAGES]
                count = _read(pid, int(part[0]), buffer[: len(part)])
                marks = fingerprints(buffer[:count])
                seen.update(zip(((pid, int(page)) for page in part[:count]), marks.tolist(), strict=True))
    return seen, held


def _read(pid: int, page: int, into: npt.NDArray[np.uint64]) -> int:
    """Read pages of a process; how many were to be had."""
    try:
        with (PROC / str(pid) / "mem").open("rb", buffering=0) as memory:
            return os.preadv(memory.fileno(), [into.data], page * PAGE) // PAGE
    except (OSError, ValueError):
        return 0  # unmapped meanwhile, or ended


def disk_bytes(folder: Path) -> float:
    """What the files below a folder take on disk; links are not followed, hard links counted once."""
    total, seen = 0, set()
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                told = Path(root, name).lstat()
            except OSError:
                continue
            if told.st_nlink == 1 or told.st_ino not in seen:
                seen.add(told.st_ino)
                total += told.st_blocks * 512
    return float(total)


def traffic_bytes(pid: int) -> tuple[int, int]:
    """Bytes received and sent so far by the links of the process's network namespace, without the loopback."""
    received = sent = 0
    try:
        lines = (PROC / str(pid) / "net/dev").read_text(encoding="ascii").splitlines()[2:]
    except OSError:
        return 0, 0
    for line in lines:
        name, _, counts = line.partition(":")
        words = counts.split()
        if name.strip() != "lo" and len(words) >= 9:
            received, sent = received + int(words[0]), sent + int(words[8])
    return received, sent


async def measure(
    pids: Sequence[int], cgroup: ContainerCgroup, rootfs: Path, *, observe_s: float, cpu_limit_cores: float
) -> ContainerLoad:
    """Observe a container for `observe_s` seconds; what belongs to a path is left 0.

    Where nobody counts writes to disks, what the volume grew by is taken.

    Raises:
        UsageError: `observe_s` is not positive.
        ConflictError: it has ended.
    """
    if not 0 < observe_s <= 3600:
        raise UsageError(f"observe_s = {observe_s}", hint="seconds, more than 0")
    if not pids:
        raise ConflictError("no process to observe", hint="does the container run?")
    volume = await asyncio.to_thread(disk_bytes, rootfs)
    every = max(1, -(-sum(len(held_pages(pid)) for pid in pids) // MOST_PAGES))
    cpu, disk, net = cgroup.cpu_s(), cgroup.written_bytes(), traffic_bytes(pids[0])
    began = time.monotonic()
    looks: list[Pages] = []
    held = 0
    for number in range(LOOKS):
        # Moments are kept by the clock: a look at much memory takes a while.
        await asyncio.sleep(max(0.0, began + observe_s * number / (LOOKS - 1) - time.monotonic()))
        pages, held = await asyncio.to_thread(look, pids, every=every)
        looks.append(pages)
    took = time.monotonic() - began
    written, distinct = compare(looks, every=every)
    cpu_end, disk_end, net_end = cgroup.cpu_s(), cgroup.written_bytes(), traffic_bytes(pids[0])
    if disk is not None and disk_end is not None:
        disk_rate = (disk_end - disk) / took
    else:
        disk_rate = (await asyncio.to_thread(disk_bytes, rootfs) - volume) / took
    memory = float(held * PAGE)
    return ContainerLoad(
        memory_bytes=memory,
        dirty_bytes_per_s=written / took,
        working_set_bytes=min(distinct, memory),
        cpu_cores=max(0.0, cpu_end - cpu) / took,
        cpu_limit_cores=cpu_limit_cores,
        volume_bytes=volume,
        volume_delta_bytes=volume,
        volume_write_bytes_per_s=max(0.0, disk_rate),
        network_rx_bytes_per_s=max(0, net_end[0] - net[0]) / took,
        network_tx_bytes_per_s=max(0, net_end[1] - net[1]) / took,
        bandwidth_bytes_per_s=0.0,
        rtt_s=0.0,
        observed_s=took,
    )
