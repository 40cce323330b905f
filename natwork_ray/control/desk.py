"""The desk where orders come in: measures first, then lets the loop decide, and says what became of it.

Whoever stands at a door (HTTP, command line) hands a wish over here and gets the decision back. A wish has a key: the
same wish under the same key is answered with the decision that it led to, another wish under that key is refused.

    desk = MigrationDesk(control, agents)
    decision = await desk.move(MoveWish(container="upf", target="core-1", by="ada"), key="7f3a")
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from natwork_ray.control.api import ControlApi, LimiAgents
from natwork_ray.control.events import MigrationRequested, OrderEvent, PlannedStart, ServiceMigrationRequested
from natwork_ray.control.fleet import Fleet
from natwork_ray.control.loop import ControlLoop
from natwork_ray.control.orders import roomiest
from natwork_ray.domain.actions import ActionOutcome, Gate, Migrate, MigrationMethod, OnFailure, ServiceMove
from natwork_ray.domain.decisions import Decision, DecisionStatus
from natwork_ray.domain.migrations import ContainerForecast, MigrationOutlook, MigrationProgress
from natwork_ray.domain.quota import QuotaAccount
from natwork_ray.domain.status import LoopStatus
from natwork_ray.domain.topology import Container
from natwork_ray.domain.values import Backend, encode, value
from natwork_ray.errors import ConflictError, NotFoundError, PreconditionError, RefusedError, UsageError
from natwork_ray.limi.schedule import plan
from natwork_ray.limi.service_members import plan_service
from natwork_ray.limi.service_plan import MigrationPlan, ScheduleRequest

_LEAST_PATIENCE_S = 5.0


MAX_NAME, MAX_PERSON, MAX_NOTE, MAX_KEY = 253, 200, 2000, 200
_KEY = re.compile(r"[\x21-\x7e]{1,200}")


@value
class MoveWish:
    """One container to one node; `method` None leaves the choice to the agent, who weighs with `weight`."""

    container: str
    target: str
    by: str
    method: MigrationMethod | None = None
    weight: float | None = None
    note: str = ""


@value
class ServiceWish:
    """Every container of a network service: to one node, or apart (`target` None).

    `on_failure` says what becomes of the others when one of them cannot be moved.
    """

    service: str
    target: str | None
    by: str
    weight: float | None = None
    note: str = ""
    on_failure: OnFailure = OnFailure.BRING_BACK


@value
class Schedule:
    """A service's plan, and what it was made from."""

    request: ScheduleRequest
    plan: MigrationPlan


@value
class Consideration:
    """A dry run: what the loop would answer, what each method would cost, and what the containers may still cost.

    `starts` is the plan of a service: when each container would begin. `schedule` is the whole of it, None for a single
    container, and where there is nothing to plan or no room.
    """

    decision: Decision
    outlooks: tuple[MigrationOutlook, ...]
    quota: tuple[QuotaAccount, ...]
    starts: tuple[PlannedStart, ...] = ()
    schedule: Schedule | None = None


@value
class Migration:
    """A live migration: what was instructed, by which decision, and what came of it (None while that is not known).

    `progress` is set while it runs and its agent answers.
    """

    decision: str
    at_s: float
    status: DecisionStatus
    instruction: Migrate
    outcome: ActionOutcome | None
    progress: MigrationProgress | None = None


