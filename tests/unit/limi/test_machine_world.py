"""A migration against a world of two nodes in which everything may go wrong (issue 3, it must show 3).

Hypothesis interleaves whatever it likes: steps end in any order, well or badly; answers are lost, late or doubled;
lost steps take effect long afterwards; the coordinator dies and comes back with as little of its journal as it may;
the target's agent dies between an effect and its note; the link is cut; the disk refuses; somebody cancels. After
every step the container runs at most once and its address is on the bridge at most once; after the world has healed
it runs on exactly one node, with its address, and nothing is left behind that the record does not name.

    LIMI_DEEP=1 pytest tests/unit/limi/test_machine_world.py     500 times as many steps, new ones each time
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.migrations import MigrationState
from natwork_ray.domain.runtime import ContainerSpec, PageServer, Revival
from natwork_ray.domain.values import Backend
from natwork_ray.limi.machine import Migration
from natwork_ray.limi.plan import LAZY, ROUNDS
from natwork_ray.limi.retries import PATIENCE_S
from natwork_ray.limi.steps import (
    RESTORED,
    WITHDRAWN,
    Abandon,
    Cancelled,
    CoordinatorRecovered,
    Finish,
    Hold,
    Instruction,
    MigrationEvent,
    MigrationStarted,
    Perform,
    Side,
    Step,
    StepDone,
    StepFailed,
    StepLost,
    StepReleased,
    StepReport,
    Verb,
    Wait,
    WaitOver,
)

SPEC = ContainerSpec(name="c", image="busy", address="10.0.0.2/24", mac="02:00:00:00:00:02", command=("serve",))
FENCES = {
    Verb.REVIVE, Verb.CLEAN_SOURCE, Verb.SETTLE_SOURCE, Verb.WITHDRAW, Verb.FORCE_WITHDRAW, Verb.SETTLE_TARGET
}  # fmt: skip


DEEP = bool(os.environ.get("LIMI_DEEP"))
_BLOWS = ("none", "failure", "served", "silence", "silence after the effect", "death", "forgotten", "disk", "cancel")
_EVERY_METHOD = [
    Verb.CHECK_SOURCE, Verb.PREPARE, Verb.FREEZE, Verb.DUMP, Verb.DUMP_TRANSFER, Verb.RESTORE, Verb.RESTORE,
    Verb.ADDRESS_MOVE, Verb.SETTLE_SOURCE,
]  # fmt: skip
_ROUNDS = [Verb.PRE_DUMP, Verb.PRE_DUMP_TRANSFER]
_PAGES = [Verb.PAGES_FETCHED] * 4


def head_starts(method: MigrationMethod) -> list[Verb]:
    """Steps of a method that something may happen to first; those that decide most, several times."""
    return _EVERY_METHOD + (_ROUNDS if method in ROUNDS else []) + (_PAGES if method in LAZY else [])


class StepFailsError(Exception):
    """What a side says of a step that it could not do."""


@dataclass
class Source:
    """The node where the container runs at first. `version` counts what the container has done since the beginning."""

    state: str = "running"  # running, frozen, dumped, lazy (frozen, memory served), gone
    version: int = 0
    final: int | None = None  # version in the last complete checkpoint
    pre_dumped: bool = False
    address: bool = True
    tunnel: bool = False
    path: bool = False
    served: bool = False  # all lazy pages have left, and the memory with them
    images: bool = False


@dataclass
class Target:
    """The node that it goes to. `noted` is its durable register, the rest is what is there."""

    noted: str = ""  # expected, restored, whole, withdrawn
    expected: bool = False
    running: bool = False
    prepared: bool = False
    address: bool = False
    images: int | None = None
    other_images: bool = False
    torn: bool = False  # lazy pages are missing, and will not come


@dataclass
class World:
    """Both nodes, as their steps change them; the rules are those of `natwork_ray.limi.node`."""

    source: Source = field(default_factory=Source)
    target: Target = field(default_factory=Target)
    fences: dict[Side, int] = field(default_factory=dict)
    answers: dict[tuple[Verb, int], StepReport] = field(default_factory=dict)  # volatile memory of both agents
    shrinking: float = 0.5
    note_lost: bool = False

    def do(self, step: Step, *, noted: bool = True) -> StepReport:
        """Do a step. Without `noted`, the target's agent dies between the effect and its note."""
        if step.verb not in FENCES and step.number < self.fences.get(step.side, 0):
            raise StepFailsError("replaced by a later step")
        if step.verb in FENCES:
            self.fences[step.side] = max(step.number, self.fences.get(step.side, 0))
        if (step.verb, step.number) in self.answers:
            return self.answers[step.verb, step.number]
        report = self._source(step) if step.side is Side.SOURCE else self._target(step, noted)
        self.answers[step.verb, step.number] = report
        return report

    def _source(self, step: Step) -> StepReport:
        here, there = self.source, self.target
        match step.verb:
            case Verb.CHECK_SOURCE:
                need(here.state == "running")
                return StepReport(spec=SPEC)
            case Verb.OPEN_PATH:
                here.path = True
            case Verb.PRE_DUMP:
                need(here.state == "running")
                here.pre_dumped = here.images = True
            case Verb.PRE_DUMP_TRANSFER | Verb.VOLUME_PRE_TRANSFER:
                there.other_images = True
                return StepReport(size_bytes=1e9, sent_bytes=1e9 * self.shrinking**step.number)
            case Verb.FREEZE:
                need(here.state in ("running", "frozen"))
                here.state = "frozen"
            case Verb.DUMP:
                need(here.state in ("running", "frozen", "dumped", "lazy"))
                if here.state in ("running", "frozen"):
                    here.state, here.final, here.images = ("lazy" if step.lazy else "dumped"), here.version, True
                return StepReport(port=4711)
            case Verb.DUMP_TRANSFER:
                need(here.final is not None)
                there.images = here.final
            case Verb.VOLUME_TRANSFER:
                need(here.state != "gone")
                there.other_images = True
            case Verb.ADDRESS_DETACH:
                here.address = False
            case Verb.PAGE_TUNNEL:
                here.tunnel = True
                return StepReport(page_server=PageServer(host="10.0.0.1", port=4711))
            case Verb.PAGES_SERVED:
                need(here.state == "lazy" and there.running)
                here.served = True
            case Verb.REVIVE:
                return self._revive()
            case Verb.CLEAN_SOURCE:
                assert here.state == "running", "cleaned before the container ran"
                here.images = here.tunnel = here.path = False
                here.final = None
            case Verb.SETTLE_SOURCE:
                assert there.noted == "whole", "the source was destroyed before the target was whole"
                self.source = Source(state="gone", version=here.version, address=False)
            case _:
                raise AssertionError(step.verb)
        return StepReport()

    def _revive(self) -> StepReport:
        here = self.source
        assert not self.target.running, "revived while it ran on the target"
        assert here.state != "gone", "revived after it was destroyed"
        if here.state == "running":
            how = Revival.STILL_RUNNING
        elif here.state == "frozen" or (here.state == "lazy" and not here.served):
            how = Revival.THAWED
        else:
            how = Revival.RESTORED if here.state == "dumped" else Revival.RESTARTED
        if how is not Revival.STILL_RUNNING:
            here.version += 1
        here.state, here.address = "running", True
        return StepReport(decided=how)

    def _target(self, step: Step, noted: bool) -> StepReport:
        here = self.target
        if step.verb in (Verb.CHECK_TARGET, Verb.PREPARE, Verb.RESTORE):
            need(here.noted != "withdrawn")
        if step.verb in (Verb.ADDRESS_MOVE, Verb.PAGES_FETCHED):
            need(here.noted in ("restored", "whole"))
        match step.verb:
            case Verb.CHECK_TARGET:
                need(not here.running)
            case Verb.PREPARE:
                here.noted, here.expected, here.prepared = here.noted or "expected", True, True
            case Verb.RESTORE:
                need(bool(here.noted))
                if here.noted == "expected":
                    need(here.images is not None)
                    assert here.images == self.source.version, "restored from memory that is not the newest"
                    here.running = True
                    if noted:
                        here.noted = "restored" if step.lazy else "whole"
            case Verb.ADDRESS_MOVE:
                here.address = True
            case Verb.PAGES_FETCHED:
                need(here.noted == "whole" or (self.source.state == "lazy" and here.running and not here.torn))
                if noted:
                    here.noted = "whole"
            case Verb.SETTLE_TARGET:
                here.images, here.other_images = None, False
            case Verb.WITHDRAW | Verb.FORCE_WITHDRAW:
                if step.verb is Verb.FORCE_WITHDRAW and here.noted == "restored" and here.running and not here.torn:
                    # The agent knew nothing of them, but the pages had arrived.
                    assert self.source.state == "lazy"
                    if not noted:
                        return StepReport(decided=RESTORED)
                    here.noted = "whole"
                if here.noted == "whole" or (here.noted == "restored" and step.verb is Verb.WITHDRAW):
                    return StepReport(decided=RESTORED)
                here.noted = "withdrawn"
                if noted and here.expected:
                    self.target = Target(noted="withdrawn", expected=True)
                return StepReport(decided=WITHDRAWN)
            case _:
                raise AssertionError(step.verb)
        return StepReport()


