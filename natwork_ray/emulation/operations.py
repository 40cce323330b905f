"""Instructions carried out in the emulated world: what is possible, how long it takes, and what it changes.

Rules kept: a container is on exactly one node at any time; limits promised on a node never exceed it, and during a
migration both nodes hold the container's share; a key has one effect; one operation at a time for a container.
Durations are drawn from a stream of the key, so that the order of actions does not change how long each takes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from natwork_ray.control.service_moves import never_begun
from natwork_ray.domain.actions import (
    ActionOutcome,
    AddNode,
    BlockSource,
    FlowAlert,
    Instruction,
    MeshRetry,
    Migrate,
    Phase,
    Restart,
    Scale,
    SetLimits,
)
from natwork_ray.domain.flow_alerts import FlowAdvice
from natwork_ray.domain.migrations import ContainerLoad, MigrationRecord, MigrationState
from natwork_ray.domain.topology import Container, Link, Node, Topology
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.injections import parse_source
from natwork_ray.emulation.migration_nodes import OBSERVE_S
from natwork_ray.emulation.moves import Moves, downtime_from_s, main_phases, settled_at_s, truth_of
from natwork_ray.emulation.physics import Setting
from natwork_ray.emulation.scenarios import Scenario
from natwork_ray.emulation.services import ServiceProfile
from natwork_ray.errors import ActionError, ConflictError, InputError, NotFoundError
from natwork_ray.limi.agent import outcome_of
from natwork_ray.limi.choosing import ByEquations, MethodChooser
from natwork_ray.limi.phase_times import DEFAULT_PARAMETERS

# Seconds: median and the most that is drawn (lognormal, sigma 0.25). CubeMig measured 1.8 s until a pod is ready.
RESTART_S = (2.4, 5.0)
START_REPLICA_S = (4.0, 9.0)
BOOT_NODE_S = (45.0, 90.0)
CONTROL_PLANE_S = (0.3, 1.0)  # limits, mesh and firewall rules
_SIGMA = 0.25
_MOST_REPLICAS = 64


@dataclass(frozen=True)
class Window:
    """A stretch of time in which a container is out of service, or degraded (fetching pages on demand)."""

    container: str
    start_s: float
    end_s: float
    degraded: bool = False

    def share(self, start_s: float, end_s: float) -> float:
        """The part of (start_s, end_s] that lies in this window."""
        return max(0.0, min(end_s, self.end_s) - max(start_s, self.start_s)) / (end_s - start_s)


@dataclass(frozen=True)
class Block:
    """A rule of the firewall, or of the network when an alert's `key` is given.

    `excess_only`: what a source sends beyond its usual share is dropped. That ends an attack, whose source usually
    sends nothing, and leaves the users of a network as they are.
    """

    container: str
    source: str
    start_s: float
    expires_at_s: float
    key: str = ""
    excess_only: bool = False


@dataclass(frozen=True)
class Change:
    """Something that an accepted instruction will have changed at `at_s`."""

    at_s: float
    instruction: Instruction


@dataclass(frozen=True)
class Move:
    """A migration under way: both nodes hold the container's share until `end_s`."""

    container: str
    source: str
    target: str
    end_s: float


