"""Orders: what a person wants moved, checked and made into a decision like any other. Pure functions.

An order is carried out in every mode: the mode bounds what the loop does by itself, and an order is a person's own word
(docs/adr/0020). It is still held against the topology, the room on the target, the quota and what is under way; what
does not stand that is a decision as well, refused and with its reason, so that the audit log has every wish and its
answer. Only an order that names what does not exist is no decision: there is nothing to decide about.

A service's containers go in one decision with one instruction each. Where their plan is conducted, each instruction
carries the forecast that the plan was made from, and `together`; `starts_s` of the plan becomes `not_before_s`, for
worlds in which nobody conducts. Either all can be moved or none is: half a service in another place is nobody's wish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from natwork_ray.control.events import MigrationRequested, OrderEvent, ServiceMigrationRequested
from natwork_ray.control.fleet import Fleet
from natwork_ray.control.planner import MovePredictor
from natwork_ray.domain.actions import Migrate, MigrationMethod
from natwork_ray.domain.decisions import Decision, DecisionStatus, MitigationKind, Mode, Order
from natwork_ray.domain.migrations import MigrationForecast
from natwork_ray.domain.topology import Container
from natwork_ray.errors import NatworkError, NotFoundError, UsageError


@dataclass(frozen=True)
class Ordering:
    """All that the answer to an order depends on.

    `left_s` gives what the ledger has left for a container; `hindrance` says why nothing may begin at a container now,
    empty when nothing stands in the way. `decision_id` is the id of the decision to be.
    """

    fleet: Fleet
    predict_move: MovePredictor
    left_s: Callable[[str], float]
    hindrance: Callable[[str], str]
    mode: Mode
    decision_id: str


@dataclass(frozen=True)
class _Move:
    """One container's part of an order, or why it cannot be."""

    container: Container
    target: str
    downtime_p95_s: float = 0.0
    total_s: float = 0.0
    method: MigrationMethod | None = None
    refusal: str = ""


def decide_move(event: MigrationRequested, o: Ordering) -> Decision:
    """The answer to an order for one container.

    Raises:
        NotFoundError: no such container or node.
        UsageError: a weight out of range.
    """
    _check_weight(event.weight)
    container = o.fleet.container(event.container)
    o.fleet.node(event.target)
    move = _examined(container, event.target, event.method, event.forecast, [], o)
    instruction = Migrate(
        key=f"{o.decision_id}/0",
        container=container.name,
        source=container.node,
        target=event.target,
        method=event.method,
        weight=event.weight,
    )
    if move.refusal:
        reason = f"{event.by} asked to move {container.name} to {event.target}: {move.refusal}"
    else:
        reason = (
            f"{event.by} asked for it: {container.name} from {container.node} to {event.target} by "
            f"{event.method or 'the best method'}; {_expectation(move)}"
        )
    return _decision(event, o, container.name, reason, [move], (instruction,))


def decide_service_move(event: ServiceMigrationRequested, o: Ordering) -> Decision:
    """The answer to an order for every container of a network service.

    Raises:
        NotFoundError: no such service or node.
        UsageError: a weight out of range, or two plans for one container.
    """
    _check_weight(event.weight)
    members = [c for c in o.fleet.topology.containers if c.network_service == event.service]
    if not members:
        names = ", ".join(sorted({c.network_service for c in o.fleet.topology.containers}))
        raise NotFoundError(f"there is no network service {event.service!r}", hint=f"there are: {names or 'none'}")
    if event.target is not None:
        o.fleet.node(event.target)
    forecasts = {(f.container, f.target): f for f in event.forecasts}
    starts = {s.container: s.starts_s for s in event.starts}
    if event.together and not (math.isfinite(event.together.patience_s) and event.together.patience_s > 0):
        raise UsageError(f"the patience of {event.service}", hint="above 0 seconds")
    if len(starts) != len(event.starts) or not all(math.isfinite(s) and s >= 0 for s in starts.values()):
        raise UsageError(f"the start times of {event.service}", hint="one for each container, 0 or more seconds")
    moves: list[_Move] = []
    staying: list[str] = []
    for container in members:
        if event.target is not None and container.node == event.target:
            staying.append(container.name)
            continue
        target = event.target or roomiest(container, o.fleet, [(m.container, m.target) for m in moves])
        if target is None:
            moves.append(_Move(container, container.node, refusal="no other node has room for it"))
            continue
        foretold = forecasts.get((container.name, target))
        moves.append(_examined(container, target, None, foretold.forecast if foretold else None, moves, o))
    together = None
    if event.together and len(moves) > 1 and all((m.container.name, m.target) in forecasts for m in moves):
        together = replace(event.together, id=o.decision_id)
    instructions = []
    for number, move in enumerate(moves):
        instruction = Migrate(
            key=f"{o.decision_id}/{number}",
            container=move.container.name,
            source=move.container.node,
            target=move.target,
            weight=event.weight,
            not_before_s=event.at_s + starts.get(move.container.name, 0.0),
        )
        if together is not None:
            known = forecasts[move.container.name, move.target]
            instruction = replace(
                instruction,
                method=known.forecast.method,
                chosen_by=known.chosen_by,
                load=known.load,
                forecast=known.forecast,
                together=together,
            )
        instructions.append(instruction)
    where = f"to {event.target}" if event.target else "apart, each to the node with most room"
    refusals = [f"{m.container.name}: {m.refusal}" for m in moves if m.refusal]
    if not moves:
        reason = f"{event.by} asked to move {event.service} {where}: it is there already"
    elif refusals:
        reason = f"{event.by} asked to move {event.service} {where}: {'; '.join(refusals)}"
    else:
        stay = f"; {', '.join(staying)} stay" if staying else ""
        reason = f"{event.by} asked for it: {len(moves)} containers of {event.service} {where}{stay}"
    return _decision(event, o, event.service, reason, moves, tuple(instructions))


