"""The migration laboratory: nodes, links and loaded containers on a virtual clock, moved by the LiMi agents' own code.

D3.3 section 2.1 in the emulation. The laboratory keeps the state: what runs where, which images lie where, who has the
address. The verbs of the ports stand in `lab_runtime` and `lab_transfer`, the links in `lab_network`, the dice in
`lab_dice`, the agents in `migration_nodes`, and the laws of what a phase costs in `natwork_ray.limi.phase_times`. Rules
kept:

- memory is real to the extent that matters: a container counts the seconds that it has run, images hold the count,
  and a restore goes on from it, so that lost memory shows (`counter`);
- what two concurrent transfers take from each other is exact (`natwork_ray.emulation.shared_link`);
- every draw comes from a stream named by (seed, key of the migration, phase), so that neither the order nor the number
  of other migrations changes it;
- a container that runs twice, or an address that two nodes have, is noted in `violations` and not prevented.

    >>> from natwork_ray.emulation.lab_values import ContainerProfile
    >>> lab = MigrationLab([LabNode(name="a"), LabNode(name="b")],
    ...                    [Link(a="a", b="b", bandwidth_bytes_per_s=125e6, rtt_s=0.001)],
    ...                    [LabContainer(name="web", node="a", profile=ContainerProfile(memory_bytes=64e6))], seed=7)
    >>> lab.runs_on("web")
    ('a',)

Left out: what pages contain, the load of the control messages themselves, and the traffic of containers that are not
in the laboratory.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.runtime import ContainerSpec, ContainerState
from natwork_ray.domain.topology import Link
from natwork_ray.emulation.lab_dice import Dice
from natwork_ray.emulation.lab_network import LabNetwork
from natwork_ray.emulation.lab_state import Image, LabState, Presence
from natwork_ray.emulation.lab_values import LabContainer, LabNode
from natwork_ray.emulation.virtual_time import VirtualClock, run_in_virtual_time
from natwork_ray.errors import ActionError, ConflictError, NotFoundError, TimedOutError, UsageError
from natwork_ray.limi.phase_times import (
    DEFAULT_PARAMETERS,
    DurationParameters,
    queueing_s,
    residual_bytes,
    volume_residual_bytes,
)
from natwork_ray.ports import MigrationJournal

T = TypeVar("T")

# What can be made to fail. Verbs that name no container (open, close, page tunnel) fail by a cut link.
VERBS = (
    "status", "load", "describe", "prepare", "pre_dump", "freeze", "thaw", "dump", "await_pages_served", "restore",
    "await_pages_fetched", "revive", "destroy", "clean", "send_images", "send_volume", "prepare_address", "detach",
    "attach", "remove",
)  # fmt: skip


@dataclass
class _Fault:
    verb: str
    container: str
    times: int
    after: bool


class MigrationLab:
    """Nodes, links and containers in virtual time. Everything but `run` is only of use inside of `run`, or between."""

    def __init__(
        self,
        nodes: Sequence[LabNode],
        links: Sequence[Link],
        containers: Sequence[LabContainer],
        *,
        seed: int,
        parameters: DurationParameters = DEFAULT_PARAMETERS,
        dirty_tracking: bool = True,
        methods: Sequence[MigrationMethod] = tuple(MigrationMethod),
        start_s: float = 0.0,
    ) -> None:
        self.seed, self.p, self.dirty_tracking, self.methods = seed, parameters, dirty_tracking, tuple(methods)
        self.clock = VirtualClock(start_s)
        self.nodes = {n.name: n for n in nodes}
        self.dice = Dice(seed, parameters)
        self.network = LabNetwork(list(self.nodes), links, now_s=self.now_s, traffic=self._traffic)
        self.containers: dict[str, LabState] = {}
        self.violations: list[str] = []
        self.journals: dict[str, MigrationJournal] = {}
        self.kills: list[tuple[str, float, float]] = []
        self.struck = 0  # planned faults that really hit a verb
        self._faults: list[_Fault] = []
        self._others: list[tuple[float, str, str, float, float]] = []
        for container in containers:
            self.add(container)

    # What is there.

    def add(self, container: LabContainer) -> None:
        """One more container, running from now on.

        Raises:
            UsageError: there is one of that name, or no such node.
        """
        if container.name in self.containers or container.node not in self.nodes:
            raise UsageError(
                f"container {container.name!r} on {container.node!r}", hint="a new name, on a node of the laboratory"
            )
        number = len(self.containers)
        state = LabState(
            spec=ContainerSpec(
                name=container.name,
                image="emulated",
                address=f"10.{64 + number // 65024}.{number // 254 % 256}.{number % 254 + 1}/8",
                mac=f"02:00:00:{number // 65536:02x}:{number // 256 % 256:02x}:{number % 256:02x}",
                command=("serve",),
                cpu_limit_cores=container.profile.cpu_limit_cores,
                writable_root=container.profile.volume_bytes > 0,
                service=container.service,
                depends_on=container.depends_on,
            ),
            given=container,
            presences={
                container.node: Presence(
                    state=ContainerState.RUNNING, since_s=self.now_s(), prepared=True, namespace=True, attached=True,
                    copied_at=0.0,
                )
            },
        )  # fmt: skip
        self.containers[container.name] = state
        self.changed(state)

    def now_s(self) -> float:
        """The virtual clock."""
        return self.clock.now_s()

    def state(self, container: str) -> LabState:
        """All that there is to know of a container.

        Raises:
            NotFoundError: no such container.
        """
        try:
            return self.containers[container]
        except KeyError:
            raise NotFoundError(
                f"there is no container {container!r} in the laboratory", hint=f"one of {sorted(self.containers)[:9]}"
            ) from None

    def presence(self, container: str, node: str) -> Presence:
        """The container as it is on one node; an empty one where it never was."""
        return self.state(container).presences.setdefault(node, Presence())

    def runs_on(self, container: str) -> tuple[str, ...]:
        """Nodes on which it runs now: exactly one, but for the moment of a migration in which it runs on none."""
        found = self.state(container).presences.items()
        return tuple(sorted(n for n, p in found if p.state is ContainerState.RUNNING))

    def address_on(self, container: str) -> tuple[str, ...]:
        """Nodes on whose bridge its address is."""
        return tuple(sorted(n for n, p in self.state(container).presences.items() if p.attached))

    def counter(self, container: str) -> float:
        """Seconds that the container has run, as it remembers them itself; less than before: memory was lost."""
        return max((self.counted(p) for p in self.state(container).presences.values()), default=0.0)

    def counted(self, presence: Presence) -> float:
        """The counter of one presence; it stands still unless the container runs."""
        running = presence.state is ContainerState.RUNNING
        return presence.counter + (self.now_s() - presence.since_s if running else 0.0)

    def leftovers(self, container: str) -> tuple[str, ...]:
        """What lies about on nodes where the container does not run, and images anywhere."""
        found = []
        for node, p in self.state(container).presences.items():
            found += [f"{node}: images {key}/{name}" for key, name in p.images]
            if p.serves is not None:
                found.append(f"{node}: page server")
            if p.state is not ContainerState.RUNNING and (p.namespace or p.prepared):
                found.append(f"{node}: {'namespace' if p.namespace else 'bundle'}")
            if p.state in (ContainerState.STOPPED, ContainerState.FROZEN):
                found.append(f"{node}: {p.state} container")
        return tuple(found)

    def free(self, node: str) -> tuple[float, float]:
        """CPU cores and bytes of memory that nobody on the node claims, containers on their way there included."""
        cores, memory = self.nodes[node].cpu_cores, self.nodes[node].memory_bytes
        for state in self.containers.values():
            here = state.presences.get(node)
            if here is not None and (here.prepared or here.state is not ContainerState.ABSENT):
                claim = state.given.claims
                cores, memory = cores - claim[0], memory - claim[1]
        return cores, memory

    def disk_free(self, node: str) -> float:
        """Bytes left for images."""
        lying = sum(
            image.size_bytes
            for state in self.containers.values()
            if node in state.presences
            for image in state.presences[node].images.values()
        )
        return self.nodes[node].disk_bytes - lying

    def home_of(self, container: str) -> str:
        """The node that a migration of the container would begin on.

        Raises:
            NotFoundError: no such container.
            ConflictError: it runs nowhere at the moment.
        """
        nodes = self.runs_on(container)
        if not nodes:
            raise ConflictError(f"{container} does not run just now", hint="wait until its migration is over")
        return nodes[0]

    def changed_bytes(self, container: str, before: Image, counter: float) -> float:
        """Memory that differs between an image and the container when it had run for `counter` seconds."""
        truth = self.state(container).profile
        return residual_bytes(
            working_set_bytes=truth.working_set_bytes,
            dirty_bytes_per_s=truth.dirty_bytes_per_s,
            elapsed_s=counter - before.counter,
        )

    def volume_behind(self, container: str, copied_at: float | None) -> float:
        """What a node whose copy of the volume is as old as the counter `copied_at` (None: it has none) lacks now."""
        truth, counter = self.state(container).profile, self.counter(container)
        if copied_at is None:
            return min(truth.volume_bytes, truth.volume_delta_bytes + truth.volume_write_bytes_per_s * counter)
        return volume_residual_bytes(
            volume_bytes=truth.volume_bytes,
            write_bytes_per_s=truth.volume_write_bytes_per_s,
            elapsed_s=counter - copied_at,
            p=self.p,
        )

    def next_key(self, container: str) -> str:
        """A key for the container's next migration: its migrations are numbered."""
        state = self.state(container)
        state.migrations += 1
        return f"{container}-{state.migrations}"

    # What changes.

    def set_state(self, container: str, node: str, new: ContainerState, *, counter: float | None = None) -> None:
        """The container on that node is in a new state, its counter kept unless given."""
        presence = self.presence(container, node)
        presence.counter = self.counted(presence) if counter is None else counter
        presence.state, presence.since_s = new, self.now_s()
        self.changed(self.state(container))

    def page_server(self, container: str) -> str | None:
        """The node that serves the container's lazy pages, if one does."""
        presences = self.state(container).presences
        return next((node for node, p in presences.items() if p.serves is not None), None)

    def end_page_server(self, container: str, node: str) -> None:
        """The pages that the node still held are gone; a container that waits for them has lost its memory."""
        here = self.presence(container, node)
        if here.serves is None:
            return
        here.serves = None
        for other, there in self.state(container).presences.items():
            if other != node and there.fetched is not None and not there.fetched.done():
                there.fetched.cancel()
                self.violations.append(f"{self.now_s():.6f} s: pages of {container} ended before {other} had them")

    def changed(self, state: LabState) -> None:
        """Note whether clients are served, and whether there is one of everything."""
        running = [n for n, p in state.presences.items() if p.state is ContainerState.RUNNING]
        attached = [n for n, p in state.presences.items() if p.attached]
        if len(running) > 1:
            self.violations.append(f"{self.now_s():.6f} s: {state.spec.name} runs on {', '.join(sorted(running))}")
        if len(attached) > 1:
            self.violations.append(
                f"{self.now_s():.6f} s: {state.spec.name}'s address on {', '.join(sorted(attached))}"
            )
        served = bool(set(running) & set(attached))
        if not state.served or state.served[-1][1] != served:
            state.served.append((self.now_s(), served))
            if state.profile.network_rx_bytes_per_s or state.profile.network_tx_bytes_per_s:
                self.network.make_way()

    def client_downtime_s(self, container: str, *, key: str, since_s: float) -> float:
        """The longest gap that clients saw since then, and the time until all that queued meanwhile was served."""
        state = self.state(container)
        gaps, down_s = [(0.0, since_s)], None
        for at_s, served in state.served:
            if not served:
                down_s = at_s
            elif down_s is not None:
                if at_s > since_s:
                    gaps.append((at_s - max(down_s, since_s), at_s))
                down_s = None
        gap, up_s = max(gaps)
        degraded = sum(end - max(start, up_s) for start, end in state.degraded if end > up_s)
        queueing = queueing_s(
            downtime_s=gap,
            degraded_s=degraded,
            request_rate=state.profile.request_rate,
            service_rate=state.profile.service_rate,
            p=self.p,
        )
        z = self.dice.deviation(key, "queueing")
        return gap + queueing * math.exp(self.p.queue_sigma * z)

    # Time, and what else is sent.

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `main()` in the laboratory's virtual time."""

        async def with_others() -> T:
            self.network.open()
            others = [asyncio.create_task(self._other(*other)) for other in self._others]
            self._others.clear()
            try:
                return await main()
            finally:
                for task in others:
                    task.cancel()

        return run_in_virtual_time(self.clock, with_others)

    def background(
        self, source: str, target: str, size_bytes: float, *, at_s: float = 0.0, share: float | None = None
    ) -> None:
        """Something else to send over a link from `at_s` on, in the next `run`: one stream, as a migration's."""
        self.network.link(source, target)
        self._others.append((at_s, source, target, size_bytes, self.p.transfer_share if share is None else share))

    async def _other(self, at_s: float, source: str, target: str, size_bytes: float, share: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self.now_s()))
        await self.network.carry(source, target, size_bytes, share=share)

    def _traffic(self, source: str, target: str) -> float:
        """What clients send from one node to another: replies of what serves there, requests to what serves here."""
        traffic = 0.0
        for state in self.containers.values():
            if state.served[-1][1]:
                at = self.address_on(state.spec.name)
                traffic += state.profile.network_tx_bytes_per_s * (source in at)
                traffic += state.profile.network_rx_bytes_per_s * (target in at)
        return traffic

    # Faults.

    def fail(self, verb: str, container: str, times: int = 1, *, after: bool = False) -> None:
        """Let a verb of the ports fail for a container the next `times` times: before it has any effect, or `after` it.

        `verb` is a name of `VERBS`: the ports' methods, `prepare_address` for the bridge's `prepare`.

        Raises:
            UsageError: no such verb.
        """
        if verb not in VERBS:
            raise UsageError(f"no port has a verb {verb!r} that can be made to fail", hint=f"one of {', '.join(VERBS)}")
        self._faults.append(_Fault(verb, container, times, after))

    def cut_link(self, a: str, b: str, from_s: float, to_s: float) -> None:
        """Cut the link between two nodes for a while. Transfers stall, and fail when it lasts.

        Raises:
            ActionError: there is no such link.
        """
        self.network.cut_link(a, b, from_s, to_s)

    def kill_agent(self, node: str, *, at_s: float, for_s: float) -> None:
        """Kill a node's agent at a moment of the clock; after `for_s` it is back. See `LabAgents.kill_agent`."""
        self.kills.append((node, at_s, for_s))

    def strike(self, verb: str, container: str, *, after: bool = False) -> None:
        """Called by the ports: fail here when that was planned.

        Raises:
            ActionError: planned, and nothing was done.
            TimedOutError: planned, and it was done.
        """
        for fault in self._faults:
            if fault.times > 0 and (fault.verb, fault.container, fault.after) == (verb, container, after):
                fault.times -= 1
                self.struck += 1
                if after:
                    raise TimedOutError(f"{verb} of {container} gave no answer", hint="an injected fault")
                raise ActionError(f"{verb} of {container} failed", hint="an injected fault")
