"""A small world for the control tests: three nodes in a row, a caller, its callee and a bystander."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from natwork_ray.config import AlarmConfig, SlaConfig
from natwork_ray.control.events import RunStarted, VerdictsReached
from natwork_ray.control.planner import MovePrediction
from natwork_ray.domain.actions import ActionOutcome, MigrationMethod
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict, Driver
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.telemetry import FlowShare, Metric
from natwork_ray.domain.topology import Container, Link, Node, NodeRole, Topology
from natwork_ray.domain.values import Backend

MIB = float(2**20)


class World:
    """Builders with defaults; every keyword replaces a field."""

    def node(self, name: str, cores: float = 8.0, memory_bytes: float = 8192 * MIB) -> Node:
        return Node(name=name, role=NodeRole.EDGE, cpu_cores=cores, memory_bytes=memory_bytes)

    def container(self, name: str, node: str = "edge", **fields: Any) -> Container:
        base = Container(
            name=name,
            service=name,
            network_service="core",
            slice="s",
            node=node,
            replicas=1,
            cpu_limit_cores=1.0,
            memory_limit_bytes=512 * MIB,
        )
        return replace(base, **fields)

    def topology(self, *containers: Container, **fields: Any) -> Topology:
        base = Topology(
            nodes=(self.node("edge"), self.node("core"), self.node("cloud", 32.0, 65536 * MIB)),
            links=(
                Link(a="edge", b="core", bandwidth_bytes_per_s=1e8, rtt_s=0.002),
                Link(a="cloud", b="core", bandwidth_bytes_per_s=1e8, rtt_s=0.010),
                Link(a="cloud", b="edge", bandwidth_bytes_per_s=5e7, rtt_s=0.012),
            ),
            slices=(),
            containers=containers
            or (
                self.container("front", depends_on=("back",)),
                self.container("back", "core"),
                self.container("other", "core"),
            ),
        )
        return replace(base, **fields)

    def verdict(
        self, container: str = "front", kind: AnomalyKind = AnomalyKind.HIGH_CPU, **fields: Any
    ) -> AnomalyVerdict:
        base = AnomalyVerdict(
            container=container,
            at_s=0.0,
            score=0.7,
            kind=kind,
            confidence=0.9,
            drivers=(Driver(metric=Metric.CPU, deviation=9.0),),
        )
        return replace(base, **fields)

    def flow(self, request_share: float = 0.8, failed_share: float = 0.1, source: str = "203.0.113.7/32") -> FlowShare:
        return FlowShare(source=source, request_share=request_share, failed_share=failed_share)

    def run(self, topology: Topology | None = None, **fields: Any) -> RunStarted:
        base = RunStarted(
            id="run",
            at_s=0.0,
            backend=Backend.EMULATED,
            mode=Mode.ACT,
            scenario="test",
            seed=1,
            step_s=10.0,
            approval_lapse_s=900.0,
            topology=topology or self.topology(),
            alarm=AlarmConfig(votes_needed=1, votes_of=1),
            sla=SlaConfig(),
        )
        return replace(base, **fields)

    def verdicts(self, at_s: float, *verdicts: AnomalyVerdict, **fields: Any) -> VerdictsReached:
        return VerdictsReached(
            **{"id": f"verdicts@{at_s:.3f}", "at_s": at_s, "scanned": 3, "verdicts": verdicts, **fields}
        )

    def outcome(self, key: str, **fields: Any) -> ActionOutcome:
        base = ActionOutcome(
            key=key,
            done=True,
            started_at_s=0.0,
            finished_at_s=0.0,
            downtime_s=0.0,
            backend=Backend.EMULATED,
            detail="done",
        )
        return replace(base, **fields)

    def predict(self, container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> MovePrediction:
        return MovePrediction(MigrationMethod.PRE_COPY, 0.5 + rss_bytes / bandwidth_bytes_per_s / 1000, 12.0)


@pytest.fixture
def world() -> World:
    """Builders of topologies, verdicts and events."""
    return World()
