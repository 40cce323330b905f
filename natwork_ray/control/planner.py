"""Choosing a mitigation: every option of the catalogue is weighed, one is taken, the others are kept with a reason.

    utility = benefit - w_d * predicted downtime / downtime left - w_r * extra cores / free cores - tried before

w_r is small while an anomaly is likely and larger while the load is stable (D3.3 section 4.2; control/anticipating.py).

An option that capacity, quota or evidence rules out is infeasible and says why. Ties go to the catalogue's order, so
the choice is a function of the situation alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from natwork_ray.control.anticipating import replicas_needed, resource_weight
from natwork_ray.control.catalogue import CATALOGUE, CatalogueEntry
from natwork_ray.control.fleet import Fleet
from natwork_ray.domain.actions import (
    AddNode,
    BlockSource,
    Instruction,
    MeshRetry,
    Migrate,
    MigrationMethod,
    Restart,
    Scale,
    ScaleSignal,
    SetLimits,
)
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict
from natwork_ray.domain.decisions import Alternative, MitigationKind
from natwork_ray.domain.flow_alerts import SuspectSource
from natwork_ray.domain.forecasts import LoadForecast, PlacementAdvice
from natwork_ray.domain.telemetry import Metric
from natwork_ray.domain.topology import Container
from natwork_ray.errors import NatworkError

K = MitigationKind

DOWNTIME_WEIGHT = 1.0
TRIED_PENALTY = 0.5  # the anomaly came back although this was done: look further down the list
MAX_REPLICAS = 8
MAX_LIMIT_FACTOR = 4.0  # vertical scaling stops at this multiple of what the operator set
VERTICAL_STEP = 1.5
PREDICTIVE_STEP = 2.0
BLOCK_S = 1800.0
BLOCK_MIN_SHARE = 0.35  # a source below this share of requests, and of failed ones, is no evidence
RESTART_P95_S = 5.0


@dataclass(frozen=True)
class MovePrediction:
    """How a live migration would go: the method to use, its downtime (95th percentile) and its total time."""

    method: MigrationMethod
    downtime_p95_s: float
    total_s: float
    chosen_by: str = "rule"  # or "model"


class MovePredictor(Protocol):
    """Predicts a migration before it happens."""

    def __call__(self, container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> MovePrediction:
        """Best method for moving a container whose resident memory is `rss_bytes` over a link."""
        ...


@dataclass(frozen=True)
class Situation:
    """All that a choice depends on.

    `tried` holds mitigations that were carried out for this anomaly of this container a short while ago.
    `quota_left_s` is what the ledger still has for the container. `suspects` are sources whose share of its traffic
    jumped, empty where there is no network controller to tell; `forecasts` and `advice` are what is expected of it.
    """

    kind: AnomalyKind
    verdict: AnomalyVerdict
    container: Container
    fleet: Fleet
    quota_left_s: float
    tried: frozenset[MitigationKind]
    at_s: float
    key: str  # prefix of the idempotency keys
    suspects: tuple[SuspectSource, ...] = ()
    forecasts: tuple[LoadForecast, ...] = ()
    advice: PlacementAdvice | None = None


@dataclass(frozen=True)
class Option:
    """A weighed option."""

    entry: CatalogueEntry
    feasible: bool
    reason: str
    utility: float = 0.0
    downtime_s: float = 0.0
    instructions: tuple[Instruction, ...] = field(default=())

    def as_alternative(self) -> Alternative:
        """For the record."""
        return Alternative(
            mitigation=self.entry.mitigation,
            feasible=self.feasible,
            utility=round(self.utility, 4),
            predicted_downtime_s=round(self.downtime_s, 4),
            reason=self.reason,
        )


def weigh(situation: Situation, predict_move: MovePredictor) -> tuple[Option, ...]:
    """Every option for the situation, best first; infeasible ones last."""
    options = [_weigh_one(entry, situation, predict_move) for entry in CATALOGUE[situation.kind]]
    return tuple(sorted(options, key=lambda o: (not o.feasible, -o.utility)))


def _weigh_one(entry: CatalogueEntry, situation: Situation, predict_move: MovePredictor) -> Option:
    return _PLANS[entry.mitigation](entry, situation, predict_move)


def _option(
    entry: CatalogueEntry,
    situation: Situation,
    reason: str,
    *,
    instructions: tuple[Instruction, ...],
    downtime_s: float = 0.0,
    extra_cores: float = 0.0,
    extra_bytes: float = 0.0,
) -> Option:
    """Check quota and capacity, then compute the utility."""
    container, fleet = situation.container, situation.fleet
    if downtime_s > situation.quota_left_s:
        return Option(
            entry,
            False,
            f"would cost up to {downtime_s:.2f} s of downtime, {situation.quota_left_s:.2f} s of quota are left",
            downtime_s=downtime_s,
        )
    free = fleet.free_cores(container.node)
    if extra_cores > free + 1e-9:
        return Option(entry, False, f"needs {extra_cores:.1f} more cores, {container.node} has {max(free, 0):.1f} free")
    free_bytes = fleet.free_memory_bytes(container.node)
    if extra_bytes > free_bytes:
        return Option(
            entry,
            False,
            f"needs {extra_bytes / 2**20:.0f} MiB more, {container.node} has {max(free_bytes, 0) / 2**20:.0f} MiB free",
        )
    utility = entry.benefit
    if downtime_s:
        utility -= DOWNTIME_WEIGHT * downtime_s / situation.quota_left_s
    if extra_cores:
        # Free may be a rounding error above zero.
        utility -= resource_weight(situation.advice) * extra_cores / max(free, extra_cores)
    if entry.mitigation in situation.tried:
        utility -= TRIED_PENALTY
        reason += "; it was done a short while ago and the anomaly is still there"
    return Option(entry, True, reason, utility, downtime_s, instructions)


def _replicas(
    entry: CatalogueEntry, s: Situation, factor: float, signal: ScaleSignal, *, why: str = "", least: int = 0
) -> Option:
    container = s.container
    wanted = min(MAX_REPLICAS, max(container.replicas + 1, least or round(container.replicas * factor)))
    if wanted <= container.replicas:
        return Option(entry, False, f"runs {container.replicas} replicas already, the most that is allowed")
    extra = wanted - container.replicas
    rps = s.verdict.observed.get(Metric.THROUGHPUT, 0.0)
    per_replica = rps / wanted if signal is ScaleSignal.REQUESTS and rps > 0 else None
    return _option(
        entry,
        s,
        f"{container.replicas} -> {wanted} replicas, {entry.effect}{why}, no downtime",
        instructions=(
            Scale(
                key=f"{s.key}/0",
                container=container.name,
                replicas=wanted,
                signal=signal,
                target_per_replica=per_replica,
            ),
        ),
        extra_cores=extra * container.cpu_limit_cores,
        extra_bytes=extra * container.memory_limit_bytes,
    )


def _horizontal(entry: CatalogueEntry, s: Situation, _: MovePredictor) -> Option:
    # Table 4: a surge of users is followed by traffic, busy processors by their load.
    surge = s.kind is AnomalyKind.TRAFFIC_SPIKE
    return _replicas(entry, s, VERTICAL_STEP, ScaleSignal.REQUESTS if surge else ScaleSignal.CPU)


def _custom_metric(entry: CatalogueEntry, s: Situation, _: MovePredictor) -> Option:
    return _replicas(entry, s, VERTICAL_STEP, ScaleSignal.REQUESTS)


def _predictive(entry: CatalogueEntry, s: Situation, _: MovePredictor) -> Option:
    sizing = replicas_needed(s.container, s.forecasts, s.verdict.observed)
    if sizing is None:
        return _replicas(entry, s, PREDICTIVE_STEP, ScaleSignal.FORECAST)
    return _replicas(entry, s, 1.0, ScaleSignal.FORECAST, why=f": {sizing.reason}", least=sizing.replicas)


def _vertical_cpu(entry: CatalogueEntry, s: Situation, _: MovePredictor) -> Option:
    container = s.container
    most = s.fleet.original(container.name).cpu_limit_cores * MAX_LIMIT_FACTOR
    wanted = round(min(most, container.cpu_limit_cores * VERTICAL_STEP), 3)
    if wanted <= container.cpu_limit_cores:
        return Option(entry, False, f"has {container.cpu_limit_cores:.2f} cores already, the most that is allowed")
    return _option(
        entry,
        s,
        f"CPU limit {container.cpu_limit_cores:.2f} -> {wanted:.2f} cores, {entry.effect}, no downtime",
        instructions=(SetLimits(key=f"{s.key}/0", container=container.name, cpu_limit_cores=wanted),),
        extra_cores=(wanted - container.cpu_limit_cores) * container.replicas,
    )


def _vertical_memory(entry: CatalogueEntry, s: Situation, _: MovePredictor) -> Option:
    container = s.container
    most = s.fleet.original(container.name).memory_limit_bytes * MAX_LIMIT_FACTOR
    wanted = min(most, container.memory_limit_bytes * VERTICAL_STEP)
    if wanted <= container.memory_limit_bytes:
        return Option(entry, False, "has the largest memory limit that is allowed already")
    return _option(
        entry,
        s,
        f"memory limit {container.memory_limit_bytes / 2**20:.0f} -> {wanted / 2**20:.0f} MiB, {entry.effect}, "
        "no downtime",
        instructions=(SetLimits(key=f"{s.key}/0", container=container.name, memory_limit_bytes=wanted),),
        extra_bytes=(wanted - container.memory_limit_bytes) * container.replicas,
    )


def _restart(entry: CatalogueEntry, s: Situation, _: MovePredictor) -> Option:
    return _option(
        entry,
        s,
        entry.effect,
        instructions=(Restart(key=f"{s.key}/0", container=s.container.name),),
        downtime_s=RESTART_P95_S,
    )


def _add_node(entry: CatalogueEntry, s: Situation, _: MovePredictor) -> Option:
    container = s.container
    if s.fleet.free_cores(container.node) >= container.cpu_limit_cores:
        return Option(entry, False, f"{container.node} still has room for another replica")
    return _option(entry, s, entry.effect, instructions=(AddNode(key=f"{s.key}/0", container=container.name),))


def _mesh_retry(entry: CatalogueEntry, s: Situation, _: MovePredictor) -> Option:
    return _option(
        entry,
        s,
        f"{entry.effect}, no downtime",
        instructions=(MeshRetry(key=f"{s.key}/0", container=s.container.name, enabled=True),),
    )


def _block(entry: CatalogueEntry, s: Situation, _: MovePredictor) -> Option:
    suspects = [f for f in s.verdict.flows if max(f.request_share, f.failed_share) >= BLOCK_MIN_SHARE]
    if not suspects:
        return Option(entry, False, "no single source stands out in the flows")
    worst = max(suspects, key=lambda f: (max(f.request_share, f.failed_share), f.source))
    return _option(
        entry,
        s,
        f"{worst.source} sends {worst.request_share:.0%} of the requests and {worst.failed_share:.0%} of the failed "
        f"ones; {entry.effect} for {BLOCK_S / 60:.0f} minutes, no downtime",
        instructions=(
            BlockSource(
                key=f"{s.key}/0",
                container=s.container.name,
                source=worst.source,
                expires_at_s=s.at_s + BLOCK_S,
            ),
        ),
    )


def _move(entry: CatalogueEntry, s: Situation, predict_move: MovePredictor, *, near: bool) -> Option:
    container, fleet = s.container, s.fleet
    cores = container.replicas * container.cpu_limit_cores
    memory = container.replicas * container.memory_limit_bytes
    fitting = [
        n.name
        for n in fleet.nodes()
        if n.name != container.node
        and fleet.free_cores(n.name) + 1e-9 >= cores
        and fleet.free_memory_bytes(n.name) >= memory
        and fleet.topology.link(container.node, n.name) is not None
    ]
    if not fitting:
        return Option(entry, False, f"no other node has {cores:.1f} cores and {memory / 2**20:.0f} MiB free")
    distance: Callable[[str], float] = lambda node: _distance_s(s, node)  # noqa: E731 - named for the sort below
    target = min(fitting, key=(lambda n: (distance(n), n)) if near else (lambda n: (-fleet.free_cores(n), n)))
    link = fleet.topology.link(container.node, target)
    assert link is not None  # noqa: S101 - filtered above
    try:
        move = predict_move(
            container,
            rss_bytes=s.verdict.observed.get(Metric.MEMORY_RSS, container.memory_limit_bytes),
            bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
        )
    except NatworkError as error:
        return Option(entry, False, f"the move to {target} cannot be predicted: {error}")
    if not (math.isfinite(move.downtime_p95_s) and move.downtime_p95_s >= 0 and math.isfinite(move.total_s)):
        return Option(
            entry, False, f"the move to {target} has no sound prediction: {move.downtime_p95_s} s of downtime"
        )
    return _option(
        entry,
        s,
        f"{container.node} -> {target} by {move.method} migration, {entry.effect}; about {move.total_s:.1f} s in all, "
        f"at most {move.downtime_p95_s:.2f} s of downtime (95 %)",
        instructions=(
            Migrate(
                key=f"{s.key}/0",
                container=container.name,
                source=container.node,
                target=target,
                method=move.method,
                chosen_by=move.chosen_by,
            ),
        ),
        downtime_s=move.downtime_p95_s,
    )


def _topology_move(entry: CatalogueEntry, s: Situation, predict_move: MovePredictor) -> Option:
    return _move(entry, s, predict_move, near=True)


def _mtd_move(entry: CatalogueEntry, s: Situation, predict_move: MovePredictor) -> Option:
    return _move(entry, s, predict_move, near=False)


def _notify(entry: CatalogueEntry, s: Situation, _: MovePredictor) -> Option:
    return Option(entry, True, entry.effect, entry.benefit)


def _distance_s(s: Situation, node: str) -> float:
    """Sum of round-trip times from `node` to everyone the container talks to."""
    total = 0.0
    for neighbour in s.fleet.neighbours(s.container.name):
        where = s.fleet.container(neighbour).node
        link = s.fleet.topology.link(node, where)
        total += 0.0 if where == node else link.rtt_s if link else 1.0
    return total


_PLANS: dict[MitigationKind, Callable[[CatalogueEntry, Situation, MovePredictor], Option]] = {
    K.HORIZONTAL_SCALE: _horizontal,
    K.CUSTOM_METRIC_SCALE: _custom_metric,
    K.PREDICTIVE_SCALE: _predictive,
    K.VERTICAL_CPU: _vertical_cpu,
    K.VERTICAL_MEMORY: _vertical_memory,
    K.MEMORY_LIMIT_RESTART: _restart,
    K.CLUSTER_SCALE: _add_node,
    K.MESH_RETRY: _mesh_retry,
    K.TOPOLOGY_MOVE: _topology_move,
    K.MTD_MOVE: _mtd_move,
    K.BLOCK_SOURCE: _block,
    K.NOTIFY: _notify,
}
