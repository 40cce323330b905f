"""The last dump of a hybrid migration, reduced to its difference to the round before (D3.3 section 2.1).

Where the kernel tracks dirty pages, CRIU itself leaves out what the round before has. Elsewhere a lazy dump would leave
*all* memory to its page server, although the target has nearly all of it since the round of pre-copy; after the
restore each page that the program touches would be fetched again, hundreds one after the other, before the first
replies go out. So here the frozen processes' memory is compared with the checkpoint of the round, byte by byte:

- a page that is equal is marked as the parent's: the target has it, verified by digest when the round arrived;
- of the others, up to `MOST_EAGER_BYTES` travel with the checkpoint, shortest runs first: a program that has served
  requests since has written to a page here and there, and needs just those at once;
- the rest stays lazy, as do pages beyond `MOST_COMPARED_BYTES`: comparing them, and reading them back at the restore,
  would make the downtime grow with the container, which is what lazy pages are there to avoid.

`unchanged` runs while CRIU dumps: the cgroup is frozen before, so that no program writes in between. What CRIU's own
code writes into the processes lies in mappings that a dump does not see, or is put back; a page that is caught
meanwhile counts as changed. CRIU's page server keeps all pages; that it is asked for fewer is no matter to it.

    same = unchanged(processes, parent, most_bytes=MOST_COMPARED_BYTES)      # while the dump is under way
    reduce(images, parent.name, processes, same, most_eager_bytes=MOST_EAGER_BYTES)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from natwork_ray.adapters.criu_pagemap import (
    LAZY,
    PAGE,
    PARENT,
    PRESENT,
    PageRun,
    Ranges,
    build,
    mark,
    offsets,
    read,
)
from natwork_ray.domain.values import value
from natwork_ray.errors import ActionError

MOST_COMPARED_BYTES = 128 * 2**20
MOST_EAGER_BYTES = 4 * 2**20
PARENT_LINK = "parent"  # CRIU's own name for it
_BLOCK_PAGES = 256  # few calls: each may wait for the interpreter, which another thread holds
_BLOCK_BYTES = _BLOCK_PAGES * PAGE
_PROC = Path("/proc")


@value
class Reduced:
    """Where the bytes are that a lazy dump had left to its page server: in the parent, in the checkpoint, or there."""

    inherited_bytes: int = 0
    eager_bytes: int = 0
    lazy_bytes: int = 0


def numbers_inside(pids: Iterable[int], proc: Path = _PROC) -> dict[int, int]:
    """Number that a process has in its own process namespace, by which images are named: its number here.

    Raises:
        ActionError: one of them has ended.
    """
    found = {}
    for pid in pids:
        try:
            status = (proc / str(pid) / "status").read_text(encoding="ascii", errors="replace")
        except OSError as error:
            raise ActionError(f"process {pid} has ended", hint="the container is not as it was frozen") from error
        match = re.search(r"^NSpid:\t(?:\d+\t)*(\d+)$", status, re.MULTILINE)
        if match:
            found[int(match[1])] = pid
    return found


def unchanged(processes: Mapping[int, int], parent: Path, *, most_bytes: int, proc: Path = _PROC) -> dict[int, Ranges]:
    """Pages of frozen processes that are in an earlier checkpoint as they are now, by the number in the image.

    Args:
        processes: what `numbers_inside` tells.
        most_bytes: how much is compared, of all processes together; the shortest runs come first.

    Raises:
        InputError: an image is not as CRIU 4 writes it.
        ActionError: the checkpoint cannot be read.
    """
    waiting: list[tuple[int, int, PageRun, Path, int]] = []
    found: dict[int, list[tuple[int, int]]] = {}
    try:
        for inside in processes:
            path = parent / f"pagemap-{inside}.img"
            if path.exists():  # else it began after that round
                number, runs = read(path)
                at = offsets(runs)
                waiting += [
                    (run.pages, inside, run, parent / f"pages-{number}.img", at[run.start])
                    for run in runs
                    if run.flags & PRESENT
                ]
        left = most_bytes
        for pages, inside, run, file, offset in sorted(waiting, key=lambda item: (item[0], item[1], item[2].start)):
            left -= pages * PAGE
            if left < 0:
                break
            with file.open("rb", buffering=0) as before:
                found.setdefault(inside, []).extend(_equal(processes[inside], run, before.fileno(), offset, proc))
    except OSError as error:
        raise ActionError(f"{parent} cannot be compared: {error}", hint="was the round deleted?") from error
    return {inside: _joined(sorted(ranges)) for inside, ranges in found.items()}


def reduce(
    folder: Path,
    parent: str,
    processes: Mapping[int, int],
    same: Mapping[int, Ranges],
    *,
    most_eager_bytes: int,
    proc: Path = _PROC,
) -> Reduced:
    """Make a lazy checkpoint of frozen processes inherit from the set `parent` beside it what is the same there.

    Raises:
        InputError: an image is not as CRIU 4 writes it.
        ActionError: memory cannot be read, or the disk refused; the checkpoint is not to be used.
    """
    try:
        images = {}
        for inside in processes:
            path = folder / f"pagemap-{inside}.img"
            if path.exists():  # else it has its memory from another one
                number, runs = read(path)
                images[inside] = (number, runs, tuple(mark(runs, same.get(inside, ()), PARENT)))
        eager = _shortest({inside: runs for inside, (_, _, runs) in images.items()}, most_eager_bytes)
        counted = {PARENT: 0, LAZY: 0}
        moved = 0
        for inside, (number, old, runs) in images.items():
            chosen = eager.get(inside, [])
            new = tuple(mark(runs, sorted(chosen), PRESENT))
            if chosen:
                _write_pages(folder / f"pages-{number}.img", processes[inside], old, new, proc)
            _put(folder / f"pagemap-{inside}.img", build(number, new))
            moved += sum(end - begin for begin, end in chosen)
            for flag in counted:
                counted[flag] += sum(run.end - run.start for run in new if run.flags == flag)
        (folder / PARENT_LINK).symlink_to(Path("..", parent))
    except OSError as error:
        raise ActionError(f"{folder}: {error}", hint="is the disk full?") from error
    return Reduced(inherited_bytes=counted[PARENT], eager_bytes=moved, lazy_bytes=counted[LAZY])


def _equal(pid: int, run: PageRun, before: int, offset: int, proc: Path) -> Iterator[tuple[int, int]]:
    """Ranges of a run that a process's memory holds as a file does. What is not mapped any more is not equal."""
    now, then = np.empty((2, _BLOCK_PAGES, PAGE // 8), dtype=np.uint64)
    with (proc / str(pid) / "mem").open("rb", buffering=0) as memory:
        for at in range(run.start, run.end, _BLOCK_BYTES):
            pages = min(run.end - at, _BLOCK_BYTES) // PAGE
            try:
                size = os.preadv(memory.fileno(), [now[:pages].data], at)
            except OSError:
                continue
            size = min(size, os.preadv(before, [then[:pages].data], offset + at - run.start))
            same = (now[: size // PAGE] == then[: size // PAGE]).all(axis=1)
            edges = np.flatnonzero(np.diff(same, prepend=False, append=False))
            for begin, end in edges.reshape(-1, 2).tolist():
                yield at + begin * PAGE, at + end * PAGE


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    found: list[tuple[int, int]] = []
    for begin, end in ranges:
        if found and found[-1][1] == begin:
            begin = found.pop()[0]
        found.append((begin, end))
    return found


def _shortest(images: Mapping[int, Iterable[PageRun]], most_bytes: int) -> dict[int, list[tuple[int, int]]]:
    """The shortest lazy runs of all processes that have room together."""
    lazy = sorted(
        (run.pages, inside, run.start) for inside, runs in images.items() for run in runs if run.flags == LAZY
    )
    chosen: dict[int, list[tuple[int, int]]] = {}
    for pages, inside, start in lazy:
        most_bytes -= pages * PAGE
        if most_bytes < 0:
            break
        chosen.setdefault(inside, []).append((start, start + pages * PAGE))
    return chosen


def _write_pages(path: Path, pid: int, old: Iterable[PageRun], new: Iterable[PageRun], proc: Path) -> None:
    """Write the file of pages anew: what was in it, and what has become present, in the order of the runs."""
    there = offsets(old)
    part = path.with_name(f".{path.name}")
    with (
        path.open("rb") as before,
        (proc / str(pid) / "mem").open("rb", buffering=0) as memory,
        part.open("xb") as into,
    ):
        for run in new:
            if run.flags & PRESENT:
                source, at = (before, there[run.start]) if run.start in there else (memory, run.start)
                source.seek(at)
                data = source.read(run.end - run.start)
                if data is None or len(data) != run.end - run.start:
                    raise ActionError(f"{path}: pages at {run.start:#x} are missing", hint="roll back")
                into.write(data)
    part.replace(path)


def _put(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}")
    part.write_bytes(data)
    part.replace(path)
