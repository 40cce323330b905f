"""Two LiMi nodes over in-memory ports: idempotent steps, the target's durable word, whole migrations with the driver.

The ports are as strict as real ones: they raise when a verb does not fit the state of the container.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.migrations import ContainerLoad, MigrationRecord, MigrationState
from natwork_ray.domain.runtime import (
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    DumpReport,
    PageServer,
    PathReport,
    Revival,
    RuntimeAbilities,
    SendReport,
)
from natwork_ray.domain.values import Backend
from natwork_ray.errors import ActionError, ConflictError, PreconditionError, StoreError, TimedOutError, UsageError
from natwork_ray.limi.driver import drive, recover, unfinished
from natwork_ray.limi.node import LimiNode
from natwork_ray.limi.register import Register, Standing
from natwork_ray.limi.steps import RESTORED, WITHDRAWN, MigrationStarted, Step, StepReport, Verb

SPEC = ContainerSpec(name="c", image="busy", address="10.0.0.2/24", mac="02:00:00:00:00:02", command=("serve",))


class Journal:
    """In memory; survives its agent. `full` makes it refuse."""

    def __init__(self) -> None:
        self.entries: dict[str, list[bytes]] = {}
        self.filed: list[bytes] = []
        self.full = False
        self.appends = 0

    def append(self, key: str, event: bytes) -> None:
        if self.full:
            raise StoreError("the disk is full", hint="make room")
        self.appends += 1
        self.entries.setdefault(key, []).append(event)

    def read(self, key: str) -> tuple[bytes, ...]:
        return tuple(self.entries.get(key, ()))

    def open_keys(self) -> tuple[str, ...]:
        return tuple(self.entries)

    def close(self, key: str, record: bytes) -> None:
        if self.full:
            raise StoreError("the disk is full", hint="make room")
        self.entries.pop(key, None)
        self.filed.append(record)

    def records(self) -> tuple[bytes, ...]:
        return tuple(self.filed)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def now_s(self) -> float:
        self.now += 0.001
        return self.now


@dataclass
class Bridge:
    """The one layer 2 bridge: where addresses are, and which network namespaces there are."""

    at: set[str] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)


@dataclass
class Host:
    """One node's world behind the three ports. `hooks` run before a verb and may raise or wait."""

    name: str
    bridge_: Bridge
    others: dict[str, Host]
    state: ContainerState = ContainerState.ABSENT
    lazy: bool = False  # frozen, memory served
    images: set[str] = field(default_factory=set)
    open_paths: set[str] = field(default_factory=set)
    whole: bool = True
    torn: bool = False  # pages are missing, and will not come
    calls: list[str] = field(default_factory=list)
    hooks: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    methods: tuple[MigrationMethod, ...] = tuple(MigrationMethod)

    async def call(self, verb: str) -> None:
        self.calls.append(verb)
        hook = self.hooks.get(verb)
        if hook is not None:
            await hook()
        else:
            await asyncio.sleep(0)

    def must(self, fact: bool, what: str) -> None:
        if not fact:
            raise ActionError(f"{self.name}: {what} while {self.state}", hint="none")

    # ContainerRuntime

    async def abilities(self) -> RuntimeAbilities:
        return RuntimeAbilities(
            methods=self.methods, dirty_tracking=False, reasons=((MigrationMethod.HYBRID, "no userfaultfd"),)
        )

    async def status(self, container: str) -> ContainerStatus:
        return ContainerStatus(container=container, state=self.state)

    async def load(self, container: str, *, observe_s: float) -> ContainerLoad:
        raise NotImplementedError

    async def describe(self, container: str) -> ContainerSpec:
        await self.call("describe")
        return SPEC

    async def prepare(self, spec: ContainerSpec, *, key: str) -> None:
        """Runtime and bridge share the name; both make something that has to go again."""
        await self.call("prepare")
        self.images.add("bundle")
        self.bridge_.namespaces.add(self.name)

    async def pre_dump(self, container: str, *, key: str, images: str, parent: str | None) -> DumpReport:
        await self.call("pre_dump")
        self.must(self.state is ContainerState.RUNNING, "pre-dump")
        self.images.add(images)
        return DumpReport(size_bytes=100.0, pages_bytes=90.0, frozen_s=0.01)

    async def freeze(self, container: str) -> None:
        await self.call("freeze")
        self.must(self.state in (ContainerState.RUNNING, ContainerState.FROZEN), "freeze")
        self.state = ContainerState.FROZEN

    async def thaw(self, container: str) -> None:
        raise NotImplementedError

    async def dump(self, container: str, *, key: str, images: str, parent: str | None, lazy: bool) -> DumpReport:
        await self.call("dump")
        if images not in self.images:
            self.must(self.state is ContainerState.FROZEN, "dump")
            self.images.add(images)
            self.lazy = lazy
            self.state = ContainerState.FROZEN if lazy else ContainerState.STOPPED
        return DumpReport(size_bytes=100.0, pages_bytes=90.0, frozen_s=0.1, page_server_port=7000 if lazy else 0)

    async def await_pages_served(self, container: str, *, key: str) -> float:
        await self.call("await_pages_served")
        return 64.0

    async def restore(self, container: str, *, key: str, images: str, page_server: PageServer | None) -> None:
        await self.call("restore")
        self.must(images in self.images, "restore")
        self.state, self.whole = ContainerState.RUNNING, page_server is None
        self.never_two()

    async def await_pages_fetched(self, container: str, *, key: str) -> float:
        await self.call("await_pages_fetched")
        self.must(self.state is ContainerState.RUNNING and not self.torn, "fetch pages")
        self.whole = True
        return 64.0

    async def revive(self, container: str, *, key: str) -> Revival:
        await self.call("revive")
        how = {
            ContainerState.RUNNING: Revival.STILL_RUNNING, ContainerState.FROZEN: Revival.THAWED,
            ContainerState.STOPPED: Revival.RESTORED,
        }[self.state]  # fmt: skip
        self.state = ContainerState.RUNNING
        self.never_two()
        return how

    async def destroy(self, container: str, *, key: str) -> None:
        await self.call("destroy")
        self.state, self.lazy, self.whole, self.torn = ContainerState.ABSENT, False, True, False

    async def clean(self, container: str, *, key: str) -> None:
        await self.call("clean")
        self.images.clear()

    # ImageTransfer

    async def open(self, target: str) -> PathReport:
        await self.call("open")
        self.open_paths.add(target)
        return PathReport(bandwidth_bytes_per_s=1e9, rtt_s=0.0002)

    async def send_images(self, container: str, *, target: str, key: str, images: str, basis: str | None) -> SendReport:
        await self.call("send_images")
        self.must(images in self.images, "send")
        self.others[target].images.add(images)
        return SendReport(size_bytes=100.0, sent_bytes=40.0, digest="d1")

    async def send_volume(self, container: str, *, target: str, key: str) -> SendReport:
        await self.call("send_volume")
        self.others[target].images.add("volume")
        return SendReport(size_bytes=10.0, sent_bytes=4.0, digest="d2")

    async def open_page_tunnel(self, *, target: str, key: str, port: int) -> PageServer:
        await self.call("open_page_tunnel")
        assert port == 7000
        self.open_paths.add("tunnel")
        return PageServer(host="127.0.0.1", port=7001)

    async def close(self, *, target: str, key: str) -> None:
        await self.call("close")
        self.open_paths.clear()

    # AddressBridge (prepare: above)

    async def detach(self, container: str) -> None:
        await self.call("detach")
        self.bridge_.at.discard(self.name)

    async def attach(self, container: str) -> None:
        await self.call("attach")
        self.bridge_.at.add(self.name)
        assert len(self.bridge_.at) == 1, "the address is on the bridge twice"

    async def attached(self, container: str) -> bool:
        return self.name in self.bridge_.at

    async def remove(self, container: str) -> None:
        await self.call("remove")
        self.bridge_.namespaces.discard(self.name)
        self.bridge_.at.discard(self.name)

    def never_two(self) -> None:
        running = [host.name for host in self.others.values() if host.state is ContainerState.RUNNING]
        assert len(running) <= 1, f"runs on {running}"