def roomiest(container: Container, fleet: Fleet, taken: Sequence[tuple[Container, str]]) -> str | None:
    """The node with most free cores that the container fits on, other than its own; None when there is none.

    `taken` are moves that are promised already, as (container, target).
    """
    fitting = [
        n.name
        for n in fleet.nodes()
        if n.name != container.node
        and fleet.topology.link(container.node, n.name) is not None
        and not lacking(container, n.name, fleet, taken)
    ]
    return min(fitting, key=lambda n: (_claimed(n, taken) - fleet.free_cores(n), n), default=None)


def lacking(container: Container, target: str, fleet: Fleet, taken: Sequence[tuple[Container, str]]) -> str:
    """What the target lacks to take the container besides those `taken`; empty when it fits."""
    cores = container.replicas * container.cpu_limit_cores
    memory = container.replicas * container.memory_limit_bytes
    free_cores = fleet.free_cores(target) - _claimed(target, taken)
    free_bytes = fleet.free_memory_bytes(target) - sum(
        c.replicas * c.memory_limit_bytes for c, where in taken if where == target
    )
    if cores > free_cores + 1e-9:
        return f"needs {cores:.2f} cores, {target} has {max(free_cores, 0):.2f} free"
    if memory > free_bytes:
        return f"needs {memory / 2**20:.0f} MiB, {target} has {max(free_bytes, 0) / 2**20:.0f} MiB free"
    return ""


def _claimed(node: str, taken: Sequence[tuple[Container, str]]) -> float:
    return sum(c.replicas * c.cpu_limit_cores for c, where in taken if where == node)


def _examined(
    container: Container,
    target: str,
    method: MigrationMethod | None,
    forecast: MigrationForecast | None,
    before: Sequence[_Move],
    o: Ordering,
) -> _Move:
    """Whether the move can be, in the order in which a person would ask."""

    def refused(why: str) -> _Move:
        return _Move(container, target, method=method, refusal=why)

    if container.node == target:
        return refused(f"it runs on {target} already")
    hindrance = o.hindrance(container.name)
    if hindrance:
        return refused(hindrance)
    link = o.fleet.topology.link(container.node, target)
    if link is None:
        return refused(f"no link between {container.node} and {target}")
    lack = lacking(container, target, o.fleet, [(m.container, m.target) for m in before if not m.refusal])
    if lack:
        return refused(lack)
    if forecast is not None:
        downtime_s, total_s = forecast.downtime_p95_s, forecast.total_p50_s
    else:
        try:
            # Nobody measured it: its limit is the most that its memory can be.
            expected = o.predict_move(
                container, rss_bytes=container.memory_limit_bytes, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s
            )
        except NatworkError as error:
            return refused(f"the move cannot be predicted: {error}")
        downtime_s, total_s = expected.downtime_p95_s, expected.total_s
    if not (math.isfinite(downtime_s) and downtime_s >= 0 and math.isfinite(total_s)):
        return refused(f"the move has no sound prediction: {downtime_s} s of downtime")
    left_s = o.left_s(container.name)
    if downtime_s > left_s:
        return refused(f"would cost up to {downtime_s:.2f} s of downtime, {left_s:.2f} s of quota are left")
    return _Move(container, target, downtime_s, total_s, method)


def _decision(
    event: OrderEvent,
    o: Ordering,
    subject: str,
    reason: str,
    moves: Sequence[_Move],
    instructions: tuple[Migrate, ...],
) -> Decision:
    possible = bool(moves) and not any(m.refusal for m in moves)
    return Decision(
        id=o.decision_id,
        at_s=event.at_s,
        container=subject,
        mode=o.mode,
        status=DecisionStatus.ISSUED if possible else DecisionStatus.REFUSED,
        verdict=None,
        mitigation=MitigationKind.OPERATOR_MOVE,
        reason=reason,
        predicted_downtime_s=sum(m.downtime_p95_s for m in moves),
        instructions=instructions,
        rejected=(),
        order=Order(id=event.id, by=event.by, note=event.note, digest=event.digest),
        downtimes_s=tuple(m.downtime_p95_s for m in moves),
    )


def _expectation(move: _Move) -> str:
    return f"about {move.total_s:.1f} s in all, at most {move.downtime_p95_s:.2f} s of downtime (95 %)"


def _check_weight(weight: float | None) -> None:
    if weight is not None and not (math.isfinite(weight) and 0 <= weight <= 1):
        raise UsageError(f"weight {weight} of total time against downtime", hint="give a number from 0 to 1")
