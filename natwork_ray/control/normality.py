"""What the loop knows of profiles: where they were learnt, which have drifted, and which are to be learnt anew.

The loop itself judges nothing by them; it keeps the record that outlives every process, and guards the one order that
changes them. Rule kept: a stretch of time in which one of the service's containers was in alarm teaches no profile,
unless a person insists. An intruder who stays for an hour must not become normal.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from natwork_ray.control.events import DriftObserved, ProfilesLearnt, RelearnRequested
from natwork_ray.domain.auditing import AuditKind, AuditRecord
from natwork_ray.domain.profiles import ProfileDrift, ProfilesInUse, ProfileSummary, Relearning
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import plain
from natwork_ray.errors import ConflictError, InputError, NotFoundError

ALARMS_KEPT = 4096  # newest moments of alarm per service; ordering from before them counts as in alarm
SHORTEST_S = 600.0


class Normality:
    """The record of one run."""

    def __init__(self) -> None:
        self._profiles: dict[str, ProfileSummary] = {}
        self._drifts: dict[str, ProfileDrift] = {}
        self._relearning: dict[str, Relearning] = {}
        self._alarms: dict[str, deque[float]] = {}

    def forget(self) -> None:
        """A new run: another world, or the same one with another clock."""
        self._profiles.clear()
        self._drifts.clear()
        self._relearning.clear()
        self._alarms.clear()

    def in_use(self) -> ProfilesInUse:
        """All of it."""
        return ProfilesInUse(
            profiles=tuple(self._profiles.values()),
            drifts=tuple(self._drifts.values()),
            relearning=tuple(self._relearning.values()),
        )

    def drifted(self) -> tuple[str, ...]:
        """Services whose profile no longer holds."""
        return tuple(self._drifts)

    def alarmed(self, service: str, at_s: float) -> None:
        """A container of the service was in alarm."""
        self._alarms.setdefault(service, deque(maxlen=ALARMS_KEPT)).append(at_s)

    def learnt(self, event: ProfilesLearnt) -> tuple[AuditRecord, ...]:
        """Profiles were learnt; what had drifted or was to be learnt anew is settled by that."""
        records = []
        for summary in event.profiles:
            name = summary.service
            self._profiles[name] = summary
            self._drifts.pop(name, None)
            order = self._relearning.get(name)
            if order is not None and (order.from_s, order.to_s) == (summary.from_s, summary.to_s):
                del self._relearning[name]
            records.append(_record(event.at_s, name, {"learnt": plain(summary)}))
        for name, reason in event.failed.items():
            self._relearning.pop(name, None)
            records.append(_record(event.at_s, name, {"not_learnt": reason}))
        return tuple(records)

    def observed(self, event: DriftObserved) -> tuple[AuditRecord, ...]:
        """A check of all profiles; only what changed is worth a record."""
        now = {drift.service: drift for drift in event.drifts}
        begun = [_record(event.at_s, name, {"drifted": plain(now[name])}) for name in now if name not in self._drifts]
        ended = [_record(event.at_s, name, {"drift_ended": True}) for name in self._drifts if name not in now]
        self._drifts = now
        return (*begun, *ended)

    def order(self, event: RelearnRequested, topology: Topology) -> tuple[AuditRecord, ...]:
        """A person wants a profile learnt anew.

        Raises:
            NotFoundError: there is no such service.
            InputError: the stretch is too short, or not over yet.
            ConflictError: there were alarms in it, and nobody insists.
        """
        order = event.order
        if order.service not in {c.service for c in topology.containers}:
            raise NotFoundError(f"there is no service {order.service!r}", hint="`natwork profile show` lists them")
        if order.to_s > event.at_s or order.to_s - order.from_s < SHORTEST_S:
            raise InputError(
                f"profile of {order.service} from {order.from_s:.0f} to {order.to_s:.0f} s: too short, or not over",
                hint=f"name a stretch of at least {SHORTEST_S:.0f} s that is over",
            )
        alarms = self._alarms.get(order.service, deque())
        inside = [at_s for at_s in alarms if order.from_s < at_s <= order.to_s]
        forgotten = len(alarms) == ALARMS_KEPT and order.from_s < alarms[0]
        if (inside or forgotten) and not order.forced:
            what = f"{len(inside)} alarms" if inside else "more alarms than are remembered"
            raise ConflictError(
                f"{order.service} had {what} between {order.from_s:.0f} and {order.to_s:.0f} s",
                hint="name a quiet stretch, or insist with --force if these alarms were false",
            )
        self._relearning[order.service] = order
        return (_record(event.at_s, order.service, {"relearn": plain(order)}),)


def _record(at_s: float, service: str, body: dict[str, Any]) -> AuditRecord:
    return AuditRecord(at_s=at_s, kind=AuditKind.PROFILE, subject=service, body=body)