class Testbed:
    """Nodes a and b; the container runs on a."""

    __test__ = False

    def __init__(self) -> None:
        self.bridge = Bridge(at={"a"}, namespaces={"a"})
        self.hosts: dict[str, Host] = {}
        for name in "ab":
            self.hosts[name] = Host(name, self.bridge, self.hosts)
        self.a, self.b = self.hosts["a"], self.hosts["b"]
        self.a.state = ContainerState.RUNNING
        self.journals = {"a": Journal(), "b": Journal()}
        self.clock = Clock()
        self.nodes: dict[str, LimiNode] = {}
        for name in "ab":
            self.agent_starts(name)

    def agent_starts(self, name: str) -> LimiNode:
        host = self.hosts[name]
        node = LimiNode(
            name=name, runtime=host, transfer=host, bridge=host, journal=self.journals[name], clock=self.clock
        )
        self.nodes[name] = node
        return node

    async def perform(self, step: Step) -> StepReport:
        """A performer that always reaches the agent that is alive now."""
        return await self.nodes[step.source if step.side == "source" else step.target].perform(step)

    async def migrate(self, start: MigrationStarted) -> MigrationRecord:
        back = self.journals[start.source]
        performers = {"source": _Reach(self, start.source), "target": _Reach(self, start.target)}
        return await drive(start, **performers, journal=back, clock=self.clock, sleep=no_sleep)  # type: ignore[arg-type]

    def check(self, record: MigrationRecord) -> None:
        """The container runs where the record says, whole, with its address; nothing else is left."""
        here = self.hosts[record.runs_on]
        (there,) = [host for host in self.hosts.values() if host is not here]
        assert (here.state, there.state) == (ContainerState.RUNNING, ContainerState.ABSENT), record
        assert self.bridge.at == self.bridge.namespaces == {here.name}
        assert here.whole
        for host in self.hosts.values():
            assert not host.images, (host.name, host.images, record)
            assert not host.open_paths


