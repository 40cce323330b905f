"""The Testbed: one seeded object with a virtual clock, in which services run, go wrong, and are acted upon.

Rules kept: the same seed and the same calls at the same virtual times give the same world, to the last bit
(`digest`); the noise that a container sees at a moment does not depend on what was done to any container; nothing
happens but in `advance`.

    >>> from natwork_ray.emulation.scenarios import scenario
    >>> testbed = Testbed(scenario("smart-city"), seed=7)
    >>> testbed.commission(600)
    >>> testbed.window(end_s=600, length=10).values.shape
    (12, 10, 12)

Left out: packets, single requests, and the control plane's own load.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.actions import ActionOutcome, Instruction, Migrate
from natwork_ray.domain.labelled import LabelledEvent
from natwork_ray.domain.migrations import ContainerLoad, MigrationRecord
from natwork_ray.domain.telemetry import N_METRICS, FlowShare, Metric, NodeUsage, TelemetryWindow
from natwork_ray.domain.topology import Node, Topology
from natwork_ray.domain.values import encode
from natwork_ray.emulation.injections import Injection
from natwork_ray.emulation.migration_nodes import OBSERVE_S
from natwork_ray.emulation.operations import Operations, Window
from natwork_ray.emulation.physics import Physics, Sample
from natwork_ray.emulation.scenarios import Scenario
from natwork_ray.emulation.sources import NormalSources
from natwork_ray.emulation.trouble import Trouble
from natwork_ray.errors import InputError, NotFoundError, UsageError
from natwork_ray.limi.choosing import MethodChooser
from natwork_ray.limi.phase_times import DEFAULT_PARAMETERS

OOM_RESTART_S = 3.0  # assumed: the kernel kills, the runtime starts again
_ROUTED_RTT_S = 0.02  # between nodes without a direct link
_LOCAL_RTT_S = 0.0002
_RSS = list(Metric).index(Metric.MEMORY_RSS)


class Testbed:
    """A running scenario. Times are seconds on its virtual clock, which starts at 0."""

    __test__ = False  # its name is not meant for pytest

    def __init__(
        self,
        scenario: Scenario,
        *,
        seed: int,
        schedule: Sequence[Injection] | None = None,
        step_s: float = 10.0,
        chooser: MethodChooser | None = None,
        weight: float = DEFAULT_PARAMETERS.total_weight,
        observe_s: float = OBSERVE_S,
    ) -> None:
        """`chooser` and `weight` decide on the method of a migration that names none (default: the equations), after
        the container was measured for `observe_s`.
        """
        if not (math.isfinite(step_s) and step_s > 0):
            raise UsageError(f"testbed step_s = {step_s}", hint="seconds, above zero")
        self.scenario, self.seed, self.step_s = scenario, seed, step_s
        self.names = tuple(c.name for c in scenario.topology.containers)
        self._index = {name: i for i, name in enumerate(self.names)}
        services = tuple(c.service for c in scenario.topology.containers)
        self._services = services
        self._operations = Operations(scenario, seed=seed, chooser=chooser, weight=weight, observe_s=observe_s)
        self._trouble = Trouble(self.names, scenario.profiles)
        physics_seed, sources_seed = np.random.SeedSequence(seed).spawn(2)
        nodes = (*scenario.topology.nodes, *scenario.spare_nodes)
        self._node_names = tuple(n.name for n in nodes)
        self._physics = Physics(
            scenario.topology,
            [scenario.profiles[name] for name in self.names],
            node_cores=np.array([n.cpu_cores for n in nodes]),
            rtt_s=_rtts(scenario.topology, self._node_names),
            step_s=step_s,
            start_hour=scenario.start_hour,
            seed=physics_seed,
        )
        self._sources = NormalSources(len(self.names), np.random.default_rng(sources_seed))
        self._steps = 0
        self._history = np.full((64, len(self.names), N_METRICS), np.nan, dtype=np.float32)
        self._usage: list[tuple[NodeUsage, ...]] = []
        self._traffic: list[tuple[Sample, dict[int, list[tuple[str, float]]], dict[int, tuple[str, ...]]]] = []
        for injection in schedule or ():
            self.inject(injection)

    # The clock.

    @property
    def now_s(self) -> float:
        """The virtual clock."""
        return self._steps * self.step_s

    def advance(self, to_s: float) -> None:
        """Let time pass until `to_s`, a whole number of steps that is not in the past.

        Raises:
            UsageError: not a whole number of steps, or in the past.
        """
        steps = self._step_number(to_s, UsageError)
        if steps < self._steps:
            raise UsageError(f"the clock stands at {self.now_s} s, not before {to_s} s", hint="time goes forward only")
        while self._steps < steps:
            self._step()

    def commission(self, seconds: float) -> None:
        """Run the normal hour: advance by `seconds`, refused when an injection lies in it.

        Raises:
            UsageError: an injection would begin before the end.
        """
        until = self.now_s + seconds
        early = [e for e in self._trouble.truth() if e.start_s < until]
        if early:
            raise UsageError(
                f"{early[0].kind} on {early[0].container} begins at {early[0].start_s} s, while the profile is learnt",
                hint=f"schedule injections after {until} s",
            )
        self.advance(until)

    def _step(self) -> None:
        start_s, end_s = self.now_s, (self._steps + 1) * self.step_s
        operations = self._operations
        changes = operations.settle(end_s)
        restarted = self._trouble.heal(changes, operations.containers)
        setting = operations.setting(start_s, end_s, self.names, restarted)
        blocked_sources: dict[int, tuple[str, ...]] = {}
        for block in operations.blocks:
            if block.start_s < end_s and not block.excess_only:
                k = self._index[block.container]
                blocked_sources[k] = (*blocked_sources.get(k, ()), block.source)
        for k, rules in blocked_sources.items():
            setting.blocked[k] = 1 - float(self._sources.open_shares(k, rules).sum())
        disturbance, attackers = self._trouble.disturbance(start_s, end_s, operations.containers, operations.blocks)
        sample = self._physics.step(end_s, setting, disturbance)
        for killed in np.flatnonzero(sample.oom):
            operations.windows.append(Window(self.names[killed], end_s, end_s + OOM_RESTART_S))
        if self._steps == len(self._history):
            self._history = np.concatenate([self._history, np.full_like(self._history, np.nan)])
        self._history[self._steps] = sample.metrics
        self._usage.append(self._node_usage(end_s, setting.node, sample))
        self._traffic.append((sample, attackers, blocked_sources))
        self._steps += 1

    # What is measured.

    def window(self, *, end_s: float, length: int) -> TelemetryWindow:
        """The `length` samples up to and including the one at `end_s`.

        Raises:
            InputError: before the first sample, after the last, between two, or `length` not positive.
        """
        last = self._step_number(end_s, InputError)
        if length < 1 or length > last or last > self._steps:
            raise InputError(
                f"window of {length} samples up to {end_s} s, but there are {self._steps}, one each {self.step_s} s",
                hint="ask for at least one sample, and only for what was measured",
            )
        values = self._history[last - length : last].transpose(1, 0, 2).copy()
        return TelemetryWindow(
            containers=self.names, services=self._services, end_s=end_s, step_s=self.step_s, values=values
        )

    def node_usage(self, at_s: float) -> tuple[NodeUsage, ...]:
        """Aggregates of the nodes then in service.

        Raises:
            InputError: no sample at that moment.
        """
        return self._usage[self._sample_number(at_s)]

    def flows(self, containers: Sequence[str], at_s: float) -> Mapping[str, tuple[FlowShare, ...]]:
        """Shares of traffic by source, largest first; nothing for a container that nobody reached.

        Raises:
            NotFoundError: no such container.
            InputError: no sample at that moment.
        """
        sample, attackers, blocked = self._traffic[self._sample_number(at_s)]
        shares = {}
        for name in containers:
            if name not in self._index:
                raise NotFoundError(f"there is no container {name!r}", hint="the topology lists those that exist")
            k = self._index[name]
            shares[name] = self._sources.flows(
                k,
                normal_rps=float(sample.normal_rps[k]),
                failed_rps=float(sample.normal_failed_rps[k]),
                attackers=attackers.get(k, []),
                attack_failed_rps=float(sample.attack_failed_rps[k]),
                blocked=blocked.get(k, ()),
            )
        return shares

    def topology(self) -> Topology:
        """What runs where, now."""
        return self._operations.topology()

    @property
    def spare_nodes(self) -> tuple[Node, ...]:
        """Nodes that are not in service yet."""
        return tuple(self._operations.spare_nodes)

    # What goes wrong, and what is done.

    def inject(self, injection: Injection) -> None:
        """Schedule an injection; see `Trouble.add` for what is refused."""
        self._trouble.add(injection, now_s=self.now_s)

    def truth(self) -> tuple[LabelledEvent, ...]:
        """What was injected, ended early where an action healed it."""
        return self._trouble.truth()

    def affected(self, event: LabelledEvent) -> tuple[str, ...]:
        """The containers in which an event shows: its own, those that it calls, and those that call it.

        Only the first is anomalous in the truth; an alarm on the others is explained by propagation, not false.
        """
        own = self._operations.containers[event.container]
        callers = [c.name for c in self.scenario.topology.containers if event.container in c.depends_on]
        return (event.container, *dict.fromkeys((*own.depends_on, *callers)))

    def apply(self, instruction: Instruction) -> ActionOutcome:
        """Carry out an instruction: accepted now, finished in the virtual future (`finished_at_s`).

        A key that was carried out before gets the first outcome again, without effect.

        Raises:
            NotFoundError: unknown container, or a target that is not in service.
            ActionError: no capacity, no link, same node, another operation under way, a value out of range.
            ConflictError: the key was used for another instruction.
        """
        k = self._index.get(instruction.container)
        return self._operations.apply(instruction, now_s=self.now_s, rss_bytes=self._rss(k) if k is not None else 0.0)

    def withdraw(self, key: str) -> ActionOutcome:
        """End what the flow alert of that key put in place, at once; harmless when there is nothing."""
        return self._operations.withdraw(key, now_s=self.now_s)

    def apply_together(self, instructions: Sequence[Migrate]) -> tuple[ActionOutcome, ...]:
        """Carry out the migrations of one service as its schedule says: accepted now, all or none, as `apply`.

        Raises:
            NatworkError: as `apply` for one of them, or there is no such schedule; nothing was accepted.
        """
        return self._operations.apply_together(
            instructions, now_s=self.now_s, rss_bytes=lambda name: self._rss(self._index[name])
        )

    def measure(self, container: str, target: str) -> ContainerLoad:
        """What an agent would measure before it moved the container to `target` now; nothing changes.

        Raises:
            NotFoundError: unknown container, or a target that is not in service.
            ActionError: it runs there already, or there is no link.
        """
        k = self._index.get(container)
        return self._operations.measure(
            container, target, now_s=self.now_s, rss_bytes=self._rss(k) if k is not None else 0.0
        )

    def effects(self, key: str) -> int:
        """How often the instruction of that key had an effect on the world: 0 or 1."""
        return self._operations.effects(key)

    def migrations(self) -> tuple[MigrationRecord, ...]:
        """Records of all live migrations so far, oldest first; one under way is `running`, as far as it has got."""
        return self._operations.migrations(self.now_s)

    def digest(self) -> str:
        """SHA-256 (hex) over clock, placement, limits, rules, everything under way, truth and all samples so far."""
        operations, state = self._operations, hashlib.sha256()
        state.update(f"{self.scenario.name} {self.seed} {self._steps}".encode())
        state.update(encode(operations.topology()))
        for part in (
            sorted(operations.mesh),
            operations.blocks,
            operations.windows,
            operations.moves,
            operations.pending,
            sorted(operations.outcomes.items()),
            self._trouble.truth(),
        ):
            state.update(repr(part).encode())
        state.update(np.ascontiguousarray(self._history[: self._steps]).tobytes())
        return state.hexdigest()

    # Inside.

    def _rss(self, k: int) -> float:
        """Resident bytes per replica as last measured; before the first sample, as the profile says."""
        past = self._history[max(0, self._steps - 6) : self._steps, k, _RSS]
        known = past[~np.isnan(past)]
        return float(known[-1]) if len(known) else self.scenario.profiles[self.names[k]].rss_bytes

    def _step_number(self, at_s: float, error: type[InputError] | type[UsageError]) -> int:
        if not math.isfinite(at_s) or abs(at_s / self.step_s - round(at_s / self.step_s)) > 1e-6:
            raise error(f"time {at_s} s is not a sample's", hint=f"give a multiple of {self.step_s} s")
        return round(at_s / self.step_s)

    def _sample_number(self, at_s: float) -> int:
        number = self._step_number(at_s, InputError)
        if not 1 <= number <= self._steps:
            raise InputError(f"no sample at {at_s} s", hint=f"samples lie between {self.step_s} and {self.now_s} s")
        return number - 1

    def _node_usage(self, at_s: float, node: NDArray[np.int64], sample: Sample) -> tuple[NodeUsage, ...]:
        m = len(self._node_names)
        count = np.bincount(node, minlength=m)
        sums = {
            name: np.bincount(node, weights=values, minlength=m)
            for name, values in (
                ("cpu", sample.cpu_cores), ("memory", sample.memory_bytes), ("rx", sample.rx), ("tx", sample.tx),
            )
        }  # fmt: skip
        usage = []
        for entry in self._operations.nodes:
            j = self._node_names.index(entry.name)
            cpu, memory = float(sums["cpu"][j]), float(sums["memory"][j])
            usage.append(
                NodeUsage(
                    node=entry.name, at_s=at_s, containers=int(count[j]), cpu_cores_used=cpu,
                    cpu_fraction=cpu / entry.cpu_cores, memory_bytes_used=memory,
                    memory_fraction=memory / entry.memory_bytes, network_rx_bytes_per_s=float(sums["rx"][j]),
                    network_tx_bytes_per_s=float(sums["tx"][j]),
                )
            )  # fmt: skip
        return tuple(usage)


def _rtts(topology: Topology, nodes: Sequence[str]) -> NDArray[np.float64]:
    rtt = np.full((len(nodes), len(nodes)), _ROUTED_RTT_S)
    np.fill_diagonal(rtt, _LOCAL_RTT_S)
    position = {name: i for i, name in enumerate(nodes)}
    for link in topology.links:
        a, b = position[link.a], position[link.b]
        rtt[a, b] = rtt[b, a] = link.rtt_s
    return rtt
