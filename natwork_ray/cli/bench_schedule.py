"""`natwork bench schedule`: do interdependent containers arrive together, and what does moving them cost their users?

Random services of 2 to 16 containers, on random nodes and links, with loads of the 34 classes, move in the emulated
laboratory: once as `natwork_ray.limi.schedule` says, once all at once, once one by one, and with the schedule held at
fewer gates. The laboratory is not the model of the planner: it runs the very state machine and driver of real
migrations step by step, with noise on each phase, and the planner sees measurements (with their errors) and forecasts
made before. All ways of a service have the same dice. Times of arrival and of not being served are taken from the
laboratory's own log.

    spread       (last arrival - first arrival) / the longest migration of the service alone on its path, in per cent
    disruption   see `natwork_ray.limi.disruption`
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from natwork_ray.domain.migrations import MigrationOutlook, MigrationRecord, MigrationState
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.topology import Container, Link, Node, NodeRole, Topology
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.lab_runtime import LabRuntime
from natwork_ray.emulation.lab_transfer import LabBridge, LabJournal, LabTransfer
from natwork_ray.emulation.lab_values import ContainerProfile, LabContainer, LabNode
from natwork_ray.emulation.migration_lab import MigrationLab
from natwork_ray.errors import ActionError
from natwork_ray.limi.choosing import ByEquations, MethodChooser
from natwork_ray.limi.conduct import Conductor, OneByOne, ScheduleRun, StartTogether
from natwork_ray.limi.disruption import Move, measure
from natwork_ray.limi.driver import drive
from natwork_ray.limi.load_classes import FEASIBLE_CLASSES, draw_load
from natwork_ray.limi.node import LimiNode
from natwork_ray.limi.phase_times import DEFAULT_PARAMETERS
from natwork_ray.limi.schedule import plan
from natwork_ray.limi.service_driver import Escort, carry_out
from natwork_ray.limi.service_members import plan_service
from natwork_ray.limi.service_plan import Disruption, Gate, OnFailure, ScheduleRequest
from natwork_ray.limi.steps import MigrationStarted

SMALLEST, LARGEST = 2, 16
PLANNED = 64
OBSERVE_S = 1.0
RESAMPLES = 2000
# Slower than an edge site's uplink and faster than ten gigabit are left out; drawn evenly in the logarithm.
_BANDWIDTH = (25e6, 1.25e9)
_RTT_S = (0.0003, 0.004)
_CLIENTS_MOST = 0.6  # of a link, for the clients of all containers at either end

WAYS: dict[str, tuple[Gate, ...] | None] = {
    "ours": tuple(Gate),
    "freeze_and_restore_gates": (Gate.FREEZE, Gate.RESTORE),
    "start_times_only": (),
    "together": None,
    "one_by_one": None,
}


@dataclass(frozen=True)
class RandomService:
    """A service and where it is to go. `profiles` hold the truth about each container, by name."""

    topology: Topology
    profiles: Mapping[str, ContainerProfile]
    targets: Mapping[str, str]


@dataclass(frozen=True)
class WayTaken:
    """One service moved in one way. `arrivals_s` and `totals_s` by container, from the start of the move."""

    arrivals_s: Mapping[str, float]
    totals_s: Mapping[str, float]
    disruption: Disruption

    @property
    def spread_s(self) -> float:
        """Between the first and the last arrival."""
        return max(self.arrivals_s.values()) - min(self.arrivals_s.values())


def run(services: int, *, seed: int, bar: Any, chooser: MethodChooser | None = None) -> dict[str, Any]:
    """Move every service in every way; a document for JSON."""
    chooser = chooser or ByEquations()
    task = bar.add_task("moving services", total=services)
    taken: dict[str, list[WayTaken]] = {way: [] for way in WAYS}
    sizes: list[int] = []
    for number in range(services):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        service = draw_service(rng, int(rng.integers(SMALLEST, LARGEST + 1)))
        sizes.append(len(service.profiles))
        dice = int(rng.integers(2**32))
        for way, gates in WAYS.items():
            taken[way].append(move(service, way, gates, seed=dice, chooser=chooser))
        bar.advance(task)
    longest = [max(way.totals_s.values()) for way in taken["one_by_one"]]
    spreads = {
        way: 100 * np.array([one.spread_s / base for one, base in zip(ways, longest, strict=True)])
        for way, ways in taken.items()
    }
    totals = {way: np.array([one.disruption.total_s for one in ways]) for way, ways in taken.items()}
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(services, 1)))
    return {
        "backend": str(Backend.EMULATED),
        "seed": seed,
        "services": services,
        "containers": {"least": min(sizes), "most": max(sizes), "total": sum(sizes)},
        "arrival_spread_pct": _percentiles(spreads["ours"], rng),
        "arrival_spread_pct_of": {way: _percentiles(spread, rng) for way, spread in spreads.items() if way != "ours"},
        "disruption_s": {way: float(totals[way].mean()) for way in ("ours", "together", "one_by_one")},
        "disruption_s_of": {
            way: {
                "mean": float(values.mean()),
                "mean_ci95": _interval(values, np.mean, rng),
                "unavailable_mean": float(np.mean([one.disruption.unavailable_s for one in taken[way]])),
                "split_mean": float(np.mean([one.disruption.split_s for one in taken[way]])),
                "degraded_mean": float(np.mean([one.disruption.degraded_s for one in taken[way]])),
                "until_last_arrival_mean": float(np.mean([max(one.arrivals_s.values()) for one in taken[way]])),
            }
            for way, values in totals.items()
        },
        "least_disruption_share": {
            other: float(np.mean(totals["ours"] <= totals[other])) for other in totals if other != "ours"
        },
        "plan_64_s": time_plan(seed, chooser),
    }


COLUMNS = ("way", "p50_pct", "p95_pct", "disruption_s", "unavailable_s", "split_s")


def rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per way, for tables; percentiles are those of the spread."""
    spreads = {"ours": document["arrival_spread_pct"], **document["arrival_spread_pct_of"]}
    return [
        {
            "way": way,
            "p50_pct": spreads[way]["p50"],
            "p95_pct": spreads[way]["p95"],
            "disruption_s": found["mean"],
            "unavailable_s": found["unavailable_mean"],
            "split_s": found["split_mean"],
        }
        for way, found in document["disruption_s_of"].items()
    ]


