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

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from natwork_ray.config import AlarmConfig
from natwork_ray.control.alarms import Alarm, AlarmVote
from natwork_ray.control.anticipating import calm_needed_s
from natwork_ray.control.approving import check_awaits, check_grant
from natwork_ray.control.deciding import choose, relax, watch
from natwork_ray.control.docket import Docket
from natwork_ray.control.events import (
    ApprovalAnswered,
    DriftObserved,
    Event,
    MigrationRequested,
    ModeChanged,
    ModelChosen,
    OrderEvent,
    OutcomeReported,
    ProfilesLearnt,
    RelearnRequested,
    RunStarted,
    ServiceMigrationRequested,
    TopologyObserved,
    VerdictsReached,
)
from natwork_ray.control.fleet import Fleet
from natwork_ray.control.normality import Normality
from natwork_ray.control.orders import Ordering, decide_move, decide_service_move
from natwork_ray.control.pacing import WATCH_S, Pacing
from natwork_ray.control.planner import MovePredictor, Situation
from natwork_ray.control.propagation import slow_callee
from natwork_ray.control.quota import QuotaLedger
from natwork_ray.domain.actions import ActionOutcome, FlowAlert, Instruction, MeshRetry
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.auditing import AuditKind, AuditRecord
from natwork_ray.domain.decisions import Decision, DecisionStatus, MitigationKind, Mode
from natwork_ray.domain.model_versions import ModelInUse
from natwork_ray.domain.outlook import LoadOutlook
from natwork_ray.domain.profiles import ProfilesInUse
from natwork_ray.domain.status import LoopStatus
from natwork_ray.domain.values import plain
from natwork_ray.errors import ConflictError, InputError


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
        self._pacing = Pacing()
        self._normality = Normality()
        self._outlook: LoadOutlook | None = None
        self._retrying: set[str] = set()
        self._docket = Docket()
        self._models: dict[str, ModelInUse] = {}

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
        return self._docket.due(lambda name: self._pacing.settled(name, self._at_s))

    def outcomes(self) -> tuple[ActionOutcome, ...]:
        """Every outcome reported, oldest first."""
        return self._docket.outcomes()

    def models(self) -> tuple[ModelInUse, ...]:
        """The version in use of every model that a person chose one for; also without a run."""
        return tuple(self._models.values())

    def profiles(self) -> ProfilesInUse:
        """Where profiles were learnt, which have drifted, and which are to be learnt anew."""
        return self._normality.in_use()

    def decisions(self) -> tuple[Decision, ...]:
        """Every decision in its newest form, oldest first."""
        return self._docket.decisions()

    def decision(self, decision_id: str) -> Decision:
        """One decision.

        Raises:
            NotFoundError: no such decision.
        """
        return self._docket.decision(decision_id)

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
            decisions=len(self._docket),
            awaiting_approval=len(self._docket.awaiting()),
            under_way=self._docket.under_way(),
            done=self._docket.count(DecisionStatus.DONE),
            failed=self._docket.count(DecisionStatus.FAILED),
            quota_violations=self._ledger.violations,
            degraded=self._degraded,
            topology=self._fleet.topology,
            quota=quota,
            outlook=self._outlook,
            drifted=self._normality.drifted(),
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
            case ProfilesLearnt():
                self._started()
                step = Step(records=self._normality.learnt(event))
            case DriftObserved():
                self._started()
                step = Step(records=self._normality.observed(event))
            case RelearnRequested():
                self._started()
                step = Step(records=self._normality.order(event, self._fleet.topology))
            case ModelChosen():
                step = self._model_chosen(event)
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
        if self._docket.under_way():
            raise ConflictError(
                f"{self._docket.under_way()} instructions of the run before are under way",
                hint="let them be reported before a new run takes over",
            )
        if self._run is not None and event.at_s < self._at_s:
            raise ConflictError(
                f"the new run starts at {event.at_s:.3f} s, the run before had come to {self._at_s:.3f} s",
                hint="this world has another clock: give it a journal of its own (state_dir)",
            )
        lapsed = self._docket.lapse()
        if self._run is None or self._run.sla != event.sla:
            self._ledger = QuotaLedger(availability=event.sla.availability, window_s=event.sla.window_s)
        self._run, self._mode = event, event.mode
        self._fleet = Fleet(event.topology)
        # What was seen in the run before says nothing about this one.
        self._degraded = ()
        self._votes.clear()
        self._last_alarm_s.clear()
        self._pacing.forget()
        self._normality.forget()
        self._outlook = None
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

    def _model_chosen(self, event: ModelChosen) -> Step:
        body = {"sha256": event.sha256, "previous": event.previous, "by": event.by, "note": event.note}
        self._models[event.name] = ModelInUse(
            name=event.name,
            sha256=event.sha256,
            at_s=event.at_s,
            by=event.by,
            note=event.note,
            previous=event.previous,
        )
        return Step(records=(_record(event.at_s, AuditKind.MODEL, event.name, body),))

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
        lapsed = self._docket.lapse(event.at_s - self._started().approval_lapse_s)
        alarms = self._vote(event)
        self._outlook = event.outlook
        fresh: Iterable[Decision]
        if decided is None:
            # Lazily: each decision is issued before the next is weighed, so that no core is promised twice in a turn.
            fresh = chain(self._decide(alarms, event), self._relax(event.at_s))
        else:
            fresh = [d for d in decided if d.id not in self._docket]
        issued: list[Instruction] = []
        taken: list[Decision] = []
        for decision in fresh:
            records.append(_record(event.at_s, AuditKind.DECISION, decision.container, plain(decision)))
            taken.append(decision)
            self._docket.enter(decision)
            watching = decision.mitigation is MitigationKind.KEEP_WATCHING
            quiet_s = min(WATCH_S, self._settings.cooldown_s) if watching else self._settings.cooldown_s
            self._pacing.decided(decision.container, decision.kind, event.at_s, quiet_s=quiet_s)
            if decision.status is DecisionStatus.ISSUED:
                instructions, more = self._issue(decision, event.at_s)
                issued += instructions
                records += more
        records += [_record(event.at_s, AuditKind.DECISION, d.container, plain(d)) for d in lapsed]
        return Step((*lapsed, *taken), tuple(issued), tuple(records))

    def _outcome(self, event: OutcomeReported) -> Step:
        outcome = event.outcome
        self._docket.check_pending(outcome.key)
        self._ledger.settle(outcome.key, outcome.downtime_s, at_s=event.at_s)  # first: it refuses a senseless downtime
        decision, changed, instruction = self._docket.report(outcome)
        # What it claims stays claimed until it has taken effect, and what is observed shows it.
        self._pacing.takes_effect(outcome.key, outcome.finished_at_s if outcome.done else event.at_s)
        self._release_claims(event.at_s)
        if isinstance(instruction, MeshRetry) and outcome.done:
            (self._retrying.add if instruction.enabled else self._retrying.discard)(instruction.container)
        name = instruction.container
        self._pacing.reported(
            name,
            decision.kind,
            max(event.at_s, outcome.finished_at_s),
            cooldown_s=self._settings.cooldown_s,
            changes=not isinstance(instruction, FlowAlert),
        )
        self._pacing.tried(name, decision.kind, decision.mitigation, event.at_s)
        account = self._ledger.account(name, at_s=event.at_s)
        body = {"decision": decision.id, "outcome": plain(outcome), "quota": plain(account)}
        records = (_record(event.at_s, AuditKind.OUTCOME, name, body),)
        return Step((decision,) if changed else (), (), records)

    def _ordered(self, event: OrderEvent, decided: Sequence[Decision] | None) -> Step:
        decision = self.consider(event) if decided is None else decided[0]
        self._docket.enter(decision)
        records = [_record(event.at_s, AuditKind.DECISION, decision.container, plain(decision))]
        instructions: list[Instruction] = []
        if decision.status is DecisionStatus.ISSUED:
            instructions, more = self._issue(decision, event.at_s)
            records += more
        return Step((decision,), tuple(instructions), tuple(records))

    def _hindrance(self, name: str, at_s: float) -> str:
        """Why nothing may begin at the container now; empty when nothing stands in the way."""
        until_s = self._pacing.changing_until_s(name, at_s)
        if until_s is not None:
            return f"what was done before takes effect until {until_s:.0f} s"
        return "an action on it is under way" if self._docket.acting_on(name) else ""

    def _release_claims(self, at_s: float) -> None:
        for key in self._pacing.took_effect(at_s):
            self._fleet.end(key)

    def _approval(self, event: ApprovalAnswered) -> Step:
        decision = self.decision(event.decision)
        check_awaits(decision)
        if event.granted:
            check_grant(
                decision,
                at_s=event.at_s,
                mode=self._mode,
                lapse_s=self._started().approval_lapse_s,
                fleet=self._fleet,
                quota_left_s=self._ledger.account(decision.container, at_s=event.at_s).left_s,
            )
        status = DecisionStatus.ISSUED if event.granted else DecisionStatus.REFUSED
        decision = replace(decision, status=status)
        self._docket.enter(decision)
        body = {"decision": decision.id, "granted": event.granted, "by": event.by, "note": event.note}
        records = [_record(event.at_s, AuditKind.APPROVAL, decision.container, body)]
        instructions: list[Instruction] = []
        if event.granted:
            instructions, more = self._issue(decision, event.at_s)
            records += more
        return Step((decision,), tuple(instructions), tuple(records))

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
                self._normality.alarmed(self._fleet.container(verdict.container).service, event.at_s)
        self._alarms += len(alarms)
        for name in [n for n, v in self._votes.items() if v.idle(self._turn, self._settings)]:
            del self._votes[name]
        return alarms

    def _decide(self, alarms: dict[str, Alarm], event: VerdictsReached) -> Iterator[Decision]:
        at_s = event.at_s
        for name, alarm in alarms.items():
            if not self._free(name, alarm.kind, at_s):
                continue
            since_s = at_s - self._settings.votes_of * self._started().step_s
            culprit = slow_callee(name, alarm, self._fleet, self._last_alarm_s, since_s=since_s)
            if culprit is not None:
                yield watch(self._next_id(), alarm, culprit, at_s, self._mode)
                continue
            situation = Situation(
                kind=alarm.kind,
                verdict=alarm.verdict,
                container=self._fleet.container(name),
                fleet=self._fleet,
                quota_left_s=self._ledger.account(name, at_s=at_s).left_s,
                tried=self._pacing.tried_lately(name, alarm.kind, at_s),
                at_s=at_s,
                key=self._next_id(),
                suspects=event.suspects.get(name, ()) if self._started().sdn else (),
                forecasts=tuple(f for f in event.forecasts if f.container == name),
                advice=next((a for a in event.advice if a.container == name), None),
            )
            yield choose(situation, self._mode, self._predict_move)

    def _free(self, name: str, kind: AnomalyKind | None, at_s: float) -> bool:
        """Nothing changes at the container, nobody is asked about it, and its cool-down for this kind is over.

        The cool-down is per kind: first sight often misjudges (a leak begins like growing load), and a second kind in
        alarm says that the first answer was not the whole of it.
        """
        if not self._pacing.at_rest(name, at_s) or self._fleet.busy(name):
            return False
        return self._pacing.cooled_down(name, kind, at_s) and not self._docket.asked_about(name)

    def _next_id(self) -> str:
        token = self._started().token
        return f"d-{token}-{len(self._docket) + 1:06d}" if token else f"d-{len(self._docket) + 1:06d}"

    def _relax(self, at_s: float) -> Iterator[Decision]:
        if self._mode is Mode.OBSERVE:
            return  # nothing was added, so there is nothing to give back
        for container in self._fleet.topology.containers:
            calm_since = self._last_alarm_s.get(container.name)
            if (
                calm_since is None
                or at_s - calm_since < calm_needed_s(container.name, self._outlook, self._settings.calm_s)
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
            self._docket.issue(decision, instruction)
            if not isinstance(instruction, FlowAlert):  # it claims nothing of the container
                self._fleet.begin(instruction)
            records.append(_record(at_s, AuditKind.INSTRUCTION, instruction.container, plain(instruction)))
        return list(decision.instructions), records


def _record(at_s: float, kind: AuditKind, subject: str, body: dict[str, Any]) -> AuditRecord:
    return AuditRecord(at_s=at_s, kind=kind, subject=subject, body=body)
