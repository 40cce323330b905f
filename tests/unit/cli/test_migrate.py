"""Migrations from the command line: through a stand-in gateway, in this process, and read back from the journal."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents import cluster
from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.backends import World, build_world
from natwork_ray.cli import migrate as migrate_command
from natwork_ray.cli.migrating import AUDIT_ORIGIN, InProcess, ThroughDoors
from natwork_ray.cli.migration_view import PhaseBars, consideration_lines, gantt, state_of, told
from natwork_ray.cli.schedule_view import service_document, service_lines
from natwork_ray.config import Config, load_config
from natwork_ray.control.desk import Consideration, Migration, MoveWish, ServiceWish
from natwork_ray.control.events import PlannedStart
from natwork_ray.domain.actions import ActionOutcome, Migrate, MigrationMethod, Phase
from natwork_ray.domain.decisions import Decision, DecisionStatus, MitigationKind, Mode
from natwork_ray.domain.migrations import (
    MethodReason,
    MigrationOutlook,
    MigrationProgress,
    MigrationRecord,
    MigrationState,
)
from natwork_ray.domain.values import Backend, plain
from natwork_ray.errors import ActionError, ExitCode, PreconditionError, RefusedError, StoreError, TimedOutError

SMALL = ("--set", "emulation.scenario=grid-10", "--set", "loop.commissioning_s=60", "--set", "emulation.duration_s=600")


def small(state_dir: Path, **flags: Any) -> Config:
    more = {"emulation.scenario": "grid-10", "loop.commissioning_s": 60, "emulation.duration_s": 600}
    return load_config(environ={}, flags={**more, "state_dir": str(state_dir), **flags})


def migration(**fields: Any) -> Migration:
    record = MigrationRecord(
        key="d-000001/0", container="echo", source="node-0", target="node-1", method=MigrationMethod.HYBRID,
        backend=Backend.REAL, state=MigrationState.MIGRATED, started_at_s=5.0, total_s=2.0, downtime_s=0.25,
        runs_on="node-1", pre_copy_rounds=1, client_downtime_s=0.3,
        phases=(
            Phase(name="pre-dump", duration_s=1.0, size_bytes=64 * 2.0**20),
            Phase(name="dump transfer", starts_s=1.5, duration_s=0.1, size_bytes=2.0**20, transferred_bytes=2.0**19),
            Phase(name="instant", starts_s=2.0, duration_s=0.0),
        ),
    )  # fmt: skip
    record = replace(record, **{k: fields.pop(k) for k in list(fields) if k in MigrationRecord.__dataclass_fields__})
    done = record.state is MigrationState.MIGRATED
    outcome = ActionOutcome(
        key=record.key, done=done, started_at_s=5.0, finished_at_s=7.0, downtime_s=record.downtime_s,
        backend=Backend.REAL, detail="", error="" if done else "the link was cut", phases=record.phases, record=record,
    )  # fmt: skip
    base = Migration(
        decision="d-000001", at_s=5.0, status=DecisionStatus.DONE if done else DecisionStatus.FAILED, outcome=outcome,
        instruction=Migrate(key=record.key, container="echo", source="node-0", target="node-1"),
    )  # fmt: skip
    return replace(base, **fields)


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that runs, as far as the command line looks."""
    monkeypatch.setattr(cluster, "running", lambda _: object())


# Through the doors.


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (MigrationState.MIGRATED, ExitCode.DONE),
        (MigrationState.ROLLED_BACK, ExitCode.FAILED),
        (MigrationState.RESTARTED, ExitCode.FAILED),
        (MigrationState.REFUSED, ExitCode.REFUSED),
    ],
)
def test_an_order_through_the_doors(natwork: Any, gateway: Any, up: None, state: MigrationState, code: int) -> None:
    gateway.answers(202, plain(migration(state=state)))
    ended = natwork(
        "--set", f"state_dir={gateway.state_dir}", "migrate", "echo", "--to", "node-1", "--method", "post-copy",
        "--by", "Ada", "--note", "now", "--weight", "0.5", "--key", "k-1", "--json",
    )  # fmt: skip
    assert (ended.code, ended.err) == (code, "")
    document = json.loads(ended.out)
    assert (document["state"], document["method"], document["downtime_s"]) == (state, "hybrid", 0.25)
    assert document["record"]["phases"][1]["transferred_bytes"] == 2.0**19
    (asked,) = gateway.asked
    assert (asked.method, asked.path, asked.authorization) == ("POST", "/api/v1/migrations", "Bearer s3cret")
    assert asked.body == {
        "container": "echo", "target": "node-1", "by": "Ada", "method": "post-copy", "weight": 0.5, "note": "now",
    }  # fmt: skip