class Operations:
    """Placement, limits, rules, and everything under way."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        seed: int,
        chooser: MethodChooser | None = None,
        weight: float = DEFAULT_PARAMETERS.total_weight,
        observe_s: float = OBSERVE_S,
    ) -> None:
        self._seed = seed
        self._played = Moves(seed=seed, chooser=chooser or ByEquations(), weight=weight, observe_s=observe_s)
        self._slices = scenario.topology.slices
        self._links: tuple[Link, ...] = scenario.topology.links
        self.nodes: list[Node] = list(scenario.topology.nodes)
        self.spare_nodes: list[Node] = list(scenario.spare_nodes)
        self.containers: dict[str, Container] = {c.name: c for c in scenario.topology.containers}
        self._profiles: Mapping[str, ServiceProfile] = scenario.profiles
        self._node_index = {n.name: i for i, n in enumerate((*scenario.topology.nodes, *scenario.spare_nodes))}
        self.mesh: set[str] = set()
        self.blocks: list[Block] = []
        self.windows: list[Window] = []
        self.moves: list[Move] = []
        self.pending: list[Change] = []
        self.outcomes: dict[str, tuple[Instruction, ActionOutcome]] = {}
        self._effects: dict[str, int] = {}
        self._dirty = True
        self._arrays: tuple[NDArray[np.float64], ...] = ()

    # What is there.

    def topology(self) -> Topology:
        """What runs where, now."""
        return Topology(
            nodes=tuple(self.nodes), links=self._links, slices=self._slices, containers=tuple(self.containers.values())
        )

    def effects(self, key: str) -> int:
        """How often the instruction with that key changed the world."""
        return self._effects.get(key, 0)

    def free(self, node: str) -> tuple[float, float]:
        """CPU cores and bytes of memory on a node that nobody holds, operations under way included."""
        entry = next(n for n in self.nodes if n.name == node)
        cores, memory = entry.cpu_cores, entry.memory_bytes
        for c in self.containers.values():
            holds = c.node == node or any(m.container == c.name and node in (m.source, m.target) for m in self.moves)
            if holds:
                replicas, limit, bytes_ = self._claim(c)
                cores -= replicas * limit
                memory -= replicas * bytes_
        return cores, memory

    def _claim(self, c: Container) -> tuple[int, float, float]:
        """Replicas and limits, the larger of those in force and those on the way."""
        replicas, cores, memory = c.replicas, c.cpu_limit_cores, c.memory_limit_bytes
        for change in self.pending:
            i = change.instruction
            if i.container == c.name and isinstance(i, Scale):
                replicas = max(replicas, i.replicas)
            elif i.container == c.name and isinstance(i, SetLimits):
                cores = max(cores, i.cpu_limit_cores or 0.0)
                memory = max(memory, i.memory_limit_bytes or 0.0)
        return replicas, cores, memory

    def migrations(self, now_s: float) -> tuple[MigrationRecord, ...]:
        """Records of all migrations so far, those under way as far as they have got."""
        return self._played.records(now_s)

    # Carrying out.

    def apply(self, instruction: Instruction, *, now_s: float, rss_bytes: float) -> ActionOutcome:
        """Accept an instruction; its effect follows on the clock. See `Testbed.apply`."""
        known = self._carried_out(instruction)
        if known is not None:
            return known
        # Nothing is done to the container itself by what the network is told, so it need not be idle.
        alert = isinstance(instruction, FlowAlert)
        container = self._known(instruction.container) if alert else self._idle(instruction.container)
        rng = np.random.default_rng([self._seed, zlib.crc32(instruction.key.encode())])
        match instruction:
            case Migrate():
                outcome = self._migrate(instruction, container, now_s, rss_bytes)
            case Scale():
                outcome = self._scale(instruction, container, now_s, rng)
            case SetLimits():
                outcome = self._set_limits(instruction, container, now_s, rng)
            case Restart():
                outcome = self._restart(instruction, container, now_s, rng)
            case AddNode():
                outcome = self._add_node(instruction, now_s, rng)
            case MeshRetry():
                detail = f"retries of {container.name} {'on' if instruction.enabled else 'off'}"
                outcome = self._later(instruction, now_s, _lasts(CONTROL_PLANE_S, rng), "mesh", detail)
            case BlockSource():
                outcome = self._block(instruction, container, now_s, rng)
            case FlowAlert():
                outcome = self._alert(instruction, container, now_s, rng)
        self._note(instruction, outcome)
        return outcome

    def apply_together(
        self, instructions: Sequence[Migrate], *, now_s: float, rss_bytes: Callable[[str], float]
    ) -> tuple[ActionOutcome, ...]:
        """Accept the migrations of one service, all or none; see `Testbed.apply_together`."""
        known = [self._carried_out(i) for i in instructions]
        if all(known):
            return tuple(outcome for outcome in known if outcome is not None)
        claims: dict[str, tuple[float, float]] = {}
        profiles = {}
        for i in instructions:
            c = self._idle(i.container)
            self._source_is(i, c)
            self._way(c, i.target)
            cores, memory = claims.get(i.target, (0.0, 0.0))
            claims[i.target] = cores + c.replicas * c.cpu_limit_cores, memory + c.replicas * c.memory_limit_bytes
            profiles[c.name] = truth_of(c, self._profiles[c.name], rss_bytes=rss_bytes(c.name))
        for target, (cores, memory) in claims.items():
            self._need(target, cores, memory, "move the service")
        records = self._played.play_together(instructions, self.topology(), profiles, now_s=now_s)
        outcomes = []
        for i in instructions:
            record = records.get(i.key)
            outcome = never_begun(i, now_s, Backend.EMULATED) if record is None else self._moved(i, record)
            self._note(i, outcome)
            outcomes.append(outcome)
        return tuple(outcomes)

    def _carried_out(self, instruction: Instruction) -> ActionOutcome | None:
        known = self.outcomes.get(instruction.key)
        if known is not None and known[0] != instruction:
            raise ConflictError(
                f"key {instruction.key} was used for another instruction", hint="a new instruction needs a new key"
            )
        return None if known is None else known[1]

    def _note(self, instruction: Instruction, outcome: ActionOutcome) -> None:
        self.outcomes[instruction.key] = (instruction, outcome)
        self._effects[instruction.key] = 1 + self._effects.get(instruction.key, 0)

    def _idle(self, name: str) -> Container:
        """The container, if nothing is being done to it."""
        container = self._known(name)
        # A spare node boots for everybody, whoever asked for it; the network is not the container.
        if any(
            p.instruction.container == container.name and not isinstance(p.instruction, AddNode | FlowAlert)
            for p in self.pending
        ) or any(m.container == container.name for m in self.moves):
            raise ActionError(
                f"an operation on {container.name} is under way", hint="wait until it has finished, then try again"
            )
        return container

    def _later(
        self, instruction: Instruction, now_s: float, lasts_s: float, phase: str, detail: str, downtime_s: float = 0.0
    ) -> ActionOutcome:
        self.pending.append(Change(now_s + lasts_s, instruction))
        return ActionOutcome(
            key=instruction.key, done=True, started_at_s=now_s, finished_at_s=now_s + lasts_s, downtime_s=downtime_s,
            backend=Backend.EMULATED, detail=detail, phases=(Phase(name=phase, duration_s=lasts_s),),
        )  # fmt: skip

    def _migrate(self, i: Migrate, c: Container, now_s: float, rss_bytes: float) -> ActionOutcome:
        """See `natwork_ray.emulation.moves`: what other migrations have still to send slows this one, not them."""
        self._source_is(i, c)
        link = self._way(c, i.target)
        cores, memory = c.replicas * c.cpu_limit_cores, c.replicas * c.memory_limit_bytes
        self._need(i.target, cores, memory, f"move {c.name}")
        profile = truth_of(c, self._profiles[c.name], rss_bytes=rss_bytes)
        record = self._played.play(i, c, profile, link, now_s=now_s)
        if record.state is not MigrationState.MIGRATED:
            raise ActionError(record.error, hint=record.hint or "try again, or choose another target")
        return self._moved(i, record)

    def _moved(self, i: Migrate, record: MigrationRecord) -> ActionOutcome:
        """What a migration that was begun does to the world."""
        down_s = downtime_from_s(record)
        up_s, end_s = down_s + record.downtime_s, record.started_at_s + record.total_s
        self.windows.append(Window(i.container, down_s, up_s))
        self.moves.append(Move(i.container, i.source, i.target, settled_at_s(record)))
        if record.state is not MigrationState.MIGRATED:
            return outcome_of(record)
        if end_s > up_s:
            self.windows.append(Window(i.container, up_s, end_s, degraded=True))
        self.pending.append(Change(up_s, i))
        return ActionOutcome(
            key=i.key, done=True, started_at_s=record.started_at_s, finished_at_s=end_s, downtime_s=record.downtime_s,
            backend=Backend.EMULATED, phases=main_phases(record), record=record,
            detail=f"{i.container}: {i.source} -> {i.target} by {record.method} in {record.total_s:.1f} s",
        )  # fmt: skip

    @staticmethod
    def _source_is(i: Migrate, c: Container) -> None:
        if i.source != c.node:
            raise ActionError(f"{c.name} runs on {c.node}, not on {i.source}", hint="read the topology again")

    def measure(self, container: str, target: str, *, now_s: float, rss_bytes: float) -> ContainerLoad:
        """See `Testbed.measure`."""
        c = self._known(container)
        profile = truth_of(c, self._profiles[c.name], rss_bytes=rss_bytes)
        return self._played.measure(c, profile, self._way(c, target), target, now_s=now_s)

    def _way(self, c: Container, target: str) -> Link:
        if target == c.node:
            raise ActionError(f"{c.name} runs on {c.node} already", hint="name another node as target")
        if all(n.name != target for n in self.nodes):
            raise NotFoundError(
                f"there is no node {target!r} in service", hint="add_node brings a spare one into service"
            )
        link = self.topology().link(c.node, target)
        if link is None:
            raise ActionError(f"no link between {c.node} and {target}", hint="choose a target with a direct link")
        return link

    def _known(self, name: str) -> Container:
        container = self.containers.get(name)
        if container is None:
            raise NotFoundError(f"there is no container {name!r}", hint="the topology lists those that exist")
        return container

    def _scale(self, i: Scale, c: Container, now_s: float, rng: np.random.Generator) -> ActionOutcome:
        if not 1 <= i.replicas <= _MOST_REPLICAS:
            raise ActionError(f"{c.name} with {i.replicas} replicas", hint=f"1 to {_MOST_REPLICAS}")
        more = i.replicas - c.replicas
        if more > 0:
            self._need(c.node, more * c.cpu_limit_cores, more * c.memory_limit_bytes, f"scale {c.name}")
        lasts = _lasts(START_REPLICA_S if more > 0 else CONTROL_PLANE_S, rng)
        return self._later(i, now_s, lasts, "scale", f"{c.name}: {c.replicas} -> {i.replicas} replicas")

    def _set_limits(self, i: SetLimits, c: Container, now_s: float, rng: np.random.Generator) -> ActionOutcome:
        for name, value in (("cpu_limit_cores", i.cpu_limit_cores), ("memory_limit_bytes", i.memory_limit_bytes)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ActionError(f"{c.name} with {name} = {value}", hint="a limit is finite and above zero")
        cores = (i.cpu_limit_cores or c.cpu_limit_cores) - c.cpu_limit_cores
        memory = (i.memory_limit_bytes or c.memory_limit_bytes) - c.memory_limit_bytes
        self._need(c.node, max(cores, 0) * c.replicas, max(memory, 0) * c.replicas, f"raise the limits of {c.name}")
        return self._later(i, now_s, _lasts(CONTROL_PLANE_S, rng), "limits", f"{c.name}: limits set")

    def _restart(self, i: Restart, c: Container, now_s: float, rng: np.random.Generator) -> ActionOutcome:
        lasts = _lasts(RESTART_S, rng)
        self.windows.append(Window(c.name, now_s, now_s + lasts))
        return self._later(i, now_s, lasts, "restart", f"{c.name} restarted in {lasts:.1f} s", lasts)

    def _add_node(self, i: AddNode, now_s: float, rng: np.random.Generator) -> ActionOutcome:
        booting = sum(isinstance(p.instruction, AddNode) for p in self.pending)
        if booting >= len(self.spare_nodes):
            raise ActionError("no spare node is left", hint="free capacity on the nodes in service instead")
        spare = self.spare_nodes[booting]
        return self._later(i, now_s, _lasts(BOOT_NODE_S, rng), "boot", f"{spare.name} comes into service")

    def _block(self, i: BlockSource, c: Container, now_s: float, rng: np.random.Generator) -> ActionOutcome:
        _check_rule(i.source, i.expires_at_s, c, now_s)
        detail = f"{i.source} to {c.name} dropped until {i.expires_at_s:.0f} s"
        return self._later(i, now_s, _lasts(CONTROL_PLANE_S, rng), "rule", detail)

    def _alert(self, i: FlowAlert, c: Container, now_s: float, rng: np.random.Generator) -> ActionOutcome:
        for suspect in i.sources:
            _check_rule(suspect.source, i.expires_at_s, c, now_s)
        detail = f"{i.advice} for {len(i.sources)} source(s) to {c.name} until {i.expires_at_s:.0f} s"
        return self._later(i, now_s, _lasts(CONTROL_PLANE_S, rng), "flow rules", detail)

    def withdraw(self, key: str, *, now_s: float) -> ActionOutcome:
        """See `Testbed.withdraw`."""
        before = len(self.blocks) + len(self.pending)
        self.blocks = [b for b in self.blocks if b.key != key]
        self.pending = [
            p for p in self.pending if not (isinstance(p.instruction, FlowAlert) and p.instruction.key == key)
        ]
        gone = before - len(self.blocks) - len(self.pending)
        return ActionOutcome(
            key=key, done=True, started_at_s=now_s, finished_at_s=now_s, downtime_s=0.0, backend=Backend.EMULATED,
            detail=f"{gone} rule(s) of {key} withdrawn" if gone else f"nothing of {key} was in place",
        )  # fmt: skip

    def _need(self, node: str, cores: float, memory: float, what: str) -> None:
        if cores <= 0 and memory <= 0:
            return
        free_cores, free_memory = self.free(node)
        if cores > free_cores + 1e-9 or memory > free_memory + 1:
            raise ActionError(
                f"{node} has {free_cores:.2f} cores and {free_memory / 2**20:.0f} MiB free, to {what} takes "
                f"{cores:.2f} cores and {memory / 2**20:.0f} MiB",
                hint="choose another node, ask for less, or add a node",
            )

    # Passing of time.

    def settle(self, now_s: float) -> list[Change]:
        """Make every change that is due, in the order of time, and forget what is over. Returns the changes made."""
        due = sorted((p for p in self.pending if p.at_s <= now_s), key=lambda p: (p.at_s, p.instruction.key))
        if due:
            self.pending = [p for p in self.pending if p.at_s > now_s]
            self._dirty = True
        for change in due:
            self._change(change)
        self.moves = [m for m in self.moves if m.end_s > now_s]
        self.blocks = [b for b in self.blocks if b.expires_at_s > now_s]
        return due

    def _change(self, change: Change) -> None:
        i = change.instruction
        c = self.containers[i.container]
        match i:
            case Migrate():
                self.containers[c.name] = replace(c, node=i.target)
            case Scale():
                self.containers[c.name] = replace(c, replicas=i.replicas)
            case SetLimits():
                self.containers[c.name] = replace(
                    c,
                    cpu_limit_cores=i.cpu_limit_cores or c.cpu_limit_cores,
                    memory_limit_bytes=i.memory_limit_bytes or c.memory_limit_bytes,
                )
            case AddNode():
                self.nodes.append(self.spare_nodes.pop(0))
            case MeshRetry():
                (self.mesh.add if i.enabled else self.mesh.discard)(c.name)
            case BlockSource():
                self.blocks.append(Block(c.name, i.source, change.at_s, i.expires_at_s))
            case FlowAlert():
                if i.advice is not FlowAdvice.INSPECT:
                    limited = i.advice is FlowAdvice.RATE_LIMIT
                    self.blocks += [
                        Block(c.name, s.source, change.at_s, i.expires_at_s, i.key, limited) for s in i.sources
                    ]
            case Restart():
                pass  # what it clears is the Testbed's to know

    def setting(self, start_s: float, end_s: float, names: Sequence[str], restarted: frozenset[str]) -> Setting:
        """The world's settings for one step, as arrays in the order of `names`; `blocked` is left at 0."""
        n = len(names)
        if self._dirty:
            ordered = [self.containers[name] for name in names]
            self._arrays = (
                np.array([c.replicas for c in ordered], float),
                np.array([c.cpu_limit_cores for c in ordered], float),
                np.array([c.memory_limit_bytes for c in ordered], float),
                np.array([self._node_index[c.node] for c in ordered], float),
                np.array([name in self.mesh for name in names], float),
            )
            self._dirty = False
        replicas, cpu, memory, node, mesh = self._arrays
        outage, degraded = np.zeros(n), np.zeros(n)
        self.windows = [w for w in self.windows if w.end_s > start_s]
        for window in self.windows:
            share = window.share(start_s, end_s)
            (degraded if window.degraded else outage)[names.index(window.container)] += share
        return Setting(
            replicas=replicas, cpu_limit=cpu, memory_limit=memory, node=node.astype(np.int64), mesh=mesh > 0,
            outage=np.minimum(outage, 1.0), degraded=np.minimum(degraded, 1.0),
            restarted=np.array([name in restarted for name in names]), blocked=np.zeros(n),
        )  # fmt: skip


def _check_rule(source: str, expires_at_s: float, c: Container, now_s: float) -> None:
    try:
        network = parse_source(source)
    except InputError as error:
        raise ActionError(error.what, hint=error.hint) from error
    if network.prefixlen == 0:
        raise ActionError(f"blocking {source} cuts {c.name} off", hint="name the attacking network only")
    if not (math.isfinite(expires_at_s) and expires_at_s > now_s):
        raise ActionError(f"a rule that expires at {expires_at_s} s", hint=f"it must lie after {now_s} s")


def _lasts(range_s: tuple[float, float], rng: np.random.Generator) -> float:
    median, most = range_s
    return float(min(median * math.exp(_SIGMA * rng.standard_normal()), most))
