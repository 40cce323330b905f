"""CRIU's images of a process's memory: which pages a checkpoint holds, leaves to a page server, or takes from a parent.

`pagemap-ID.img` is two magic numbers and then protobuf messages with a length before each: a head that names
`pages-N.img`, and runs of pages with flags (criu's `images/pagemap.proto`). The other file has the raw pages of all
runs that are present, in the same order. Four integers per run do not deserve a schema compiler; what is read is
bounded, and what CRIU 4 does not write is refused, since it would be lost when the image is written again.

    >>> runs = (PageRun(0x1000, 8, LAZY),)
    >>> [(run.pages, run.flags) for run in mark(runs, [(0x2000, 0x4000)], PRESENT)]
    [(1, 2), (2, 4), (5, 2)]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from natwork_ray.adapters.criu_files import varint
from natwork_ray.errors import InputError

PAGE = 4096
PARENT, LAZY, PRESENT = 1, 2, 4
MAX_PAGEMAP = 64 * 2**20
_MAGIC = (0x54564319).to_bytes(4, "little") + (0x56084025).to_bytes(4, "little")
_HINT = "pagemap-*.img as criu 4 writes it"
# Numbers of the fields of a run. In 4.2, the 32-bit count of older versions is zero, and `inherited` is a flag.
_START, _PAGES_32, _INHERITED, _FLAGS, _PAGES = 1, 2, 3, 4, 5
_WANTED, _KNOWN = {_START, _FLAGS}, {_START, _PAGES_32, _INHERITED, _FLAGS, _PAGES}

Ranges = Sequence[tuple[int, int]]
"""Addresses: the first one and the one after the last; multiples of the page size, in order, without overlaps."""


@dataclass(frozen=True)
class PageRun:
    """Neighbouring pages: address of the first, how many, and CRIU's flags."""

    start: int
    pages: int
    flags: int

    @property
    def end(self) -> int:
        """The address after the last page."""
        return self.start + self.pages * PAGE


def parse(data: bytes) -> tuple[int, tuple[PageRun, ...]]:
    """Number of the file of pages, and the runs in order.

    Raises:
        InputError: it is no pagemap image, is cut off, or holds what CRIU 4 does not write.
    """
    if data[: len(_MAGIC)] != _MAGIC or len(data) > MAX_PAGEMAP:
        raise InputError("not a pagemap image", hint=_HINT)
    messages = [dict(_fields(message)) for message in _messages(data, len(_MAGIC))]
    if not messages or set(messages[0]) != {1}:
        raise InputError("a pagemap image without a head", hint=_HINT)
    runs: list[PageRun] = []
    for fields in messages[1:]:
        if not _WANTED <= set(fields) <= _KNOWN:
            raise InputError(f"a pagemap entry with the fields {sorted(fields)}", hint=_HINT)
        flags = fields[_FLAGS] | (PARENT if fields.get(_INHERITED) else 0)
        run = PageRun(fields[_START], fields.get(_PAGES) or fields.get(_PAGES_32, 0), flags)
        if run.start % PAGE or run.end >= 2**63 or (runs and run.start < runs[-1].end):
            raise InputError(f"a pagemap entry at {run.start:#x} that cannot be there", hint=_HINT)
        runs.append(run)
    return messages[0][1], tuple(runs)


def read(path: Path) -> tuple[int, tuple[PageRun, ...]]:
    """The same, of a file.

    Raises:
        InputError: see `parse`.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return parse(stream.read(MAX_PAGEMAP + 1))


def build(number: int, runs: Iterable[PageRun]) -> bytes:
    """The image of a number and runs."""
    parts = [_MAGIC, _message([(1, number)])]
    parts += [_message([(_START, run.start), (_PAGES_32, 0), (_FLAGS, run.flags), (_PAGES, run.pages)]) for run in runs]
    return b"".join(parts)


def mark(runs: Iterable[PageRun], ranges: Ranges, flags: int) -> Iterator[PageRun]:
    """The runs, with other flags on what is lazy and lies in the ranges; runs are cut at their borders."""
    waiting = list(reversed(ranges))
    for run in runs:
        if run.flags != LAZY:
            yield run
            continue
        at = run.start
        while waiting and at < run.end:
            begin, end = max(waiting[-1][0], at), min(waiting[-1][1], run.end)
            if waiting[-1][1] <= at:
                waiting.pop()
                continue
            if begin >= run.end:
                break
            if begin > at:
                yield PageRun(at, (begin - at) // PAGE, LAZY)
            yield PageRun(begin, (end - begin) // PAGE, flags)
            at = end
        if at < run.end:
            yield PageRun(at, (run.end - at) // PAGE, LAZY)


def offsets(runs: Iterable[PageRun]) -> dict[int, int]:
    """Where in the file of pages each run that is present begins, by its address."""
    found, offset = {}, 0
    for run in runs:
        if run.flags & PRESENT:
            found[run.start] = offset
            offset += run.pages * PAGE
    return found


def _messages(data: bytes, at: int) -> Iterator[bytes]:
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if at + size > len(data):
            raise InputError("a pagemap image is cut off", hint="the disk may be full")
        yield data[at : at + size]
        at += size


def _fields(data: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        if tag & 7:
            raise InputError(f"a pagemap entry with a field of wire type {tag & 7}", hint=_HINT)
        number, at = varint(data, at)
        yield tag >> 3, number


def _message(fields: Iterable[tuple[int, int]]) -> bytes:
    body = b"".join(_number(field << 3) + _number(number) for field, number in fields)
    return len(body).to_bytes(4, "little") + body


def _number(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
