"""Migrations in the laboratory, by the LiMi agents' own code: `natwork_ray.limi.node` on every node and the driver.

`LabAgents` is the agents of all nodes within one stretch of virtual time; `run_migration` and `run_many` open one for
themselves. An agent can be killed: what it was doing ends without effect, what it is told meanwhile is lost, and when
it comes back it takes up what its journal says, as on a testbed.

    >>> record = run_migration(lab, "web", "b", MigrationMethod.HYBRID)    # doctest: +SKIP
    >>> record.state, lab.runs_on("web")                                  # doctest: +SKIP
    (<MigrationState.MIGRATED: 'migrated'>, ('b',))
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace

from natwork_ray.domain.migrations import (
    ContainerLoad,
    MigrationForecast,
    MigrationRecord,
)
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.topology import Link
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.lab_network import LINK_PATIENCE_S
from natwork_ray.emulation.lab_runtime import LabRuntime
from natwork_ray.emulation.lab_transfer import LabBridge, LabJournal, LabTransfer
from natwork_ray.emulation.lab_values import ContainerProfile, LabContainer, LabNode
from natwork_ray.emulation.migration_lab import MigrationLab
from natwork_ray.errors import NatworkError, TimedOutError
from natwork_ray.limi.driver import drive, recover, unfinished
from natwork_ray.limi.durations import DEFAULT_PARAMETERS, MAX_ROUNDS, DurationParameters
from natwork_ray.limi.load_classes import OBSERVED_S
from natwork_ray.limi.node import LimiNode
from natwork_ray.limi.steps import MigrationStarted, Step, StepReport
from natwork_ray.ports import MigrationJournal

# Assumed: a request and its answer; the share of time in which a server is busy answering, by its share of CPU in use.
REQUEST_BYTES = 8192.0
IDLE_BUSY, CPU_BUSY = 0.2, 0.5
OBSERVE_S = OBSERVED_S  # how long a container is measured before it is moved, as in the data set
Before = Callable[[Step], Awaitable[None]]


@dataclass
class _Agent:
    """The agent of one node; `limi` is None while it is dead."""

    journal: MigrationJournal
    limi: LimiNode | None
    driving: dict[str, asyncio.Task[MigrationRecord]] = field(default_factory=dict)
    reborn: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class _Performer:
    """A node's agent, as the driver on `home` reaches it."""

    agents: LabAgents
    home: str
    node: str

    async def perform(self, step: Step) -> StepReport:
        """Across the link, if it is another node: it may be cut, and it has a round trip."""
        lab = self.agents.lab
        if self.node != self.home:
            await asyncio.sleep(lab.network.link(self.home, self.node).rtt_s)
            if lab.network.cut(self.home, self.node):
                await asyncio.sleep(LINK_PATIENCE_S)
                raise TimedOutError(f"{self.node} gives no answer", hint="the link is cut")
        limi = self.agents.limi(self.node)
        if limi is None:
            raise TimedOutError(f"the agent of {self.node} is dead", hint="its supervisor starts it again")
        try:
            report = await limi.perform(step)
        except NatworkError:
            if self.agents.limi(self.node) is not limi:
                raise TimedOutError(f"the agent of {self.node} died", hint="nobody knows what it had done") from None
            raise
        if self.node != self.home and lab.network.cut(self.home, self.node):
            raise TimedOutError(f"the answer of {self.node} was lost", hint="the link is cut")
        return report


class LabAgents:
    """The LiMi agents of the laboratory's nodes. Lives within one `MigrationLab.run`."""

    def __init__(self, lab: MigrationLab) -> None:
        self.lab = lab
        self._agents = {
            name: _Agent(journal=lab.journals.setdefault(name, LabJournal()), limi=None) for name in lab.nodes
        }
        for name in lab.nodes:
            self._begin(name)

    def limi(self, node: str) -> LimiNode | None:
        """The living agent of a node."""
        return self._agents[node].limi

    def _begin(self, name: str) -> None:
        agent, lab = self._agents[name], self.lab
        agent.limi = LimiNode(
            name=name,
            runtime=LabRuntime(lab, name),
            transfer=LabTransfer(lab, name),
            bridge=LabBridge(lab, name),
            journal=agent.journal,
            clock=lab.clock,
        )
        agent.reborn.set()

    async def measure(self, container: str, target: str, *, observe_s: float = OBSERVE_S) -> ContainerLoad:
        """What is known before a migration: the container as seen for `observe_s`, and the path to the target.

        Raises:
            NatworkError: it does not run, or there is no way to the target.
        """
        source = self.lab.home_of(container)
        load = await LabRuntime(self.lab, source).load(container, observe_s=observe_s)
        path = await LabTransfer(self.lab, source).open(target)
        return replace(load, bandwidth_bytes_per_s=path.bandwidth_bytes_per_s, rtt_s=path.rtt_s)

    async def migrate(
        self,
        container: str,
        target: str,
        method: MigrationMethod,
        *,
        key: str | None = None,
        load: ContainerLoad | None = None,
        forecast: MigrationForecast | None = None,
        chosen_by: str = "operator",
        max_rounds: int = MAX_ROUNDS,
        before: Before | None = None,
        cancelled: asyncio.Future[str] | None = None,
    ) -> MigrationRecord:
        """Move a container, from where it runs now; the record says what came of it. Never raises for a failure.

        `key` None numbers the container's migrations. `before` and `cancelled`: see `drive`.

        Raises:
            NotFoundError, ConflictError: no such container, or it runs nowhere (another migration is under way).
        """
        lab = self.lab
        source = lab.home_of(container)
        started = MigrationStarted(
            at_s=lab.now_s(),
            key=key if key is not None else lab.next_key(container),
            container=container,
            source=source,
            target=target,
            method=method,
            backend=Backend.EMULATED,
            max_rounds=max_rounds,
            chosen_by=chosen_by,
            load=load,
            forecast=forecast,
        )
        agent = self._agents[source]
        if agent.limi is None:
            await agent.reborn.wait()
        task = asyncio.create_task(
            drive(
                started,
                source=_Performer(self, source, source),
                target=_Performer(self, source, target),
                journal=agent.journal,
                clock=lab.clock,
                before=before,
                cancelled=cancelled,
            )
        )
        agent.driving[started.key] = task
        while True:
            try:
                record = await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.cancelled():
                    raise
                await agent.reborn.wait()  # it died with its agent: who comes back takes it up
                task = agent.driving[started.key]
                continue
            del agent.driving[started.key]
            return self._seen_by_clients(record)

    def _seen_by_clients(self, record: MigrationRecord) -> MigrationRecord:
        """The record with the downtime that clients saw; there are always some watching."""
        gap_s = self.lab.client_downtime_s(record.container, key=record.key, since_s=record.started_at_s)
        return replace(record, client_downtime_s=gap_s)

    async def kill_agent(self, node: str, *, for_s: float) -> None:
        """kill -9 of a node's agent; after `for_s` its supervisor has started it again."""
        agent = self._agents[node]
        dead, agent.limi = agent.limi, None
        agent.reborn.clear()
        for task in agent.driving.values():
            task.cancel()
        if dead is not None:
            await dead.close()
        await asyncio.sleep(for_s)
        self._begin(node)
        for started in unfinished(agent.journal):
            agent.driving[started.key] = asyncio.create_task(
                recover(
                    started.key,
                    source=_Performer(self, node, node),
                    target=_Performer(self, node, started.target),
                    journal=agent.journal,
                    clock=self.lab.clock,
                )
            )


