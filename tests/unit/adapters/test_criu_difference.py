"""The difference of a lazy dump to the round before: what is restored from it is the frozen memory, to the byte."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natwork_ray.adapters import criu_difference
from natwork_ray.adapters.criu_difference import Reduced, numbers_inside, reduce, unchanged
from natwork_ray.adapters.criu_pagemap import LAZY, PAGE, PARENT, PRESENT, PageRun, build, offsets, read
from natwork_ray.errors import ActionError, InputError

PLENTY = 2**30
INSIDE, PID = 1, 4711
CONTENTS = [bytes([i]) * PAGE for i in range(4)]


def page(content: int, number: int) -> bytes:
    """A page that differs from others of its kind in its last byte only."""
    return CONTENTS[content][:-1] + bytes([number % 250])


@dataclass
class Frozen:
    """A frozen process's memory in a folder that looks like /proc, the round before, and a lazy dump."""

    root: Path

    def __post_init__(self) -> None:
        for name in ("proc", "pre-1", "final"):
            (self.root / name).mkdir(parents=True)

    @property
    def proc(self) -> Path:
        return self.root / "proc"

    def remembers(self, memory: dict[int, bytes], pid: int = PID) -> None:
        """The process holds these pages, by number."""
        (self.proc / str(pid)).mkdir(exist_ok=True)
        with (self.proc / str(pid) / "mem").open("wb") as stream:
            for number, data in memory.items():
                stream.seek(number * PAGE)
                stream.write(data)

    def image(self, name: str, pages: dict[int, bytes], lazy: set[int], inside: int = INSIDE) -> None:
        """An image set, in which a run ends where CRIU would end it: at a gap, and where the flags change."""
        runs: list[PageRun] = []
        for number in sorted(pages):
            flags = LAZY if number in lazy else PRESENT
            if runs and runs[-1].end == number * PAGE and runs[-1].flags == flags:
                runs[-1] = PageRun(runs[-1].start, runs[-1].pages + 1, flags)
            else:
                runs.append(PageRun(number * PAGE, 1, flags))
        present = b"".join(pages[number] for number in sorted(pages) if number not in lazy)
        (self.root / name / f"pagemap-{inside}.img").write_bytes(build(inside, runs))
        (self.root / name / f"pages-{inside}.img").write_bytes(present)

    def restored(self, served: dict[int, bytes], inside: int = INSIDE) -> dict[int, bytes]:
        """What a restore would give: its own pages, the parent's, and those that the page server has."""
        found: dict[int, bytes] = {}
        number, runs = read(self.root / "final" / f"pagemap-{inside}.img")
        own = (self.root / "final" / f"pages-{number}.img").read_bytes()
        at = offsets(runs)
        parent_number, before = read(self.root / "pre-1" / f"pagemap-{inside}.img")
        old = (self.root / "pre-1" / f"pages-{parent_number}.img").read_bytes()
        theirs = {
            run.start // PAGE + i: old[offset + i * PAGE : offset + (i + 1) * PAGE]
            for run, offset in ((run, offsets(before)[run.start]) for run in before)
            for i in range(run.pages)
        }
        for run in runs:
            for i in range(run.pages):
                place = run.start // PAGE + i
                if run.flags == PRESENT:
                    found[place] = own[at[run.start] + i * PAGE : at[run.start] + (i + 1) * PAGE]
                else:
                    found[place] = theirs[place] if run.flags == PARENT else served[place]
        return found

    def reduced(
        self, *, compared: int = PLENTY, eager: int = PLENTY, processes: dict[int, int] | None = None
    ) -> Reduced:
        processes = processes or {INSIDE: PID}
        same = unchanged(processes, self.root / "pre-1", most_bytes=compared, proc=self.proc)
        return reduce(self.root / "final", "pre-1", processes, same, most_eager_bytes=eager, proc=self.proc)


@pytest.fixture
def frozen(tmp_path: Path) -> Frozen:
    return Frozen(tmp_path)


