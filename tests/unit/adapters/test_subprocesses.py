"""Programs: bounded, reaped, found again by marker or session. These start a few real ones, for milliseconds."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from natwork_ray.adapters.subprocesses import (
    MARKER,
    ChildProcess,
    SubprocessRunner,
    end_family,
    ended,
    family,
    status_pipe,
    told_ready,
)
from natwork_ray.errors import PreconditionError, TimedOutError

PATHS = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def marker() -> str:
    return f"nwtest{secrets.token_hex(4)}/node-0/web/m1/"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture(autouse=True)
def _nothing_left(marker: str, notes: Path) -> Iterator[None]:
    yield
    asyncio.run(end_family(marker.partition("/")[0] + "/", notes))


async def two(marker: str, notes: Path) -> None:
    """Wait until a program has started its child."""
    for _ in range(2500):
        if len(family(marker, notes)) >= 2:
            return
        await asyncio.sleep(0.002)
    raise AssertionError("there are not two of them")


def test_status_and_text_of_a_program() -> None:
    done = asyncio.run(
        SubprocessRunner().run(["sh", "-c", "cat; echo err >&2; exit 3"], env=PATHS, timeout_s=5, stdin=b"in ")
    )
    assert (done.status, done.text) == (3, "in err")


def test_a_quiet_program_says_nothing_and_its_children_hold_nobody_up() -> None:
    done = asyncio.run(SubprocessRunner().run(["sh", "-c", "echo x; sleep 5 &"], env=PATHS, timeout_s=2, quiet=True))
    assert (done.status, done.text) == (0, "")


def test_what_cannot_be_started_is_named() -> None:
    with pytest.raises(PreconditionError, match="/no/such cannot be started"):
        asyncio.run(SubprocessRunner().run(["/no/such"], env={}, timeout_s=5))


def test_a_program_that_takes_too_long_is_ended_with_its_children(marker: str, notes: Path) -> None:
    runner = SubprocessRunner(notes)
    with pytest.raises(TimedOutError, match="did not end within"):
        asyncio.run(runner.run(["sh", "-c", "sleep 9; true"], env={**PATHS, MARKER: marker}, timeout_s=0.05))
    assert family(marker, notes) == ()


def test_a_cancelled_program_is_ended_and_alone_its_children_are_left(marker: str, notes: Path) -> None:
    async def cancel(*, alone: bool) -> int:
        env = {**PATHS, MARKER: marker}
        argv = ["sh", "-c", "sleep 9; true"]
        task = asyncio.create_task(SubprocessRunner(notes).run(argv, env=env, timeout_s=9, alone=alone))
        await two(marker, notes)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(family(marker, notes))

    assert asyncio.run(cancel(alone=True)) == 1
    assert asyncio.run(end_family(marker, notes)) == 1
    assert asyncio.run(cancel(alone=False)) == 0


def test_a_child_that_wrote_over_its_environment_is_found_by_its_session(marker: str, notes: Path) -> None:
    async def work() -> None:
        # `env -i` stands for CRIU, of whose environment nothing is left.
        argv = ["sh", "-c", "env -i /usr/bin/sleep 9 & wait"]
        child = SubprocessRunner(notes).start(argv, env={**PATHS, MARKER: marker}, said=notes.parent / "said")
        await two(marker, notes)
        await child.kill(alone=True)
        left = family(marker, notes)
        assert len(left) == 1
        assert family(marker.replace("/m1/", "/m10/"), notes) == ()
        assert await end_family(marker, notes) == 1

    asyncio.run(work())
    assert list(notes.iterdir()) == []


def test_a_gentle_end_leaves_time_to_those_who_notice(marker: str, notes: Path, tmp_path: Path) -> None:
    # The child ends by itself once its parent, the session's head, is gone: as CRIU does when runC is killed.
    sign = tmp_path / "well"
    watch = 'p=$PPID; while kill -0 $p 2>/dev/null; do sleep 0.01; done; : > "$1"'
    argv = ["sh", "-c", f"sh -c '{watch}' x {sign} & wait"]

    async def work() -> None:
        child = SubprocessRunner(notes).start(argv, env={**PATHS, MARKER: marker}, said=tmp_path / "said")
        reaped = asyncio.create_task(child.wait())
        await two(marker, notes)
        await end_family(marker, notes, gently=True)
        assert await reaped == -9

    asyncio.run(work())
    assert sign.exists()
    assert family(marker, notes) == ()


def test_a_damaged_note_is_passed_over(marker: str, notes: Path) -> None:
    notes.mkdir()
    (notes / "1-2.json").write_bytes(b"{")
    assert family(marker, notes) == ()


def test_a_note_of_a_session_whose_number_came_again_finds_nobody(marker: str, notes: Path) -> None:
    notes.mkdir()
    session = os.getsid(0)
    later = 2**62  # the note says that the session began after all who live now
    (notes / "x.json").write_text(f'{{"pid": {session}, "started_ticks": {later}, "what": "{marker}"}}')
    assert family(marker, notes) == ()


def test_a_child_that_ends_well_takes_its_note_along(marker: str, notes: Path) -> None:
    noted: list[int] = []

    def count() -> None:
        noted.append(len(list(notes.iterdir())))

    async def work() -> None:
        env = {**PATHS, MARKER: marker}
        child = SubprocessRunner(notes).start(["sleep", "0.05"], env=env, said=notes.parent / "said")
        assert isinstance(child, ChildProcess)
        count()
        assert await child.wait() == 0
        assert await child.wait() == 0
        count()
        await child.kill()

    asyncio.run(work())
    assert noted == [1, 0]


def test_waiting_for_what_is_gone_is_over_at_once() -> None:
    asyncio.run(ended(2**22 + 1))


@pytest.mark.parametrize(("script", "ready"), [("printf '\\0' >&$0; exec sleep 9", True), ("exit 1", False)])
def test_readiness_is_told_by_a_byte_and_failure_by_the_end(tmp_path: Path, script: str, ready: bool) -> None:
    async def work() -> bool:
        with status_pipe() as (reading, writing):
            argv = ["bash", "-c", script, str(writing)]
            child = SubprocessRunner().start(argv, env=PATHS, said=tmp_path / "said", pass_fds=(writing,))
            os.close(writing)
            try:
                return await told_ready(reading, timeout_s=5)
            finally:
                await child.kill()

    assert asyncio.run(work()) is ready


def test_silence_is_a_time_out() -> None:
    async def work() -> None:
        with status_pipe() as (reading, writing):
            try:
                await told_ready(reading, timeout_s=0.01)
            finally:
                os.close(writing)

    with pytest.raises(TimedOutError, match="no sign of readiness"):
        asyncio.run(work())