def test_a_service_through_the_doors(natwork: Any, gateway: Any, up: None) -> None:
    gateway.answers(202, {"decision": {}, "migrations": [plain(migration()), plain(migration(container="db"))]})
    command = ("--set", f"state_dir={gateway.state_dir}", "migrate-service", "web", "--spread", "--by", "Ada")
    document = json.loads(natwork(*command, "--json").out)
    assert (document["decision"], len(document["migrations"])) == ("d-000001", 2)
    assert gateway.asked[0].path == "/api/v1/service-migrations"
    assert gateway.asked[0].body == {
        "service": "web", "target": None, "by": "Ada", "weight": None, "note": "", "on_failure": "bring-back",
    }  # fmt: skip
    assert document["service"]["planned"] is None, "they were ordered without a schedule"
    said = natwork(*command, "--on-failure", "carry-on").err
    assert gateway.asked[-1].body["on_failure"] == "carry-on"
    assert said.count("runs on node-1") == 2
    assert "2 of 2 containers arrived" in said or "0 of 2 containers arrived; not" in said


@pytest.mark.parametrize("where", [(), ("--to", "a", "--spread")])
def test_a_service_goes_one_way_or_the_other(natwork: Any, where: tuple[str, ...]) -> None:
    assert natwork("migrate-service", "web", *where).code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [("refused", 409, 5), ("precondition", 503, 3), ("not-found", 404, 1), ("conflict", 409, 1), ("timed-out", 503, 6)],
)
def test_refusals_keep_their_meaning(natwork: Any, gateway: Any, up: None, kind: str, status: int, code: int) -> None:
    gateway.answers(status, {"type": f"urn:natwork:problem:{kind}", "detail": "not so", "hint": "do otherwise"})
    ended = natwork("--set", f"state_dir={gateway.state_dir}", "migrate", "echo", "--to", "b", "--by", "a", "--json")
    assert (ended.code, ended.out) == (code, "")
    assert "not so" in ended.err


def test_another_backend_than_the_one_that_runs(natwork: Any, gateway: Any, up: None) -> None:
    ended = natwork("--set", f"state_dir={gateway.state_dir}", "migrate", "a", "--to", "b", "--backend", "testbed")
    assert ended.code == ExitCode.USAGE
    assert "has the backend emulated" in ended.err


class Answers:
    """Doors that answer with the next of several states, and the last one for ever."""

    def __init__(self, *states: Migration) -> None:
        self._states = itertools.chain(states, itertools.repeat(states[-1]))

    def change(self, *_: Any, **__: Any) -> Any:
        return plain(next(self._states))

    def get(self, *_: Any) -> Any:
        return plain(next(self._states))


def running(*under_way: str) -> Migration:
    progress = MigrationProgress(
        key="d-000001/0", container="echo", source="node-0", target="node-1", method=MigrationMethod.HYBRID,
        elapsed_s=0.5, under_way=under_way, phases=(Phase(name="pre-dump", duration_s=0.4),), phases_in_all=15,
    )  # fmt: skip
    return migration(status=DecisionStatus.ISSUED, outcome=None, progress=progress)


def test_waiting_shows_every_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natwork_ray.cli.migrating._POLL_S", 0.0)
    states = [migration(status=DecisionStatus.ISSUED, outcome=None), running("dump", "volume transfer"), migration()]
    shown: list[str] = []
    wish = MoveWish(container="echo", target="node-1", by="ada")
    with PhaseBars(quiet=True) as bars:

        def watch(found: Any) -> None:
            bars.show(found)
            shown.extend(state_of(m) for m in found)

        doors = ThroughDoors(Answers(*states))  # type: ignore[arg-type]
        (found,) = doors.carry_out(wish, key="k", watch=watch, patience_s=60.0)
    assert (found, shown) == (states[-1], ["running", "running", "migrated"])
    with pytest.raises(TimedOutError, match="d-000001/0"):
        ThroughDoors(Answers(running("dump"))).carry_out(  # type: ignore[arg-type]
            wish, key="k", watch=lambda _: None, patience_s=-1.0
        )


