"""Making decisions out of weighed options, with a reason in words. Pure functions."""

from __future__ import annotations

from dataclasses import replace

from natwork_ray.control.alarms import Alarm
from natwork_ray.control.flow_alerts import flow_alert
from natwork_ray.control.planner import MovePredictor, Situation, weigh
from natwork_ray.domain.actions import Instruction, MeshRetry, Scale, SetLimits
from natwork_ray.domain.decisions import Alternative, Decision, DecisionStatus, MitigationKind, Mode
from natwork_ray.domain.topology import Container

# Below this an action is not worth its price and its risk: typically what was tried already and did not last.
MIN_UTILITY = 0.3

_STATUS = {
    Mode.OBSERVE: DecisionStatus.RECOMMENDED,
    Mode.APPROVE: DecisionStatus.AWAITING_APPROVAL,
    Mode.ACT: DecisionStatus.ISSUED,
}


def choose(situation: Situation, mode: Mode, predict_move: MovePredictor) -> Decision:
    """Take the best feasible option, and keep the others with the reason why not.

    Where sources of traffic are suspect, the network is told as well, whatever is done at the container.
    """
    alarm = Alarm(situation.kind, situation.verdict)
    best, *others = weigh(situation, predict_move)
    if best.feasible and best.utility >= MIN_UTILITY:
        mitigation, instructions, downtime_s = best.entry.mitigation, best.instructions, best.downtime_s
        reason = f"{alarm}: {mitigation}: {best.reason}"
        rejected = tuple(_why_not(o.as_alternative(), best.utility) for o in others)
    else:
        mitigation, instructions, downtime_s = MitigationKind.NOTIFY, (), 0.0
        short = "is worth its price" if best.feasible else "is possible"
        reason = f"{alarm}: nothing in the catalogue {short} now; it needs a person"
        rejected = tuple(o.as_alternative() for o in (best, *others))
    if situation.suspects:
        alert = flow_alert(situation.key, situation.verdict, situation.kind, situation.suspects, situation.at_s)
        if not instructions:
            mitigation = MitigationKind.FLOW_ALERT
        instructions = (*instructions, alert)
        reason = f"{reason}; the network is told ({alert.advice}): {alert.reason}"
    return Decision(
        id=situation.key,
        at_s=situation.at_s,
        container=situation.container.name,
        mode=mode,
        status=_STATUS[mode] if instructions else DecisionStatus.NOTED,
        verdict=situation.verdict,
        mitigation=mitigation,
        reason=reason,
        predicted_downtime_s=downtime_s,
        instructions=instructions,
        rejected=rejected,
        kind=situation.kind,
        forecasts=situation.forecasts,
        advice=situation.advice,
    )


def watch(decision_id: str, alarm: Alarm, culprit: str, at_s: float, mode: Mode) -> Decision:
    """Do nothing here, because a container that this one calls is the cause and is treated itself."""
    return Decision(
        id=decision_id,
        at_s=at_s,
        container=alarm.verdict.container,
        mode=mode,
        status=DecisionStatus.NOTED,
        verdict=alarm.verdict,
        kind=alarm.kind,
        mitigation=MitigationKind.KEEP_WATCHING,
        reason=f"{alarm}: it calls {culprit}, which is in alarm itself; the cause is treated there",
        predicted_downtime_s=0.0,
        instructions=(),
        rejected=(),
    )


def relax(
    decision_id: str,
    container: Container,
    original: Container,
    *,
    retrying: bool,
    calm_s: float,
    at_s: float,
    mode: Mode,
) -> Decision | None:
    """Give back what was added; None when the container has no more than the operator gave it."""
    instructions: list[Instruction] = []

    def key() -> str:
        return f"{decision_id}/{len(instructions)}"

    if container.replicas > original.replicas:
        instructions.append(Scale(key=key(), container=container.name, replicas=original.replicas))
    more_cores = container.cpu_limit_cores > original.cpu_limit_cores
    more_memory = container.memory_limit_bytes > original.memory_limit_bytes
    if more_cores or more_memory:
        instructions.append(
            SetLimits(
                key=key(),
                container=container.name,
                cpu_limit_cores=original.cpu_limit_cores if more_cores else None,
                memory_limit_bytes=original.memory_limit_bytes if more_memory else None,
            )
        )
    if retrying:
        instructions.append(MeshRetry(key=key(), container=container.name, enabled=False))
    if not instructions:
        return None
    return Decision(
        id=decision_id,
        at_s=at_s,
        container=container.name,
        mode=mode,
        status=_STATUS[mode],
        verdict=None,
        mitigation=MitigationKind.RELAX,
        reason=f"{container.name} has been calm for {calm_s / 60:.0f} minutes: what was added goes back",
        predicted_downtime_s=0.0,
        instructions=tuple(instructions),
        rejected=(),
    )


def _why_not(alternative: Alternative, best: float) -> Alternative:
    if not alternative.feasible:
        return alternative
    return replace(alternative, reason=f"{alternative.reason}; utility {alternative.utility:.2f} below {best:.2f}")
