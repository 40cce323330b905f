"""Locust users in a process of their own, against the workload on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
import sys

import pytest

from natwork_ray.adapters import traffic
from natwork_ray.adapters.traffic import Traffic
from natwork_ray.adapters.workload.service import Service
from natwork_ray.errors import ActionError, ConflictError, InputError, PreconditionError, TimedOutError, UsageError


def test_users_see_answers_and_their_queue() -> None:
    if importlib.util.find_spec("locust") is None:
        pytest.skip("the extra testbed is not installed")
    service = Service()

    async def scenario() -> traffic.TrafficReport:
        async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await service.http(reader, writer)
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        server = await asyncio.start_server(session, "127.0.0.1", 0)
        users = Traffic("127.0.0.1", server.sockets[0].getsockname()[1], users=3, every_s=0.02, limit_s=30)
        await users.start()
        async with asyncio.timeout(20):
            while service.count < 20:  # noqa: ASYNC110 - another process asks
                await asyncio.sleep(0.005)
        report = await users.stop()
        server.close()
        await server.wait_closed()
        sessions = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*sessions, return_exceptions=True)
        return report

    report = asyncio.run(scenario())
    assert (report.users, report.failures, report.instances) == (3, 0, 1)
    assert 10 < report.requests <= service.count
    assert 0 < report.latency_p50_s <= report.latency_p95_s <= report.latency_max_s
    assert socket.socket.__module__ == "socket"  # gevent's patches stay in the other process


def _speaking(program: str) -> Traffic:
    users = Traffic("127.0.0.1")
    users._argv = [sys.executable, "-c", program]
    return users


def test_a_process_that_ends_or_talks_nonsense_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        with pytest.raises(ConflictError, match="was not started"):
            await Traffic("127.0.0.1").stop()
        with pytest.raises(ActionError, match="no such host"):
            await _speaking("import sys; sys.exit('no such host')").start()
        users = _speaking("import sys; print('ready', flush=True); sys.stdin.read(); print('{}')")
        await users.start()
        with pytest.raises(InputError, match="not a valid TrafficReport"):
            await users.stop()
        users = _speaking("import time; print('ready', flush=True); time.sleep(60)")
        await users.start()
        monkeypatch.setattr(traffic, "_STOP_S", 0.05)
        with pytest.raises(TimedOutError, match="do not end"):
            await users.stop()
        monkeypatch.setattr(traffic, "_START_S", 0.05)
        with pytest.raises(TimedOutError, match="not every user"):
            await _speaking("import time; time.sleep(60)").start()
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(PreconditionError, match="Locust is not installed"):
            await Traffic("127.0.0.1").start()

    asyncio.run(scenario())


@pytest.mark.parametrize(("options", "words"), [({"users": 0}, "users = 0"), ({"every_s": 0.0}, "every_s = 0")])
def test_what_makes_no_sense_is_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Traffic("127.0.0.1", **options)  # type: ignore[arg-type]
