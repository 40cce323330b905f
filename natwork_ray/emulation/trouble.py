"""What is going wrong: injections as they act on each step, and which action ended which.

What heals what (docs/emulation.md explains each):

- a stray process (high_cpu) or a hoarding one (high_memory) sits inside the container: a restart ends it, a live
  migration carries it along; more replicas or higher limits relieve it;
- a surge (traffic_spike, step_load) is real demand: nothing ends it, capacity serves it;
- network_latency sits between a node and the container: moving away ends it, mesh retries relieve it;
- an attack ends for as long as its source is blocked; the container's address moves with it, so a move does not help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from natwork_ray.domain.actions import BlockSource, FlowAlert, Migrate, Restart
from natwork_ray.domain.flow_alerts import FlowAdvice
from natwork_ray.domain.labelled import LabelledEvent
from natwork_ray.domain.topology import Container
from natwork_ray.emulation.injections import ATTACKS, Injection, parse_source
from natwork_ray.emulation.operations import Block, Change
from natwork_ray.emulation.physics import Disturbance
from natwork_ray.emulation.services import ServiceProfile
from natwork_ray.errors import ConflictError, InputError, NotFoundError


@dataclass
class _Course:
    """How one injection goes: what it found when it began, and when it was healed."""

    injection: Injection
    found: Container | None = None
    healed_s: float | None = None


@dataclass
class Trouble:
    """All injections of a testbed."""

    names: Sequence[str]
    profiles: Mapping[str, ServiceProfile]
    _courses: list[_Course] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._index = {name: i for i, name in enumerate(self.names)}

    def add(self, injection: Injection, *, now_s: float) -> None:
        """Schedule one more.

        Raises:
            NotFoundError: no such container.
            InputError: it would begin in the past.
            ConflictError: it overlaps another injection on that container.
        """
        if injection.container not in self._index:
            raise NotFoundError(
                f"there is no container {injection.container!r} to inject into", hint="the topology lists them"
            )
        if injection.start_s < now_s:
            raise InputError(f"injection at {injection.start_s} s, it is {now_s} s", hint="the past cannot be changed")
        for course in self._courses:
            other = course.injection
            if (
                other.container == injection.container
                and other.start_s < injection.end_s
                and injection.start_s < other.end_s
            ):
                raise ConflictError(
                    f"{injection.kind} on {injection.container} overlaps {other.kind} there", hint="leave a gap between"
                )
        self._courses.append(_Course(injection))
        self._courses.sort(key=lambda c: (c.injection.start_s, c.injection.container))

    def truth(self) -> tuple[LabelledEvent, ...]:
        """Every injection as an event, ended where an action healed it; those healed before they began are left out."""
        events = (c.injection.event(c.healed_s) for c in self._courses)
        return tuple(e for e in events if e.end_s > e.start_s)

    def underway(self, start_s: float, end_s: float) -> list[_Course]:
        """Injections that act on (start_s, end_s], healed ones left out."""
        return [
            c
            for c in self._courses
            if c.injection.start_s < end_s
            and c.injection.end_s > start_s
            and (c.healed_s is None or c.healed_s >= end_s)
        ]

    def heal(self, changes: Sequence[Change], containers: Mapping[str, Container]) -> frozenset[str]:
        """Take note of what actions ended. Returns the containers whose memory starts afresh."""
        restarted = set()
        for change in changes:
            i = change.instruction
            if isinstance(i, Restart):
                restarted.add(i.container)
                self._end(i.container, change.at_s, ("high_cpu", "high_memory"))
            elif isinstance(i, Migrate):
                for course in self._running(i.container, change.at_s, ("network_latency",)):
                    if course.found is not None and course.found.node != containers[i.container].node:
                        course.healed_s = change.at_s
            elif isinstance(i, BlockSource | FlowAlert):
                for course in self._running(i.container, change.at_s, ATTACKS):
                    # A rule that expires earlier only interrupts the attack.
                    lasts = i.expires_at_s >= course.injection.end_s
                    if lasts and any(_covers(rule, course.injection.source) == 1 for rule in _rules(i)):
                        course.healed_s = change.at_s
        return frozenset(restarted)

    def _running(self, container: str, at_s: float, kinds: Sequence[str]) -> list[_Course]:
        return [
            c
            for c in self._courses
            if c.injection.container == container
            and c.injection.kind in kinds
            and c.healed_s is None
            and c.injection.start_s < at_s < c.injection.end_s
        ]

    def _end(self, container: str, at_s: float, kinds: Sequence[str]) -> None:
        for course in self._running(container, at_s, kinds):
            course.healed_s = at_s

    def disturbance(
        self, start_s: float, end_s: float, containers: Mapping[str, Container], blocks: Sequence[Block]
    ) -> tuple[Disturbance, dict[int, list[tuple[str, float]]]]:
        """What the injections do in one step, and the attackers' requests per second by container and source."""
        d = Disturbance.neutral(len(self.names))
        attackers: dict[int, list[tuple[str, float]]] = {}
        for course in self.underway(start_s, end_s):
            injection = course.injection
            k = self._index[injection.container]
            if course.found is None:
                course.found = containers[injection.container]
            profile = self.profiles[injection.container]
            if injection.kind in ATTACKS:
                open_share = 1 - max(
                    (
                        _covers(b.source, injection.source)
                        for b in blocks
                        if b.container == injection.container and b.start_s < end_s <= b.expires_at_s
                    ),
                    default=0.0,
                )
                _attack(d, k, injection, profile, open_share)
                if open_share > 0:
                    attackers.setdefault(k, []).append((injection.source, float(d.attack_rps[k])))
            else:
                _anomaly(d, k, injection, profile, course.found, containers[injection.container], end_s)
        return d, attackers