def draw_service(rng: np.random.Generator, containers: int) -> RandomService:
    """A service whose containers stand on one to three nodes and move to one or two others.

    Container 0 is the entrance; every other one is called by one or two before it. All nodes are linked, each pair by
    a link of its own, which leaves at least two fifths to migrations when all clients of the containers at either end
    use it. Nodes have room for all.
    """
    sources = [f"edge-{i}" for i in range(int(rng.integers(1, 4)))]
    targets = [f"site-{i}" for i in range(int(rng.integers(1, 3)))]
    names = [*sources, *targets]
    calls: dict[int, list[int]] = {i: [] for i in range(containers)}
    for callee in range(1, containers):
        for caller in rng.choice(callee, size=min(callee, int(rng.integers(1, 3))), replace=False):
            calls[int(caller)].append(callee)
    placed, profiles, going = [], {}, {}
    for i in range(containers):
        load = draw_load(FEASIBLE_CLASSES[int(rng.integers(len(FEASIBLE_CLASSES)))], rng)
        name = f"c{i}"
        profiles[name] = ContainerProfile.of(load)
        going[name] = targets[int(rng.integers(len(targets)))]
        placed.append(
            Container(
                name=name,
                service=name,
                network_service="service",
                slice="",
                node=sources[int(rng.integers(len(sources)))],
                replicas=1,
                cpu_limit_cores=load.cpu_limit_cores,
                memory_limit_bytes=load.memory_bytes,
                depends_on=tuple(f"c{j}" for j in calls[i]),
            )
        )
    traffic = dict.fromkeys(names, 0.0)
    for container in placed:
        truth = profiles[container.name]
        for node in (container.node, going[container.name]):
            traffic[node] += truth.network_tx_bytes_per_s + truth.network_rx_bytes_per_s
    links = tuple(
        Link(
            a=a,
            b=b,
            bandwidth_bytes_per_s=max(_between(rng, _BANDWIDTH), max(traffic[a], traffic[b]) / _CLIENTS_MOST),
            rtt_s=_between(rng, _RTT_S),
        )
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    )
    nodes = tuple(Node(name=name, role=NodeRole.EDGE, cpu_cores=512.0, memory_bytes=2.0**41) for name in names)
    return RandomService(Topology(nodes=nodes, links=links, slices=(), containers=tuple(placed)), profiles, going)


