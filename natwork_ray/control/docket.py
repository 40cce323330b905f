"""The docket: every decision in its newest form, what of it is under way, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from natwork_ray.domain.actions import ActionOutcome, FlowAlert, Instruction
from natwork_ray.domain.decisions import Decision, DecisionStatus
from natwork_ray.errors import ConflictError, NotFoundError


class Docket:
    """Decisions, instructions and outcomes of a journal, over all its runs."""

    def __init__(self) -> None:
        self._decisions: dict[str, Decision] = {}
        self._awaiting: dict[str, Decision] = {}
        self._pending: dict[str, tuple[str, Instruction]] = {}
        self._outcomes: dict[str, ActionOutcome] = {}
        self._counts = {DecisionStatus.DONE: 0, DecisionStatus.FAILED: 0}

    def __len__(self) -> int:
        """Number of decisions."""
        return len(self._decisions)

    def __contains__(self, decision_id: str) -> bool:
        """Whether there is a decision of that id."""
        return decision_id in self._decisions

    def decisions(self) -> tuple[Decision, ...]:
        """Every decision, oldest first."""
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

    def awaiting(self) -> tuple[Decision, ...]:
        """Decisions that a person has to answer."""
        return tuple(self._awaiting.values())

    def asked_about(self, container: str) -> bool:
        """Whether a decision on the container awaits an answer."""
        return any(d.container == container for d in self._awaiting.values())

    def under_way(self) -> int:
        """Instructions that were issued and not yet reported."""
        return len(self._pending)

    def acting_on(self, container: str) -> bool:
        """Whether an instruction that touches the container is under way. An alert touches the network only."""
        return any(i.container == container and not isinstance(i, FlowAlert) for _, i in self._pending.values())

    def outcomes(self) -> tuple[ActionOutcome, ...]:
        """Every outcome reported, oldest first."""
        return tuple(self._outcomes.values())

    def count(self, status: DecisionStatus) -> int:
        """How many decisions ended so: done or failed."""
        return self._counts[status]

    def due(self, settled: Callable[[str], bool]) -> tuple[Instruction, ...]:
        """Instructions to be carried out now, in the order of issue.

        Of several for one container only the first, and none while what was done before still takes effect there
        (`settled`). Alerts wait for no container.
        """
        due: dict[str, Instruction] = {}
        for _, instruction in self._pending.values():
            if isinstance(instruction, FlowAlert):
                due[f"alert {instruction.key}"] = instruction
            elif settled(instruction.container):
                due.setdefault(f"container {instruction.container}", instruction)
        return tuple(due.values())

    def enter(self, decision: Decision) -> None:
        """A decision is new, or has changed."""
        self._decisions[decision.id] = decision
        if decision.status is DecisionStatus.AWAITING_APPROVAL:
            self._awaiting[decision.id] = decision
        else:
            self._awaiting.pop(decision.id, None)

    def lapse(self, before_s: float | None = None) -> tuple[Decision, ...]:
        """Decisions nobody answered, now lapsed: those made before that moment, or all."""
        lapsed = tuple(
            replace(d, status=DecisionStatus.LAPSED)
            for d in self._awaiting.values()
            if before_s is None or d.at_s < before_s
        )
        for decision in lapsed:
            self.enter(decision)
        return lapsed

    def issue(self, decision: Decision, instruction: Instruction) -> None:
        """An instruction of the decision is to be carried out."""
        self._pending[instruction.key] = (decision.id, instruction)

    def check_pending(self, key: str) -> None:
        """Refuse a report that nobody waits for.

        Raises:
            ConflictError: no instruction of that key is under way.
        """
        if key not in self._pending:
            raise ConflictError(f"no instruction {key!r} is under way", hint="it was reported before, or never issued")

    def report(self, outcome: ActionOutcome) -> tuple[Decision, bool, Instruction]:
        """An instruction has its outcome: its decision in its newest form, whether that has changed, and itself.

        A decision is done when all of its parts are, and failed when one is.
        """
        decision_id, instruction = self._pending.pop(outcome.key)
        self._outcomes[outcome.key] = outcome
        before = decision = self._decisions[decision_id]
        if not outcome.done or decision.status is DecisionStatus.FAILED:
            decision = replace(decision, status=DecisionStatus.FAILED)
        elif not any(d == decision_id for d, _ in self._pending.values()):
            decision = replace(decision, status=DecisionStatus.DONE)
        changed = decision.status is not before.status
        if changed:
            self.enter(decision)
            self._counts[decision.status] += 1
        return decision, changed, instruction
