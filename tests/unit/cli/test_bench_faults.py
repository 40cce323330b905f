"""The fault campaign's plan and verdict; the calls between node processes."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from natwork_ray.cli.bench_faults import confessed
from natwork_ray.cli.fault_plan import KINDS, Fault, Struck, document, draw
from natwork_ray.cli.main import app
from natwork_ray.cli.node_process import Answer, NodeCalls, Request
from natwork_ray.domain.migrations import MigrationProgress, MigrationRecord, MigrationState
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend, decode, encode
from natwork_ray.errors import ActionError, TimedOutError
from natwork_ray.limi.steps import Step, StepReport, Verb

FAULT = Fault(kind="criu-target", method=MigrationMethod.COLD, step=Verb.RESTORE, delay_s=0.0)
ALIVE = Struck(
    fault=FAULT, number=0, struck=True, state="rolled_back", error="criu died", source="node-0", target="node-1",
    runs_on=("node-0",), addresses=("node-0",), served=True, session_kept=True, memory="kept", confessed=False,
    recovery_s=0.4, gap_s=0.5, leftovers=(),
)  # fmt: skip


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_a_campaign_is_drawn_by_its_seed_and_covers_what_it_can(seed: int, count: int) -> None:
    faults = draw(random.Random(seed), count)
    assert faults == draw(random.Random(seed), count)
    assert len(faults) == count
    kinds, methods = Counter(f.kind for f in faults), Counter(f.method for f in faults)
    for drawn, possible in ((kinds, len(KINDS)), (methods, len(MigrationMethod))):
        assert len(drawn) == min(count, possible)
        assert max(drawn.values()) - min(drawn.values()) <= 1 or count < possible
    for fault in faults:
        assert 0 <= fault.delay_s <= 0.04
        if fault.step in (Verb.PRE_DUMP, Verb.PRE_DUMP_TRANSFER):
            assert fault.method in (MigrationMethod.PRE_COPY, MigrationMethod.HYBRID)
        if fault.step == Verb.PAGES_FETCHED:
            assert fault.method in (MigrationMethod.POST_COPY, MigrationMethod.HYBRID)


def test_twenty_faults_have_every_kind_with_every_method_once_at_least_in_turn() -> None:
    faults = draw(random.Random(3), 36)
    assert len({(f.kind, f.method) for f in faults}) >= 20
    assert {f.kind for f in faults} == set(KINDS)


@pytest.mark.parametrize(
    "change",
    [
        {"runs_on": ()},
        {"runs_on": ("node-0", "node-1")},
        {"addresses": ("node-1",)},
        {"addresses": ()},
        {"served": False},
        {"leftovers": ("node-1: images x",)},
    ],
)
def test_what_is_no_survival(change: dict[str, object]) -> None:
    assert ALIVE.survived
    dead = replace(ALIVE, **change)
    assert not dead.survived
    assert document([ALIVE, dead], wanted=1, seed=1, left=[], wall_s=1.0)["passed"] is False


@pytest.mark.parametrize("memory", ["set back", "lost"])
def test_memory_may_only_go_where_that_is_documented(memory: str) -> None:
    gone = replace(ALIVE, memory=memory, state="restarted")
    assert (gone.survived, gone.memory_sound) == (True, False)
    refused = document([gone], wanted=1, seed=1, left=[], wall_s=1.0)
    assert refused["passed"] is False
    assert refused["totals"]["memory_unexcused"] == 1
    told = document([replace(gone, confessed=True)], wanted=1, seed=1, left=[], wall_s=1.0)
    assert told["passed"] is True
    assert told["totals"]["memory_" + memory.replace(" ", "_")] == 1
    assert (told["totals"]["memory_kept"], told["totals"]["memory_unexcused"]) == (0, 0)


def test_a_restart_is_excused_past_the_point_of_no_return_only() -> None:
    early = MigrationRecord(
        key="k", container="c", source="a", target="b", method=MigrationMethod.POST_COPY, backend=Backend.REAL,
        state=MigrationState.RESTARTED, started_at_s=1.0, total_s=2.0, downtime_s=1.0, runs_on="a", phases=(),
        pre_copy_rounds=0, point_of_no_return_s=None, lost_s=None, load=None, forecast=None, chosen_by="x",
        error="started again", hint="",
    )  # fmt: skip
    assert not confessed(early)
    assert confessed(replace(early, point_of_no_return_s=0.5))
    assert not confessed(replace(early, point_of_no_return_s=0.5, error=""))


def test_the_document_counts() -> None:
    missed = replace(ALIVE, struck=False, state="migrated", recovery_s=0.0, runs_on=("node-1",), addresses=("node-1",))
    found = document([ALIVE, missed], wanted=1, seed=4, left=[], wall_s=2.0)
    assert found["passed"] is True
    assert found["totals"] == {
        "faults": 1, "missed": 1, "survived": 1, "by_kind": {"criu-target": 1},
        "by_state": {"rolled_back": 1}, "sessions_kept": 1, "memory_kept": 1, "memory_set_back": 0, "memory_lost": 0,
        "memory_unexcused": 0, "on_two_nodes": 0, "on_no_node": 0, "leftovers": 0,
        "recovery_s": {"p50": 0.4, "max": 0.4},
    }  # fmt: skip
    assert [row["phase"] for row in found["faults"]] == ["restore"]
    assert [row["state"] for row in found["missed"]] == ["migrated"]
    # A missed shot is no fault, but its migration has to be survived all the same.
    assert document([ALIVE, replace(missed, runs_on=())], wanted=1, seed=4, left=[], wall_s=2.0)["passed"] is False
    assert document([ALIVE, ALIVE], wanted=1, seed=4, left=[], wall_s=2.0)["passed"] is False
    assert document([ALIVE, missed], wanted=2, seed=4, left=[], wall_s=2.0)["passed"] is False
    assert document([ALIVE], wanted=1, seed=4, left=["process 1 x"], wall_s=2.0)["passed"] is False


def test_faults_are_real_or_not_at_all() -> None:
    result = CliRunner().invoke(app, ["bench", "faults", "--backend", "emulated"])
    assert result.exit_code != 0


STEP = Step(
    key="k", number=1, verb=Verb.FREEZE, container="c", source="a", target="b", method=MigrationMethod.COLD
)  # fmt: skip
PROGRESS = MigrationProgress(
    key="k", container="c", source="a", target="b", method=MigrationMethod.COLD, elapsed_s=0.5, under_way=("dump",)
)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _with_server(serve: Serve, use: Callable[[NodeCalls], Awaitable[None]]) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            assert await reader.readline() == b"secret\n"
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    def connect() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port), timeout=5)
        connection.setblocking(False)
        return connection

    calls = NodeCalls("node-9", connect, "secret")
    try:
        await use(calls)
    finally:
        await calls.close()
        server.close()
        await server.wait_closed()


def test_a_step_crosses_and_its_report_comes_back() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = decode(Request, await reader.readline())
        assert (request.do, decode(Step, request.body)) == ("perform", STEP)
        report = encode(StepReport(size_bytes=5.0)).decode()
        writer.write(encode(Answer(id=request.id, kind="done", body=report)) + b"\n")
        await writer.drain()
        await reader.readline()

    async def use(calls: NodeCalls) -> None:
        assert await calls.perform(STEP) == StepReport(size_bytes=5.0)

    asyncio.run(_with_server(serve, use))


def test_progress_is_told_and_failures_are_told_apart() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for lost in (False, True):
            request = decode(Request, await reader.readline())
            writer.write(encode(Answer(id=request.id, kind="progress", body=encode(PROGRESS).decode())) + b"\n")
            writer.write(encode(Answer(id=request.id, kind="failed", body="no", hint="why", lost=lost)) + b"\n")
            await writer.drain()
        await reader.readline()

    async def use(calls: NodeCalls) -> None:
        seen: list[MigrationProgress] = []
        with pytest.raises(ActionError, match="no"):
            await calls.call("drive", b"", seen.append)
        with pytest.raises(TimedOutError):
            await calls.call("drive", b"", seen.append)
        assert seen == [PROGRESS, PROGRESS]

    asyncio.run(_with_server(serve, use))


@pytest.mark.parametrize("said", [b"", b"nonsense\n", b'{"id": 1, "kind": 7}\n'])
def test_a_connection_that_breaks_means_that_nobody_knows_and_the_next_call_connects_again(said: bytes) -> None:
    answered = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = decode(Request, await reader.readline())
        answered.append(request.do)
        if len(answered) == 1:
            writer.write(said)
            await writer.drain()
            return
        writer.write(encode(Answer(id=request.id, kind="done", body="again")) + b"\n")
        await writer.drain()
        await reader.readline()

    async def use(calls: NodeCalls) -> None:
        with pytest.raises(TimedOutError):
            await calls.call("first")
        assert await calls.call("second") == "again"
        assert answered == ["first", "second"]

    asyncio.run(_with_server(serve, use))


def test_a_node_that_is_not_there() -> None:
    def connect() -> socket.socket:
        raise ConnectionRefusedError("nobody")

    async def use() -> None:
        with pytest.raises(TimedOutError, match="node-9"):
            await NodeCalls("node-9", connect, "secret").call("status")

    asyncio.run(use())