def _anomaly(
    d: Disturbance, k: int, i: Injection, profile: ServiceProfile, found: Container, now: Container, end_s: float
) -> None:
    match i.kind:
        case "high_cpu":
            # A fixed number of busy threads: higher limits or more replicas leave more for the service.
            d.stray_cores[k] = (0.3 + 0.65 * i.intensity) * found.cpu_limit_cores * found.replicas
        case "high_memory":
            room = max(found.memory_limit_bytes - profile.rss_bytes, 0.2 * found.memory_limit_bytes)
            # Spread over the replicas, as a leak that comes with requests is.
            d.leak_bytes[k] = (0.3 + 0.8 * i.intensity) * room * found.replicas / now.replicas
            d.leak_vsize[k] = 0.4 + 2.2 * i.intensity
        case "traffic_spike":
            d.surge[k] = 1.4 + 3.6 * i.intensity**2
        case "step_load":
            # Four increments within the first three fifths, then a plateau.
            done = (end_s - i.start_s) / (i.end_s - i.start_s) / 0.6
            d.surge[k] = 1 + (0.4 + 3.0 * i.intensity**2) * min(np.ceil(4 * done) / 4, 1.0)
        case "network_latency":
            if now.node == found.node:
                d.network[k] = 1.5 + 7.5 * i.intensity**1.5


def _attack(d: Disturbance, k: int, i: Injection, profile: ServiceProfile, open_share: float) -> None:
    normal = profile.normal_rps * open_share
    match i.kind:
        case "ddos":
            d.attack_rps[k] = normal * (1 + 9 * i.intensity)
            d.attack_fails[k], d.attack_cpu[k] = 0.92, 0.35
            d.attack_bytes[k] = 400 + 0.3 * profile.rx_per_request
        case "brute_force":
            d.attack_rps[k] = normal * (0.3 + 1.2 * i.intensity)
            d.attack_fails[k], d.attack_cpu[k] = 0.98, 0.5
            d.attack_bytes[k] = min(profile.rx_per_request, 800.0)
            d.attack_tx[k] = min(profile.tx_per_request, 300.0)
        case "sql_injection":
            d.attack_rps[k] = normal * (0.1 + 0.5 * i.intensity)
            d.attack_fails[k], d.attack_cpu[k] = 0.06, 1.6
            d.attack_bytes[k] = min(profile.rx_per_request, 1500.0)
            d.attack_read[k] = 12 * profile.disk_read_per_request + 4e5
            d.attack_tx[k] = 8 * profile.tx_per_request
            d.heavy_tail[k] = 1 + 3 * i.intensity * open_share


def _rules(i: BlockSource | FlowAlert) -> tuple[str, ...]:
    """The sources that an instruction keeps an attack from."""
    if isinstance(i, BlockSource):
        return (i.source,)
    return () if i.advice is FlowAdvice.INSPECT else tuple(s.source for s in i.sources)


def _covers(rule: str, source: str) -> float:
    """The part of `source`'s addresses that a rule drops."""
    wide, narrow = parse_source(rule), parse_source(source)
    if narrow.subnet_of(wide):
        return 1.0
    return wide.num_addresses / narrow.num_addresses if wide.subnet_of(narrow) else 0.0