class MigrationDesk:
    """Takes orders for one control service. `agents` None: nobody can measure, the loop predicts from limits."""

    def __init__(self, control: ControlApi, agents: LimiAgents | None) -> None:
        self._control, self._agents = control, agents

    async def move(self, wish: MoveWish, *, key: str) -> tuple[Decision, bool]:
        """Give the order; the decision, and whether it was given before.

        Raises:
            UsageError: see `check_wish`.
            NotFoundError: no such container or node.
            ConflictError: the key was used for another wish.
            PreconditionError: real migration, or the method asked for, is not possible there.
            RefusedError: topology, capacity, quota or something under way does not allow it; that is recorded.
        """
        check_wish(wish)
        known = await self._known(wish, key)
        if known is not None:
            return _granted(known), True
        order, _ = await self._move_order(wish, key)
        return _granted(await self._submit(order, wish, key)), False

    async def move_service(self, wish: ServiceWish, *, key: str) -> tuple[Decision, bool]:
        """As `move`, for a service."""
        check_wish(wish)
        known = await self._known(wish, key)
        if known is not None:
            return _granted(known), True
        order, _, _ = await self._service_order(wish, key)
        return _granted(await self._submit(order, wish, key)), False

    async def consider(self, wish: MoveWish | ServiceWish) -> Consideration:
        """The dry run of a wish: measured and weighed, and nothing is changed or recorded."""
        check_wish(wish)
        order: OrderEvent
        schedule: Schedule | None = None
        if isinstance(wish, MoveWish):
            order, outlooks = await self._move_order(wish, "dry-run")
        else:
            order, outlooks, schedule = await self._service_order(wish, "dry-run")
        decision = await self._control.consider(order)
        concerned = {i.container for i in decision.instructions}
        quota = tuple(q for q in (await self._control.status()).quota if q.container in concerned)
        starts = order.starts if isinstance(order, ServiceMigrationRequested) else ()
        return Consideration(decision=decision, outlooks=outlooks, quota=quota, starts=starts, schedule=schedule)

    async def migrations(self) -> list[Migration]:
        """Every live migration that a decision holds, oldest first."""
        return _joined(await self._control.decisions(), await self._control.outcomes())

    async def migration(self, key: str) -> Migration:
        """One live migration by the key of its instruction, with its progress while it runs.

        Raises:
            NotFoundError: there is none.
        """
        for found in await self.migrations():
            if found.instruction.key == key:
                break
        else:
            raise NotFoundError(f"there is no migration {key!r}", hint="`natwork migration list` lists them")
        # A decision with several parts fails with the first of them; the others go on.
        under_way = found.outcome is None and found.status in (DecisionStatus.ISSUED, DecisionStatus.FAILED)
        if self._agents is None or not under_way:
            return found
        progress = await self._agents.progress(key, source=found.instruction.source)
        return Migration(**{**vars(found), "progress": progress})

    async def _known(self, wish: MoveWish | ServiceWish, key: str) -> Decision | None:
        """The decision that the same wish led to before.

        Raises:
            ConflictError: another wish came under that key.
        """
        wanted = _order_id(key)
        for decision in await self._control.decisions():
            if decision.order is not None and decision.order.id == wanted:
                if decision.order.digest != _digest(wish):
                    raise ConflictError(
                        f"the idempotency key was used for another wish, which led to {decision.id}",
                        hint="a new wish needs a new key",
                    )
                return decision
        return None

    async def _submit(self, order: OrderEvent, wish: MoveWish | ServiceWish, key: str) -> Decision:
        (answer,) = await self._control.submit((order,))
        step = answer.unwrap()
        if not answer.known:
            return step.decisions[0]
        known = await self._known(wish, key)  # two came at once
        if known is None:
            raise ConflictError(f"an event {order.id!r} is there, and is no order", hint="use another key")
        return known

    async def _move_order(self, wish: MoveWish, key: str) -> tuple[MigrationRequested, tuple[MigrationOutlook, ...]]:
        status = await self._control.status()
        fleet = Fleet(status.topology)
        container = fleet.container(wish.container)
        fleet.node(wish.target)
        outlook = await self._outlook(container, wish.target, wish.weight, fleet)
        if outlook is not None:
            _possible(outlook, wish.method)
        order = MigrationRequested(
            id=_order_id(key),
            at_s=now_s(status),
            container=wish.container,
            target=wish.target,
            by=wish.by,
            method=wish.method,
            note=wish.note,
            weight=wish.weight,
            forecast=None if outlook is None else outlook.forecast(wish.method),
            digest=_digest(wish),
        )
        return order, () if outlook is None else (outlook,)

    async def _service_order(
        self, wish: ServiceWish, key: str
    ) -> tuple[ServiceMigrationRequested, tuple[MigrationOutlook, ...], Schedule | None]:
        status = await self._control.status()
        fleet = Fleet(status.topology)
        taken: list[tuple[Container, str]] = []
        outlooks: list[MigrationOutlook] = []
        for container in status.topology.containers:
            if container.network_service != wish.service or container.node == wish.target:
                continue
            target = wish.target or roomiest(container, fleet, taken)
            if target is None or status.topology.node(target) is None:
                continue  # the loop says so
            taken.append((container, target))
        # All at once: what was measured first would be old when the last has been.
        for outlook in await asyncio.gather(*(self._outlook(c, target, wish.weight, fleet) for c, target in taken)):
            if outlook is not None:
                _possible(outlook, None)
                outlooks.append(outlook)
        forecasts = tuple(
            ContainerForecast(
                container=o.container, target=o.target, forecast=forecast, load=o.load, chosen_by=o.chosen_by
            )
            for o in outlooks
            if (forecast := o.forecast()) is not None
        )
        schedule = _schedule(wish, outlooks, status)
        order = ServiceMigrationRequested(
            id=_order_id(key),
            at_s=now_s(status),
            service=wish.service,
            target=wish.target,
            by=wish.by,
            note=wish.note,
            weight=wish.weight,
            forecasts=forecasts,
            starts=_starts(schedule),
            together=_together(schedule),
            digest=_digest(wish),
        )
        return order, tuple(outlooks), schedule

    async def _outlook(
        self, container: Container, target: str, weight: float | None, fleet: Fleet
    ) -> MigrationOutlook | None:
        """None where there is nobody to ask, or nothing to measure: the loop refuses such an order by itself."""
        if self._agents is None or container.node == target or fleet.topology.link(container.node, target) is None:
            return None
        return await self._agents.outlook(container.name, source=container.node, target=target, weight=weight)


