"""A run record such as the emulation makes, from a seed: twelve containers, 540 samples, every kind of story."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from natwork_ray.domain.actions import (
    ActionOutcome,
    BlockSource,
    Instruction,
    Migrate,
    MigrationMethod,
    Phase,
    Restart,
    Scale,
)
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict, Driver
from natwork_ray.domain.decisions import Alternative, Decision, DecisionStatus, MitigationKind, Mode
from natwork_ray.domain.labelled import LabelledEvent
from natwork_ray.domain.quota import QuotaAccount
from natwork_ray.domain.runs import DetectionScore, RunRecord
from natwork_ray.domain.telemetry import METRICS, N_METRICS, FlowShare, Metric, NodeUsage, TelemetryWindow
from natwork_ray.domain.topology import Container, Link, Node, NodeRole, Slice, Topology
from natwork_ray.domain.values import Backend

NAMES = (
    "camera-gateway",
    "video-analytics",
    "number-plates",
    "traffic-control",
    "parking",
    "amf",
    "smf",
    "upf",
    "user-db",
    "mqtt-broker",
    "time-series-db",
    "dashboard",
)
STEP_S = 10.0
STARTED_S = 3600.0

_STORY: tuple[tuple[int, AnomalyKind, float, float, Metric, MitigationKind], ...] = (
    (1, AnomalyKind.HIGH_CPU, 4000, 4500, Metric.CPU, MitigationKind.HORIZONTAL_SCALE),
    (8, AnomalyKind.HIGH_MEMORY, 4600, 5300, Metric.MEMORY_RSS, MitigationKind.MEMORY_LIMIT_RESTART),
    (7, AnomalyKind.NETWORK_LATENCY, 5400, 5900, Metric.LATENCY_P99, MitigationKind.TOPOLOGY_MOVE),
    (9, AnomalyKind.TRAFFIC_SPIKE, 6200, 6500, Metric.NETWORK_RX, MitigationKind.BLOCK_SOURCE),
    (3, AnomalyKind.UNKNOWN, 7000, 7400, Metric.THROUGHPUT, MitigationKind.MTD_MOVE),
    (4, AnomalyKind.STEP_LOAD, 8200, 8500, Metric.THROUGHPUT, MitigationKind.NOTIFY),
)


def make_record(
    seed: int = 7, *, names: tuple[str, ...] = NAMES, samples: int = 540, wall_s: float = 41.5
) -> RunRecord:
    """The record; equal arguments give equal records."""
    rng = np.random.default_rng(seed)
    ended_s = samples * STEP_S
    ended_s = max(ended_s, 9000.0)
    topology = _topology(names)
    values = _telemetry(rng, len(names), samples, ended_s)
    truth, verdicts, decisions, outcomes = [], [], [], []
    for number, (row, kind, start, end, metric, mitigation) in enumerate(_STORY):
        name = names[row % len(names)]
        truth.append(LabelledEvent(container=name, kind=str(kind), start_s=start, end_s=end))
        seen = [
            _verdict(rng, name, kind, metric, start + 20 + STEP_S * k) for k in range(int((end - start) / STEP_S) - 2)
        ]
        verdicts += [v for v in seen if rng.random() < 0.8]
        decision, outcome = _decision(f"d-{number + 1:06d}", seen[1], kind, mitigation, topology)
        decisions.append(decision)
        outcomes += outcome
    verdicts.append(_verdict(rng, names[0], AnomalyKind.FALSE_POSITIVE, Metric.ERRORS, 7900.0))
    used = {d.container: sum(o.downtime_s for o in outcomes if o.key.startswith(d.id)) for d in decisions}
    return RunRecord(
        scenario="smart-city",
        seed=seed,
        backend=Backend.EMULATED,
        mode=Mode.ACT,
        detector="two-stage 1D-CNN",
        started_s=STARTED_S,
        ended_s=ended_s,
        windows=len(names) * 540,
        topology_before=topology,
        topology_after=_moved(topology, names),
        telemetry=TelemetryWindow(
            containers=names, services=names, end_s=ended_s, step_s=ended_s / samples, values=values
        ),
        node_usage=_nodes(rng, topology, ended_s),
        truth=tuple(truth),
        verdicts=tuple(verdicts),
        decisions=tuple(decisions),
        outcomes=tuple(outcomes),
        quota=tuple(
            QuotaAccount(
                container=n,
                window_start_s=0.0,
                window_s=2_592_000.0,
                budget_s=1296.0,
                reserved_s=0.0,
                spent_s=used.get(n, 0.0),
            )
            for n in names
        ),
        score=DetectionScore(
            injected=6,
            detected=5,
            false_alarms=1,
            false_alarms_per_hour=2 / 3,
            mean_delay_s=31.0,
            precision=0.91,
            recall=0.78,
            f1=0.84,
        ),
        audit_entries=612,
        audit_root="5f" * 32,
        audit_verified=True,
        wall_s=wall_s,
    )


def _topology(names: tuple[str, ...]) -> Topology:
    nodes = tuple(
        Node(name=n, role=r, cpu_cores=8.0, memory_bytes=16 * 2.0**30)
        for n, r in (
            ("edge-0", NodeRole.EDGE),
            ("edge-1", NodeRole.EDGE),
            ("core-0", NodeRole.CORE),
            ("cloud-0", NodeRole.CLOUD),
        )
    )
    return Topology(
        nodes=nodes,
        links=(Link(a="edge-0", b="edge-1", bandwidth_bytes_per_s=1.25e8, rtt_s=0.002),),
        slices=(Slice(name="city", description="smart city"),),
        containers=tuple(
            Container(
                name=n,
                service=n,
                network_service="smart-city",
                slice="city",
                node=nodes[i % 4].name,
                replicas=2,
                cpu_limit_cores=1.0,
                memory_limit_bytes=512 * 2.0**20,
            )
            for i, n in enumerate(names)
        ),
    )


def _moved(topology: Topology, names: tuple[str, ...]) -> Topology:
    moved = [
        Container(**{**vars(c), "node": "edge-0", "replicas": 3}) if c.name == names[7 % len(names)] else c
        for c in topology.containers
    ]
    return Topology(nodes=topology.nodes, links=topology.links, slices=topology.slices, containers=tuple(moved))


def _telemetry(
    rng: np.random.Generator, containers: int, samples: int, ended_s: float
) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    t = np.linspace(0.0, ended_s, samples)
    day = 1 + 0.35 * np.sin(2 * np.pi * t / 7000)
    scale = np.array([4e4, 9e4, 1.4e8, 6e8, 0.35, 3e6, 5e6, 0.012, 0.035, 0.09, 120, 0.6])
    values = scale * day[None, :, None] * rng.lognormal(0, 0.13, (containers, samples, N_METRICS))
    for row, _, start, end, metric, _ in _STORY:
        inside = (t >= start) & (t <= end)
        values[row % containers, inside, METRICS.index(metric)] *= 2.4
    values[:, :, 4] = np.clip(values[:, :, 4], 0, 1)
    values[0, 30:40] = np.nan
    return values.astype(np.float32)


def _nodes(rng: np.random.Generator, topology: Topology, ended_s: float) -> tuple[NodeUsage, ...]:
    return tuple(
        NodeUsage(
            node=n.name,
            at_s=at,
            containers=3,
            cpu_cores_used=4.0,
            cpu_fraction=float(0.3 + 0.1 * i + 0.1 * np.sin(at / 1500) + 0.03 * rng.random()),
            memory_bytes_used=8e9,
            memory_fraction=0.4 + 0.05 * i,
            network_rx_bytes_per_s=1e6,
            network_tx_bytes_per_s=1e6,
        )
        for at in np.arange(STARTED_S, ended_s, 30.0).tolist()
        for i, n in enumerate(topology.nodes)
    )


def _verdict(rng: np.random.Generator, name: str, kind: AnomalyKind, metric: Metric, at_s: float) -> AnomalyVerdict:
    return AnomalyVerdict(
        container=name,
        at_s=at_s,
        score=float(rng.uniform(0.8, 1)),
        kind=kind if rng.random() < 0.9 else AnomalyKind.UNKNOWN,
        confidence=float(rng.uniform(0.6, 1)),
        drivers=(Driver(metric=metric, deviation=9.3), Driver(metric=Metric.LATENCY_P90, deviation=4.1)),
        flows=(FlowShare(source="203.0.113.7/32", request_share=0.7, failed_share=0.9),),
        observed={str(metric): 1.0},
    )


def _decision(
    key: str, verdict: AnomalyVerdict, kind: AnomalyKind, mitigation: MitigationKind, topology: Topology
) -> tuple[Decision, list[ActionOutcome]]:
    container = verdict.container
    source = next(c.node for c in topology.containers if c.name == container)
    target = "edge-0" if source != "edge-0" else "edge-1"
    choices: dict[MitigationKind, Instruction] = {
        MitigationKind.HORIZONTAL_SCALE: Scale(key=f"{key}/0", container=container, replicas=3),
        MitigationKind.MEMORY_LIMIT_RESTART: Restart(key=f"{key}/0", container=container),
        MitigationKind.TOPOLOGY_MOVE: Migrate(
            key=f"{key}/0",
            container=container,
            source=source,
            target=target,
            method=MigrationMethod.PRE_COPY,
        ),
        MitigationKind.BLOCK_SOURCE: BlockSource(
            key=f"{key}/0", container=container, source="203.0.113.7/32", expires_at_s=verdict.at_s + 1800
        ),
        MitigationKind.MTD_MOVE: Migrate(
            key=f"{key}/0",
            container=container,
            source=source,
            target=target,
            method=MigrationMethod.HYBRID,
        ),
    }
    instruction = choices.get(mitigation)
    failed = mitigation is MitigationKind.MTD_MOVE
    status = DecisionStatus.NOTED if instruction is None else DecisionStatus.FAILED if failed else DecisionStatus.DONE
    decision = Decision(
        id=key,
        at_s=verdict.at_s,
        container=container,
        mode=Mode.ACT,
        status=status,
        verdict=verdict,
        kind=kind,
        mitigation=mitigation,
        reason=f"{kind} on {container} (stage 1 {verdict.score:.2f}): {mitigation}: as the catalogue says",
        predicted_downtime_s=0.9 if instruction and instruction.type == "migrate" else 0.0,
        instructions=(instruction,) if instruction else (),
        rejected=(
            Alternative(
                mitigation=MitigationKind.VERTICAL_CPU,
                feasible=True,
                utility=0.41,
                predicted_downtime_s=0.0,
                reason="raises the CPU limit; utility 0.41 below 0.62",
            ),
            Alternative(
                mitigation=MitigationKind.CLUSTER_SCALE,
                feasible=False,
                utility=0.0,
                predicted_downtime_s=0.0,
                reason="replicas still find room on edge-0",
            ),
        ),
    )
    if instruction is None:
        return decision, []
    move = instruction.type == "migrate"
    downtime = {"migrate": 0.62, "restart": 3.4}.get(instruction.type, 0.0)
    return decision, [
        ActionOutcome(
            key=instruction.key,
            done=not failed,
            started_at_s=verdict.at_s,
            finished_at_s=verdict.at_s + (14.2 if move else 2.0),
            downtime_s=0.0 if failed else downtime,
            backend=Backend.EMULATED,
            detail="nothing was changed" if failed else f"{instruction.type} of {container}",
            error="the target node refused: no memory left" if failed else "",
            phases=(
                Phase(name="pre-dump", duration_s=5.1, transferred_bytes=9e7),
                Phase(name="transfer", duration_s=8.2, transferred_bytes=2.1e8),
                Phase(name="freeze", duration_s=0.62, transferred_bytes=1e7),
                Phase(name="restore", duration_s=0.28),
            )
            if move and not failed
            else (),
        )
    ]


@pytest.fixture(scope="session", name="make_record")
def _make_record() -> Callable[..., RunRecord]:
    """`make_record(seed, names=..., samples=..., wall_s=...)`."""
    return make_record