# In this process.


def test_without_a_system_an_emulated_world_is_explained(natwork: Any, tmp_path: Path) -> None:
    ended = natwork("--set", f"state_dir={tmp_path}", "migrate", "a", "--to", "b")
    assert ended.code == ExitCode.PRECONDITION
    assert "`natwork up`" in ended.err
    assert "--backend emulated" in ended.err


def test_one_emulated_world_for_one_command(natwork: Any, tmp_path: Path) -> None:
    topology = asyncio.run(build_world(small(tmp_path)).orchestrator.topology())
    moved = topology.containers[0]
    link = next(k for k in topology.links if moved.node in (k.a, k.b))
    target = link.b if link.a == moved.node else link.a
    state = tmp_path / "state"
    command = (*SMALL, "--set", f"state_dir={state}")
    order = ("migrate", moved.name, "--to", target, "--backend", "emulated", "--by", "ada")
    foretold = json.loads(natwork(*command, *order, "--dry-run", "--json").out)
    assert (foretold["decision"]["status"], len(foretold["outlooks"][0]["forecasts"])) == ("issued", 4)
    told_so = natwork(*command, *order, "--dry-run").err
    assert "would be carried out" in told_so
    assert "*" + foretold["outlooks"][0]["chosen"] in told_so
    assert "s of downtime left" in told_so
    ended = natwork(*command, *order, "--json")
    document = json.loads(ended.out)
    assert (ended.code, document["state"], document["backend"]) == (0, "migrated", "emulated")
    assert document["method"] == foretold["outlooks"][0]["chosen"]
    assert document["record"]["runs_on"] == target
    assert "nothing of it is kept" in ended.err
    assert not state.exists()
    same = natwork(*command, "migrate", moved.name, "--to", moved.node, "--backend", "emulated", "--dry-run")
    assert same.code == ExitCode.REFUSED
    assert "runs on" in same.err


def test_without_a_testbed_nothing_is_changed(natwork: Any, tmp_path: Path) -> None:
    state = tmp_path / "state"
    ended = natwork("--set", f"state_dir={state}", "migrate", "a", "--to", "b", "--backend", "testbed")
    assert ended.code == ExitCode.PRECONDITION
    assert "there is no testbed" in ended.err
    assert not state.exists()


class RealLike:
    """A real world of a kind: it keeps its clock and its containers between two commands, as a testbed would."""

    def __init__(self, config: Config) -> None:
        self._world = build_world(config)
        self.failing: Exception | None = None
        self.interrupting = False
        self.recovered = self.closed = 0
        self.backend = Backend.EMULATED

    def make(self, _: Config) -> World:
        world = self._world
        world.advance(world.facts().now_s + 20.0)

        async def recover() -> None:
            self.recovered += 1

        async def close() -> None:
            self.closed += 1

        runtime = FailingRuntime(self, world)
        facts = replace(world.facts(), backend=self.backend)
        return replace(world, runtime=runtime, recover=recover, close=close, facts=lambda: facts)  # type: ignore[arg-type]


class FailingRuntime:
    def __init__(self, real: RealLike, world: World) -> None:
        self._real, self._world = real, world

    async def migrate(self, instruction: Migrate) -> ActionOutcome:
        if self._real.failing is not None:
            raise self._real.failing
        if self._real.interrupting:
            (command,) = (t for t in asyncio.all_tasks() if "scene" in repr(t.get_coro()))
            command.cancel()  # as Ctrl-C does
            await asyncio.sleep(0.01)
        return await self._world.runtime.migrate(instruction)


def shell(real: RealLike, state: Path) -> InProcess:
    return InProcess(small(state), state, real.make)


def carry_out(real: RealLike, state: Path, wish: MoveWish | ServiceWish, key: str) -> tuple[Migration, ...]:
    return shell(real, state).carry_out(wish, key=key, watch=lambda _: None, patience_s=60.0)