def move(
    service: RandomService, way: str, gates: tuple[Gate, ...] | None, *, seed: int, chooser: MethodChooser
) -> WayTaken:
    """Move a service in a fresh laboratory with the dice `seed`."""
    lab = laboratory(service, seed)
    request, began_s, records = move_in(lab, service, way, gates, chooser=chooser)
    lost = [record for record in records.values() if record.state is not MigrationState.MIGRATED]
    if lost or len(records) != len(service.profiles) or lab.violations:
        raise ActionError(
            f"{way}: {len(lost)} of {len(service.profiles)} migrations failed: {[r.error for r in lost][:3]} "
            f"{lab.violations[:3]}",
            hint="no fault was injected: this is a bug",
        )
    return _judge(lab, request, began_s, records)


def move_in(
    lab: MigrationLab, service: RandomService, way: str, gates: tuple[Gate, ...] | None, *, chooser: MethodChooser
) -> tuple[ScheduleRequest, float, dict[str, MigrationRecord]]:
    """Measure, plan and move: what was planned with, when the move began, and what came of it."""
    hands = {name: _Hands(lab, name) for name in lab.nodes}

    async def moving() -> tuple[ScheduleRequest, float, dict[str, MigrationRecord]]:
        request = await _request(service, hands, gates or (), chooser)
        names = [m.container for m in request.members]
        methods = {m.container: m.forecast.method for m in request.members}
        conductor: Conductor
        if gates is not None:
            conductor = ScheduleRun(request, plan(request))
        else:
            conductor = StartTogether(names) if way == "together" else OneByOne(names)
        began_s = lab.now_s()
        records = await carry_out(conductor, names, _mover(service, hands, methods), clock=lab.clock)
        return request, began_s, records

    return lab.run(moving)


def time_plan(seed: int, chooser: MethodChooser) -> float:
    """Seconds of this machine that a plan of 64 containers takes: the median of five services, planned once each."""
    took = []
    for number in range(5):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, PLANNED)))
        service = draw_service(rng, PLANNED)
        lab = laboratory(service, seed)
        hands = {name: _Hands(lab, name) for name in lab.nodes}
        request = lab.run(partial(_request, service, hands, tuple(Gate), chooser))
        # In another order, so that nothing is taken over from the plan that came with the request.
        changed = replace(request, members=tuple(reversed(request.members)))
        begin = time.perf_counter()
        plan(changed)
        took.append(time.perf_counter() - begin)
    return float(np.median(took))


class _Hands:
    """One node of the laboratory with its LiMi agent's parts."""

    def __init__(self, lab: MigrationLab, name: str) -> None:
        self.lab = lab
        self.journal = LabJournal()
        self.runtime, self.transfer = LabRuntime(lab, name), LabTransfer(lab, name)
        self.limi = LimiNode(name, self.runtime, self.transfer, LabBridge(lab, name), self.journal, lab.clock)


def laboratory(service: RandomService, seed: int) -> MigrationLab:
    """The service in a laboratory of its own."""
    return MigrationLab(
        [LabNode(name=n.name, cpu_cores=n.cpu_cores, memory_bytes=n.memory_bytes) for n in service.topology.nodes],
        service.topology.links,
        [
            LabContainer(
                name=c.name, node=c.node, profile=service.profiles[c.name], service="service", depends_on=c.depends_on
            )
            for c in service.topology.containers
        ],
        seed=seed,
    )