def check_key(key: str) -> None:
    """What a person may give as an idempotency key: 1 to 200 visible ASCII characters, as in HTTP's header.

    Raises:
        UsageError: anything else.
    """
    if not _KEY.fullmatch(key):
        raise UsageError(
            f"the idempotency key has {len(key)} characters, or other than visible ASCII",
            hint=f"1 to {MAX_KEY} letters, digits and signs, without spaces",
        )


def check_wish(wish: MoveWish | ServiceWish) -> None:
    """Bounds of what goes into the audit log, whichever door it came through.

    Raises:
        UsageError: a text is too long, empty where it must not be, or holds control characters.
    """
    subject = wish.container if isinstance(wish, MoveWish) else wish.service
    texts = [("name", subject, 1, MAX_NAME), ("by", wish.by, 1, MAX_PERSON), ("note", wish.note, 0, MAX_NOTE)]
    if wish.target is not None:
        texts.append(("target", wish.target, 1, MAX_NAME))
    for what, text, least, most in texts:
        if not least <= len(text) <= most:
            raise UsageError(f"{what} has {len(text)} characters", hint=f"{least} to {most} are taken")
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text):
            raise UsageError(f"{what} holds control characters or broken text", hint="give it in printable characters")


def migrations_in(loop: ControlLoop) -> list[Migration]:
    """Every live migration that a loop knows of, oldest first."""
    return _joined(loop.decisions(), loop.outcomes())


def _joined(decisions: Sequence[Decision], outcomes: Sequence[ActionOutcome]) -> list[Migration]:
    known = {o.key: o for o in outcomes}
    return [
        Migration(decision=d.id, at_s=d.at_s, status=d.status, instruction=i, outcome=known.get(i.key))
        for d in decisions
        for i in d.instructions
        if isinstance(i, Migrate)
    ]


def now_s(status: LoopStatus) -> float:
    """Now on the backend's clock: an emulated one stands where the loop has come to, a real one is this machine's."""
    return max(status.at_s, time.time()) if status.backend is Backend.REAL else status.at_s


def _schedule(wish: ServiceWish, outlooks: Sequence[MigrationOutlook], status: LoopStatus) -> Schedule | None:
    """When each container moves on, so that all arrive together. Where the nodes have no room, the loop says so."""
    if not outlooks:
        return None
    try:
        request, planned = plan_service(
            wish.service, outlooks, status.topology, gates=tuple(Gate), on_failure=wish.on_failure
        )
    except RefusedError:
        return None
    return Schedule(request=request, plan=planned)


def _starts(schedule: Schedule | None) -> tuple[PlannedStart, ...]:
    """Start times for worlds in which nobody can be held: another plan of the same members."""
    if schedule is None:
        return ()
    alone = plan(replace(schedule.request, gates=()))
    return tuple(PlannedStart(container=m.container, starts_s=m.start_s) for m in alone.migrations)


def _together(schedule: Schedule | None) -> ServiceMove | None:
    """What the members' instructions have in common; a container may stand still somewhat longer than planned."""
    if schedule is None:
        return None
    planned = schedule.plan
    return ServiceMove(
        id="",
        service=planned.service,
        gates=planned.gates,
        on_failure=schedule.request.on_failure,
        patience_s=_LEAST_PATIENCE_S + 2 * max(m.arrival_s - m.freeze_s for m in planned.migrations),
        arrives_s=max(planned.arrivals_s),
        unavailable_s=planned.disruption.unavailable_s,
    )


def _possible(outlook: MigrationOutlook, method: MigrationMethod | None) -> None:
    """Refuse what the machines cannot do, before anything is ordered."""
    if outlook.forecast(method) is not None:
        return
    whys = {r.method: r.reason for r in outlook.impossible}
    asked = f"{method} migration" if method else "live migration"
    why = whys.get(method) if method else "; ".join(sorted({r.reason for r in outlook.impossible}))
    raise PreconditionError(
        f"{asked} from {outlook.source} to {outlook.target} is not possible: {why or 'no method works there'}",
        hint="`natwork doctor` says what is missing and how to get it; nothing was changed",
    )


def _granted(decision: Decision) -> Decision:
    if decision.status is DecisionStatus.REFUSED:
        raise RefusedError(
            f"{decision.id}: {decision.reason}", hint="nothing was changed; `natwork status` shows what is"
        )
    return decision


def _order_id(key: str) -> str:
    # Hashed, so that the id is short and no choice of key can collide with the id of another event.
    return f"order:{hashlib.sha256(key.encode()).hexdigest()}"


def _digest(wish: MoveWish | ServiceWish) -> str:
    return hashlib.sha256(type(wish).__name__.encode() + encode(wish)).hexdigest()