@dataclass
class _Reach:
    testbed: Testbed
    name: str

    async def perform(self, step: Step) -> StepReport:
        return await self.testbed.nodes[self.name].perform(step)


async def no_sleep(_seconds: float) -> None:
    await asyncio.sleep(0)


def started(method: MigrationMethod = MigrationMethod.COLD, key: str = "k", source: str = "a") -> MigrationStarted:
    return MigrationStarted(
        at_s=0.0, key=key, container="c", source=source, target="b" if source == "a" else "a", method=method,
        backend=Backend.EMULATED, max_rounds=2,
    )  # fmt: skip


def step(verb: Verb, number: int, *, key: str = "k", source: str = "a", attempt: int = 1, lazy: bool = False) -> Step:
    return Step(
        key=key, number=number, verb=verb, container="c", source=source, target="b" if source == "a" else "a",
        method=MigrationMethod.POST_COPY if lazy else MigrationMethod.COLD, images="final", lazy=lazy, spec=SPEC,
        attempt=attempt, page_server=PageServer(host="127.0.0.1", port=7001) if lazy else None,
    )  # fmt: skip


@pytest.fixture
def testbed() -> Testbed:
    return Testbed()


async def prepared(testbed: Testbed, *, key: str = "k") -> LimiNode:
    node = testbed.nodes["b"]
    await node.perform(step(Verb.PREPARE, 4, key=key))
    testbed.b.images.add("final")
    testbed.a.state = ContainerState.STOPPED
    testbed.bridge.at.clear()
    return node


# Whole migrations.


@pytest.mark.parametrize("method", MigrationMethod)
def test_a_migration_from_end_to_end(testbed: Testbed, method: MigrationMethod) -> None:
    record = asyncio.run(testbed.migrate(started(method)))
    assert (record.state, record.runs_on, record.error) == (MigrationState.MIGRATED, "b", "")
    testbed.check(record)
    names = [phase.name for phase in record.phases]
    assert ("lazy pages" in names) is (method in (MigrationMethod.POST_COPY, MigrationMethod.HYBRID))
    assert testbed.journals["a"].filed
    assert unfinished(testbed.journals["a"]) == ()


def test_back_and_forth_under_new_keys(testbed: Testbed) -> None:
    for number in range(8):
        method = list(MigrationMethod)[number % 4]
        record = asyncio.run(testbed.migrate(started(method, key=f"k-{number}", source="ab"[number % 2])))
        assert record.state is MigrationState.MIGRATED, record
        testbed.check(record)


def test_dump_and_volume_travel_at_the_same_time(testbed: Testbed) -> None:
    """The record shows the overlap that D3.3 asks for."""

    async def run() -> MigrationRecord:
        sent = asyncio.Event()

        async def volume() -> None:
            await sent.wait()

        async def images() -> None:
            sent.set()

        testbed.a.hooks = {"send_volume": volume, "send_images": images}
        return await testbed.migrate(started())

    phases = {phase.name: phase for phase in asyncio.run(run()).phases}
    volume, dump = phases["volume transfer"], phases["dump transfer"]
    assert volume.starts_s <= phases["dump"].starts_s + phases["dump"].duration_s
    assert volume.starts_s < dump.starts_s < volume.starts_s + volume.duration_s


