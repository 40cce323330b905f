"""What a client saw: gaps, and every reply that was lost, doubled, out of order or from somebody else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters.prober import Prober, Tally, probe
from natwork_ray.adapters.workload.service import Service
from natwork_ray.errors import ActionError, ConflictError, TimedOutError, UsageError

A, B = b"a" * 16, b"b" * 16


def _line(number: int, count: int, instance: bytes = A) -> bytes:
    return b"%d %d %s\n" % (number, count, instance)


def _asked(requests: int) -> Tally:
    tally = Tally()
    for number in range(requests):
        assert tally.request(float(number)) == number
    return tally


@given(st.lists(st.floats(0.001, 3.0), min_size=1, max_size=30))
def test_the_longest_gap_is_the_longest_silence(waits: list[float]) -> None:
    tally, now = _asked(len(waits)), 0.0
    for number, wait in enumerate(waits):
        now += wait
        tally.reply(_line(number, number + 5), now)
    report = tally.report()
    assert report.whole
    assert report.longest_gap_s == pytest.approx(max(waits), abs=1e-9)
    assert report.answered == report.sent == len(waits)
    assert report.duration_s == pytest.approx(now)


def test_waiting_in_line_counts() -> None:
    """Requests due at 0, 1, 2 s, all answered at 2.5 s: the first waited longest, and all of that is latency."""
    tally = _asked(3)
    for number in range(3):
        tally.reply(_line(number, number), 2.5)
    report = tally.report()
    assert (report.latency_max_s, report.latency_p50_s, report.longest_gap_s) == (2.5, 1.5, 2.5)


@pytest.mark.parametrize(
    ("replies", "fault"),
    [
        ([(0, 1, A), (1, 2, A)], "lost"),
        ([(0, 1, A), (1, 2, A), (1, 3, A), (2, 3, A)], "duplicated"),
        ([(0, 1, A), (2, 2, A), (1, 3, A)], "reordered"),
        ([(0, 1, A), (1, 2, A), (2, 9, A)], "count_breaks"),
    ],
)
def test_every_fault_is_counted(replies: list[tuple[int, int, bytes]], fault: str) -> None:
    tally = _asked(3)
    for n, reply in enumerate(replies):
        tally.reply(_line(*reply), float(n))
    report = tally.report()
    assert getattr(report, fault) >= 1
    assert not report.whole


def test_another_instance_is_noticed_even_if_it_counts_on() -> None:
    tally = _asked(2)
    tally.reply(_line(0, 1, A), 0.1)
    tally.reply(_line(1, 2, B), 0.2)
    assert tally.report().instances == 2
    assert not tally.report().whole


@pytest.mark.parametrize(
    "line", [b"", b"0 1\n", b"5 1 " + A + b"\n", b"x 1 " + A + b"\n", b"0 1 zz\n", _line(0, 1)[:-1]]
)
def test_what_is_no_reply_is_refused(line: bytes) -> None:
    with pytest.raises(ActionError, match="no reply of a workload"):
        _asked(2).reply(line, 1.0)


def test_nothing_seen_is_not_whole() -> None:
    assert not Tally().report().whole


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _with(handler: Handler, act: Callable[[int], Awaitable[None]]) -> None:
    sessions: set[asyncio.Task[None] | None] = set()

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sessions.add(asyncio.current_task())
        await handler(reader, writer)
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(session, "127.0.0.1", 0)
    try:
        await act(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*(task for task in sessions if task is not None))


def test_a_session_that_lives_is_whole() -> None:
    async def act(port: int) -> None:
        report = await probe("127.0.0.1", port=port, seconds=0.05, every_s=0.002)
        assert report.whole, report
        assert report.sent == report.answered > 5

    asyncio.run(_with(Service().echo, act))


def test_a_server_that_closes_or_talks_nonsense_ends_the_session() -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_line(int(await reader.readline()), 1))
        writer.close()

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_line(int(await reader.readline()), 1) + b"what?\n")
        await reader.readline()
        writer.close()

    async def act(port: int) -> None:
        report = await probe("127.0.0.1", port=port, seconds=0.05, every_s=0.01)
        assert report.error
        assert not report.whole

    asyncio.run(_with(closes, act))
    asyncio.run(_with(nonsense, act))


def test_an_answer_that_never_comes_is_lost() -> None:
    async def first_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_line(int(await reader.readline()), 1))
        while await reader.readline():
            pass
        writer.close()

    async def act(port: int) -> None:
        prober = Prober("127.0.0.1", port, every_s=0.005)
        await prober.start()
        await asyncio.sleep(0.03)
        report = await prober.stop(patience_s=0.02)
        assert report.lost == report.sent - 1 > 0
        assert report.longest_gap_s > 0.02

    asyncio.run(_with(first_only, act))


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="every_s = 0"):
        Prober("127.0.0.1", every_s=0)

    async def scenario() -> None:
        server = await asyncio.start_server(Service().echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        prober = Prober("127.0.0.1", port)
        with pytest.raises(ActionError, match="natwork testbed containers"):
            await prober.start()
        with pytest.raises(ConflictError, match="was not started"):
            await prober.stop()

    asyncio.run(scenario())

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def garbled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        await reader.read()
        writer.close()

    async def waits(port: int) -> None:
        with pytest.raises(TimedOutError, match="does not answer"):
            await Prober("127.0.0.1", port).start()

    async def strange(port: int) -> None:
        with pytest.raises(ActionError, match="no reply of a workload"):
            await Prober("127.0.0.1", port).start()

    asyncio.run(_with(garbled, strange))
    monkeypatch.setattr("natwork_ray.adapters.prober._CONNECT_S", 0.01)
    asyncio.run(_with(silent, waits))