def free_move(real: RealLike) -> MoveWish:
    topology = asyncio.run(real._world.orchestrator.topology())
    moved = topology.containers[0]
    link = next(k for k in topology.links if moved.node in (k.a, k.b))
    return MoveWish(container=moved.name, target=link.b if link.a == moved.node else link.a, by="ada")


def test_commands_share_journal_quota_and_keys(tmp_path: Path, natwork: Any) -> None:
    state = tmp_path / "state"
    real = RealLike(small(state))
    wish = free_move(real)
    (first,) = carry_out(real, state, wish, "k-1")
    assert carry_out(real, state, wish, "k-1") == (first,), "the same key is the same order"
    with pytest.raises(RefusedError, match="already"):
        carry_out(real, state, wish, "k-2")
    considered = shell(real, state).consider(wish)
    (account,) = considered.quota
    assert first.outcome is not None
    assert account.spent_s == pytest.approx(first.outcome.downtime_s)
    assert any("would be refused" in line for line in consideration_lines(considered))
    assert (real.closed, real.recovered) == (4, 3), "a dry run settles nothing"
    journal = SqliteJournal.open_read_only(state)
    kinds = [e.kind for e in journal.entries(0, 100)]
    journal.close()
    assert kinds == ["run", "decision", "instruction", "outcome", "decision"]
    listed = json.loads(natwork("--set", f"state_dir={state}", "migration", "list", "--json").out)["migrations"]
    assert [m["state"] for m in listed] == ["migrated", "refused"]
    shown = natwork("--set", f"state_dir={state}", "migration", "show", first.instruction.key)
    assert f"-> {wish.target}" in shown.out
    assert "dump" in shown.out
    as_json = natwork("--set", f"state_dir={state}", "migration", "show", first.instruction.key, "--json")
    assert json.loads(as_json.out)["record"]["runs_on"] == wish.target
    assert natwork("--set", f"state_dir={state}", "migration", "show", "d-9/9").code == ExitCode.FAILED
    nobody = natwork("--set", f"state_dir={state}", "migration", "list", "--container", "x", "--json")
    assert json.loads(nobody.out) == {"migrations": []}


def test_what_a_killed_command_left_is_finished_by_the_next(tmp_path: Path, natwork: Any) -> None:
    state = tmp_path / "state"
    real = RealLike(small(state))
    wish = free_move(real)
    real.failing = TimedOutError("nobody knows", hint="ask again")
    with pytest.raises(TimedOutError):
        carry_out(real, state, wish, "k-1")
    left = json.loads(natwork("--set", f"state_dir={state}", "migration", "list", "--json").out)["migrations"]
    assert [m["state"] for m in left] == ["running"]
    shown = natwork("--set", f"state_dir={state}", "migration", "show", left[0]["key"])
    assert "no progress to be had" in shown.err
    real.failing = None
    (found,) = carry_out(real, state, wish, "k-1")
    assert found.instruction.key == left[0]["key"]
    assert state_of(found) == "migrated"


def left_by_a_kill(state: Path) -> tuple[RealLike, MoveWish]:
    """A journal of a real world with an order whose outcome nobody knows."""
    real = RealLike(small(state))
    real.backend = Backend.REAL
    wish = free_move(real)
    real.failing = TimedOutError("killed", hint="recover")
    with pytest.raises(TimedOutError):
        carry_out(real, state, wish, "k-1")
    real.failing = None
    return real, wish


