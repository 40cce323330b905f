"""One live migration as an I/O-free state machine: events in, instructions out (D3.3 section 2.1).

A shell (`natwork_ray.limi.driver`) performs the instructions and feeds back what happened. Time is in the events;
nothing here waits, draws lots or touches the world. Replaying the events rebuilds the machine exactly, and a replay
of any beginning of them, followed by `CoordinatorRecovered`, settles as well: the journal may lag behind the world.

Rules kept (docs/live-migration.md tells them with pictures):

1. **The target's durable note "restored" is the only decision that counts.** Until a restore was handed out, going
   back needs nobody's leave. From then on the source revives the container only after the target has answered
   "withdrawn", which it may say only once a later restore of this key is refused for ever. If it answers "restored",
   the migration goes forward. If it does not answer, it is asked again, for ever: nothing is guessed.
2. A step that a recovery has to know of (`JOURNAL_FIRST`, and a revival that the target has not agreed to) is handed
   out only when the events so far are in the journal. All others may run ahead of it.
3. **Post-copy and hybrid cannot be undone for free once the restore has succeeded**: what the container does from then
   on exists on the target only. That moment is in the record as the point of no return. If its pages then fail to
   arrive, the target is told to end it (which it refuses once all pages are there), and the source's frozen memory is
   taken up again; the record says what was lost.
4. A lost attempt is repeated under the same number, an attempt that failed is not: see `natwork_ray.limi.retries`.
5. A step that is no longer wanted is abandoned, not awaited: withdraw and revive end it on their side first.
6. In a gated migration (`MigrationStarted.gated`) each first attempt on the way forward is held until `StepReleased`.
   A held step has not begun: before a restore that is held, going back needs nobody's leave. A coordinator that died
   while it held a step asks for it, when it is back, without a hold.

    >>> machine = Migration()
    >>> [i.step.verb.value for i in machine.handle(MigrationStarted(at_s=0.0, key="k", container="c", source="a",
    ...     target="b", method=MigrationMethod.COLD, backend=Backend.EMULATED))]
    ['check source', 'check target']
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import assert_never

from natwork_ray.domain.migrations import MigrationProgress, MigrationRecord, MigrationState
from natwork_ray.domain.runtime import Revival
from natwork_ray.errors import ConflictError
from natwork_ray.limi import plan, retries
from natwork_ray.limi.asking import problem_with, step_for
from natwork_ray.limi.chronicle import Chronicle, hold_name
from natwork_ray.limi.outstanding import Asked, Outstanding
from natwork_ray.limi.plan import Task
from natwork_ray.limi.steps import (
    GATED,
    SIDE_OF,
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
    StepDone,
    StepFailed,
    StepLost,
    StepReleased,
    StepReport,
    Verb,
    Wait,
    WaitOver,
)

# The first effects on either node, what may leave the container standing still, and what may let it run elsewhere.
JOURNAL_FIRST = frozenset({Verb.OPEN_PATH, Verb.PREPARE, Verb.PRE_DUMP, Verb.FREEZE, Verb.RESTORE})


class Course(StrEnum):
    """Which way a migration is going."""

    FORWARD = "forward"
    ASKING = "asking"  # a restore was handed out: what does the target say?
    FORCING = "forcing"  # past the point of no return, and the pages do not arrive
    RETURNING = "returning"  # the container runs on the source again, or is about to
    SETTLING = "settling"  # it runs on the target; the rest is cleaning
    OVER = "over"


class Migration:
    """The state of one migration. Feed it `MigrationStarted` first; what it does not expect, it ignores."""

    def __init__(self) -> None:
        self.course = Course.FORWARD
        self.record: MigrationRecord | None = None
        self._chronicle: Chronicle | None = None
        self._asked = Outstanding()
        self._done: dict[Task, StepReport] = {}
        self._running_on: str | None = None
        self._withdrawn = False
        self._cleaned: set[Verb] = set()  # cleaning steps that ended, well or not
        self._address_failures = 0
        self._outcome = MigrationState.RUNNING
        self._out: list[Instruction] = []

    @classmethod
    def replay(cls, events: Iterable[MigrationEvent]) -> Migration:
        """The machine as it stood after these events; what it asked for then is not asked again."""
        machine = cls()
        for event in events:
            machine.handle(event)
        return machine

    # What others may ask.

    @property
    def started(self) -> MigrationStarted:
        """The first event.

        Raises:
            ConflictError: there was none yet.
        """
        return self._log.started

    @property
    def state(self) -> MigrationState:
        """`running` until `Finish` was handed out."""
        return MigrationState.RUNNING if self.record is None else self.record.state

    @property
    def runs_on(self) -> str | None:
        """The node on which the container runs; None while it stands still, or while that is not known."""
        return self._running_on

    def progress(self, at_s: float) -> MigrationProgress:
        """Where the migration stands. Repeated steps are named with the attempt that is under way."""
        start = self._log.started
        under_way = tuple(
            hold_name(asked.task.verb)
            if asked.held_since_s is not None
            else asked.task.verb.value + (f" (attempt {asked.step.attempt})" if asked.step.attempt > 1 else "")
            for asked in self._asked.all()
        )
        if self.course in (Course.ASKING, Course.FORCING):
            under_way = tuple(f"{name}: waiting for the word of {start.target}" for name in under_way)
        return MigrationProgress(
            key=start.key,
            container=start.container,
            source=start.source,
            target=start.target,
            method=start.method,
            elapsed_s=max(0.0, at_s - start.at_s),
            under_way=under_way,
            phases=tuple(self._log.phases),
            phases_in_all=len(self._plan()) + 2,
            past_return=self._log.point_of_no_return_at_s is not None,
        )

    # Events.

    def handle(self, event: MigrationEvent) -> tuple[Instruction, ...]:
        """What is to be done now. Late, repeated and unknown events change nothing.

        Raises:
            ConflictError: the first event is not `MigrationStarted`.
        """
        if isinstance(event, MigrationStarted):
            if self._chronicle is None:
                self._chronicle = Chronicle(event)
                self._running_on = event.source
                self._advance(event.at_s)
        elif self.started and self.course is not Course.OVER:
            match event:
                case StepReleased():
                    self._released(event)
                case WaitOver():
                    self._wait_over(event)
                case StepDone():
                    self._step_done(event)
                case StepFailed():
                    self._step_failed(event)
                case StepLost():
                    self._step_lost(event)
                case CoordinatorRecovered():
                    self._recovered(event)
                case Cancelled():
                    self._cancelled(event)
                case _:
                    assert_never(event)
        out, self._out = tuple(self._out), []
        return out

    def _released(self, event: StepReleased) -> None:
        if asked := self._asked.held(event.number):
            self._end_hold(asked, event.at_s)
            self._hand_out(asked, event.at_s)

    def _wait_over(self, event: WaitOver) -> None:
        if asked := self._asked.waiting(event.number, event.attempt):
            self._hand_out(asked, event.at_s)

    def _step_done(self, event: StepDone) -> None:
        asked = self._asked.handed_out(event.number)
        if asked is None:
            return
        if problem := problem_with(asked.task.verb, event.report):
            self._failed(asked, problem, "", event.at_s)
            return
        self._end(asked, event.at_s, event.report)
        self._done[asked.task] = event.report
        self._learn(asked.task, event.report, event.at_s)
        self._advance(event.at_s)

    def _step_failed(self, event: StepFailed) -> None:
        if asked := self._asked.under_way(event.number, event.attempt):
            self._end_hold(asked, event.at_s)
            self._failed(asked, event.error, event.hint, event.at_s)

    def _step_lost(self, event: StepLost) -> None:
        if asked := self._asked.under_way(event.number, event.attempt):
            self._lost(asked, event.error, event.hint, event.at_s)

    def _recovered(self, event: CoordinatorRecovered) -> None:
        self._asked.new_life()
        for asked in self._asked.all():
            if asked in self._asked.all():  # giving one up may abandon the others
                self._end_hold(asked, event.at_s)
                self._lost(asked, "the source's agent died meanwhile", "", event.at_s)

    def _cancelled(self, event: Cancelled) -> None:
        if self.course is Course.FORWARD and not self._restore_begun:
            self._turn_back(f"cancelled: {event.reason}", "", event.at_s)
        else:
            self._log.blame(f"cancelled too late to be heeded: {event.reason}")

    # What an answer means.

    def _learn(self, task: Task, report: StepReport, at_s: float) -> None:
        log = self._log
        match task.verb:
            case Verb.PRE_DUMP_TRANSFER:
                log.rounds = task.round
            case Verb.RESTORE:
                self._arrived(at_s)
            case Verb.ADDRESS_MOVE:
                log.up(at_s)
                log.whole_at_s = at_s
            case Verb.PAGES_FETCHED:
                log.whole_at_s = at_s
            case Verb.WITHDRAW if self.course is Course.RETURNING:
                self._cleaned.add(task.verb)
                if report.decided == WITHDRAWN:
                    self._withdrawn = True
                else:
                    log.blame(f"{log.started.target} says that it restored what it was never asked to restore")
            case Verb.WITHDRAW | Verb.FORCE_WITHDRAW if report.decided == WITHDRAWN:
                self._withdrawn = True
                self._cleaned.add(Verb.WITHDRAW)
                self._running_on = None
                self.course = Course.RETURNING
                log.lost(at_s)
            case Verb.WITHDRAW:
                self.course = Course.FORWARD
                self._arrived(at_s)
            case Verb.FORCE_WITHDRAW:
                log.never_down()
                log.whole_at_s = at_s
                self._running_on = log.started.target
                for verb in (Verb.PAGES_FETCHED, Verb.PAGES_SERVED):
                    self._done.setdefault(Task(verb), StepReport())
                self.course = Course.FORWARD
            case Verb.REVIVE:
                log.up(at_s)
                log.whole_at_s = at_s
                self._running_on = log.started.source
                if not self._restore_begun:
                    # What the source was still sending when the target cleaned may have come in since: ask once more.
                    self._cleaned.discard(Verb.WITHDRAW)
                self._outcome = MigrationState.ROLLED_BACK
                if report.decided == Revival.RESTARTED:
                    self._outcome = MigrationState.RESTARTED
                    log.blame("its memory was lost: restarted from its bundle")
            case Verb.SETTLE_SOURCE | Verb.SETTLE_TARGET | Verb.CLEAN_SOURCE:
                self._cleaned.add(task.verb)
            case _:
                pass  # done is all that has to be known of the others

    def _arrived(self, at_s: float) -> None:
        """The target has noted "restored", and we know it: from here on only forward (lazy pages: see rule 3)."""
        self._done.setdefault(Task(Verb.RESTORE), StepReport())
        self._running_on = self._log.started.target
        if self._lazy and self._log.point_of_no_return_at_s is None:
            self._log.point_of_no_return_at_s = at_s

    # Failures.

    def _lost(self, asked: Asked, error: str, hint: str, at_s: float) -> None:
        verb = asked.task.verb
        if asked.lost_since_s is None:
            asked.lost_since_s = at_s
        patient = at_s - asked.lost_since_s < retries.patience_s(verb)
        if patient or self._until_answered(verb) or asked.step.attempt < retries.attempts(verb):
            self._out.append(self._asked.again(asked))
        else:
            hint = hint or f"see whether the agent of {self._node(verb)} runs and can be reached"
            self._give_up(asked, f"no answer in {asked.step.attempt} attempts, the last: {error}", hint, at_s)

    def _failed(self, asked: Asked, error: str, hint: str, at_s: float) -> None:
        verb = asked.task.verb
        if verb is Verb.REVIVE and not self._withdrawn and Verb.WITHDRAW not in self._asked.verbs:
            # It may have been our own journal that refused. Once the target has withdrawn, we need no journal.
            self._ask(Task(Verb.WITHDRAW), at_s)
        repeat = verb in retries.CLEANING and asked.step.attempt < retries.attempts(verb)
        if repeat or self._until_answered(verb):
            self._out.append(self._asked.again(asked))
        else:
            self._give_up(asked, error, hint, at_s)

    def _until_answered(self, verb: Verb) -> bool:
        if verb is Verb.WITHDRAW:
            return self.course is Course.ASKING
        return verb in (Verb.FORCE_WITHDRAW, Verb.REVIVE)

    def _give_up(self, asked: Asked, error: str, hint: str, at_s: float) -> None:
        """A step will not be done any more: decide what follows from that."""
        self._end(asked, at_s, None)
        verb, log = asked.task.verb, self._log
        told = f"{verb.value}: {error}"
        if verb in retries.CLEANING:
            self._cleaned.add(verb)
            log.blame(f"left behind on {self._node(verb)}: {told}", hint)
            self._advance(at_s)
        elif verb is Verb.PAGES_SERVED:
            # Whether the pages are all there, only the target can say: see PAGES_FETCHED.
            self._done[asked.task] = StepReport()
            self._advance(at_s)
        elif verb in (Verb.RESTORE, Verb.ADDRESS_MOVE):
            if verb is Verb.RESTORE:
                log.blame(told, hint)
            else:
                self._address_failures += 1
                if self._address_failures == 1:
                    log.blame(told, hint)
            self.course = Course.ASKING
            self._ask(Task(Verb.WITHDRAW), at_s)
        elif verb is Verb.PAGES_FETCHED:
            log.blame(told, hint)
            log.down(at_s)
            self._running_on = None
            self._abandon_all(at_s)
            self.course = Course.FORCING
            self._ask(Task(Verb.FORCE_WITHDRAW), at_s)
        else:
            self._turn_back(told, hint, at_s)

    def _turn_back(self, error: str, hint: str, at_s: float) -> None:
        """Before any restore was handed out: the container stays, or comes back, without asking anybody."""
        self._log.blame(error, hint)
        self._log.whole_at_s = at_s
        self._abandon_all(at_s)
        self.course = Course.RETURNING
        self._advance(at_s)

    # What is to be done next.

    def _advance(self, at_s: float) -> None:
        match self.course:
            case Course.FORWARD:
                self._go_forward(at_s)
            case Course.RETURNING:
                self._go_back(at_s)
            case Course.SETTLING if not self._asked:
                self._finish(self._outcome)
            case _:
                pass  # the answer that is awaited decides

    def _plan(self) -> dict[Task, frozenset[Task]]:
        spec = self._done.get(Task(Verb.CHECK_SOURCE), StepReport()).spec
        return plan.forward(
            self._log.started.method,
            max_rounds=max(1, self._log.started.max_rounds),
            residuals=plan.residuals_of(self._done),
            writable=spec is None or spec.writable_root,
        )

    def _go_forward(self, at_s: float) -> None:
        steps, under_way = self._plan(), self._asked.tasks
        for task, needs in steps.items():
            if task not in self._done and task not in under_way and needs <= self._done.keys():
                delay_s = 0.0
                if task.verb is Verb.ADDRESS_MOVE and self._address_failures:
                    delay_s = retries.back_off_s(task.verb, self._address_failures + 1)
                self._ask(task, at_s, delay_s=delay_s)
        if steps.keys() <= self._done.keys():
            self._outcome = MigrationState.MIGRATED
            self.course = Course.SETTLING
            self._ask(Task(Verb.SETTLE_SOURCE), at_s)
            self._ask(Task(Verb.SETTLE_TARGET), at_s)

    def _go_back(self, at_s: float) -> None:
        if not self._asked.begun - {Verb.CHECK_SOURCE, Verb.CHECK_TARGET}:
            self._finish(MigrationState.REFUSED)
            return
        under_way = self._asked.verbs
        if self._outcome is MigrationState.RUNNING:
            if self._asked.begun & {Verb.PRE_DUMP, Verb.FREEZE}:
                if Verb.REVIVE not in under_way:
                    self._ask(Task(Verb.REVIVE), at_s)
                return
            self._outcome = MigrationState.ROLLED_BACK  # it never stood still
        # Only now: a transfer that was abandoned ends with the revival, and would go on filling the target before it.
        if Verb.PREPARE in self._asked.begun and Verb.WITHDRAW not in self._cleaned | under_way:
            self._ask(Task(Verb.WITHDRAW), at_s)
        if Verb.CLEAN_SOURCE not in self._cleaned | under_way:
            self._ask(Task(Verb.CLEAN_SOURCE), at_s)
        if not self._asked:
            self._finish(self._outcome)

    def _finish(self, state: MigrationState) -> None:
        start = self._log.started
        on_target = state is MigrationState.MIGRATED
        self._running_on = start.target if on_target else start.source
        self.record = self._log.record(state, runs_on=self._running_on)
        self.course = Course.OVER
        self._out.append(Finish(record=self.record))

    # Asking.

    def _ask(self, task: Task, at_s: float, *, delay_s: float = 0.0) -> None:
        step = step_for(task, self._asked.next_number(), self._log.started, self._done)
        held = self._log.started.gated and task.verb in GATED and not delay_s
        asked = Asked(step=step, task=task, waiting=held or delay_s > 0, held_since_s=at_s if held else None)
        self._asked.add(asked)
        if held:
            self._out.append(Hold(step=asked.step))
        elif asked.waiting:
            self._out.append(Wait(step=asked.step, seconds=delay_s))
        else:
            self._hand_out(asked, at_s)

    def _hand_out(self, asked: Asked, at_s: float) -> None:
        verb = asked.task.verb
        self._asked.begin(asked, at_s)
        if verb is Verb.FREEZE:
            self._log.down(at_s)
            self._running_on = None
        durable = verb in JOURNAL_FIRST or (verb is Verb.REVIVE and not self._withdrawn)
        self._out.append(Perform(step=asked.step, durable=durable))

    def _end(self, asked: Asked, at_s: float, report: StepReport | None) -> None:
        self._asked.remove(asked)
        self._end_hold(asked, at_s)
        if asked.began_s is not None:
            self._log.ended(asked.task.verb, began_s=asked.began_s, at_s=at_s, report=report)

    def _end_hold(self, asked: Asked, at_s: float) -> None:
        if asked.held_since_s is not None:
            self._log.held(asked.task.verb, since_s=asked.held_since_s, at_s=at_s)
            asked.held_since_s = None

    def _abandon_all(self, at_s: float) -> None:
        for asked in self._asked.all():
            self._end(asked, at_s, None)
            self._out.append(Abandon(number=asked.step.number))

    def _node(self, verb: Verb) -> str:
        start = self._log.started
        return start.target if SIDE_OF[verb] is Side.TARGET else start.source

    @property
    def _restore_begun(self) -> bool:
        return Verb.RESTORE in self._asked.begun

    @property
    def _lazy(self) -> bool:
        return self._log.started.method in plan.LAZY

    @property
    def _log(self) -> Chronicle:
        if self._chronicle is None:
            raise ConflictError(
                "a migration begins with MigrationStarted", hint="feed the events from their beginning, in order"
            )
        return self._chronicle