PORT_CALLS = (
    "describe", "prepare", "pre_dump", "freeze", "dump", "await_pages_served", "restore", "await_pages_fetched",
    "destroy", "clean", "open", "send_images", "send_volume", "open_page_tunnel", "close", "detach", "attach", "remove",
    "revive",
)  # fmt: skip


@pytest.mark.parametrize("method", MigrationMethod)
@pytest.mark.parametrize("verb", PORT_CALLS)
@pytest.mark.parametrize("after", [False, True])
def test_any_port_may_fail_once(testbed: Testbed, method: MigrationMethod, verb: str, after: bool) -> None:
    """`after`: the effect is there when it fails."""
    failed: list[str] = []

    for host in testbed.hosts.values():

        async def fail(host: Host = host) -> None:
            if not failed:
                failed.append(host.name)
                if after:
                    del host.hooks[verb]
                    bound = getattr(host, verb)
                    await bound(**_ARGUMENTS[verb]) if verb in _ARGUMENTS else await bound("c")
                raise ActionError("injected", hint="none")

        host.hooks[verb] = fail
    record = asyncio.run(testbed.migrate(started(method)))
    testbed.check(record)
    assert record.state is MigrationState.MIGRATED or record.error


_ARGUMENTS: dict[str, dict[str, Any]] = {
    "prepare": {"spec": SPEC, "key": "k"},
    "pre_dump": {"container": "c", "key": "k", "images": "pre-1", "parent": None},
    "dump": {"container": "c", "key": "k", "images": "final", "parent": None, "lazy": True},
    "restore": {"container": "c", "key": "k", "images": "final", "page_server": None},
    "send_images": {"container": "c", "target": "b", "key": "k", "images": "final", "basis": None},
    "send_volume": {"container": "c", "target": "b", "key": "k"},
    "open": {"target": "b"},
    "open_page_tunnel": {"target": "b", "key": "k", "port": 7000},
    "close": {"target": "b", "key": "k"},
}
for _verb in ("await_pages_served", "await_pages_fetched", "revive", "destroy", "clean"):
    _ARGUMENTS[_verb] = {"container": "c", "key": "k"}


# Idempotency and order.