@dataclass(frozen=True)
class Planned:
    """A migration to come. `start_s` is on the laboratory's clock; one in the past begins at once."""

    start_s: float
    container: str
    target: str
    method: MigrationMethod
    key: str | None = None


def run_migration(
    lab: MigrationLab,
    container: str,
    target: str,
    method: MigrationMethod,
    *,
    key: str | None = None,
    observe_s: float | None = OBSERVE_S,
) -> MigrationRecord:
    """Measure a container for `observe_s` (None: not at all), then move it; the record has what was measured.

    Raises:
        NatworkError: it cannot be measured: it does not run, or its target is not linked, or the link is cut.
    """
    return run_many(lab, [Planned(lab.now_s(), container, target, method, key)], observe_s=observe_s)[0]


def run_many(
    lab: MigrationLab, plans: Iterable[Planned], *, observe_s: float | None = None
) -> tuple[MigrationRecord, ...]:
    """Many migrations in one virtual time, which share links and nodes; records in the order of `plans`.

    With `observe_s` each container is measured before, so that its migration begins at its start; a start that is too
    near for that is put off.

    Raises:
        NatworkError: a container cannot be measured, or does not run when its migration begins. The others end there.
    """
    planned = list(plans)

    async def one(agents: LabAgents, plan: Planned) -> MigrationRecord:
        load = None
        if observe_s is not None:
            await asyncio.sleep(max(0.0, plan.start_s - observe_s - 2 * lab.p.open_path_s - lab.now_s()))
            load = await agents.measure(plan.container, plan.target, observe_s=observe_s)
        await asyncio.sleep(max(0.0, plan.start_s - lab.now_s()))
        return await agents.migrate(plan.container, plan.target, plan.method, key=plan.key, load=load)

    async def all_of_them() -> tuple[MigrationRecord, ...]:
        agents = LabAgents(lab)
        kills = [asyncio.create_task(_kill(agents, *kill)) for kill in lab.kills]
        try:
            return tuple(await asyncio.gather(*(one(agents, plan) for plan in planned)))
        finally:
            for task in kills:
                task.cancel()

    return lab.run(all_of_them)


async def _kill(agents: LabAgents, node: str, at_s: float, for_s: float) -> None:
    await asyncio.sleep(at_s - agents.lab.now_s())
    await agents.kill_agent(node, for_s=for_s)


def lab_of(load: ContainerLoad, *, seed: int, parameters: DurationParameters = DEFAULT_PARAMETERS) -> MigrationLab:
    """Two nodes, `source` and `target`, and a container named `container` that is loaded as `load` says."""
    request_rate = (load.network_rx_bytes_per_s + load.network_tx_bytes_per_s) / REQUEST_BYTES
    cpu_share = min(1.0, load.cpu_cores / load.cpu_limit_cores) if load.cpu_limit_cores > 0 else 0.5
    busy = IDLE_BUSY + CPU_BUSY * cpu_share
    profile = ContainerProfile.of(load, request_rate=request_rate, service_rate=request_rate / busy)
    # The load's bandwidth is what its own traffic leaves; in the laboratory that traffic flows.
    bandwidth = load.bandwidth_bytes_per_s + load.network_tx_bytes_per_s
    return MigrationLab(
        [LabNode(name="source"), LabNode(name="target")],
        [Link(a="source", b="target", bandwidth_bytes_per_s=bandwidth, rtt_s=load.rtt_s)],
        [LabContainer(name="container", node="source", profile=profile)],
        seed=seed,
        parameters=parameters,
    )
