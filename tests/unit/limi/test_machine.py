"""The migration state machine by example: the order of steps, the stopping rule, failures, cancelling, the record."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.migrations import MigrationRecord, MigrationState
from natwork_ray.domain.runtime import ContainerSpec, PageServer, Revival
from natwork_ray.domain.values import Backend, decode, encode
from natwork_ray.errors import ConflictError
from natwork_ray.limi.machine import JOURNAL_FIRST, Migration
from natwork_ray.limi.plan import TINY_BYTES, Task, another_round, forward, residual_bytes
from natwork_ray.limi.retries import CLEANING, Timeouts, attempts, back_off_s, patience_s
from natwork_ray.limi.steps import (
    RESTORED,
    SIDE_OF,
    WITHDRAWN,
    Abandon,
    Cancelled,
    CoordinatorRecovered,
    Finish,
    Hold,
    MigrationEvent,
    MigrationStarted,
    Perform,
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
SERVER = PageServer(host="10.0.0.1", port=7001)
MIB = 2.0**20


def started(method: MigrationMethod, *, max_rounds: int = 5, gated: bool = False) -> MigrationStarted:
    return MigrationStarted(
        at_s=100.0, key="k", container="c", source="a", target="b", method=method, backend=Backend.EMULATED,
        max_rounds=max_rounds, chosen_by="model", gated=gated,
    )  # fmt: skip


def answer(step: Step) -> StepReport:
    """What a healthy side says."""
    match step.verb:
        case Verb.CHECK_SOURCE:
            return StepReport(spec=SPEC)
        case Verb.PRE_DUMP | Verb.DUMP:
            return StepReport(size_bytes=64 * MIB, pages_bytes=64 * MIB, port=7000)
        case Verb.PRE_DUMP_TRANSFER:
            return StepReport(size_bytes=64 * MIB, sent_bytes=64 * MIB / 4 ** int(step.images[4:]))
        case Verb.DUMP_TRANSFER | Verb.VOLUME_TRANSFER | Verb.VOLUME_PRE_TRANSFER:
            return StepReport(size_bytes=10 * MIB, sent_bytes=9 * MIB)
        case Verb.PAGE_TUNNEL:
            return StepReport(page_server=SERVER)
        case Verb.WITHDRAW | Verb.FORCE_WITHDRAW:
            return StepReport(decided=WITHDRAWN)
        case Verb.REVIVE:
            return StepReport(decided=Revival.THAWED)
        case _:
            return StepReport()


class Run:
    """Feeds a machine; every step that is handed out takes 1 s, all of one batch at the same time."""

    def __init__(self, method: MigrationMethod, *, max_rounds: int = 5, gated: bool = False) -> None:
        self.machine = Migration()
        self.events: list[MigrationEvent] = []
        self.open: dict[int, Step] = {}
        self.waits: dict[int, Wait] = {}
        self.holds: dict[int, Step] = {}
        self.abandoned: list[int] = []
        self.batches: list[list[str]] = []
        self.steps: list[Step] = []
        self.durable: set[Verb] = set()
        self.record: MigrationRecord | None = None
        self.now = 100.0
        self.answer: Callable[[Step], StepReport] = answer
        self.feed(started(method, max_rounds=max_rounds, gated=gated))

    def feed(self, event: MigrationEvent) -> None:
        self.events.append(event)
        handed_out = []
        for instruction in self.machine.handle(event):
            match instruction:
                case Perform(step=step):
                    handed_out.append(step.verb.value)
                    self.steps.append(step)
                    self.open[step.number] = step
                    self.waits.pop(step.number, None)
                    if instruction.durable:
                        self.durable.add(step.verb)
                case Hold(step=step):
                    self.holds[step.number] = step
                case Wait(step=step):
                    self.open.pop(step.number, None)
                    self.waits[step.number] = instruction
                case Abandon(number=number):
                    self.open.pop(number, None)
                    self.waits.pop(number, None)
                    self.holds.pop(number, None)
                    self.abandoned.append(number)
                case Finish(record=record):
                    self.record = record
        if handed_out:
            self.batches.append(handed_out)

    def number(self, verb: Verb) -> int:
        return next(number for number, step in self.open.items() if step.verb is verb)

    def done(self, verb: Verb, report: StepReport | None = None) -> None:
        number = self.number(verb)
        step = self.open.pop(number)
        self.feed(StepDone(at_s=self.now, number=number, report=report or self.answer(step)))

    def fail(self, verb: Verb, error: str = "broken", hint: str = "mend it") -> None:
        number = self.number(verb)
        step = self.open.pop(number)
        self.feed(StepFailed(at_s=self.now, number=number, attempt=step.attempt, error=error, hint=hint))

    def lose(self, verb: Verb) -> None:
        number = self.number(verb)
        self.feed(StepLost(at_s=self.now, number=number, attempt=self.open.pop(number).attempt, error="silence"))

    def silence(self, verb: Verb) -> None:
        """Lost as often as it is asked for."""
        while any(step.verb is verb for step in self.open.values()):
            self.lose(verb)
            self.wait_over()

    def began_s(self, verb: Verb) -> float:
        return next(p.starts_s for p in self.machine.progress(self.now).phases if p.name == verb)

    def wait_over(self) -> None:
        for number, wait in tuple(self.waits.items()):
            self.now += wait.seconds
            self.feed(WaitOver(at_s=self.now, number=number, attempt=wait.step.attempt))

    def until(self, verb: Verb) -> Run:
        """Everything well until a step of that verb is under way."""
        for _ in range(100):
            if any(step.verb is verb for step in self.open.values()):
                return self
            self.turn()
        raise AssertionError(f"{verb} is never asked for")

    def turn(self) -> None:
        self.now += 1
        for number in sorted(self.open):
            if number in self.open:
                self.done(self.open[number].verb)

    def finish(self) -> MigrationRecord:
        for _ in range(100):
            if self.record is not None:
                return self.record
            self.wait_over()
            self.turn()
        raise AssertionError("it never ends")


CHECKS = ["check source", "check target"]
READY = ["open path", "prepare"]
STOPPED = [["freeze"], ["dump", "address detach", "volume transfer"]]
SETTLE = ["settle source", "settle target"]


def test_cold_step_by_step() -> None:
    run = Run(MigrationMethod.COLD)
    run.finish()
    assert run.batches == [
        CHECKS, READY, *STOPPED, ["dump transfer"], ["restore"], ["address move"], SETTLE
    ]  # fmt: skip


def test_pre_copy_makes_rounds_until_the_residual_is_tiny() -> None:
    run = Run(MigrationMethod.PRE_COPY, max_rounds=9)
    record = run.finish()
    assert run.batches == [
        CHECKS, READY, ["pre-dump", "volume pre-transfer"],
        ["pre-dump transfer"], ["pre-dump"], ["pre-dump transfer"], ["pre-dump"], ["pre-dump transfer"],
        *STOPPED, ["dump transfer"], ["restore"], ["address move"], SETTLE,
    ]  # fmt: skip
    assert record.pre_copy_rounds == 3  # 16, 4, 1 MiB
    sets = [(s.verb, s.images, s.parent) for s in run.steps if s.images]
    assert sets == [
        (Verb.PRE_DUMP, "pre-1", None), (Verb.PRE_DUMP_TRANSFER, "pre-1", None),
        (Verb.PRE_DUMP, "pre-2", "pre-1"), (Verb.PRE_DUMP_TRANSFER, "pre-2", "pre-1"),
        (Verb.PRE_DUMP, "pre-3", "pre-2"), (Verb.PRE_DUMP_TRANSFER, "pre-3", "pre-2"),
        (Verb.DUMP, "final", "pre-3"), (Verb.DUMP_TRANSFER, "final", "pre-3"), (Verb.RESTORE, "final", "pre-3"),
    ]  # fmt: skip


def test_post_copy_tunnels_pages_and_restores_from_them() -> None:
    run = Run(MigrationMethod.POST_COPY)
    record = run.finish()
    assert run.batches == [
        CHECKS, READY, *STOPPED, ["dump transfer", "page tunnel"], ["restore"], ["address move"],
        ["lazy pages", "lazy pages served"], SETTLE,
    ]  # fmt: skip
    by_verb = {step.verb: step for step in run.steps}
    assert by_verb[Verb.DUMP].lazy
    assert by_verb[Verb.PAGE_TUNNEL].port == 7000
    assert by_verb[Verb.RESTORE].page_server == SERVER
    assert record.point_of_no_return_s == 6.0  # the restore's end


def test_hybrid_is_one_round_and_then_post_copy() -> None:
    run = Run(MigrationMethod.HYBRID)
    record = run.finish()
    assert record.pre_copy_rounds == 1
    assert [b for b in run.batches if "pre-dump" in b] == [["pre-dump", "volume pre-transfer"]]
    assert run.batches[-2] == ["lazy pages", "lazy pages served"]
    assert next(s for s in run.steps if s.verb is Verb.DUMP).parent == "pre-1"


def test_a_read_only_root_has_no_volume_to_carry() -> None:
    run = Run(MigrationMethod.PRE_COPY)
    run.answer = lambda step: (
        StepReport(spec=replace(SPEC, writable_root=False)) if step.verb is Verb.CHECK_SOURCE else answer(step)
    )
    run.finish()
    assert not {"volume transfer", "volume pre-transfer"} & {verb for batch in run.batches for verb in batch}


@pytest.mark.parametrize("method", MigrationMethod)
def test_each_step_says_all_that_its_side_needs(method: MigrationMethod) -> None:
    run = Run(method)
    run.finish()
    assert [step.number for step in run.steps] == list(range(1, len(run.steps) + 1))
    for step in run.steps:
        assert (step.key, step.container, step.source, step.target) == ("k", "c", "a", "b")
        assert step.method is method
        assert step.side is SIDE_OF[step.verb]
        assert step.spec == (None if step.verb in (Verb.CHECK_SOURCE, Verb.CHECK_TARGET) else SPEC)
        assert decode(Step, encode(step)) == step
    assert run.durable == JOURNAL_FIRST & {step.verb for step in run.steps}


# Rounds of pre-copy.


@pytest.mark.parametrize(
    ("residuals", "max_rounds", "more"),
    [
        ((), 1, True),  # one is always made
        ((50 * MIB,), 1, False),
        ((50 * MIB,), 2, True),
        ((TINY_BYTES,), 5, False),
        ((TINY_BYTES + 1,), 5, True),
        ((50 * MIB, 40 * MIB), 5, True),  # exactly 0.8
        ((50 * MIB, 40.1 * MIB), 5, False),
        ((50 * MIB, 60 * MIB), 5, False),
        ((50 * MIB, 20 * MIB, 16.5 * MIB), 5, False),
        ((50 * MIB, 20 * MIB, 10 * MIB), 3, False),
    ],
)
def test_when_another_round_pays(residuals: tuple[float, ...], max_rounds: int, more: bool) -> None:
    assert another_round(MigrationMethod.PRE_COPY, max_rounds=max_rounds, residuals=residuals) is more
    assert not another_round(MigrationMethod.COLD, max_rounds=max_rounds, residuals=residuals)
    assert another_round(MigrationMethod.HYBRID, max_rounds=max_rounds, residuals=residuals) is (residuals == ())


def test_the_residual_is_what_had_to_travel() -> None:
    tracked = residual_bytes(StepReport(pages_bytes=5.0), StepReport(sent_bytes=6.0))
    untracked = residual_bytes(StepReport(pages_bytes=64.0), StepReport(sent_bytes=6.0))
    assert (tracked, untracked) == (5.0, 6.0)
    assert residual_bytes(StepReport(), StepReport(sent_bytes=6.0)) == 6.0


@given(
    method=st.sampled_from(MigrationMethod),
    max_rounds=st.integers(1, 6),
    residuals=st.lists(st.floats(0, 1e12), max_size=8),
    writable=st.booleans(),
)
def test_a_plan_can_be_carried_out_in_its_own_order(
    method: MigrationMethod, max_rounds: int, residuals: list[float], writable: bool
) -> None:
    seen: set[Task] = set()
    for task, needs in forward(method, max_rounds=max_rounds, residuals=tuple(residuals), writable=writable).items():
        assert needs <= seen
        seen.add(task)


# Failures.


@pytest.mark.parametrize("verb", [Verb.CHECK_SOURCE, Verb.CHECK_TARGET])
def test_a_check_that_fails_refuses_and_touches_nothing(verb: Verb) -> None:
    run = Run(MigrationMethod.COLD)
    run.fail(verb, "no CRIU", "install it")
    record = run.record
    assert record is not None
    assert (record.state, record.runs_on) == (MigrationState.REFUSED, "a")
    assert (record.error, record.hint) == (f"{verb}: no CRIU", "install it")
    assert record.downtime_s == 0
    assert len(run.abandoned) == 1
    assert run.batches == [CHECKS]


def test_before_the_rounds_nobody_has_to_be_revived() -> None:
    run = Run(MigrationMethod.COLD).until(Verb.OPEN_PATH)
    run.fail(Verb.OPEN_PATH)
    assert run.batches[-1] == ["withdraw", "clean source"]
    record = run.finish()
    assert (record.state, record.downtime_s, record.runs_on) == (MigrationState.ROLLED_BACK, 0.0, "a")


_BEFORE_THE_RESTORE = [
    Verb.PRE_DUMP, Verb.VOLUME_PRE_TRANSFER, Verb.PRE_DUMP_TRANSFER, Verb.FREEZE, Verb.DUMP, Verb.ADDRESS_DETACH,
    Verb.VOLUME_TRANSFER, Verb.DUMP_TRANSFER, Verb.PAGE_TUNNEL,
]  # fmt: skip


@pytest.mark.parametrize("verb", _BEFORE_THE_RESTORE)
def test_before_the_restore_it_comes_back_at_once_and_then_cleans(verb: Verb) -> None:
    run = Run(MigrationMethod.HYBRID).until(verb)
    others = {step.number for step in run.open.values() if step.verb is not verb}
    run.fail(verb)
    assert set(run.abandoned) == others
    assert run.batches[-1] == ["revive"]
    assert run.machine.runs_on in (None, "a")
    run.turn()
    assert run.batches[-1] == ["withdraw", "clean source"]
    assert run.machine.runs_on == "a"
    record = run.finish()
    assert (record.state, record.runs_on) == (MigrationState.ROLLED_BACK, "a")
    assert record.error == f"{verb}: broken"
    assert (record.downtime_s > 0) is (verb not in _BEFORE_THE_RESTORE[:3])
    assert record.point_of_no_return_s is None


@pytest.mark.parametrize("method", MigrationMethod)
def test_a_restore_that_fails_waits_for_the_targets_word(method: MigrationMethod) -> None:
    run = Run(method).until(Verb.RESTORE)
    run.fail(Verb.RESTORE)
    for attempt in range(2, 30):
        assert [s.verb for s in run.open.values()] == [Verb.WITHDRAW]
        (run.lose if attempt % 2 else run.fail)(Verb.WITHDRAW)
        assert run.machine.runs_on is None
        run.wait_over()
        assert run.machine.progress(run.now).under_way == (
            f"withdraw (attempt {attempt}): waiting for the word of b",
        )  # fmt: skip
    run.done(Verb.WITHDRAW)
    assert run.batches[-1] == ["revive"]
    assert run.finish().state is MigrationState.ROLLED_BACK


@pytest.mark.parametrize("method", MigrationMethod)
def test_a_target_that_says_restored_decides(method: MigrationMethod) -> None:
    run = Run(method).until(Verb.RESTORE)
    run.silence(Verb.RESTORE)
    run.done(Verb.WITHDRAW, StepReport(decided=RESTORED))
    assert run.batches[-1] == ["address move"]
    assert run.machine.runs_on == "b"
    record = run.finish()
    assert (record.state, record.runs_on) == (MigrationState.MIGRATED, "b")
    assert re.search(r"restore: no answer in \d+ attempts, the last: silence", record.error)
    assert record.hint == "see whether the agent of b runs and can be reached"


def test_an_address_that_does_not_move_is_asked_for_until_it_does() -> None:
    run = Run(MigrationMethod.COLD).until(Verb.ADDRESS_MOVE)
    waited: list[float] = []
    for _ in range(12):
        run.fail(Verb.ADDRESS_MOVE)
        run.done(Verb.WITHDRAW, StepReport(decided=RESTORED))
        waited += [wait.seconds for wait in run.waits.values()]
        run.wait_over()
    assert waited == sorted(waited)
    assert waited[-1] == 1.0
    record = run.finish()
    assert record.state is MigrationState.MIGRATED
    assert record.error.count("address move") == 1


@pytest.mark.parametrize(
    ("how", "state"), [(Revival.THAWED, MigrationState.ROLLED_BACK), (Revival.RESTARTED, MigrationState.RESTARTED)]
)
def test_pages_that_do_not_arrive_bring_it_back(how: Revival, state: MigrationState) -> None:
    run = Run(MigrationMethod.POST_COPY).until(Verb.PAGES_FETCHED)
    run.now += 4
    run.fail(Verb.PAGES_FETCHED)
    assert run.batches[-1] == ["force withdraw"]
    run.now += 2
    run.done(Verb.FORCE_WITHDRAW)
    run.now += 3
    run.done(Verb.REVIVE, StepReport(decided=how))
    record = run.finish()
    assert (record.state, record.runs_on) == (state, "a")
    assert record.lost_s == 7.0
    assert "what the container did on b for 7.000 s is lost" in record.error
    assert ("memory was lost" in record.error) is (how is Revival.RESTARTED)
    # from the freeze to the moved address, and from the decision to go back to the revival
    assert record.downtime_s == 5.0 + 5.0
    assert record.point_of_no_return_s == 6.0


def test_pages_that_had_all_arrived_keep_it_going_forward() -> None:
    run = Run(MigrationMethod.HYBRID).until(Verb.PAGES_FETCHED)
    down_s = run.now - 100 - run.began_s(Verb.FREEZE)
    run.silence(Verb.PAGES_FETCHED)
    run.now += 7
    run.done(Verb.FORCE_WITHDRAW, StepReport(decided=RESTORED))
    assert run.batches[-1] == SETTLE
    record = run.finish()
    assert (record.state, record.runs_on, record.lost_s) == (MigrationState.MIGRATED, "b", None)
    assert record.downtime_s == down_s  # it served all the time


@pytest.mark.parametrize("verb", [Verb.RESTORE, Verb.ADDRESS_MOVE, Verb.PAGES_FETCHED])
def test_an_agent_that_comes_back_within_a_minute_is_waited_for(verb: Verb) -> None:
    run = Run(MigrationMethod.POST_COPY).until(verb)
    began_s = run.now
    while run.now < began_s + 58:
        run.lose(verb)
        run.wait_over()
    assert len({step.number for step in run.steps if step.verb is verb}) == 1
    record = run.finish()
    assert (record.state, record.error) == (MigrationState.MIGRATED, "")


def test_only_the_target_says_whether_pages_are_all_there() -> None:
    run = Run(MigrationMethod.POST_COPY).until(Verb.PAGES_SERVED)
    run.fail(Verb.PAGES_SERVED)
    assert run.record is None
    assert [s.verb for s in run.open.values()] == [Verb.PAGES_FETCHED]
    assert run.finish().state is MigrationState.MIGRATED


@pytest.mark.parametrize("verb", [Verb.SETTLE_SOURCE, Verb.SETTLE_TARGET])
def test_cleaning_that_fails_is_repeated_then_named_and_changes_nothing(verb: Verb) -> None:
    run = Run(MigrationMethod.COLD).until(verb)
    node = {"settle source": "a", "settle target": "b"}[verb]
    for attempt in range(attempts(verb)):
        assert run.record is None, attempt
        run.fail(verb, "busy")
        run.wait_over()
    record = run.finish()
    assert record.state is MigrationState.MIGRATED
    assert record.error == f"left behind on {node}: {verb}: busy"


def test_a_silent_target_is_named_when_nothing_was_ever_restored() -> None:
    run = Run(MigrationMethod.COLD).until(Verb.DUMP)
    run.fail(Verb.DUMP)
    run.done(Verb.REVIVE)
    run.done(Verb.CLEAN_SOURCE)
    for _ in range(attempts(Verb.WITHDRAW)):
        run.lose(Verb.WITHDRAW)
        run.wait_over()
    record = run.record
    assert record is not None
    assert record.state is MigrationState.ROLLED_BACK
    assert "left behind on b" in record.error


def test_revival_does_not_need_the_journal_once_the_target_has_withdrawn() -> None:
    run = Run(MigrationMethod.COLD).until(Verb.DUMP)
    run.durable.clear()
    run.fail(Verb.DUMP)
    assert run.durable == {Verb.REVIVE}
    run.fail(Verb.REVIVE, "disk full")
    assert [s.verb for s in run.open.values()] == [Verb.WITHDRAW]
    run.done(Verb.WITHDRAW)
    run.durable.clear()
    run.wait_over()
    assert run.durable == set()
    run.done(Verb.REVIVE)
    # once more: what was being sent may have come in after the first
    assert run.batches[-1] == ["withdraw", "clean source"]
    assert run.finish().state is MigrationState.ROLLED_BACK


@pytest.mark.parametrize(
    ("verb", "report"),
    [
        (Verb.CHECK_SOURCE, StepReport()),
        (Verb.PAGE_TUNNEL, StepReport()),
        (Verb.WITHDRAW, StepReport(decided="perhaps")),
        (Verb.FORCE_WITHDRAW, StepReport()),
        (Verb.REVIVE, StepReport(decided="asleep")),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_failure(verb: Verb, report: StepReport) -> None:
    run = Run(MigrationMethod.POST_COPY)
    if verb in (Verb.WITHDRAW, Verb.REVIVE):
        run.until(Verb.RESTORE).fail(Verb.RESTORE)
        if verb is Verb.REVIVE:
            run.done(Verb.WITHDRAW)
    elif verb is Verb.FORCE_WITHDRAW:
        run.until(Verb.PAGES_FETCHED).fail(Verb.PAGES_FETCHED)
    run.until(verb)
    run.done(verb, report)
    record = run.finish()
    assert record.state in (MigrationState.REFUSED, MigrationState.ROLLED_BACK)


# Holds.


def release(run: Run, *, until: Verb | None = None, after_s: float = 0.0) -> bool:
    """Release what is held, but for `until`, which is told."""
    for number, step in tuple(run.holds.items()):
        if step.verb is until:
            return True
        run.now += after_s
        del run.holds[number]
        run.feed(StepReleased(at_s=run.now, number=number))
    return False


def held_at(run: Run, verb: Verb) -> Run:
    while not release(run, until=verb):
        run.turn()
    return run


@pytest.mark.parametrize("method", MigrationMethod)
def test_released_at_once_holds_change_nothing(method: MigrationMethod) -> None:
    gated, plain = Run(method, gated=True), Run(method)
    while gated.record is None:
        release(gated)
        gated.turn()
    assert gated.record == plain.finish()
    assert Migration.replay(gated.events).record == gated.record


def test_a_hold_is_a_phase_of_its_own_and_downtime_only_where_nobody_is_served() -> None:
    run = Run(MigrationMethod.COLD, gated=True)
    for verb in (Verb.FREEZE, Verb.RESTORE, Verb.ADDRESS_MOVE):
        held_at(run, verb)
        assert f"hold before {verb}" in run.machine.progress(run.now).under_way
        assert (run.machine.runs_on == "a") is (verb is Verb.FREEZE)
        assert Verb(verb) not in {step.verb for step in run.steps}
        release(run, after_s=10)
    while run.record is None:
        release(run)
        run.turn()
    phases = {p.name: (p.starts_s, p.duration_s) for p in run.record.phases}
    assert phases["hold before freeze"] == (2, 10)
    assert phases["freeze"] == (12, 1)
    assert phases["hold before restore"] == (15, 10)
    assert phases["restore"] == (25, 1)
    assert phases["hold before address move"] == (26, 10)
    assert phases["address move"] == (36, 1)
    assert (run.record.downtime_s, run.record.total_s) == (25.0, 37.0)


@pytest.mark.parametrize("verb", [Verb.FREEZE, Verb.RESTORE])
def test_who_is_cancelled_while_held_comes_back_without_asking(verb: Verb) -> None:
    run = held_at(Run(MigrationMethod.POST_COPY, gated=True), verb)
    assert Verb.RESTORE not in run.durable
    run.now += 5
    run.feed(Cancelled(at_s=run.now, reason="a fellow failed"))
    assert run.holds == {}
    stopped = verb is Verb.RESTORE
    assert {step.verb for step in run.open.values()} == (
        {Verb.REVIVE} if stopped else {Verb.WITHDRAW, Verb.CLEAN_SOURCE}  # it never stood still
    )
    record = run.finish()
    assert (record.state, record.error) == (MigrationState.ROLLED_BACK, "cancelled: a fellow failed")
    assert (record.downtime_s > 0) is stopped
    assert f"hold before {verb}" in {p.name for p in record.phases}
    assert verb not in {p.name for p in record.phases}


def test_a_coordinator_that_died_holding_goes_on_without() -> None:
    run = held_at(Run(MigrationMethod.COLD, gated=True), Verb.RESTORE)
    held = run.holds.popitem()[1]
    run.machine = Migration.replay(run.events)
    run.feed(CoordinatorRecovered(at_s=run.now))
    run.feed(StepReleased(at_s=run.now, number=held.number))  # late: nobody holds it
    run.wait_over()
    assert [(s.number, s.attempt) for s in run.open.values()] == [(held.number, 2)]
    assert Verb.RESTORE in run.durable


def test_a_hold_that_fails_is_the_steps_failure() -> None:
    run = held_at(Run(MigrationMethod.COLD, gated=True), Verb.FREEZE)
    (number,) = run.holds
    run.feed(StepFailed(at_s=run.now, number=number, error="the conductor is gone"))
    record = run.finish()
    assert (record.state, record.error) == (MigrationState.ROLLED_BACK, "freeze: the conductor is gone")


# Lost steps, recovery, cancelling, repetition.


@pytest.mark.parametrize("verb", [Verb.PRE_DUMP_TRANSFER, Verb.DUMP, Verb.DUMP_TRANSFER])
def test_a_lost_step_is_repeated_under_its_number_then_given_up(verb: Verb) -> None:
    run = Run(MigrationMethod.PRE_COPY).until(verb)
    number = run.number(verb)
    for attempt in range(1, attempts(verb)):
        run.lose(verb)
        assert [w.step.attempt for w in run.waits.values()] == [attempt + 1]
        assert [w.seconds for w in run.waits.values()] == [back_off_s(verb, attempt + 1)]
        run.wait_over()
        assert run.number(verb) == number
    run.lose(verb)
    assert run.batches[-1] == ["revive"]
    assert f"{verb}: no answer in {attempts(verb)} attempts, the last: silence" in run.finish().error


def test_a_late_answer_to_a_lost_step_counts_and_its_stale_failure_does_not() -> None:
    run = Run(MigrationMethod.COLD).until(Verb.FREEZE)
    number = run.number(Verb.FREEZE)
    run.lose(Verb.FREEZE)
    run.feed(StepFailed(at_s=run.now, number=number, attempt=1, error="stale"))
    run.feed(StepLost(at_s=run.now, number=number, attempt=1, error="stale"))
    assert run.waits
    run.feed(StepDone(at_s=run.now, number=number, report=StepReport()))
    assert run.batches[-1] == STOPPED[1]
    run.wait_over()  # no longer wanted
    assert len([s for s in run.steps if s.verb is Verb.FREEZE]) == 1


def test_a_recovered_coordinator_asks_again_for_all_that_was_under_way() -> None:
    run = Run(MigrationMethod.COLD).until(Verb.DUMP)
    under_way = {step.verb: step.number for step in run.open.values()}
    run.machine = Migration.replay(run.events)
    run.feed(CoordinatorRecovered(at_s=run.now))
    run.wait_over()
    again = {step.verb: (step.number, step.attempt) for step in run.open.values()}
    assert again == {verb: (number, 2) for verb, number in under_way.items()}
    record = run.finish()
    assert record.state is MigrationState.MIGRATED
    # The journal may have lost steps that were handed out before it died: their numbers do not come again.
    later = [step.number for step in run.steps if step.verb is Verb.RESTORE]
    assert later[0] > max(under_way.values()) + 1000


@pytest.mark.parametrize("method", MigrationMethod)
def test_cancelling_is_heeded_until_the_restore_is_handed_out(method: MigrationMethod) -> None:
    for verb in (*_BEFORE_THE_RESTORE, Verb.RESTORE, Verb.ADDRESS_MOVE, Verb.SETTLE_SOURCE):
        run = Run(method)
        try:
            run.until(verb)
        except AssertionError:
            continue  # the method has no such step
        run.feed(Cancelled(at_s=run.now, reason="by the operator"))
        record = run.finish()
        if verb in _BEFORE_THE_RESTORE:
            assert (record.state, record.error) == (MigrationState.ROLLED_BACK, "cancelled: by the operator")
        else:
            assert record.state is MigrationState.MIGRATED
            assert record.error == "cancelled too late to be heeded: by the operator"


def test_cancelled_while_checking_is_refused() -> None:
    run = Run(MigrationMethod.COLD)
    run.feed(Cancelled(at_s=100.5, reason="no"))
    assert run.record is not None
    assert run.record.state is MigrationState.REFUSED


def test_nothing_happens_without_a_beginning() -> None:
    with pytest.raises(ConflictError, match="MigrationStarted"):
        Migration().handle(CoordinatorRecovered(at_s=0.0))
    with pytest.raises(ConflictError):
        Migration().progress(0.0)


def test_every_event_twice_changes_nothing() -> None:
    run = Run(MigrationMethod.HYBRID)
    once = run.finish()
    doubled = Migration()
    for event in run.events:
        doubled.handle(event)
        assert doubled.handle(event) == ()
    assert doubled.record == once
    assert [encode(e, MigrationEvent) for e in run.events] == [
        encode(decode(MigrationEvent, encode(e, MigrationEvent)), MigrationEvent) for e in run.events
    ]


# The record.


def test_the_record_of_a_cold_migration() -> None:
    run = Run(MigrationMethod.COLD)
    record = run.finish()
    assert (record.key, record.container, record.source, record.target) == ("k", "c", "a", "b")
    assert (record.state, record.runs_on, record.error, record.chosen_by) == (
        MigrationState.MIGRATED, "b", "", "model",
    )  # fmt: skip
    phases = {phase.name: phase for phase in record.phases}
    assert [(name, p.starts_s, p.duration_s) for name, p in phases.items()] == [
        ("check source", 0, 1), ("check target", 0, 1), ("open path", 1, 1), ("prepare", 1, 1), ("freeze", 2, 1),
        ("dump", 3, 1), ("address detach", 3, 1), ("volume transfer", 3, 1), ("dump transfer", 4, 1),
        ("restore", 5, 1), ("address move", 6, 1), ("settle source", 7, 1), ("settle target", 7, 1),
    ]  # fmt: skip
    assert (record.downtime_s, record.total_s) == (5.0, 7.0)
    assert (phases["dump"].size_bytes, phases["dump"].transferred_bytes) == (64 * MIB, 0)
    assert (phases["volume transfer"].size_bytes, phases["volume transfer"].transferred_bytes) == (10 * MIB, 9 * MIB)
    assert run.machine.progress(run.now).under_way == ()
    assert len(run.machine.progress(run.now).phases) == run.machine.progress(run.now).phases_in_all


def test_total_time_of_post_copy_ends_with_the_last_page() -> None:
    run = Run(MigrationMethod.POST_COPY).until(Verb.PAGES_FETCHED)
    assert run.now == 107.0
    run.now = 130.0
    run.done(Verb.PAGES_FETCHED, StepReport(size_bytes=5.0, sent_bytes=5.0))
    run.now = 131.0
    run.done(Verb.PAGES_SERVED)
    record = run.finish()
    assert (record.total_s, record.downtime_s) == (30.0, 5.0)


def test_a_clock_that_goes_back_makes_no_negative_times() -> None:
    run = Run(MigrationMethod.COLD).until(Verb.RESTORE)
    run.now = 3.0
    record = run.finish()
    assert record.total_s == 0.0
    assert all(phase.starts_s >= 0 and phase.duration_s >= 0 for phase in record.phases)
    assert decode(MigrationRecord, encode(record)) == record


# Retries.


@pytest.mark.parametrize("verb", Verb)
def test_every_verb_has_a_time_limit_and_its_back_off_grows(verb: Verb) -> None:
    assert Timeouts().of(verb) > 0
    assert attempts(verb) >= 1
    waits = [back_off_s(verb, attempt) for attempt in range(2, 40)]
    assert waits == sorted(waits)
    assert waits[0] > 0
    assert waits[-1] == (1.0 if patience_s(verb) else 10.0)


def test_cleaning_is_tried_for_half_a_minute() -> None:
    for verb in CLEANING - {Verb.WITHDRAW}:
        assert sum(back_off_s(verb, attempt) for attempt in range(2, attempts(verb) + 1)) > 30
