"""Migrations of the emulated testbed's containers, played through in the migration laboratory when they are accepted.

The outcome of an instruction is known when it is given: the laboratory is opened at that moment with the container, its
link, and what the migrations that are under way on that link have still to send; the LiMi agents' own code moves the
container, and the record says how long each phase took. Rules kept:

- what is drawn depends on the seed and on the instruction's key only;
- the later of two migrations on one link sees the earlier one's remaining transfers as contention. The earlier one's
  outcome was promised already and does not change: contention is felt by whoever comes later. Two that are accepted at
  the same moment of the clock do not feel each other, since the order in which they were delivered is nobody's fact.

The migrations of one service that are accepted together are the exception: they run in one laboratory, and their
schedule is conducted there as on a testbed (`natwork_ray.limi.conduct`), gates and re-planning included.

The truth about a container comes from its `ServiceProfile` and its resident memory of the moment; requests, CPU and
traffic are those of normal operation. Left out: the traffic of containers that are not moving.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from natwork_ray.control.service_moves import schedule_of
from natwork_ray.domain.actions import Migrate
from natwork_ray.domain.migrations import ContainerLoad, MigrationRecord, MigrationState
from natwork_ray.domain.phases import Phase
from natwork_ray.domain.topology import Container, Link, Topology
from natwork_ray.emulation.lab_values import ContainerProfile, LabContainer, LabNode
from natwork_ray.emulation.migration_lab import MigrationLab
from natwork_ray.emulation.migration_nodes import OBSERVE_S, LabAgents
from natwork_ray.emulation.services import ServiceProfile
from natwork_ray.limi.choosing import MethodChooser
from natwork_ray.limi.conduct import ScheduleRun
from natwork_ray.limi.phase_times import DEFAULT_PARAMETERS, DurationParameters
from natwork_ray.limi.service_driver import Escort, carry_out
from natwork_ray.limi.steps import Verb

_BUSIEST = 0.9  # of its CPU limit that a container turns into answers, as in the physics
_VOLUME_FACTOR = 4.0  # assumed: a volume is four times what it gains between two copies of it
# After the total, of which they are no part: the container runs on the target, and is whole.
_AFTERWARDS = (Verb.SETTLE_SOURCE.value, Verb.SETTLE_TARGET.value)


class Moves:
    """All migrations of one testbed so far."""

    def __init__(
        self,
        *,
        seed: int,
        chooser: MethodChooser,
        weight: float,
        observe_s: float = OBSERVE_S,
        parameters: DurationParameters = DEFAULT_PARAMETERS,
    ) -> None:
        self._seed, self._chooser, self._weight, self._p = seed, chooser, weight, parameters
        self._observe_s = observe_s
        self._accepted_s: dict[str, float] = {}
        self._records: dict[str, MigrationRecord] = {}

    def play(
        self, instruction: Migrate, container: Container, profile: ContainerProfile, link: Link, *, now_s: float
    ) -> MigrationRecord:
        """How the migration goes that is asked for now; noted here.

        Without a method the container is measured first, and the chooser picks one.
        """
        target = instruction.target
        lab = self._lab(((container, profile, target),), (link,), now_s)

        async def move() -> MigrationRecord:
            agents = LabAgents(lab)
            method, chosen_by, load, forecast = instruction.method, instruction.chosen_by, None, None
            if method is None:
                measuring_s = self._observe_s + 2 * self._p.open_path_s
                await asyncio.sleep(max(0.0, instruction.not_before_s - measuring_s - now_s))
                load = await agents.measure(container.name, target, observe_s=self._observe_s)
                weight = self._weight if instruction.weight is None else instruction.weight
                choice = self._chooser.choose(load, lab.methods, weight=weight)
                method, chosen_by, forecast = choice.method, choice.chosen_by, choice.forecast
            await asyncio.sleep(max(0.0, instruction.not_before_s - lab.now_s()))
            return await agents.migrate(
                container.name,
                target,
                method,
                key=instruction.key,
                load=load,
                forecast=forecast,
                chosen_by=chosen_by,
            )

        record = lab.run(move)
        self._records[instruction.key], self._accepted_s[instruction.key] = record, now_s
        return record

    def measure(
        self, container: Container, profile: ContainerProfile, link: Link, target: str, *, now_s: float
    ) -> ContainerLoad:
        """What would be measured if the container were asked to migrate now; nothing is noted."""
        lab = self._lab(((container, profile, target),), (link,), now_s)
        return lab.run(lambda: LabAgents(lab).measure(container.name, target, observe_s=self._observe_s))

    def play_together(
        self,
        instructions: Sequence[Migrate],
        topology: Topology,
        profiles: Mapping[str, ContainerProfile],
        *,
        now_s: float,
    ) -> dict[str, MigrationRecord]:
        """How a service's migrations go that are asked for now, by key; noted here. One that is not begun has none.

        Raises:
            NatworkError: as `schedule_of`.
        """
        request, plan = schedule_of(instructions, topology)
        by_name = {i.container: i for i in instructions}
        going = tuple(
            (container, profiles[name], i.target)
            for name, i in by_name.items()
            if (container := topology.container(name)) is not None
        )
        lab = self._lab(going, topology.links, now_s)

        async def move_all() -> dict[str, MigrationRecord]:
            agents = LabAgents(lab)

            async def move(name: str, escort: Escort) -> MigrationRecord:
                i, member = by_name[name], request.members[list(by_name).index(name)]
                return await agents.migrate(
                    name,
                    i.target,
                    member.forecast.method,
                    key=i.key,
                    load=i.load,
                    forecast=i.forecast,
                    chosen_by=i.chosen_by,
                    before=escort.before,
                    cancelled=escort.cancelled,
                )

            return await carry_out(ScheduleRun(request, plan), tuple(by_name), move, clock=lab.clock)

        records = {by_name[name].key: record for name, record in lab.run(move_all).items()}
        for key, record in records.items():
            self._records[key], self._accepted_s[key] = record, now_s
        return records

    def _lab(
        self, going: Sequence[tuple[Container, ContainerProfile, str]], links: Sequence[Link], now_s: float
    ) -> MigrationLab:
        """Containers with their targets, alone on the links between their nodes but for what earlier migrations have
        still to send there.
        """
        nodes = sorted({node for container, _, target in going for node in (container.node, target)})
        lab = MigrationLab(
            # Room was looked for by who accepted the instruction, in limits; here there is room.
            [LabNode(name=n, cpu_cores=1e9, memory_bytes=1e18, disk_bytes=1e18) for n in nodes],
            [link for link in links if link.a in nodes and link.b in nodes],
            [LabContainer(name=c.name, node=c.node, profile=profile) for c, profile, _ in going],
            seed=self._seed,
            parameters=self._p,
            start_s=now_s,
        )
        ways = {(container.node, target) for container, _, target in going}
        for key, other in self._records.items():
            if (other.source, other.target) in ways and self._accepted_s[key] < now_s:
                for phase in remaining(other, now_s):
                    share = self._p.lazy_share if phase.name == Verb.PAGES_FETCHED else self._p.transfer_share
                    lab.background(
                        other.source, other.target, phase.transferred_bytes, at_s=phase.starts_s, share=share
                    )
        return lab

    def records(self, now_s: float) -> tuple[MigrationRecord, ...]:
        """Every migration that was accepted, in that order; one that is under way as far as it has got."""
        return tuple(_as_of(record, now_s) for record in self._records.values())


def main_phases(record: MigrationRecord) -> tuple[Phase, ...]:
    """The phases that make up the total; what is tidied away afterwards is left out."""
    return tuple(phase for phase in record.phases if phase.name not in _AFTERWARDS)


def settled_at_s(record: MigrationRecord) -> float:
    """When nothing of the migration is left on either node."""
    lasts_s = max((phase.starts_s + phase.duration_s for phase in record.phases), default=0.0)
    return record.started_at_s + max(record.total_s, lasts_s)


def downtime_from_s(record: MigrationRecord) -> float:
    """When the container was frozen."""
    frozen = next((phase.starts_s for phase in record.phases if phase.name == Verb.FREEZE), 0.0)
    return record.started_at_s + frozen


def remaining(record: MigrationRecord, now_s: float) -> tuple[Phase, ...]:
    """What a migration has still to send, as phases on the testbed's clock (`starts_s`), bytes in proportion."""
    left = []
    for phase in record.phases:
        starts_s, ends_s = record.started_at_s + phase.starts_s, record.started_at_s + phase.starts_s + phase.duration_s
        # Lazy pages are told by both ends; they travel once.
        if phase.transferred_bytes > 0 and ends_s > now_s and phase.name != Verb.PAGES_SERVED:
            from_s = max(starts_s, now_s)
            share = (ends_s - from_s) / (ends_s - starts_s)
            left.append(
                replace(
                    phase,
                    starts_s=from_s,
                    duration_s=ends_s - from_s,
                    transferred_bytes=share * phase.transferred_bytes,
                )
            )
    return tuple(left)


