"""The control loop as a pure state machine: `handle(event) -> Step`, no I/O, no clock, no randomness.

One pass (D3.3 figures 10 and 2): verdicts -> vote -> weighing -> decision -> instructions -> outcome -> record.
A `Step` names what was decided, what has to be carried out and what has to be audited; the shell makes it durable
before anything is carried out.

Replay: the journal keeps each event together with the decisions it led to. A restart hands both back, and the
planner is not asked again, so a better planner or predictor in a later version cannot rewrite history.

Rules kept
1. An event is either handled whole or refused whole: everything is checked before anything is changed.
2. No instruction without a reservation in the quota ledger that covers its predicted 95th percentile.
3. At most one decision per container under way, and none for the same kind during its cool-down.
4. Mode observe issues nothing; mode approve issues nothing without a person's word. A person's own order to move
   something is such a word in every mode (docs/adr/0020).
5. Resources that were added are given back after calm.

    >>> step = loop.handle(VerdictsReached(id="verdicts@120", at_s=120.0, scanned=12, verdicts=(...)))  # doctest: +SKIP
    >>> step.instructions  # doctest: +SKIP
    (Scale(key='d-000001/0', container='video-analytics', replicas=3),)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from natwork_ray.config import AlarmConfig
from natwork_ray.control.alarms import Alarm, AlarmVote
from natwork_ray.control.deciding import choose, relax, watch
from natwork_ray.control.events import (
    ApprovalAnswered,
    Event,
    MigrationRequested,
    ModeChanged,
    OrderEvent,
    OutcomeReported,
    RunStarted,
    ServiceMigrationRequested,
    TopologyObserved,
    VerdictsReached,
)
from natwork_ray.control.fleet import Fleet
from natwork_ray.control.orders import Ordering, decide_move, decide_service_move
from natwork_ray.control.planner import MovePredictor, Situation
from natwork_ray.control.quota import QuotaLedger
from natwork_ray.domain.actions import ActionOutcome, Instruction, MeshRetry, Migrate
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.auditing import AuditKind, AuditRecord
from natwork_ray.domain.decisions import Decision, DecisionStatus, MitigationKind, Mode
from natwork_ray.domain.status import LoopStatus
from natwork_ray.domain.telemetry import Metric
from natwork_ray.domain.values import plain
from natwork_ray.errors import ConflictError, InputError, NotFoundError, QuotaError

WATCH_S = 60.0  # who is only watched is looked at again so soon
TRIED_S = 1800.0  # how long a mitigation that did not last counts against itself

_APPLICATION_METRICS = {
    Metric.LATENCY_P50,
    Metric.LATENCY_P90,
    Metric.LATENCY_P99,
    Metric.THROUGHPUT,
    Metric.ERRORS,
}


@dataclass(frozen=True)
class Step:
    """What handling one event led to. `decisions` are new or changed ones, in their newest form."""

    decisions: tuple[Decision, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    records: tuple[AuditRecord, ...] = ()


class ControlLoop:
    """The state and its transitions. Built empty; the first event is `RunStarted`."""

    def __init__(self, predict_move: MovePredictor) -> None:
        self._predict_move = predict_move
        self._run: RunStarted | None = None
        self._turn = 0
        self._at_s = 0.0
        self._windows = 0
        self._flagged = 0
        self._alarms = 0
        self._degraded: tuple[str, ...] = ()
        self._votes: dict[str, AlarmVote] = {}
        self._last_alarm_s: dict[str, float] = {}
        self._quiet_until_s: dict[tuple[str, AnomalyKind | None], float] = {}
        self._changing_until_s: dict[str, float] = {}
        self._taking_effect: dict[str, float] = {}
        self._tried: dict[tuple[str, AnomalyKind], dict[MitigationKind, float]] = {}
        self._retrying: set[str] = set()
        self._decisions: dict[str, Decision] = {}
        self._awaiting: dict[str, Decision] = {}
        self._pending: dict[str, tuple[str, Instruction]] = {}
        self._outcomes: dict[str, ActionOutcome] = {}
        self._counts = {DecisionStatus.DONE: 0, DecisionStatus.FAILED: 0}

    @property
    def started(self) -> bool:
        """Whether the loop has charge of a world."""
        return self._run is not None

    @property
    def at_s(self) -> float:
        """Time of the newest event on the backend's clock."""
        return self._at_s

    def outbox(self) -> tuple[Instruction, ...]:
        """Instructions to be carried out now, in the order of issue: issued, not yet reported, and not too early.

        Of several for one container only the first, and none while the one before still takes effect.
        """
        due: dict[str, Instruction] = {}
        for _, instruction in self._pending.values():
            if self._at_s >= self._changing_until_s.get(instruction.container, 0.0):
                due.setdefault(instruction.container, instruction)
        return tuple(due.values())

    def outcomes(self) -> tuple[ActionOutcome, ...]:
        """Every outcome reported, oldest first."""
        return tuple(self._outcomes.values())

    def decisions(self) -> tuple[Decision, ...]:
        """Every decision in its newest form, oldest first."""
        return tuple(self._decisions.values())

    def decision(self, decision_id: str) -> Decision:
        """One decision.

        Raises:
            NotFoundError: no such decision.
        """
        try:
            return self._decisions[decision_id]
        except KeyError:
            raise NotFoundError(
                f"there is no decision {decision_id!r}", hint="`natwork decisions` lists them"
            ) from None

    def status(self) -> LoopStatus:
        """The loop at this moment.

        Raises:
            ConflictError: no run was started.
        """
        run = self._started()
        quota = tuple(self._ledger.account(c.name, at_s=self._at_s) for c in self._fleet.topology.containers)
        return LoopStatus(
            backend=run.backend,
            scenario=run.scenario,
            seed=run.seed,
            mode=self._mode,
            at_s=self._at_s,
            turns=self._turn,
            windows=self._windows,
            flagged=self._flagged,
            alarms=self._alarms,
            decisions=len(self._decisions),
            awaiting_approval=len(self._awaiting),
            under_way=len(self._pending),
            done=self._counts[DecisionStatus.DONE],
            failed=self._counts[DecisionStatus.FAILED],
            quota_violations=self._ledger.violations,
            degraded=self._degraded,
            topology=self._fleet.topology,
            quota=quota,
        )

    def consider(self, order: OrderEvent) -> Decision:
        """What the answer to an order would be now; nothing is changed.

        Raises:
            ConflictError, NotFoundError, UsageError: as `handle`.
        """
        self._started()
        ordering = Ordering(
            fleet=self._fleet,
            predict_move=self._predict_move,
            left_s=lambda name: self._ledger.account(name, at_s=order.at_s).left_s,
            hindrance=lambda name: self._hindrance(name, order.at_s),
            mode=self._mode,
            decision_id=self._next_id(),
        )
        if isinstance(order, MigrationRequested):
            return decide_move(order, ordering)
        return decide_service_move(order, ordering)

    def handle(self, event: Event, *, decided: Sequence[Decision] | None = None) -> Step:
        """Take one event in.

        Args:
            event: what happened.
            decided: on replay, the decisions that this event led to when it was first handled.

        Raises:
            ConflictError, NotFoundError, QuotaError, InputError, UsageError: the event does not fit the state, or makes
                no sense; nothing was changed.
        """
        match event:
            case RunStarted():
                step = self._run_started(event)
            case VerdictsReached():
                self._started()
                step = self._verdicts(event, decided)
            case TopologyObserved():
                self._started()
                self._fleet.observe(event.topology)
                step = Step()
            case OutcomeReported():
                self._started()
                step = self._outcome(event)
            case ApprovalAnswered():
                self._started()
                step = self._approval(event)
            case ModeChanged():
                self._started()
                step = self._mode_changed(event)
            case MigrationRequested() | ServiceMigrationRequested():
                self._started()
                step = self._ordered(event, decided)
        self._at_s = max(self._at_s, event.at_s)
        return step

    def _started(self) -> RunStarted:
        if self._run is None:
            raise ConflictError("the loop has charge of no world yet", hint="`natwork up` or `natwork demo` starts one")
        return self._run

    def _run_started(self, event: RunStarted) -> Step:
        if self._pending:
            raise ConflictError(
                f"{len(self._pending)} instructions of the run before are under way",
                hint="let them be reported before a new run takes over",
            )
        if self._run is not None and event.at_s < self._at_s:
            raise ConflictError(
                f"the new run starts at {event.at_s:.3f} s, the run before had come to {self._at_s:.3f} s",
                hint="this world has another clock: give it a journal of its own (state_dir)",
            )
        lapsed = tuple(replace(d, status=DecisionStatus.LAPSED) for d in self._awaiting.values())
        for decision in lapsed:
            self._remember(decision)
        if self._run is None or self._run.sla != event.sla:
            self._ledger = QuotaLedger(availability=event.sla.availability, window_s=event.sla.window_s)
        self._run, self._mode = event, event.mode
        self._fleet = Fleet(event.topology)
        # What was seen in the run before says nothing about this one.
        self._degraded = ()
        self._votes.clear()
        self._last_alarm_s.clear()
        self._quiet_until_s.clear()
        self._changing_until_s.clear()
        self._taking_effect.clear()
        self._tried.clear()
        body = {
            "run": event.id,
            "backend": event.backend,
            "mode": event.mode,
            "scenario": event.scenario,
            "seed": event.seed,
            "containers": len(event.topology.containers),
            "nodes": len(event.topology.nodes),
            "quota_s": round(self._ledger.budget_s, 3),
        }
        records = [_record(event.at_s, AuditKind.DECISION, d.container, plain(d)) for d in lapsed]
        records.append(_record(event.at_s, AuditKind.RUN, event.scenario, body))
        return Step(decisions=lapsed, records=tuple(records))

    def _mode_changed(self, event: ModeChanged) -> Step:
        before, self._mode = self._mode, event.mode
        body = {"before": before, "after": event.mode, "by": event.by}
        return Step(records=(_record(event.at_s, AuditKind.MODE, "loop", body),))

    def _verdicts(self, event: VerdictsReached, decided: Sequence[Decision] | None) -> Step:
        flagged: set[str] = set()
        for verdict in event.verdicts:
            self._fleet.container(verdict.container)
            if verdict.container in flagged:
                raise InputError(
                    f"{event.id} holds two verdicts on {verdict.container}", hint="one window, one verdict: one vote"
                )
            flagged.add(verdict.container)
        self._release_claims(event.at_s)
        self._turn += 1
        self._windows += event.scanned
        self._flagged += len(event.verdicts)
        self._degraded = event.degraded
        records = [_record(v.at_s, AuditKind.VERDICT, v.container, plain(v)) for v in event.verdicts]
        lapsed = self._lapse(event.at_s)
        alarms = self._vote(event)
        fresh: Iterable[Decision]
        if decided is None:
            # Lazily: each decision is issued before the next is weighed, so that no core is promised twice in a turn.
            fresh = chain(self._decide(alarms, event.at_s), self._relax(event.at_s))
        else:
            fresh = [d for d in decided if d.id not in self._decisions]
        issued: list[Instruction] = []
        taken: list[Decision] = []
        for decision in fresh:
            records.append(_record(event.at_s, AuditKind.DECISION, decision.container, plain(decision)))
            taken.append(decision)
            self._remember(decision)
            watching = decision.mitigation is MitigationKind.KEEP_WATCHING
            quiet_s = min(WATCH_S, self._settings.cooldown_s) if watching else self._settings.cooldown_s
            self._quiet_until_s[decision.container, decision.kind] = event.at_s + quiet_s
            if decision.status is DecisionStatus.ISSUED:
                instructions, more = self._issue(decision, event.at_s)
                issued += instructions
                records += more
        records += [_record(event.at_s, AuditKind.DECISION, d.container, plain(d)) for d in lapsed]
        return Step(tuple(lapsed + taken), tuple(issued), tuple(records))

    def _outcome(self, event: OutcomeReported) -> Step:
        outcome = event.outcome
        if outcome.key not in self._pending:
            raise ConflictError(
                f"no instruction {outcome.key!r} is under way", hint="it was reported before, or never issued"
            )
        self._ledger.settle(outcome.key, outcome.downtime_s, at_s=event.at_s)  # first: it refuses a senseless downtime
        decision_id, instruction = self._pending.pop(outcome.key)
        self._outcomes[outcome.key] = outcome
        # What it claims stays claimed until it has taken effect, and what is observed shows it.
        self._taking_effect[outcome.key] = outcome.finished_at_s if outcome.done else event.at_s
        self._release_claims(event.at_s)
        if isinstance(instruction, MeshRetry) and outcome.done:
            (self._retrying.add if instruction.enabled else self._retrying.discard)(instruction.container)
        decision = self._decisions[decision_id]
        failed = not outcome.done or decision.status is DecisionStatus.FAILED
        if failed:
            decision = replace(decision, status=DecisionStatus.FAILED)
        elif not any(d == decision_id for d, _ in self._pending.values()):
            decision = replace(decision, status=DecisionStatus.DONE)
        changed = decision.status is not self._decisions[decision_id].status
        if changed:
            self._remember(decision)
            self._counts[decision.status] += 1
        name, finished_s = instruction.container, max(event.at_s, outcome.finished_at_s)
        self._changing_until_s[name] = max(self._changing_until_s.get(name, 0.0), finished_s)
        quiet_s = finished_s + self._settings.cooldown_s
        self._quiet_until_s[name, decision.kind] = max(self._quiet_until_s.get((name, decision.kind), 0.0), quiet_s)
        if decision.kind is not None:
            tried = self._tried.setdefault((name, decision.kind), {})
            tried[decision.mitigation] = event.at_s
        account = self._ledger.account(name, at_s=event.at_s)
        body = {"decision": decision_id, "outcome": plain(outcome), "quota": plain(account)}
        records = (_record(event.at_s, AuditKind.OUTCOME, name, body),)
        return Step((decision,) if changed else (), (), records)

    def _ordered(self, event: OrderEvent, decided: Sequence[Decision] | None) -> Step:
        decision = self.consider(event) if decided is None else decided[0]
        self._remember(decision)
        records = [_record(event.at_s, AuditKind.DECISION, decision.container, plain(decision))]
        instructions: list[Instruction] = []
        if decision.status is DecisionStatus.ISSUED:
            instructions, more = self._issue(decision, event.at_s)
            records += more
        return Step((decision,), tuple(instructions), tuple(records))

    def _hindrance(self, name: str, at_s: float) -> str:
        """Why nothing may begin at the container now; empty when nothing stands in the way."""
        until_s = self._changing_until_s.get(name, -math.inf)
        if at_s < until_s:
            return f"what was done before takes effect until {until_s:.0f} s"
        claimed = any(i.container == name for _, i in self._pending.values())
        return "an action on it is under way" if claimed else ""

    def _release_claims(self, at_s: float) -> None:
        for key in [k for k, finished_s in self._taking_effect.items() if finished_s <= at_s]:
            del self._taking_effect[key]
            self._fleet.end(key)

    def _approval(self, event: ApprovalAnswered) -> Step:
        decision = self.decision(event.decision)
        if decision.status is not DecisionStatus.AWAITING_APPROVAL:
            raise ConflictError(
                f"decision {decision.id} is {decision.status}, it awaits no approval",
                hint="`natwork decisions --status awaiting_approval` lists those that do",
            )
        if event.granted and self._mode is Mode.OBSERVE:
            raise ConflictError("the loop only observes now", hint="set the mode to approve or act first")
        if event.granted:
            self._check_still_fits(decision, event.at_s)
            left = self._ledger.account(decision.container, at_s=event.at_s).left_s
            if decision.predicted_downtime_s > left:
                raise QuotaError(
                    f"{decision.id} may cost {decision.predicted_downtime_s:.2f} s, {left:.2f} s of quota are left",
                    hint="refuse it, or wait for the next quota window",
                )
            if self._fleet.busy(decision.container):
                raise ConflictError(
                    f"an action on {decision.container} is under way", hint="approve again when it has ended"
                )
        status = DecisionStatus.ISSUED if event.granted else DecisionStatus.REFUSED
        decision = replace(decision, status=status)
        self._remember(decision)
        body = {"decision": decision.id, "granted": event.granted, "by": event.by, "note": event.note}
        records = [_record(event.at_s, AuditKind.APPROVAL, decision.container, body)]
        instructions: list[Instruction] = []
        if event.granted:
            instructions, more = self._issue(decision, event.at_s)
            records += more
        return Step((decision,), tuple(instructions), tuple(records))

    def _check_still_fits(self, decision: Decision, at_s: float) -> None:
        """The world may have moved on while a person thought about it."""
        if decision.at_s < at_s - self._started().approval_lapse_s:
            raise ConflictError(
                f"decision {decision.id} waited longer than {self._started().approval_lapse_s:.0f} s and has lapsed",
                hint="if the anomaly is still there, the loop decides again",
            )
        container = self._fleet.container(decision.container)
        for instruction in decision.instructions:
            if isinstance(instruction, Migrate) and instruction.source != container.node:
                raise ConflictError(
                    f"{decision.id} would move {container.name} from {instruction.source}; "
                    f"it runs on {container.node} now",
                    hint="refuse it; if the anomaly is still there, the loop decides again",
                )

    @property
    def _settings(self) -> AlarmConfig:
        return self._started().alarm

    def _vote(self, event: VerdictsReached) -> dict[str, Alarm]:
        alarms: dict[str, Alarm] = {}
        for verdict in event.verdicts:
            vote = self._votes.setdefault(verdict.container, AlarmVote())
            kind = vote.add(self._turn, verdict, self._settings)
            if kind is not None:
                alarms[verdict.container] = Alarm(kind, verdict)
                self._last_alarm_s[verdict.container] = event.at_s
        self._alarms += len(alarms)
        for name in [n for n, v in self._votes.items() if v.idle(self._turn, self._settings)]:
            del self._votes[name]
        return alarms

    def _decide(self, alarms: dict[str, Alarm], at_s: float) -> Iterator[Decision]:
        for name, alarm in alarms.items():
            if not self._free(name, alarm.kind, at_s):
                continue
            culprit = self._slow_callee(name, alarm, at_s)
            if culprit is not None:
                yield watch(self._next_id(), alarm, culprit, at_s, self._mode)
                continue
            tried = self._tried.get((name, alarm.kind), {})
            situation = Situation(
                kind=alarm.kind,
                verdict=alarm.verdict,
                container=self._fleet.container(name),
                fleet=self._fleet,
                quota_left_s=self._ledger.account(name, at_s=at_s).left_s,
                tried=frozenset(m for m, when in tried.items() if when >= at_s - TRIED_S),
                at_s=at_s,
                key=self._next_id(),
            )
            yield choose(situation, self._mode, self._predict_move)

    def _free(self, name: str, kind: AnomalyKind | None, at_s: float) -> bool:
        """Nothing changes at the container, nobody is asked about it, and its cool-down for this kind is over.

        The cool-down is per kind: first sight often misjudges (a leak begins like growing load), and a second kind in
        alarm says that the first answer was not the whole of it.
        """
        if at_s <= self._changing_until_s.get(name, -1.0) or self._fleet.busy(name):
            return False
        waiting = any(d.container == name for d in self._awaiting.values())
        return at_s >= self._quiet_until_s.get((name, kind), 0.0) and not waiting

    def _next_id(self) -> str:
        token = self._started().token
        return f"d-{token}-{len(self._decisions) + 1:06d}" if token else f"d-{len(self._decisions) + 1:06d}"

    def _slow_callee(self, name: str, alarm: Alarm, at_s: float) -> str | None:
        """A container that this one calls, in alarm itself now, when application metrics of this one are off most.

        One that calls back is no culprit: each of the two would wait for the other, and neither would be treated.
        """
        if not alarm.verdict.drivers or alarm.verdict.drivers[0].metric not in _APPLICATION_METRICS:
            return None
        recent = at_s - self._settings.votes_of * self._started().step_s
        for callee in self._fleet.container(name).depends_on:
            alarmed_s = self._last_alarm_s.get(callee)
            if alarmed_s is not None and alarmed_s >= recent and not self._fleet.calls(callee, name):
                return callee
        return None

    def _relax(self, at_s: float) -> Iterator[Decision]:
        if self._mode is Mode.OBSERVE:
            return  # nothing was added, so there is nothing to give back
        for container in self._fleet.topology.containers:
            calm_since = self._last_alarm_s.get(container.name)
            if (
                calm_since is None
                or at_s - calm_since < self._settings.calm_s
                or not (self._free(container.name, None, at_s))
            ):
                continue
            decision = relax(
                self._next_id(),
                container,
                self._fleet.original(container.name),
                retrying=container.name in self._retrying,
                calm_s=at_s - calm_since,
                at_s=at_s,
                mode=self._mode,
            )
            if decision is not None:
                yield decision

    def _issue(self, decision: Decision, at_s: float) -> tuple[list[Instruction], list[AuditRecord]]:
        """Reserve and put into the outbox. Unless it says otherwise, all downtime is promised to the first part."""
        records = []
        rest = (0.0,) * (len(decision.instructions) - 1)
        promised = decision.downtimes_s or (decision.predicted_downtime_s, *rest)
        for instruction, seconds in zip(decision.instructions, promised, strict=True):
            self._ledger.reserve(instruction.container, instruction.key, seconds, at_s=at_s)
            self._pending[instruction.key] = (decision.id, instruction)
            self._fleet.begin(instruction)
            records.append(_record(at_s, AuditKind.INSTRUCTION, instruction.container, plain(instruction)))
        return list(decision.instructions), records

    def _lapse(self, at_s: float) -> list[Decision]:
        oldest = at_s - self._started().approval_lapse_s
        lapsed = [replace(d, status=DecisionStatus.LAPSED) for d in self._awaiting.values() if d.at_s < oldest]
        for decision in lapsed:
            self._remember(decision)
        return lapsed

    def _remember(self, decision: Decision) -> None:
        self._decisions[decision.id] = decision
        if decision.status is DecisionStatus.AWAITING_APPROVAL:
            self._awaiting[decision.id] = decision
        else:
            self._awaiting.pop(decision.id, None)


def _record(at_s: float, kind: AuditKind, subject: str, body: dict[str, Any]) -> AuditRecord:
    return AuditRecord(at_s=at_s, kind=kind, subject=subject, body=body)