def test_what_nobody_carries_on_is_told_and_recovered(
    tmp_path: Path, natwork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    real, wish = left_by_a_kill(state)
    command = ("--set", f"state_dir={state}", "migration")
    listed = natwork(*command, "list", "--json")
    (row,) = json.loads(listed.out)["migrations"]
    assert row["state"] == "left_open"
    assert "`natwork migration recover`" in listed.err
    shown = natwork(*command, "show", row["key"])
    assert "left open, nobody carries it on: `natwork migration recover`" in shown.out
    assert json.loads(natwork(*command, "show", row["key"], "--json").out)["state"] == "left_open"
    monkeypatch.setattr(migrate_command, "build_world", real.make)
    recovered = natwork(*command, "recover", "--json")
    (settled,) = json.loads(recovered.out)["migrations"]
    assert (recovered.code, settled["key"], settled["state"]) == (0, row["key"], "migrated")
    assert settled["record"]["runs_on"] == wish.target
    again = natwork(*command, "recover")
    assert (again.code, "nothing was left open" in again.err) == (0, True)
    # Where a testbed stands, its nodes' journals may know more than the control journal.
    asked = real.recovered
    (state / "testbed").mkdir()
    (state / "testbed" / "testbed.json").touch()
    assert natwork(*command, "recover").code == 0
    assert real.recovered == asked + 1


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    real, wish = left_by_a_kill(state)

    def journal() -> tuple[int, list[str]]:
        opened = SqliteJournal.open_read_only(state)
        try:
            return opened.entry_count(), [key for key, _ in opened.events()]
        finally:
            opened.close()

    before, recovered = journal(), real.recovered
    considered = shell(real, state).consider(wish)
    assert considered.decision.status is DecisionStatus.REFUSED, "it is under way"
    assert "left open" in capsys.readouterr().err
    assert (journal(), real.recovered) == (before, recovered)
    fresh = tmp_path / "fresh"
    assert shell(RealLike(small(fresh)), fresh).consider(wish).outlooks
    assert not fresh.exists()


def test_a_second_command_waits_its_turn(tmp_path: Path, natwork: Any) -> None:
    state = tmp_path / "state"
    real, wish = left_by_a_kill(state)
    holder = SqliteJournal.open(state, origin=AUDIT_ORIGIN)
    try:
        for ask in (lambda: carry_out(real, state, wish, "k-2"), lambda: shell(real, state).consider(wish)):
            with pytest.raises(RefusedError, match=f"under way: process {os.getpid()}"):
                ask()
        ended = natwork("--set", f"state_dir={state}", "migration", "recover")
        assert (ended.code, "natwork down" in ended.err) == (ExitCode.REFUSED, False)
        listed = natwork("--set", f"state_dir={state}", "migration", "list", "--json")
        assert json.loads(listed.out)["migrations"][0]["state"] == "running"
    finally:
        holder.close()
    assert real.closed == 2


def test_a_damaged_node_holds_up_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    real = RealLike(small(state))
    real.failing = StoreError("open/garbage: not JSON", hint="move it away")
    wish = free_move(real)
    (found,) = carry_out(real, state, wish, "k-1")
    assert state_of(found) == "running"
    assert "stays open: open/garbage: not JSON\nhint: move it away" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [("--key", ""), ("--key", "a b"), ("--key", "k" * 201), ("--note", "\x1b[2J"), ("--note", "n" * 2001),
     ("--by", "a\nb"), ("--by", "a" * 201)],
)  # fmt: skip
def test_texts_are_bounded_as_by_http(natwork: Any, tmp_path: Path, words: tuple[str, ...]) -> None:
    ended = natwork("--set", f"state_dir={tmp_path}", "migrate", "a", "--to", "b", "--backend", "emulated", *words)
    assert (ended.code, ended.out) == (ExitCode.USAGE, "")


