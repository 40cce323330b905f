"""Every option of the catalogue: what it would do, what rules it out, and how the feasible ones are ordered."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.control.catalogue import CATALOGUE, catalogue_table
from natwork_ray.control.deciding import choose
from natwork_ray.control.fleet import Fleet
from natwork_ray.control.planner import (
    BLOCK_MIN_SHARE,
    BLOCK_S,
    MAX_REPLICAS,
    RESTART_P95_S,
    TRIED_PENALTY,
    MovePrediction,
    Option,
    Situation,
    weigh,
)
from natwork_ray.domain.actions import (
    AddNode,
    BlockSource,
    MeshRetry,
    Migrate,
    MigrationMethod,
    Restart,
    Scale,
    ScaleSignal,
    SetLimits,
)
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.decisions import DecisionStatus, MitigationKind, Mode
from natwork_ray.domain.telemetry import Metric
from natwork_ray.domain.topology import Container, Link
from natwork_ray.errors import InputError

K, M = AnomalyKind, MitigationKind
MIB = float(2**20)

# The deliverable's own words, its Table 4.
TABLE_4 = {
    K.HIGH_CPU: {"Horizontal Pod Autoscaler", "Vertical Pod Autoscaler"},
    K.HIGH_MEMORY: {"Pod Memory Limits + Auto-restart", "Vertical Pod Autoscaler"},
    K.TRAFFIC_SPIKE: {"Horizontal Pod Autoscaler", "Cluster Autoscaler"},
    K.STEP_LOAD: {"HPA with Custom Metrics", "Predictive Autoscaling"},
    K.NETWORK_LATENCY: {"Service Mesh Retry & Load Balancing", "Pod Affinity / Topology-Aware Scheduling"},
}


def situation(
    world: Any, kind: AnomalyKind, fleet: Fleet | None = None, name: str = "front", **fields: Any
) -> Situation:
    fleet = fleet or Fleet(world.topology())
    base = Situation(
        kind=kind,
        verdict=world.verdict(name, kind),
        container=fleet.container(name),
        fleet=fleet,
        quota_left_s=1296.0,
        tried=frozenset(),
        at_s=100.0,
        key="d-000001",
    )
    return replace(base, **fields)


def option(world: Any, s: Situation, mitigation: MitigationKind, predict: Any = None) -> Option:
    return next(o for o in weigh(s, predict or world.predict) if o.entry.mitigation is mitigation)


def test_table_4_is_there_word_for_word() -> None:
    for kind, wanted in TABLE_4.items():
        assert {e.table_4 for e in CATALOGUE[kind] if e.table_4} == wanted
    assert set(CATALOGUE) == set(K) - {K.FALSE_POSITIVE}
    assert not any(e.table_4 for e in CATALOGUE[K.UNKNOWN])


def test_the_catalogue_page_is_current() -> None:
    page = Path(__file__).parents[3] / "docs" / "mitigations.md"
    assert catalogue_table() in page.read_text(encoding="utf-8"), "run catalogue_table() and put it into the page"


@pytest.mark.parametrize("kind", list(CATALOGUE))
def test_every_option_is_weighed_the_same_way_twice(world: Any, kind: AnomalyKind) -> None:
    first = weigh(situation(world, kind), world.predict)
    assert first == weigh(situation(world, kind), world.predict)
    assert {o.entry for o in first} == set(CATALOGUE[kind])
    feasible = [o for o in first if o.feasible]
    assert list(first[: len(feasible)]) == feasible
    assert [o.utility for o in feasible] == sorted((o.utility for o in feasible), reverse=True)
    assert all(o.reason for o in first)
    assert all(not o.instructions for o in first if not o.feasible)
    assert all(i.key.startswith("d-000001/") and i.container == "front" for o in first for i in o.instructions)


def test_vertical_cpu(world: Any) -> None:
    s = situation(world, K.HIGH_CPU)
    found = option(world, s, M.VERTICAL_CPU)
    assert found.instructions == (SetLimits(key="d-000001/0", container="front", cpu_limit_cores=1.5),)
    assert found.utility == pytest.approx(0.70 - 0.2 * 0.5 / 7.0)


def test_vertical_scaling_stops_at_four_times_what_the_operator_set(world: Any) -> None:
    fleet = Fleet(world.topology())
    grown = world.container("front", cpu_limit_cores=3.9, memory_limit_bytes=2000 * MIB)
    fleet.observe(world.topology(grown))
    cpu = option(world, situation(world, K.HIGH_CPU, fleet), M.VERTICAL_CPU)
    assert cpu.instructions[0] == SetLimits(key="d-000001/0", container="front", cpu_limit_cores=4.0)
    memory = option(world, situation(world, K.HIGH_MEMORY, fleet), M.VERTICAL_MEMORY)
    assert memory.instructions[0] == SetLimits(key="d-000001/0", container="front", memory_limit_bytes=2048 * MIB)
    fleet.observe(world.topology(replace(grown, cpu_limit_cores=4.0, memory_limit_bytes=2048 * MIB)))
    for kind, mitigation in ((K.HIGH_CPU, M.VERTICAL_CPU), (K.HIGH_MEMORY, M.VERTICAL_MEMORY)):
        found = option(world, situation(world, kind, fleet), mitigation)
        assert not found.feasible
        assert "already" in found.reason


@pytest.mark.parametrize(("replicas", "wanted"), [(1, 2), (2, 3), (4, 6), (7, 8)])
def test_horizontal_scaling_steps(world: Any, replicas: int, wanted: int) -> None:
    fleet = Fleet(world.topology(world.container("front", "cloud", replicas=replicas)))
    found = option(world, situation(world, K.HIGH_CPU, fleet), M.HORIZONTAL_SCALE)
    assert found.instructions == (Scale(key="d-000001/0", container="front", replicas=wanted, signal=ScaleSignal.CPU),)


@pytest.mark.parametrize(
    ("kind", "mitigation", "signal"),
    [
        (K.TRAFFIC_SPIKE, M.HORIZONTAL_SCALE, ScaleSignal.REQUESTS),
        (K.STEP_LOAD, M.CUSTOM_METRIC_SCALE, ScaleSignal.REQUESTS),
        (K.STEP_LOAD, M.PREDICTIVE_SCALE, ScaleSignal.FORECAST),
    ],
)
def test_an_autoscaler_is_told_what_to_follow(world: Any, kind: K, mitigation: M, signal: ScaleSignal) -> None:
    quiet = situation(world, kind)
    (instruction,) = option(world, quiet, mitigation).instructions
    assert isinstance(instruction, Scale)
    assert (instruction.signal, instruction.target_per_replica) == (signal, None)
    busy = replace(quiet, verdict=replace(quiet.verdict, observed={"request_throughput_per_s": 120.0}))
    (instruction,) = option(world, busy, mitigation).instructions
    assert isinstance(instruction, Scale)
    expected = pytest.approx(120.0 / instruction.replicas) if signal is ScaleSignal.REQUESTS else None
    assert instruction.target_per_replica == expected


def test_predictive_scaling_doubles_and_replicas_are_bounded(world: Any) -> None:
    fleet = Fleet(world.topology(world.container("front", "cloud", replicas=3)))
    found = option(world, situation(world, K.STEP_LOAD, fleet), M.PREDICTIVE_SCALE)
    assert found.instructions == (Scale(key="d-000001/0", container="front", replicas=6, signal=ScaleSignal.FORECAST),)
    fleet = Fleet(world.topology(world.container("front", "cloud", replicas=MAX_REPLICAS)))
    for mitigation in (M.PREDICTIVE_SCALE, M.CUSTOM_METRIC_SCALE):
        found = option(world, situation(world, K.STEP_LOAD, fleet), mitigation)
        assert not found.feasible
        assert "8 replicas already" in found.reason


def test_cores_and_memory_that_are_not_there_rule_out(world: Any) -> None:
    full = Fleet(world.topology(world.container("front", cpu_limit_cores=7.0)))
    found = option(world, situation(world, K.HIGH_CPU, full), M.HORIZONTAL_SCALE)
    assert (found.feasible, found.utility) == (False, 0.0)
    assert "7.0 more cores, edge has 1.0 free" in found.reason
    full = Fleet(world.topology(world.container("front", memory_limit_bytes=6000 * MIB)))
    found = option(world, situation(world, K.HIGH_MEMORY, full), M.VERTICAL_MEMORY)
    assert not found.feasible
    assert "needs 3000 MiB more, edge has 2192 MiB free" in found.reason


def test_room_of_a_rounding_error_divides_by_nothing(world: Any) -> None:
    tiny = (world.container("front", cpu_limit_cores=5e-10), world.container("fill", cpu_limit_cores=8.0 - 5e-10))
    found = option(world, situation(world, K.TRAFFIC_SPIKE, Fleet(world.topology(*tiny))), M.HORIZONTAL_SCALE)
    assert found.feasible
    assert math.isfinite(found.utility)


def test_a_container_on_a_node_out_of_service_gets_nothing_there(world: Any) -> None:
    fleet = Fleet(world.topology(world.container("front", "gone")))
    for kind in CATALOGUE:
        for found in weigh(situation(world, kind, fleet), world.predict):
            assert not any(isinstance(i, Scale | SetLimits) for i in found.instructions)


def test_restart_costs_quota_and_is_ruled_out_without_it(world: Any) -> None:
    found = option(world, situation(world, K.HIGH_MEMORY, quota_left_s=10.0), M.MEMORY_LIMIT_RESTART)
    assert found.instructions == (Restart(key="d-000001/0", container="front"),)
    assert found.downtime_s == RESTART_P95_S
    assert found.utility == pytest.approx(0.80 - 0.5)
    found = option(world, situation(world, K.HIGH_MEMORY, quota_left_s=4.99), M.MEMORY_LIMIT_RESTART)
    assert not found.feasible
    assert "4.99 s of quota are left" in found.reason
    assert option(world, situation(world, K.HIGH_MEMORY, quota_left_s=RESTART_P95_S), M.MEMORY_LIMIT_RESTART).feasible
    assert not option(world, situation(world, K.HIGH_MEMORY, quota_left_s=0.0), M.MEMORY_LIMIT_RESTART).feasible


def test_quota_turns_the_choice(world: Any) -> None:
    rich = choose(situation(world, K.HIGH_MEMORY), Mode.ACT, world.predict)
    assert rich.mitigation is M.MEMORY_LIMIT_RESTART
    poor = choose(situation(world, K.HIGH_MEMORY, quota_left_s=6.0), Mode.ACT, world.predict)
    assert poor.mitigation is M.VERTICAL_MEMORY
    (rejected,) = poor.rejected
    assert rejected.mitigation is M.MEMORY_LIMIT_RESTART
    assert f"utility {rejected.utility:.2f} below" in rejected.reason


def test_a_spare_node_only_when_replicas_find_no_room(world: Any) -> None:
    found = option(world, situation(world, K.TRAFFIC_SPIKE), M.CLUSTER_SCALE)
    assert not found.feasible
    assert "still has room" in found.reason
    full = Fleet(world.topology(world.container("front", cpu_limit_cores=5.0)))
    decision = choose(situation(world, K.TRAFFIC_SPIKE, full), Mode.ACT, world.predict)
    assert decision.instructions == (AddNode(key="d-000001/0", container="front"),)


@pytest.mark.parametrize("kind", [K.TRAFFIC_SPIKE, K.STEP_LOAD, K.UNKNOWN])
def test_blocking_needs_a_source_that_stands_out(world: Any, kind: AnomalyKind) -> None:
    s = situation(world, kind)
    assert "no single source" in option(world, s, M.BLOCK_SOURCE).reason
    weak = replace(s, verdict=replace(s.verdict, flows=(world.flow(BLOCK_MIN_SHARE - 0.01, 0.0),)))
    assert not option(world, weak, M.BLOCK_SOURCE).feasible
    flows = (world.flow(0.4, 0.0, "198.51.100.1/32"), world.flow(0.1, 0.9), world.flow(0.5, 0.2, "192.0.2.9/32"))
    decision = choose(replace(s, verdict=replace(s.verdict, flows=flows)), Mode.ACT, world.predict)
    assert decision.instructions == (
        BlockSource(key="d-000001/0", container="front", source="203.0.113.7/32", expires_at_s=100.0 + BLOCK_S),
    )


def test_latency_moves_next_to_the_callee(world: Any) -> None:
    decision = choose(situation(world, K.NETWORK_LATENCY), Mode.ACT, world.predict)
    assert decision.instructions == (
        Migrate(
            key="d-000001/0",
            container="front",
            source="edge",
            target="core",
            method=MigrationMethod.PRE_COPY,
            chosen_by="rule",
        ),
    )
    assert decision.mitigation is M.TOPOLOGY_MOVE
    assert decision.predicted_downtime_s == pytest.approx(0.5 + 512 * MIB / 1e8 / 1000)


def test_moving_target_defence_goes_where_most_is_free(world: Any) -> None:
    found = option(world, situation(world, K.UNKNOWN), M.MTD_MOVE)
    (move,) = found.instructions
    assert isinstance(move, Migrate)
    assert move.target == "cloud"


def test_a_callee_outside_the_fleet_is_no_obstacle(world: Any) -> None:
    fleet = Fleet(world.topology(world.container("front", depends_on=("elsewhere",))))
    found = option(world, situation(world, K.NETWORK_LATENCY, fleet), M.TOPOLOGY_MOVE)
    assert found.feasible


def test_a_callee_behind_no_known_link_counts_as_far(world: Any) -> None:
    topology = world.topology(
        world.container("front", depends_on=("back",)),
        world.container("back", "core"),
        links=(
            Link(a="edge", b="cloud", bandwidth_bytes_per_s=1e8, rtt_s=0.001),
            Link(a="edge", b="core", bandwidth_bytes_per_s=1e8, rtt_s=0.5),
        ),
    )
    (move,) = option(world, situation(world, K.NETWORK_LATENCY, Fleet(topology)), M.TOPOLOGY_MOVE).instructions
    assert isinstance(move, Migrate)
    assert move.target == "core"


def test_moves_need_cores_memory_and_a_link(world: Any) -> None:
    for fields in ({"cpu_limit_cores": 40.0}, {"memory_limit_bytes": 70_000 * MIB}):
        fleet = Fleet(world.topology(world.container("front", **fields)))
        found = option(world, situation(world, K.NETWORK_LATENCY, fleet), M.TOPOLOGY_MOVE)
        assert not found.feasible
        assert "no other node has" in found.reason
    fleet = Fleet(world.topology(links=()))
    assert not option(world, situation(world, K.UNKNOWN, fleet), M.MTD_MOVE).feasible


def test_the_predictor_is_asked_with_the_measured_memory(world: Any) -> None:
    asked: list[tuple[float, float]] = []

    def predict(container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> MovePrediction:
        asked.append((rss_bytes, bandwidth_bytes_per_s))
        return MovePrediction(MigrationMethod.COLD, 1.0, 2.0)

    s = situation(world, K.NETWORK_LATENCY)
    option(
        world, replace(s, verdict=replace(s.verdict, observed={str(Metric.MEMORY_RSS): 3e7})), M.TOPOLOGY_MOVE, predict
    )
    option(world, s, M.TOPOLOGY_MOVE, predict)
    assert asked == [(3e7, 1e8), (512 * MIB, 1e8)]


@pytest.mark.parametrize("downtime_s", [math.nan, math.inf, -1.0])
def test_a_senseless_prediction_is_not_acted_upon(world: Any, downtime_s: float) -> None:
    def predict(container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> MovePrediction:
        return MovePrediction(MigrationMethod.COLD, downtime_s, 2.0)

    found = option(world, situation(world, K.UNKNOWN), M.MTD_MOVE, predict)
    assert not found.feasible
    assert "no sound prediction" in found.reason


def test_a_predictor_that_fails_rules_the_move_out(world: Any) -> None:
    def predict(container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> MovePrediction:
        raise InputError("no model", hint="train one")

    found = option(world, situation(world, K.UNKNOWN), M.MTD_MOVE, predict)
    assert "no model" in found.reason


def test_what_was_tried_goes_down_the_list(world: Any) -> None:
    s = situation(world, K.NETWORK_LATENCY, tried=frozenset({M.TOPOLOGY_MOVE}))
    decision = choose(s, Mode.ACT, world.predict)
    assert decision.instructions == (MeshRetry(key="d-000001/0", container="front", enabled=True),)
    found = option(world, s, M.TOPOLOGY_MOVE)
    untried = option(world, replace(s, tried=frozenset()), M.TOPOLOGY_MOVE)
    assert found.utility == pytest.approx(untried.utility - TRIED_PENALTY)
    assert "a short while ago" in found.reason


def test_unknown_without_a_way_out_goes_to_a_person(world: Any) -> None:
    decision = choose(situation(world, K.UNKNOWN, Fleet(world.topology(links=()))), Mode.ACT, world.predict)
    assert (decision.mitigation, decision.status, decision.instructions) == (M.NOTIFY, DecisionStatus.NOTED, ())


def test_nothing_possible_is_said_so(world: Any) -> None:
    full = Fleet(world.topology(world.container("front", cpu_limit_cores=8.0)))
    decision = choose(situation(world, K.HIGH_CPU, full), Mode.ACT, world.predict)
    assert (decision.mitigation, decision.status) == (M.NOTIFY, DecisionStatus.NOTED)
    assert "nothing in the catalogue is possible" in decision.reason
    assert [a.feasible for a in decision.rejected] == [False, False]


@pytest.mark.parametrize(
    ("mode", "status"),
    [
        (Mode.OBSERVE, DecisionStatus.RECOMMENDED),
        (Mode.APPROVE, DecisionStatus.AWAITING_APPROVAL),
        (Mode.ACT, DecisionStatus.ISSUED),
    ],
)
def test_the_mode_gives_the_status(world: Any, mode: Mode, status: DecisionStatus) -> None:
    decision = choose(situation(world, K.HIGH_CPU), mode, world.predict)
    assert (decision.status, decision.mode, decision.kind) == (status, mode, K.HIGH_CPU)