def need(fact: bool) -> None:
    if not fact:
        raise StepFailsError("the container is not in a state for that")


class MigrationInAWorld(RuleBasedStateMachine):
    """The rules: what may happen. `ways` chooses among the steps under way."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.machine = Migration()
        self.journal: list[MigrationEvent] = []
        self.durable = 0
        self.disk_full = False
        self.cut = False
        self.flying: list[Step] = []  # handed out, unanswered
        self.ghosts: list[Step] = []  # answered as lost, or abandoned: may still take effect
        self.mailbox: list[MigrationEvent] = []  # answers on their way
        self.told: list[MigrationEvent] = []  # answers that were delivered, to be doubled
        self.waits: list[Wait] = []
        self.holds: list[Step] = []
        self.refused: list[Step] = []
        self.finished: Finish | None = None
        self.now = 0.0

    # What the driver does.

    def feed(self, event: MigrationEvent) -> None:
        self.journal.append(event)
        for instruction in self.machine.handle(event):
            self.act(instruction)

    def act(self, instruction: Instruction) -> None:
        match instruction:
            case Perform(step=step, durable=durable):
                if durable and self.disk_full:
                    self.refused.append(step)
                    return
                if durable:
                    self.durable = len(self.journal)
                self.flying.append(step)
            case Wait():
                self.waits.append(instruction)
            case Hold(step=step):
                self.holds.append(step)
            case Abandon(number=number):
                self.holds = [step for step in self.holds if step.number != number]
                self.ghosts += [step for step in self.flying if step.number == number]
                self.flying = [step for step in self.flying if step.number != number]
            case Finish():
                assert self.finished is None
                self.finished = instruction

    def at(self) -> float:
        self.now += 0.01
        return self.now

    def effect(self, step: Step, *, noted: bool = True) -> MigrationEvent | None:
        """Let a step take effect; what its side would answer. A fence ends the older steps of its side."""
        if step.verb in FENCES:
            self.ghosts = [g for g in self.ghosts if g.side is not step.side or g.number >= step.number]
            for older in [f for f in self.flying if f.side is step.side and f.number < step.number]:
                self.flying.remove(older)
                self.mailbox.append(self.failure(older))
        try:
            report = self.world.do(step, noted=noted)
        except StepFailsError as error:
            return StepFailed(at_s=self.now, number=step.number, attempt=step.attempt, error=str(error))
        return StepDone(at_s=self.now, number=step.number, report=report)

    def failure(self, step: Step) -> StepFailed:
        return StepFailed(at_s=self.at(), number=step.number, attempt=step.attempt, error="failed")

    def loss(self, step: Step) -> StepLost:
        return StepLost(at_s=self.at(), number=step.number, attempt=step.attempt, error="no answer")

    def reachable(self) -> list[Step]:
        return [s for s in self.flying if not (self.cut and s.side is Side.TARGET)]

    # Beginning.

    @initialize(
        method=st.sampled_from(MigrationMethod),
        rounds=st.integers(1, 3),
        shrinking=st.sampled_from([0.3, 0.9]),
        until=st.integers(0, 999),
        ways=st.lists(st.integers(0, 5), min_size=24, max_size=24),
        blow=st.sampled_from(_BLOWS),
        gated=st.booleans(),
    )
    def begin_anywhere(
        self,
        method: MigrationMethod,
        rounds: int,
        shrinking: float,
        until: int,
        ways: list[int],
        blow: str,
        gated: bool,
    ) -> None:
        victim = head_starts(method)[until % len(head_starts(method))]
        self.begin(method, rounds, shrinking, victim, ways, blow, gated=gated)

    def begin(
        self,
        method: MigrationMethod,
        rounds: int,
        shrinking: float,
        victim: Verb,
        ways: list[int],
        blow: str,
        gated: bool = False,
    ) -> None:
        """Everything well until a step of `victim` is under way, or held; then the first blow."""
        self.world.shrinking = shrinking
        self.lazy = method in LAZY
        start = MigrationStarted(
            at_s=0.0, key="k", container="c", source="a", target="b", method=method, backend=Backend.EMULATED,
            max_rounds=rounds, gated=gated,
        )  # fmt: skip
        self.feed(start)
        self.durable = 1
        # Failures anywhere on the way are wanted, not only at its beginning.
        for way in ways:
            while self.holds and all(step.verb is not victim for step in (*self.flying, *self.holds)):
                self.release(0)
            if self.flying and all(step.verb is not victim for step in self.flying):
                self.complete(way)
        self.strike(victim, blow)

    def strike(self, verb: Verb, blow: str) -> None:
        """What happens first to the step that the head start led to."""
        if blow == "death":
            self.coordinator_dies(kept=30)
        self.disk_full = blow == "disk"
        if blow == "cancel":
            self.feed(Cancelled(at_s=self.at(), reason="operator"))
        if blow == "forgotten" and any(step.verb is verb for step in self.flying):
            # The way back was begun, and the journal need not know of it.
            self.durable = len(self.journal)
            failed = next(step for step in self.flying if step.verb is verb)
            self.flying.remove(failed)
            self.feed(self.failure(failed))
            if self.reachable():
                self.complete(0)
            self.coordinator_dies(kept=30)
        for turn in range(10):  # some steps are asked for as long as they are not answered
            self.now += PATIENCE_S * (turn == 4)  # a minute of silence
            steps = [step for step in self.flying if step.verb is verb]
            if not steps:
                return
            if blow in ("failure", "served"):
                # The last lazy pages left the source, which has freed them, and did not arrive.
                self.world.source.served |= blow == "served" and verb is Verb.PAGES_FETCHED
                self.world.target.torn |= verb is Verb.PAGES_FETCHED
                self.flying.remove(steps[0])
                self.feed(self.failure(steps[0]))
            elif blow.startswith("silence"):
                self.flying.remove(steps[0])
                if blow.endswith("effect"):
                    self.effect(steps[0])
                else:
                    self.ghosts.append(steps[0])
                self.feed(self.loss(steps[0]))
                while self.waits:
                    self.back_off_is_over(0)
            else:
                return

    # What may happen to steps.

    def pick(self, steps: list[Step], way: int) -> Step:
        step = steps[way % len(steps)]
        self.flying.remove(step)
        return step

    def complete(self, way: int) -> None:
        step = self.pick(self.reachable(), way)
        event = self.effect(step)
        assert event is not None
        self.told.append(event)
        self.feed(event)

    @precondition(lambda self: self.reachable())
    @rule(way=st.integers(0, 5))
    def completes(self, way: int) -> None:
        self.complete(way)

    @precondition(lambda self: self.reachable())
    @rule(ways=st.lists(st.integers(0, 5), min_size=2, max_size=6))
    def several_complete(self, ways: list[int]) -> None:
        for way in ways:
            if self.reachable():
                self.complete(way)

    @precondition(lambda self: self.reachable())
    @rule(way=st.integers(0, 5))
    def completes_and_the_answer_is_slow(self, way: int) -> None:
        step = self.pick(self.reachable(), way)
        event = self.effect(step)
        assert event is not None
        self.mailbox.append(event)

    @precondition(lambda self: self.mailbox)
    @rule(way=st.integers(0, 5))
    def answer_arrives(self, way: int) -> None:
        event = self.mailbox.pop(way % len(self.mailbox))
        self.told.append(event)
        self.feed(event)

    @precondition(lambda self: self.told)
    @rule(way=st.integers(0, 50))
    def answer_arrives_twice(self, way: int) -> None:
        self.feed(self.told[way % len(self.told)])

    @precondition(lambda self: self.reachable())
    @rule(way=st.integers(0, 5))
    def fails(self, way: int) -> None:
        event = self.failure(self.pick(self.reachable(), way))
        self.told.append(event)
        self.feed(event)

    @precondition(lambda self: any(s.verb is Verb.PAGES_FETCHED for s in self.flying))
    @rule()
    def lazy_pages_daemon_dies(self) -> None:
        step = next(s for s in self.flying if s.verb is Verb.PAGES_FETCHED)
        self.flying.remove(step)
        self.world.target.torn = self.world.target.noted != "whole"
        self.feed(self.failure(step))

    @precondition(lambda self: any(s.verb is Verb.PAGES_FETCHED for s in self.flying))
    @rule()
    def last_pages_are_lost_on_the_way(self) -> None:
        """The source has served them all, and freed them."""
        self.world.source.served = self.world.source.state == "lazy" and self.world.target.noted != "whole"
        self.lazy_pages_daemon_dies()

    @precondition(lambda self: self.flying)
    @rule(way=st.integers(0, 5))
    def is_lost_and_may_take_effect_later(self, way: int) -> None:
        step = self.pick(self.flying, way)
        self.ghosts.append(step)
        self.feed(self.loss(step))

    @precondition(lambda self: self.reachable())
    @rule(way=st.integers(0, 5))
    def takes_effect_and_its_answer_is_lost(self, way: int) -> None:
        step = self.pick(self.reachable(), way)
        self.effect(step)
        self.feed(self.loss(step))

    @precondition(lambda self: self.ghosts)
    @rule(way=st.integers(0, 9))
    def lost_step_takes_effect_after_all(self, way: int) -> None:
        self.effect(self.ghosts.pop(way % len(self.ghosts)))

    @precondition(lambda self: any(s.side is Side.TARGET for s in self.reachable()))
    @rule(way=st.integers(0, 5))
    def target_agent_dies_between_effect_and_note(self, way: int) -> None:
        step = self.pick([s for s in self.reachable() if s.side is Side.TARGET], way)
        self.effect(step, noted=False)
        self.target_agent_dies()
        self.feed(self.loss(step))

    @rule()
    def target_agent_dies(self) -> None:
        """Its memory goes; what was asked of it will not be answered, and is found to be lost one by one."""
        self.world.answers = {n: a for n, a in self.world.answers.items() if n[0] not in _TARGET_VERBS}
        self.world.fences.pop(Side.TARGET, None)

    @precondition(lambda self: self.waits)
    @rule(way=st.integers(0, 5))
    def back_off_is_over(self, way: int) -> None:
        wait = self.waits.pop(way % len(self.waits))
        self.now += wait.seconds
        self.feed(WaitOver(at_s=self.at(), number=wait.step.number, attempt=wait.step.attempt))

    @precondition(lambda self: self.holds)
    @rule(way=st.integers(0, 5))
    def hold_is_over(self, way: int) -> None:
        self.release(way)

    def release(self, way: int) -> None:
        step = self.holds.pop(way % len(self.holds))
        self.feed(StepReleased(at_s=self.at(), number=step.number))

    @precondition(lambda self: self.refused)
    @rule()
    def driver_says_that_the_journal_refused(self) -> None:
        self.feed(self.failure(self.refused.pop(0)))

    # What may happen to the world around.

    @rule(cut=st.booleans())
    def link(self, cut: bool) -> None:
        self.cut = cut

    @rule(full=st.booleans())
    def disk(self, full: bool) -> None:
        self.disk_full = full

    @rule()
    def journal_is_written(self) -> None:
        if not self.disk_full:
            self.durable = len(self.journal)

    @rule(dice=st.integers(0, 9))
    def is_cancelled(self, dice: int) -> None:
        if dice > 6:
            self.feed(Cancelled(at_s=self.at(), reason="operator"))

    @rule(kept=st.integers(0, 30))
    def coordinator_dies(self, kept: int) -> None:
        """The source's agent dies and comes back, with any part of the journal that had not to be durable yet.

        It may also die at the end, before the record is filed.
        """
        self.journal = self.journal[: max(self.durable, len(self.journal) - kept)]
        self.durable = len(self.journal)
        self.machine = Migration.replay(self.journal)
        # Its own steps die with it, what it asked of the target may still arrive there.
        self.ghosts = [s for s in (*self.flying, *self.ghosts) if s.side is Side.TARGET]
        self.flying, self.mailbox, self.told, self.waits, self.refused, self.holds = [], [], [], [], [], []
        self.world.answers = {n: a for n, a in self.world.answers.items() if n[0] in _TARGET_VERBS}
        self.world.fences.pop(Side.SOURCE, None)
        self.finished = None if self.machine.record is None else Finish(record=self.machine.record)
        if self.machine.record is None:
            self.feed(CoordinatorRecovered(at_s=self.at()))
            self.durable = len(self.journal) if not self.disk_full else self.durable

    # What must hold at any time.

    @invariant()
    def runs_at_most_once(self) -> None:
        assert not (self.world.source.state == "running" and self.world.target.running)

    @invariant()
    def address_is_on_the_bridge_at_most_once(self) -> None:
        assert not (self.world.source.address and self.world.target.address)

    def replay_rebuilds_the_machine(self) -> None:
        assert state_of(Migration.replay(self.journal)) == state_of(self.machine)

    # And once everything has healed.

    def teardown(self, *, replayed: bool = True) -> None:
        if not self.journal:
            return
        self.cut = self.disk_full = False
        for _ in range(400):
            if self.finished is not None:
                break
            if self.refused:
                self.driver_says_that_the_journal_refused()
            elif self.mailbox:
                self.answer_arrives(0)
            elif self.flying:
                self.complete(0)
            elif self.holds:
                self.release(0)
            elif self.waits:
                self.back_off_is_over(0)
            else:
                raise AssertionError(f"stuck: {self.machine.progress(self.now)}")
        assert self.finished is not None, f"never settles: {self.machine.progress(self.now)}"
        record = self.finished.record
        self.check_settled()
        if replayed:
            self.replay_rebuilds_the_machine()
        # Messages may be delayed beyond the end.
        while self.ghosts:
            ghost = self.ghosts.pop(0)
            before = self.where()
            self.effect(ghost)
            assert self.where() == before, ghost
        for event in (*self.told, Cancelled(at_s=self.at(), reason="late")):
            assert self.machine.handle(event) == ()
        assert self.machine.record == record

    def where(self) -> tuple[bool, bool, bool, bool]:
        source, target = self.world.source, self.world.target
        return source.state == "running", source.address, target.running, target.address

    def check_settled(self) -> None:
        assert self.finished is not None
        record, source, target = self.finished.record, self.world.source, self.world.target
        assert record == self.machine.record
        named_source = "left behind on a" in record.error
        named_target = "left behind on b" in record.error
        if record.state is MigrationState.MIGRATED:
            assert record.runs_on == "b"
            assert target.running
            assert target.noted == "whole"
            assert target.address
            assert source.state == "gone" or named_source
            assert not source.address
            assert not (source.images or source.tunnel or source.path) or named_source
            assert not (target.images is not None or target.other_images) or named_target
        else:
            assert record.runs_on == "a"
            assert source.state == "running"
            assert source.address
            assert not target.running
            assert not target.address
            assert not (source.images or source.tunnel or source.path) or named_source
            left = target.prepared or target.other_images or target.images is not None
            assert not left or named_target
            assert record.error
        assert self.machine.runs_on == record.runs_on
        assert record.total_s >= 0
        assert 0 <= record.downtime_s <= self.now
        assert (record.point_of_no_return_s is None) or self.lazy
        assert (record.state is not MigrationState.RESTARTED) or "memory was lost" in record.error
        back = record.state in (MigrationState.ROLLED_BACK, MigrationState.RESTARTED)
        assert (record.lost_s is not None) == (back and record.point_of_no_return_s is not None)


_TARGET_VERBS = {
    Verb.CHECK_TARGET, Verb.PREPARE, Verb.RESTORE, Verb.ADDRESS_MOVE, Verb.PAGES_FETCHED, Verb.SETTLE_TARGET,
    Verb.WITHDRAW, Verb.FORCE_WITHDRAW,
}  # fmt: skip


@pytest.mark.parametrize("method", MigrationMethod)
@pytest.mark.parametrize("first", _BLOWS)
def test_any_two_blows(method: MigrationMethod, first: str) -> None:
    """Not left to chance: every step is struck by every blow, and whatever is under way then by every other."""
    # Without rounds, a method has no step that it has not with them.
    seconds = _BLOWS if DEEP or method in ROUNDS else ("failure", "silence", "death")
    victims = sorted(set(head_starts(method)) | {Verb.VOLUME_TRANSFER, Verb.ADDRESS_DETACH})
    for victim in victims:
        for second in seconds:
            world = MigrationInAWorld()
            world.begin(method=method, rounds=2, shrinking=0.3, victim=victim, ways=[0] * 24, blow=first)
            if world.flying:
                world.strike(world.flying[0].verb, second)
            world.runs_at_most_once()
            world.address_is_on_the_bridge_at_most_once()
            world.teardown(replayed=DEEP or second == "failure")  # costs as much as the rest


def state_of(machine: Migration) -> object:
    return (machine.course, machine.record, machine.runs_on, machine.progress(0.0))


TestMigrationInAWorld = MigrationInAWorld.TestCase
TestMigrationInAWorld.settings = settings(
    max_examples=8_000 if DEEP else 80,
    stateful_step_count=150 if DEEP else 30,
    derandomize=not DEEP,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
