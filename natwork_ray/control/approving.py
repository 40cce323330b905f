"""Whether a person's answer to a decision can stand: the world may have moved on while they thought about it."""

from __future__ import annotations

from natwork_ray.control.fleet import Fleet
from natwork_ray.domain.actions import Migrate
from natwork_ray.domain.decisions import Decision, DecisionStatus, Mode
from natwork_ray.errors import ConflictError, QuotaError


def check_awaits(decision: Decision) -> None:
    """Refuse an answer to what was not asked.

    Raises:
        ConflictError: the decision awaits no approval.
    """
    if decision.status is not DecisionStatus.AWAITING_APPROVAL:
        raise ConflictError(
            f"decision {decision.id} is {decision.status}, it awaits no approval",
            hint="`natwork decisions --status awaiting_approval` lists those that do",
        )


def check_grant(
    decision: Decision, *, at_s: float, mode: Mode, lapse_s: float, fleet: Fleet, quota_left_s: float
) -> None:
    """Refuse a grant that no longer fits; the decision is left as it was.

    Raises:
        ConflictError: the loop only observes, the decision has lapsed, the container has moved, or something is under
        way. QuotaError: the quota does not cover it any more.
    """
    if mode is Mode.OBSERVE:
        raise ConflictError("the loop only observes now", hint="set the mode to approve or act first")
    if decision.at_s < at_s - lapse_s:
        raise ConflictError(
            f"decision {decision.id} waited longer than {lapse_s:.0f} s and has lapsed",
            hint="if the anomaly is still there, the loop decides again",
        )
    container = fleet.container(decision.container)
    for instruction in decision.instructions:
        if isinstance(instruction, Migrate) and instruction.source != container.node:
            raise ConflictError(
                f"{decision.id} would move {container.name} from {instruction.source}; it runs on {container.node} now",
                hint="refuse it; if the anomaly is still there, the loop decides again",
            )
    if decision.predicted_downtime_s > quota_left_s:
        raise QuotaError(
            f"{decision.id} may cost {decision.predicted_downtime_s:.2f} s, {quota_left_s:.2f} s of quota are left",
            hint="refuse it, or wait for the next quota window",
        )
    if fleet.busy(decision.container):
        raise ConflictError(f"an action on {decision.container} is under way", hint="approve again when it has ended")