PAGES = st.dictionaries(st.integers(0, 30), st.integers(0, 3), max_size=25)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=PAGES, now=PAGES, lazy=st.sets(st.integers(0, 30)),
    compared=st.integers(0, 30), eager=st.integers(0, 30), block=st.sampled_from([1, 3, 128]),
)  # fmt: skip
def test_what_is_restored_is_the_frozen_memory(
    tmp_path_factory: pytest.TempPathFactory,
    before: dict[int, int],
    now: dict[int, int],
    lazy: set[int],
    compared: int,
    eager: int,
    block: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(criu_difference, "_BLOCK_PAGES", block)
        patch.setattr(criu_difference, "_BLOCK_BYTES", block * PAGE)
        frozen = Frozen(tmp_path_factory.mktemp("frozen"))
        memory = {number: page(content, number) for number, content in now.items()}
        frozen.remembers(memory)
        frozen.image("pre-1", {number: page(content, number) for number, content in before.items()}, set())
        frozen.image("final", memory, lazy)
        report = frozen.reduced(compared=compared * PAGE, eager=eager * PAGE)
    assert frozen.restored(memory) == memory
    assert report.eager_bytes <= eager * PAGE
    assert report.inherited_bytes <= compared * PAGE
    left = report.inherited_bytes + report.eager_bytes + report.lazy_bytes
    assert left == PAGE * len(lazy & set(now))


def test_equal_pages_are_the_parents_and_changed_ones_travel(frozen: Frozen) -> None:
    before = {number: page(1, number) for number in range(40)}
    now = before | {7: page(2, 7), 8: page(2, 8), 39: page(3, 39)}
    frozen.remembers(now)
    frozen.image("pre-1", before, set())
    frozen.image("final", now, set(now) - {0})
    assert frozen.reduced() == Reduced(inherited_bytes=36 * PAGE, eager_bytes=3 * PAGE)
    assert (frozen.root / "final" / "parent").readlink() == Path("../pre-1")
    _, runs = read(frozen.root / "final" / "pagemap-1.img")
    assert [(run.pages, run.flags) for run in runs] == [
        (1, PRESENT), (6, PARENT), (2, PRESENT), (30, PARENT), (1, PRESENT),
    ]  # fmt: skip
    assert sorted(path.name for path in (frozen.root / "final").iterdir()) == ["pagemap-1.img", "pages-1.img", "parent"]


def test_the_shortest_runs_travel_first_and_the_rest_stays_lazy(frozen: Frozen) -> None:
    now = {number: page(1, number) for number in (*range(10), 20, 30, 31)}
    frozen.remembers(now)
    frozen.image("pre-1", {}, set())
    frozen.image("final", now, set(now))
    assert frozen.reduced(eager=4 * PAGE) == Reduced(eager_bytes=3 * PAGE, lazy_bytes=10 * PAGE)
    assert frozen.restored(now) == now


def test_memory_that_ends_early_is_not_equal(frozen: Frozen) -> None:
    before = {number: page(1, number) for number in range(4)}
    frozen.remembers({0: before[0]})  # the file ends behind page 0
    frozen.image("pre-1", before, set())
    assert unchanged({INSIDE: PID}, frozen.root / "pre-1", most_bytes=PLENTY, proc=frozen.proc) == {1: [(0, PAGE)]}


def test_several_processes_and_one_that_is_new(frozen: Frozen) -> None:
    before = {number: page(1, number) for number in range(3)}
    for inside, pid in ((1, 11), (2, 12), (3, 13)):
        now = before if inside == 1 else before | {1: page(inside, 1)}
        frozen.remembers(now, pid)
        frozen.image("final", now, set(now), inside)
        if inside != 3:
            frozen.image("pre-1", before, set(), inside)
    (frozen.root / "final" / "pagemap-9.img").write_bytes(b"of nobody")
    report = frozen.reduced(eager=PAGE, processes={1: 11, 2: 12, 3: 13, 4: 14})
    assert report == Reduced(inherited_bytes=5 * PAGE, eager_bytes=PAGE, lazy_bytes=3 * PAGE)


def test_what_cannot_be_read_is_told(frozen: Frozen) -> None:
    now = {0: page(1, 0), 1: page(1, 1)}
    frozen.remembers(now)
    frozen.image("pre-1", now, set())
    frozen.image("final", now, set(now))
    (frozen.root / "pre-1" / "pages-1.img").unlink()
    with pytest.raises(ActionError, match="cannot be compared"):
        frozen.reduced()
    (frozen.proc / str(PID) / "mem").write_bytes(b"")
    with pytest.raises(ActionError, match="pages at 0x0 are missing"):
        reduce(frozen.root / "final", "pre-1", {INSIDE: PID}, {}, most_eager_bytes=PLENTY, proc=frozen.proc)
    (frozen.root / "final" / "parent").symlink_to("x")
    with pytest.raises(ActionError, match="File exists"):
        reduce(frozen.root / "final", "pre-1", {INSIDE: PID}, {}, most_eager_bytes=0, proc=frozen.proc)
    (frozen.root / "pre-1" / "pagemap-1.img").write_bytes(random.Random(1).randbytes(50))
    with pytest.raises(InputError, match="not a pagemap image"):
        frozen.reduced()


def test_numbers_inside_are_the_innermost(frozen: Frozen) -> None:
    for pid, line in ((11, "NSpid:\t11\t1\n"), (12, "NSpid:\t12\t5\t3\n"), (13, "NSpid:\t13\n"), (14, "")):
        (frozen.proc / str(pid)).mkdir()
        (frozen.proc / str(pid) / "status").write_text(f"Name:\tx\nPid:\t{pid}\n{line}NSpgid:\t1\n")
    assert numbers_inside([11, 12, 13, 14], frozen.proc) == {1: 11, 3: 12, 13: 13}
    with pytest.raises(ActionError, match="process 15 has ended"):
        numbers_inside([15], frozen.proc)