def _as_of(record: MigrationRecord, now_s: float) -> MigrationRecord:
    if settled_at_s(record) <= now_s:
        return record
    passed_s = max(0.0, now_s - record.started_at_s)
    moved = downtime_from_s(record) + record.downtime_s <= now_s
    over = tuple(phase for phase in record.phases if phase.starts_s + phase.duration_s <= passed_s)
    return replace(
        record,
        state=MigrationState.RUNNING,
        total_s=min(passed_s, record.total_s),
        downtime_s=min(record.downtime_s, max(0.0, now_s - downtime_from_s(record))),
        client_downtime_s=None,
        runs_on=record.target if moved else record.source,
        phases=over,
        pre_copy_rounds=sum(phase.name == Verb.PRE_DUMP_TRANSFER for phase in over),
    )


def truth_of(container: Container, service: ServiceProfile, *, rss_bytes: float) -> ContainerProfile:
    """What a migration moves: all replicas of the container as one."""
    memory = rss_bytes * container.replicas
    limit = container.cpu_limit_cores * container.replicas
    requests = service.normal_rps
    use = min(_BUSIEST * limit, service.idle_cpu * limit + service.cpu_s_per_request * requests)
    return ContainerProfile(
        memory_bytes=memory,
        dirty_bytes_per_s=service.dirty_share_per_s * memory,
        working_set_bytes=service.working_set_share * memory,
        volume_bytes=_VOLUME_FACTOR * service.volume_delta_bytes,
        volume_delta_bytes=service.volume_delta_bytes,
        volume_write_bytes_per_s=service.disk_write_per_request * requests,
        cpu_cores=use,
        cpu_limit_cores=limit,
        request_rate=requests,
        service_rate=requests * _BUSIEST * limit / use if use > 0 else 2 * requests,
        network_rx_bytes_per_s=service.rx_per_request * requests,
        network_tx_bytes_per_s=service.tx_per_request * requests,
    )