def test_a_repeated_step_joins_the_first_and_then_gets_its_answer(testbed: Testbed) -> None:
    async def run() -> None:
        go = asyncio.Event()

        async def wait() -> None:
            await go.wait()

        testbed.a.hooks["freeze"] = wait
        node = testbed.nodes["a"]
        first = asyncio.create_task(node.perform(step(Verb.FREEZE, 5)))
        second = asyncio.create_task(node.perform(step(Verb.FREEZE, 5, attempt=2)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        go.set()
        assert await first == await second == await node.perform(step(Verb.FREEZE, 5, attempt=3))
        assert testbed.a.calls.count("freeze") == 1

    asyncio.run(run())


def test_a_step_goes_on_when_its_caller_goes_away(testbed: Testbed) -> None:
    async def run() -> None:
        go = asyncio.Event()

        async def wait() -> None:
            await go.wait()

        testbed.a.hooks["freeze"] = wait
        node = testbed.nodes["a"]
        caller = asyncio.create_task(node.perform(step(Verb.FREEZE, 5)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        go.set()
        await node.perform(step(Verb.FREEZE, 5, attempt=2))
        assert testbed.a.calls.count("freeze") == 1
        assert testbed.a.state is ContainerState.FROZEN

    asyncio.run(run())


def test_a_failed_step_is_tried_again_at_another_attempt_only(testbed: Testbed) -> None:
    async def run() -> None:
        node = testbed.nodes["a"]
        testbed.a.state = ContainerState.STOPPED
        for attempt, calls in ((1, 1), (1, 1), (2, 2)):
            with pytest.raises(ActionError, match="freeze while stopped"):
                await node.perform(step(Verb.FREEZE, 5, attempt=attempt))
            assert testbed.a.calls.count("freeze") == calls

    asyncio.run(run())


def test_revive_ends_what_is_under_way_and_refuses_what_comes_late(testbed: Testbed) -> None:
    async def run() -> None:
        async def hang() -> None:
            await asyncio.Event().wait()

        testbed.a.hooks["send_volume"] = hang
        node = testbed.nodes["a"]
        await node.perform(step(Verb.FREEZE, 5))
        sending = asyncio.create_task(node.perform(step(Verb.VOLUME_TRANSFER, 6)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        report = await node.perform(step(Verb.REVIVE, 8))
        assert report.decided == Revival.THAWED
        with pytest.raises(ConflictError, match="ended by a later step"):
            await sending
        with pytest.raises(ConflictError, match="replaced"):
            await node.perform(step(Verb.DUMP, 7))
        assert testbed.a.state is ContainerState.RUNNING

    asyncio.run(run())


def test_a_step_for_another_node_is_refused(testbed: Testbed) -> None:
    with pytest.raises(UsageError, match="given to b"):
        asyncio.run(testbed.nodes["b"].perform(step(Verb.FREEZE, 1)))
    with pytest.raises(UsageError, match="without a container's description"):
        asyncio.run(testbed.nodes["b"].perform(
            Step(key="k", number=1, verb=Verb.PREPARE, container="c", source="a", target="b",
                 method=MigrationMethod.COLD)
        ))  # fmt: skip


def test_close_ends_what_is_under_way(testbed: Testbed) -> None:
    async def run() -> None:
        async def hang() -> None:
            await asyncio.Event().wait()

        testbed.a.hooks["freeze"] = hang
        node = testbed.nodes["a"]
        freezing = asyncio.create_task(node.perform(step(Verb.FREEZE, 5)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await node.close()
        with pytest.raises(ConflictError):
            await freezing

    asyncio.run(run())


def test_memory_of_answers_is_bounded(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natwork_ray.limi.node.REMEMBERED", 5)

    async def run() -> None:
        node = testbed.nodes["a"]
        for number in range(20):
            await node.perform(step(Verb.CHECK_SOURCE, number, key=f"k-{number}"))
            await node.perform(step(Verb.CLEAN_SOURCE, number, key=f"k-{number}"))
        assert len(node._work) <= 5
        assert len(node._fences) <= 5

    asyncio.run(run())


# Checks.


def test_checks_say_why_not(testbed: Testbed) -> None:
    testbed.b.methods = (MigrationMethod.COLD,)
    record = asyncio.run(testbed.migrate(started(MigrationMethod.HYBRID)))
    assert record.state is MigrationState.REFUSED
    assert "no userfaultfd" in record.error
    testbed.b.state = ContainerState.STOPPED
    with pytest.raises(ConflictError, match="already"):
        asyncio.run(testbed.nodes["b"].perform(step(Verb.CHECK_TARGET, 1, key="k-2")))
    testbed.a.state = ContainerState.STOPPED
    with pytest.raises(ConflictError, match="not running"):
        asyncio.run(testbed.nodes["a"].perform(step(Verb.CHECK_SOURCE, 1, key="k-2")))
    testbed.a.state, testbed.a.methods = ContainerState.RUNNING, ()
    with pytest.raises(PreconditionError, match="cannot migrate"):
        asyncio.run(testbed.nodes["a"].perform(step(Verb.CHECK_SOURCE, 1, key="k-3")))


def test_a_container_that_is_still_arriving_does_not_leave(testbed: Testbed) -> None:
    async def run() -> None:
        node = await prepared(testbed)
        await node.perform(step(Verb.RESTORE, 5, lazy=True))
        with pytest.raises(ConflictError, match="still arriving"):
            await node.perform(step(Verb.CHECK_SOURCE, 1, key="next", source="b"))
        await node.perform(step(Verb.ADDRESS_MOVE, 6))
        await node.perform(step(Verb.PAGES_FETCHED, 7))
        await node.perform(step(Verb.CHECK_SOURCE, 1, key="next", source="b", attempt=2))

    asyncio.run(run())


# The target's word.


@pytest.mark.parametrize("again", [False, True])
def test_a_withdrawn_key_is_never_restored_not_even_by_the_next_agent(testbed: Testbed, again: bool) -> None:
    async def run() -> None:
        node = await prepared(testbed)
        assert (await node.perform(step(Verb.WITHDRAW, 9))).decided == WITHDRAWN
        node = testbed.agent_starts("b") if again else node
        testbed.b.images.add("final")
        for verb in (Verb.PREPARE, Verb.RESTORE, Verb.ADDRESS_MOVE, Verb.PAGES_FETCHED, Verb.CHECK_TARGET):
            with pytest.raises(ConflictError):
                await node.perform(step(verb, 12))
        assert testbed.b.state is ContainerState.ABSENT

    asyncio.run(run())


@pytest.mark.parametrize("lazy", [False, True])
def test_restored_is_said_for_ever_unless_forced_before_the_pages_are_there(testbed: Testbed, lazy: bool) -> None:
    async def run() -> None:
        node = await prepared(testbed)
        await node.perform(step(Verb.RESTORE, 5, lazy=lazy))
        node = testbed.agent_starts("b")
        assert (await node.perform(step(Verb.WITHDRAW, 6))).decided == RESTORED
        assert (await node.perform(step(Verb.RESTORE, 7, lazy=lazy))).detail == "restored before"
        assert testbed.b.calls.count("restore") == 1
        testbed.b.torn = True
        forced = await node.perform(step(Verb.FORCE_WITHDRAW, 8))
        assert forced.decided == (WITHDRAWN if lazy else RESTORED)
        assert testbed.b.state is (ContainerState.ABSENT if lazy else ContainerState.RUNNING)

    asyncio.run(run())


def test_pages_that_are_all_there_cannot_be_forced_away(testbed: Testbed) -> None:
    async def run() -> None:
        node = await prepared(testbed)
        await node.perform(step(Verb.RESTORE, 5, lazy=True))
        assert (await node.perform(step(Verb.PAGES_FETCHED, 6))).sent_bytes == 64.0
        node = testbed.agent_starts("b")
        assert (await node.perform(step(Verb.FORCE_WITHDRAW, 7))).decided == RESTORED
        assert (await node.perform(step(Verb.PAGES_FETCHED, 8))).detail == "whole before"
        assert testbed.b.calls.count("await_pages_fetched") == 1

    asyncio.run(run())


@pytest.mark.parametrize("pages", ["there", "late", "torn", "container gone", "nobody knows"])
def test_before_it_ends_a_container_by_force_it_asks_whether_it_is_whole(
    testbed: Testbed, pages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that died while pages came in knows nothing of them; its runtime does."""
    monkeypatch.setattr("natwork_ray.limi.node.LAST_PAGES_S", 0.001)

    async def run() -> None:
        async def hang() -> None:
            await asyncio.Event().wait()

        async def unknown() -> None:
            raise TimedOutError("runc gives no answer", hint="ask again")

        node = await prepared(testbed)
        await node.perform(step(Verb.RESTORE, 5, lazy=True))
        testbed.b.hooks["await_pages_fetched"] = hang
        waiting = asyncio.create_task(node.perform(step(Verb.PAGES_FETCHED, 7)))
        await asyncio.sleep(0)
        await node.close()
        with pytest.raises(ConflictError):
            await waiting
        node = testbed.agent_starts("b")
        if pages == "nobody knows":
            testbed.b.hooks["await_pages_fetched"] = unknown
            with pytest.raises(TimedOutError):
                await node.perform(step(Verb.FORCE_WITHDRAW, 8))
            assert testbed.b.state is ContainerState.RUNNING
        if pages != "late":
            del testbed.b.hooks["await_pages_fetched"]
        testbed.b.torn = pages == "torn"
        if pages == "container gone":
            gone = ContainerStatus(container="c", state=ContainerState.STOPPED)
            monkeypatch.setattr(testbed.b, "status", lambda _: asyncio.sleep(0, gone))
        kept = pages in ("there", "nobody knows")
        forced = await node.perform(step(Verb.FORCE_WITHDRAW, 8, attempt=2))
        assert forced.decided == (RESTORED if kept else WITHDRAWN)
        assert testbed.b.state is (ContainerState.RUNNING if kept else ContainerState.ABSENT)
        again = await testbed.agent_starts("b").perform(step(Verb.FORCE_WITHDRAW, 9))
        assert again.decided == forced.decided

    asyncio.run(run())


def test_withdrawing_ends_a_restore_that_hangs(testbed: Testbed) -> None:
    async def run() -> None:
        async def hang() -> None:
            await asyncio.Event().wait()

        node = await prepared(testbed)
        testbed.b.hooks["restore"] = hang
        restoring = asyncio.create_task(node.perform(step(Verb.RESTORE, 5)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (await node.perform(step(Verb.WITHDRAW, 6))).decided == WITHDRAWN
        with pytest.raises(ConflictError):
            await restoring

    asyncio.run(run())


def test_what_runs_and_could_not_be_noted_is_ended_again(testbed: Testbed) -> None:
    async def run() -> None:
        node = await prepared(testbed)
        testbed.journals["b"].full = True
        with pytest.raises(StoreError):
            await node.perform(step(Verb.RESTORE, 5))
        assert testbed.b.state is ContainerState.ABSENT
        with pytest.raises(StoreError):
            await node.perform(step(Verb.WITHDRAW, 6))
        testbed.journals["b"].full = False
        assert (await node.perform(step(Verb.WITHDRAW, 6, attempt=2))).decided == WITHDRAWN

    asyncio.run(run())


def test_an_agent_that_dies_between_restore_and_note_says_withdrawn_and_ends_it(testbed: Testbed) -> None:
    async def run() -> None:
        await prepared(testbed)
        await testbed.b.restore("c", key="k", images="final", page_server=None)
        node = testbed.agent_starts("b")
        assert (await node.perform(step(Verb.WITHDRAW, 6))).decided == WITHDRAWN
        assert testbed.b.state is ContainerState.ABSENT

    asyncio.run(run())


def test_a_withdrawal_whose_end_failed_is_not_answered_until_it_is_done(testbed: Testbed) -> None:
    async def run() -> None:
        node = await prepared(testbed)

        async def fail() -> None:
            raise ActionError("busy", hint="wait")

        testbed.b.hooks = {"destroy": fail}
        with pytest.raises(ActionError):
            await node.perform(step(Verb.WITHDRAW, 6))
        testbed.b.hooks = {"remove": fail, "clean": fail}
        with pytest.raises(ActionError, match=r"busy.*; busy"):
            await node.perform(step(Verb.WITHDRAW, 6, attempt=2))
        testbed.b.hooks = {}
        await node.perform(step(Verb.WITHDRAW, 6, attempt=3))
        assert not testbed.b.images
        assert testbed.bridge.namespaces == {"a"}

    asyncio.run(run())


def test_messages_of_an_old_migration_do_not_touch_a_container_that_came_back(testbed: Testbed) -> None:
    for number, source in enumerate("aba"):
        asyncio.run(testbed.migrate(started(key=f"k-{number}", source=source)))
    asyncio.run(testbed.migrate(started(key="k-3", source="b")))
    assert testbed.a.state is ContainerState.RUNNING

    async def run() -> None:
        for again in (False, True):
            node = testbed.agent_starts("a") if again else testbed.nodes["a"]
            late = [
                step(Verb.SETTLE_SOURCE, 13, key="k-2"), step(Verb.FREEZE, 5, key="k-2", attempt=3),
                step(Verb.REVIVE, 14, key="k-0"), step(Verb.ADDRESS_DETACH, 7, key="k-0"),
                step(Verb.DUMP, 99, key="k-2"), step(Verb.WITHDRAW, 99, key="k-1", source="b"),
                step(Verb.FORCE_WITHDRAW, 99, key="k-1", source="b"), step(Verb.RESTORE, 99, key="k-1", source="b"),
            ]  # fmt: skip
            for each in late:
                with contextlib.suppress(ConflictError):
                    await node.perform(each)
            assert testbed.a.state is ContainerState.RUNNING
            assert testbed.bridge.at == {"a"}

    asyncio.run(run())


def test_a_never_expected_key_is_withdrawn_without_touching_anything(testbed: Testbed) -> None:
    async def run() -> None:
        testbed.b.state = ContainerState.STOPPED  # somebody else's
        assert (await testbed.nodes["b"].perform(step(Verb.WITHDRAW, 6))).decided == WITHDRAWN
        assert (await testbed.nodes["b"].perform(step(Verb.WITHDRAW, 7))).decided == WITHDRAWN
        assert "destroy" not in testbed.b.calls
        with pytest.raises(ConflictError, match="withdrawn"):
            await testbed.nodes["b"].perform(step(Verb.PREPARE, 8))
        with pytest.raises(ConflictError, match="never prepared"):
            await testbed.nodes["b"].perform(step(Verb.RESTORE, 8, key="other"))
        with pytest.raises(ConflictError, match="by now"):
            await testbed.nodes["b"].perform(step(Verb.PREPARE, 8, key="other"))

    asyncio.run(run())


@pytest.mark.parametrize("body", [b"no", b"{}", b'{"key":"k","standing":"asleep"}'])
def test_a_register_that_was_changed_is_refused(body: bytes) -> None:
    journal = Journal()
    journal.append("c@register", body)
    with pytest.raises(StoreError, match="register of c"):
        Register(journal, "c")


@given(notes=st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from(Standing)), max_size=12))
def test_a_register_read_again_says_the_same(notes: list[tuple[str, Standing]]) -> None:
    journal = Journal()
    register = Register(journal, "c")
    for key, standing in notes:
        register.note(key, standing)
    again = Register(journal, "c")
    for key in "xyz":
        assert again.standing(key) is register.standing(key)
        assert again.superseded(key) == register.superseded(key)
        assert again.expected(key) == register.expected(key)
    assert again.arriving == register.arriving


# Deaths: of the coordinator at every point of its journal, of agents anywhere.


@pytest.mark.parametrize("method", MigrationMethod)
@pytest.mark.parametrize("failing", ["", "send_images", "restore", "await_pages_fetched"])
def test_recovery_settles_from_every_event_on(method: MigrationMethod, failing: str) -> None:
    """The coordinator dies as soon as it has written its n-th entry; its agent's memory dies with it."""
    entries = 1
    while True:
        testbed = Testbed()
        if failing:
            _fails_always(testbed, failing)
        died = asyncio.run(_die_after(testbed, started(method), entries))
        if not died:
            break
        assert [s.key for s in unfinished(testbed.journals["a"])] == ["k"]
        testbed.agent_starts("a")
        record = asyncio.run(
            recover(
                "k", source=_Reach(testbed, "a"), target=_Reach(testbed, "b"), journal=testbed.journals["a"],
                clock=testbed.clock, sleep=no_sleep,
            )
        )  # fmt: skip
        testbed.check(record)
        assert unfinished(testbed.journals["a"]) == ()
        entries += 1
    assert entries > 6


def _fails_always(testbed: Testbed, verb: str) -> None:
    async def fail() -> None:
        raise ActionError("injected", hint="none")

    for host in testbed.hosts.values():
        host.hooks[verb] = fail


async def _die_after(testbed: Testbed, start: MigrationStarted, entries: int) -> bool:
    """Drive until the source's journal has that many entries, then let driver and agent die."""
    journal = testbed.journals["a"]
    driving = asyncio.create_task(testbed.migrate(start))
    while not driving.done() and len(journal.read(start.key)) < entries:  # noqa: ASYNC110 - turn by turn on purpose
        await asyncio.sleep(0)
    if driving.done():
        testbed.check(await driving)
        return False
    driving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await driving
    await testbed.nodes["a"].close()
    return bool(journal.read(start.key))


@given(
    method=st.sampled_from(MigrationMethod),
    deaths=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 120)), max_size=4),
    breaks=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(PORT_CALLS)), max_size=2),
    full=st.sampled_from(["", "a", "b"]),
)
@settings(max_examples=2000 if os.environ.get("LIMI_DEEP") else 40)
def test_agents_die_anywhere_and_ports_fail(
    method: MigrationMethod, deaths: list[tuple[str, int]], breaks: list[tuple[str, str]], full: str
) -> None:
    testbed = Testbed()
    for name, verb in breaks:
        host = testbed.hosts[name]

        async def fail(host: Host = host, verb: str = verb) -> None:
            del host.hooks[verb]
            raise ActionError("injected", hint="none")

        host.hooks[verb] = fail

    async def run() -> MigrationRecord:
        performers = {"source": _Reach(testbed, "a"), "target": _Reach(testbed, "b")}
        journal = testbed.journals["a"]
        driving = asyncio.create_task(testbed.migrate(started(method)))
        for name, turns in sorted(deaths, key=lambda death: death[1]):
            for _ in range(turns):
                await asyncio.sleep(0)
            if full:
                testbed.journals[full].full = not testbed.journals[full].full
            if name == "a" and not driving.done() and journal.read("k"):
                driving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await driving
                await testbed.nodes["a"].close()
                testbed.agent_starts("a")
                driving = asyncio.create_task(
                    recover("k", **performers, journal=journal, clock=testbed.clock, sleep=no_sleep)  # type: ignore[arg-type]
                )
            elif name == "b":
                await testbed.nodes["b"].close()
                testbed.agent_starts("b")
        for each in testbed.journals.values():
            each.full = False
        return await driving

    try:
        record = asyncio.run(run())
    except StoreError:
        assert testbed.a.state is ContainerState.RUNNING  # nothing was begun
        return
    if "left behind" not in record.error:
        testbed.check(record)
