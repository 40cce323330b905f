"""Pagemap images: what CRIU wrote is read and written again bit by bit; damage is refused; marking loses no page."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters.criu_pagemap import (
    LAZY,
    MAX_PAGEMAP,
    PAGE,
    PARENT,
    PRESENT,
    PageRun,
    build,
    mark,
    offsets,
    parse,
    read,
)
from natwork_ray.errors import InputError

# The first bytes of pagemap-1.img of a Python process, by CRIU 4.2.1.
MAGIC = bytes.fromhex("1943565425400856")
HEAD = bytes.fromhex("020000000801")
WRITTEN = MAGIC + HEAD + bytes.fromhex("0b0000000880e087021000200428010b0000000880a0d104100020042862")


@st.composite
def runs(draw: st.DrawFn) -> tuple[PageRun, ...]:
    at, found = 0, []
    for gap, pages, flags in draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.sampled_from([LAZY, PRESENT, PARENT])), max_size=12)
    ):
        start = at + gap * PAGE
        found.append(PageRun(start, pages, flags))
        at = start + pages * PAGE
    return tuple(found)


@st.composite
def ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    pages = draw(st.lists(st.booleans(), max_size=60))
    return [(i * PAGE, (i + 1) * PAGE) for i, chosen in enumerate(pages) if chosen]


def by_page(found: tuple[PageRun, ...]) -> dict[int, int]:
    return {run.start + i * PAGE: run.flags for run in found for i in range(run.pages)}


def test_what_criu_wrote_is_read_and_written_again(tmp_path: Path) -> None:
    number, found = parse(WRITTEN)
    assert number == 1
    assert found == (PageRun(0x41F000, 1, PRESENT), PageRun(0x945000, 98, PRESENT))
    assert build(number, found) == WRITTEN
    (tmp_path / "pagemap-1.img").write_bytes(WRITTEN)
    assert read(tmp_path / "pagemap-1.img") == (1, found)


def test_older_counts_and_marks_are_understood() -> None:
    # vaddr 0x1000, a 32-bit count of 3, inherited, no flags but the field.
    entry = bytes.fromhex("088020100318012000")
    assert parse(MAGIC + HEAD + len(entry).to_bytes(4, "little") + entry)[1] == (PageRun(0x1000, 3, PARENT),)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a pagemap image"),
        (MAGIC[::-1] + HEAD, "not a pagemap image"),
        (MAGIC + bytes(MAX_PAGEMAP), "not a pagemap image"),
        (MAGIC, "without a head"),
        (MAGIC + bytes.fromhex("020000000801")[:5], "cut off"),
        (MAGIC + bytes.fromhex("020000001001"), "without a head"),
        (WRITTEN[:-1], "cut off"),
        (MAGIC + HEAD + bytes.fromhex("020000000880"), "does not end"),
        (MAGIC + HEAD + bytes.fromhex("020000000a00"), "wire type 2"),
        (MAGIC + HEAD + bytes.fromhex("020000000800"), r"fields \[1\]"),
        (MAGIC + HEAD + bytes.fromhex("06000000080020043001"), r"fields \[1, 4, 6\]"),
        (build(1, [PageRun(7, 1, LAZY)]), "cannot be there"),
        (build(1, [PageRun(2**63 - PAGE, 2, LAZY)]), "cannot be there"),
        (build(1, [PageRun(0, 2, LAZY), PageRun(PAGE, 1, LAZY)]), "cannot be there"),
    ],
)
def test_damage_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(InputError, match=why):
        parse(data)


@given(runs(), st.integers(1, 2**31))
def test_images_survive_being_written_and_read(found: tuple[PageRun, ...], number: int) -> None:
    assert parse(build(number, found)) == (number, found)


@given(st.binary(max_size=200))
def test_hostile_bytes_are_an_input_error_or_an_image(data: bytes) -> None:
    try:
        number, found = parse(MAGIC + HEAD + data)
    except InputError:
        return
    assert parse(build(number, found)) == (number, found)


@given(runs(), ranges(), st.sampled_from([PARENT, PRESENT]))
def test_marking_changes_lazy_pages_in_the_ranges_and_nothing_else(
    found: tuple[PageRun, ...], chosen: list[tuple[int, int]], flags: int
) -> None:
    inside = {begin for begin, _ in chosen}
    wanted = {page: flags if old == LAZY and page in inside else old for page, old in by_page(found).items()}
    marked = tuple(mark(found, chosen, flags))
    assert by_page(marked) == wanted
    assert all(run.pages for run in marked)
    assert sum(run.pages for run in marked) == sum(run.pages for run in found)
    assert list(marked) == sorted(marked, key=lambda run: run.start)


def test_offsets_count_only_what_is_in_the_file() -> None:
    found = (
        PageRun(0, 2, PRESENT),
        PageRun(0x4000, 9, LAZY),
        PageRun(0x20000, 1, PRESENT),
        PageRun(0x30000, 1, PARENT),
    )
    assert offsets(found) == {0: 0, 0x20000: 2 * PAGE}