def test_no_folder_is_made_where_none_is_needed(natwork: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryDirectory", lambda **_: pytest.fail("made"))
    ended = natwork("--set", f"state_dir={tmp_path}", "migrate", "a", "--to", "b", "--backend", "testbed")
    assert ended.code == ExitCode.PRECONDITION


def test_an_interrupt_does_not_stop_it_half_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    real = RealLike(small(state))
    real.interrupting = True
    wish = free_move(real)
    with pytest.raises(asyncio.CancelledError):
        carry_out(real, state, wish, "k-1")
    assert "interrupted: the migration is brought to its end" in capsys.readouterr().err
    real.interrupting = False
    (found,) = carry_out(real, state, wish, "k-1")
    assert state_of(found) == "migrated"


def test_a_failure_before_the_beginning_is_told(tmp_path: Path) -> None:
    real = RealLike(small(tmp_path / "state"))
    real.failing = ActionError("the image is gone", hint="look for it")
    (found,) = carry_out(real, tmp_path / "state", free_move(real), "k-1")
    assert state_of(found) == "refused"
    assert any("the image is gone" in line for line in gantt(found))


def test_a_whole_service_in_one_process(tmp_path: Path) -> None:
    state = tmp_path / "state"
    real = RealLike(load_config(environ={}, flags={"loop.commissioning_s": 60, "state_dir": str(state)}))
    topology = asyncio.run(real._world.orchestrator.topology())
    found = carry_out(real, state, ServiceWish(service="traffic-lights", target=None, by="ada"), "k")
    names = {c.name for c in topology.containers if c.network_service == "traffic-lights"}
    assert {m.instruction.container for m in found} == names
    assert {state_of(m) for m in found} == {"migrated"}
    # The emulated world conducts the schedule in its own time: what the door tells is what the bench measures.
    arrived = service_document(found)
    assert sorted(arrived["arrived"]) == sorted(names)
    assert arrived["gates"] == ["freeze", "restore", "attach"]
    assert arrived["arrival_spread_pct"] < 5.0
    assert arrived["planned"]["unavailable_s"] == pytest.approx(arrived["unavailable_s"], rel=0.5)
    assert f"{len(names)} of {len(names)} containers arrived" in service_lines(found)[0]
    assert "% of the longest migration" in service_lines(found)[1]
    again = carry_out(real, state, ServiceWish(service="traffic-lights", target=None, by="ada"), "k")
    assert [m.instruction for m in again] == [m.instruction for m in found]


# What it looks like.


def test_the_gantt_lies_in_time() -> None:
    lines = gantt(migration())
    assert lines[0] == "d-000001/0  echo: node-0 -> node-1 by hybrid, migrated (real)"
    assert "0.250 s of downtime, 0.300 s as clients saw it, 1 pre-copy rounds" in lines[1]
    bars = {line.split("  ")[1].split(" ")[0]: line for line in lines[3:]}
    assert "#" * 20 + "." * 20 in bars["pre-dump"]
    assert "." * 30 + "##" + "." * 8 in bars["dump"]
    assert "." * 39 + "#" in bars["instant"]
    assert "64.0 MiB, 0.0 sent" in bars["pre-dump"]
    assert gantt(migration(state=MigrationState.ROLLED_BACK, runs_on="node-0"))[-1].strip() == "the link was cut"
    assert "dump, volume transfer, after 0.50 s" in gantt(running("dump", "volume transfer"))[1]


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (DecisionStatus.RECOMMENDED, "recommended"),
        (DecisionStatus.AWAITING_APPROVAL, "awaiting_approval"),
        (DecisionStatus.REFUSED, "refused"),
        (DecisionStatus.LAPSED, "lapsed"),
        (DecisionStatus.ISSUED, "running"),
        (DecisionStatus.FAILED, "running"),
    ],
)
def test_states_without_an_outcome(status: DecisionStatus, state: str) -> None:
    document = told(migration(status=status, outcome=None))
    assert (document["state"], document["downtime_s"], document["phases"]) == (state, None, [])


def test_a_dry_run_says_what_is_not_possible_and_when_who_begins() -> None:
    outlook = MigrationOutlook(
        container="echo", source="node-0", target="node-1", backend=Backend.REAL, weight=0.2, load=None, forecasts=(),
        chosen=None, chosen_by="", reason="", impossible=(MethodReason(method=MigrationMethod.COLD, reason="no criu"),),
    )  # fmt: skip
    decision = Decision(
        id="d-1", at_s=0.0, container="shop", mode=Mode.OBSERVE, status=DecisionStatus.REFUSED, verdict=None,
        mitigation=MitigationKind.OPERATOR_MOVE, reason="no room", predicted_downtime_s=0.0, instructions=(),
        rejected=(),
    )  # fmt: skip
    starts = (PlannedStart(container="echo", starts_s=1.5),)
    lines = consideration_lines(Consideration(decision=decision, outlooks=(outlook,), quota=(), starts=starts))
    assert lines[0] == "would be refused: no room"
    assert lines[1].endswith("beginning after 1.50 s")
    assert lines[-1].strip() == "not cold: no criu"


def test_bars_come_and_go() -> None:
    with PhaseBars(quiet=False) as bars:
        bars.show([migration(status=DecisionStatus.ISSUED, outcome=None)])
        bars.show([running("dump", "volume transfer")])
        bars.show([migration()])
        tasks = {t.description: t.finished for t in bars._progress.tasks}
    assert tasks["echo: pre-dump"]
    assert tasks["echo: dump"]
    assert all(tasks.values())


def test_no_testbed_no_world(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError):
        build_world(small(tmp_path, backend="testbed"))