async def _request(
    service: RandomService, hands: Mapping[str, _Hands], gates: tuple[Gate, ...], chooser: MethodChooser
) -> ScheduleRequest:
    """What can be known beforehand: every container measured, every path asked, every method forecast."""

    async def outlook(container: Container) -> MigrationOutlook:
        here, target = hands[container.node], service.targets[container.name]
        seen = await here.runtime.load(container.name, observe_s=OBSERVE_S)
        path = await here.transfer.open(target)
        load = replace(seen, bandwidth_bytes_per_s=path.bandwidth_bytes_per_s, rtt_s=path.rtt_s)
        choice = chooser.choose(load, tuple(MigrationMethod), weight=DEFAULT_PARAMETERS.total_weight)
        return MigrationOutlook(
            container=container.name,
            source=container.node,
            target=target,
            backend=Backend.EMULATED,
            weight=DEFAULT_PARAMETERS.total_weight,
            load=load,
            forecasts=choice.forecasts,
            chosen=choice.method,
            chosen_by=choice.chosen_by,
            reason=choice.reason,
        )

    outlooks = await asyncio.gather(*(outlook(c) for c in service.topology.containers))
    request, _ = plan_service("service", outlooks, service.topology, gates=gates, on_failure=OnFailure.BRING_BACK)
    return request


def _mover(
    service: RandomService, hands: Mapping[str, _Hands], methods: Mapping[str, MigrationMethod]
) -> Callable[[str, Escort], Any]:
    homes = {c.name: c.node for c in service.topology.containers}

    async def move_one(name: str, escort: Escort) -> MigrationRecord:
        source, target = hands[homes[name]], hands[service.targets[name]]
        start = MigrationStarted(
            at_s=source.lab.now_s(),
            key=f"move-{name}",
            container=name,
            source=homes[name],
            target=service.targets[name],
            method=methods[name],
            backend=Backend.EMULATED,
        )
        return await drive(
            start,
            source=source.limi,
            target=target.limi,
            journal=source.journal,
            clock=source.lab.clock,
            before=escort.before,
            cancelled=escort.cancelled,
        )

    return move_one


def _judge(
    lab: MigrationLab, request: ScheduleRequest, began_s: float, records: Mapping[str, MigrationRecord]
) -> WayTaken:
    """From the laboratory's log of who was served when."""
    moves, arrivals = [], {}
    for name in records:
        state = lab.state(name)
        down, since = [], None
        for at_s, served in state.served:
            if not served:
                since = at_s - began_s
            elif since is not None:
                down.append((since, at_s - began_s))
                since = None
        arrivals[name] = down[-1][1]
        degraded = tuple((max(a - began_s, arrivals[name]), b - began_s) for a, b in state.degraded)
        moves.append(Move(container=name, down=tuple(down), moved_s=arrivals[name], degraded=degraded))
    disruption = measure(moves, members=request.members, rtt_s=request.rtt_s, split_weight=request.split_weight)
    return WayTaken(arrivals, {name: record.total_s for name, record in records.items()}, disruption)


def _between(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]))))


def _percentiles(values: np.ndarray[Any, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
        "most": float(values.max()),
        "p50_ci95": _interval(values, lambda v: np.percentile(v, 50), rng),
        "p95_ci95": _interval(values, lambda v: np.percentile(v, 95), rng),
    }


def _interval(values: np.ndarray[Any, Any], figure: Callable[[Any], Any], rng: np.random.Generator) -> Sequence[float]:
    """Bootstrap over services."""
    drawn = [float(figure(rng.choice(values, size=len(values)))) for _ in range(RESAMPLES)]
    return [float(np.percentile(drawn, 2.5)), float(np.percentile(drawn, 97.5))]
