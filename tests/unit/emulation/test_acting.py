"""Acting on the emulated world: what heals what, what is refused, and the laws that no sequence of actions breaks."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natwork_ray.domain.actions import (
    AddNode,
    BlockSource,
    Instruction,
    MeshRetry,
    Migrate,
    MigrationMethod,
    Restart,
    Scale,
    SetLimits,
)
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.injections import ATTACKS, Injection
from natwork_ray.emulation.moves import truth_of
from natwork_ray.emulation.scenarios import smart_city
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import ActionError, ConflictError, NatworkError, NotFoundError
from natwork_ray.limi.durations import MigrationInputs, predict_p95, typical_inputs

CITY = smart_city()
MIB = 2.0**20
SOURCE = "203.0.113.0/24"

ACTIONS: dict[str, Instruction] = {
    "scale": Scale(key="k", container="auth", replicas=4),
    "cpu": SetLimits(key="k", container="auth", cpu_limit_cores=1.0),
    "memory": SetLimits(key="k", container="auth", memory_limit_bytes=768 * MIB),
    "restart": Restart(key="k", container="auth"),
    "move": Migrate(key="k", container="auth", source="edge-2", target="core-1", method=MigrationMethod.PRE_COPY),
    "mesh": MeshRetry(key="k", container="auth", enabled=True),
    "block": BlockSource(key="k", container="auth", source=SOURCE, expires_at_s=5000.0),
}


@pytest.fixture(scope="module")
def calm() -> Testbed:
    testbed = Testbed(CITY, seed=7)
    testbed.advance(1200)
    return testbed


@functools.cache
def in_trouble(kind: str) -> Testbed:
    """The world when somebody acts; to be copied, not to be advanced."""
    source = SOURCE if kind in ATTACKS else ""
    testbed = Testbed(
        CITY,
        seed=7,
        schedule=[Injection(kind=kind, container="auth", start_s=300, end_s=1200, intensity=0.9, source=source)],
    )
    testbed.advance(500)
    return testbed


@functools.cache
def troubled(kind: str, action: str | None = None) -> Testbed:
    """How it ends; shared by all tests, which only look at it."""
    testbed = copy.deepcopy(in_trouble(kind))
    if action is not None:
        testbed.apply(ACTIONS[action])
    testbed.advance(1200)
    return testbed


def ratio(testbed: Testbed, calm: Testbed, metric: Metric) -> float:
    a, b = (
        np.nanmean(t.window(end_s=1200, length=40).values[t.names.index("auth"), :, METRICS.index(metric)])
        for t in (testbed, calm)
    )
    return float(a / b)


# kind, the metric it shows in, how far from 1 it is, actions that end it, actions that relieve it.
HEALING = [
    ("high_cpu", Metric.CPU, {"restart"}, {"scale", "cpu"}),
    ("high_cpu", Metric.LATENCY_P50, {"restart"}, {"scale", "cpu"}),
    ("high_memory", Metric.MEMORY_RSS, {"restart"}, {"scale"}),
    ("high_memory", Metric.LATENCY_P99, {"restart", "memory", "scale"}, set()),
    ("traffic_spike", Metric.LATENCY_P50, {"scale", "cpu"}, set()),
    ("step_load", Metric.LATENCY_P50, {"scale", "cpu"}, set()),
    ("network_latency", Metric.THROUGHPUT, {"move"}, {"mesh"}),
    ("ddos", Metric.NETWORK_RX, {"block"}, set()),
    ("brute_force", Metric.ERRORS, {"block"}, set()),
    ("sql_injection", Metric.DISK_READ, {"block"}, set()),
]


@pytest.mark.parametrize(("kind", "metric", "ending", "relieving"), HEALING)
def test_right_actions_heal_and_wrong_ones_do_not(
    calm: Testbed, kind: str, metric: Metric, ending: set[str], relieving: set[str]
) -> None:
    left_alone = abs(np.log(ratio(troubled(kind), calm, metric)))
    assert left_alone > np.log(1.6)
    for action in ACTIONS:
        # A restart leaves a cold cache behind, so that "healed" allows a little.
        rest = abs(np.log(ratio(troubled(kind, action), calm, metric)))
        if action in ending:
            assert rest < np.log(1.25), f"{action} should end {kind}"
        elif action in relieving:
            assert 0.05 < rest < 0.85 * left_alone, f"{action} should relieve {kind}"
        elif not (kind == "high_memory" and action == "memory"):
            assert rest > 0.8 * left_alone, f"{action} should not help against {kind}"


@pytest.mark.parametrize(
    ("kind", "action", "ended"),
    [
        ("high_cpu", "restart", True),
        ("high_cpu", "scale", False),
        ("high_memory", "restart", True),
        ("network_latency", "move", True),
        ("network_latency", "mesh", False),
        ("ddos", "block", True),
        ("ddos", "move", False),
        ("step_load", "scale", False),
    ],
)
def test_truth_ends_where_an_action_healed(kind: str, action: str, ended: bool) -> None:
    event = troubled(kind, action).truth()[0]
    assert event.start_s == 300
    assert (500 < event.end_s < 520) if ended else event.end_s == 1200


def test_block_of_a_part_drops_a_part_and_expires(calm: Testbed) -> None:
    def errors(rule: BlockSource | None) -> tuple[float, float]:
        injection = Injection(kind="ddos", container="auth", start_s=300, end_s=1200, intensity=0.5, source=SOURCE)
        testbed = Testbed(CITY, seed=7, schedule=[injection])
        testbed.advance(400)
        if rule:
            testbed.apply(rule)
        testbed.advance(1200)
        rx = testbed.window(end_s=1200, length=80).values[testbed.names.index("auth"), :, METRICS.index(Metric.ERRORS)]
        return float(np.nanmean(rx[2:30])), float(np.nanmean(rx[50:]))

    open_early, open_late = errors(None)
    half_early, _ = errors(BlockSource(key="h", container="auth", source="203.0.113.0/25", expires_at_s=2000))
    assert half_early == pytest.approx(open_early / 2, rel=0.15)
    early, late = errors(BlockSource(key="e", container="auth", source=SOURCE, expires_at_s=800))
    assert early < 0.05 * open_early
    assert late == pytest.approx(open_late, rel=0.05)


def test_blocking_users_costs_users(calm: Testbed) -> None:
    testbed = Testbed(CITY, seed=7)
    testbed.advance(100)
    testbed.apply(BlockSource(key="w", container="auth", source="192.0.2.0/24", expires_at_s=5000))
    testbed.apply(BlockSource(key="v", container="dashboard", source="192.0.2.0/26", expires_at_s=5000))
    testbed.advance(1200)
    assert ratio(testbed, calm, Metric.THROUGHPUT) < 0.85
    assert all(not f.source.startswith("192.0.2.") for f in testbed.flows(["auth"], 1200)["auth"])


def test_killed_for_memory_and_back_again() -> None:
    injection = Injection(kind="high_memory", container="auth", start_s=100, end_s=1200, intensity=1.0)
    testbed = Testbed(CITY, seed=7, schedule=[injection])
    testbed.advance(1200)
    rss = testbed.window(end_s=1200, length=110).values[
        testbed.names.index("auth"), :, METRICS.index(Metric.MEMORY_RSS)
    ]
    limit = 384 * MIB
    assert np.nanmax(rss) == pytest.approx(limit, rel=1e-3)
    assert (np.diff(rss[~np.isnan(rss)]) < -0.4 * limit).sum() >= 2


@pytest.mark.parametrize("name", list(ACTIONS))
def test_second_delivery_of_a_key_changes_nothing(name: str) -> None:
    once, twice = Testbed(CITY, seed=2), Testbed(CITY, seed=2)
    for testbed in (once, twice):
        testbed.advance(100)
        first = testbed.apply(ACTIONS[name])
    assert twice.apply(ACTIONS[name]) == first
    for testbed in (once, twice):
        testbed.advance(300)
    assert twice.apply(ACTIONS[name]) == first
    assert once.digest() == twice.digest()
    assert twice.effects("k") == 1
    assert twice.effects("other") == 0
    assert first.done
    assert first.backend is Backend.EMULATED
    assert first.finished_at_s > first.started_at_s == 100


def test_a_key_means_one_instruction() -> None:
    testbed = Testbed(CITY, seed=2)
    testbed.apply(ACTIONS["scale"])
    with pytest.raises(ConflictError, match="key k"):
        testbed.apply(ACTIONS["restart"])


@pytest.mark.parametrize("method", MigrationMethod)
def test_both_nodes_hold_a_migrating_container(method: MigrationMethod) -> None:
    testbed = Testbed(CITY, seed=2)
    testbed.advance(100)
    free = {n.name: testbed._operations.free(n.name)[0] for n in CITY.topology.nodes}
    outcome = testbed.apply(
        Migrate(key="m", container="video-analytics", source="edge-1", target="core-1", method=method)
    )
    during = {n.name: testbed._operations.free(n.name)[0] for n in CITY.topology.nodes}
    assert during["core-1"] == free["core-1"] - 4.5
    assert during["edge-1"] == free["edge-1"]
    container = testbed.topology().container("video-analytics")
    assert container is not None
    assert container.node == "edge-1"
    assert 0 < outcome.downtime_s < outcome.finished_at_s - outcome.started_at_s + 1e-9
    with pytest.raises(ActionError, match="under way"):
        testbed.apply(Restart(key="r", container="video-analytics"))
    end = 10 * np.ceil(outcome.finished_at_s / 10)
    testbed.advance(end)
    container = testbed.topology().container("video-analytics")
    assert container is not None
    assert container.node == "core-1"
    assert testbed._operations.free("edge-1")[0] == free["edge-1"] + 4.5
    # The downtime shows: requests were lost while it lasted.
    length = round((end - 100) / 10)
    lost = testbed.window(end_s=end, length=length).values[
        testbed.names.index("video-analytics"), :, METRICS.index(Metric.ERRORS)
    ]
    assert np.nanmax(lost) > 0.3


def test_migration_downtime_respects_the_prediction_for_its_inputs() -> None:
    within = []
    container = CITY.topology.container("auth")
    assert container is not None
    truth = truth_of(container, CITY.profiles["auth"], rss_bytes=CITY.profiles["auth"].rss_bytes)
    predicted = predict_p95(
        MigrationMethod.PRE_COPY,
        MigrationInputs(
            dump_bytes=truth.memory_bytes,
            dirty_bytes_per_s=truth.dirty_bytes_per_s,
            working_set_bytes=truth.working_set_bytes,
            bandwidth_bytes_per_s=125e6,
            volume_delta_bytes=truth.volume_delta_bytes,
            volume_bytes=truth.volume_bytes,
            volume_write_bytes_per_s=truth.volume_write_bytes_per_s,
            rtt_s=0.012,
            cpu_cores=truth.cpu_cores,
            cpu_limit_cores=truth.cpu_limit_cores,
        ),
    )
    for seed in range(100):
        outcome = Testbed(CITY, seed=seed).apply(ACTIONS["move"])
        within.append(outcome.downtime_s <= predicted.downtime_s)
    assert 0.90 <= np.mean(within) <= 0.99


@pytest.mark.parametrize("method", MigrationMethod)
def test_cautious_inputs_cover_every_service(method: MigrationMethod) -> None:
    within = []
    for seed in range(4):
        for container in CITY.topology.containers:
            testbed = Testbed(CITY, seed=seed)
            target = "core-1" if container.node != "core-1" else "edge-2"
            outcome = testbed.apply(
                Migrate(key="m", container=container.name, source=container.node, target=target, method=method)
            )
            predicted = predict_p95(
                method,
                typical_inputs(
                    rss_bytes=CITY.profiles[container.name].rss_bytes,
                    replicas=container.replicas,
                    bandwidth_bytes_per_s=125e6,
                ),
            )
            within.append(outcome.downtime_s <= predicted.downtime_s)
    assert np.mean(within) >= 0.95


def test_a_spare_node_comes_into_service_and_can_be_moved_to() -> None:
    testbed = Testbed(CITY, seed=2)
    assert [n.name for n in testbed.spare_nodes] == ["edge-3"]
    outcome = testbed.apply(AddNode(key="n", container="auth"))
    with pytest.raises(ActionError, match="no spare node"):
        testbed.apply(AddNode(key="n2", container="auth"))
    with pytest.raises(NotFoundError, match="edge-3"):
        testbed.apply(Migrate(key="m", container="auth", source="edge-2", target="edge-3", method=MigrationMethod.COLD))
    testbed.advance(10 * np.ceil(outcome.finished_at_s / 10))
    assert testbed.spare_nodes == ()
    assert [n.name for n in testbed.topology().nodes][-1] == "edge-3"
    testbed.apply(Migrate(key="m", container="auth", source="edge-2", target="edge-3", method=MigrationMethod.COLD))
    testbed.advance(testbed.now_s + 60)
    assert {u.node: u.containers for u in testbed.node_usage(testbed.now_s)}["edge-3"] == 1


def refused(instruction: Instruction, error: type[NatworkError], match: str) -> None:
    testbed = Testbed(CITY, seed=2)
    before = testbed.digest()
    with pytest.raises(error, match=match) as caught:
        testbed.apply(instruction)
    assert caught.value.hint
    assert testbed.effects(instruction.key) == 0
    assert testbed.digest() == before


@pytest.mark.parametrize(
    ("source", "target", "error", "match"),
    [
        ("edge-2", "edge-2", ActionError, "already"),
        ("edge-1", "core-1", ActionError, "not on edge-1"),
        ("edge-2", "mars", NotFoundError, "mars"),
    ],
)
def test_impossible_moves_are_refused(source: str, target: str, error: type[NatworkError], match: str) -> None:
    refused(Migrate(key="k", container="auth", source=source, target=target, method=MigrationMethod.COLD), error, match)


@pytest.mark.parametrize(
    ("instruction", "error", "match"),
    [
        (Restart(key="k", container="ghost"), NotFoundError, "ghost"),
        (Scale(key="k", container="auth", replicas=0), ActionError, "0 replicas"),
        (Scale(key="k", container="auth", replicas=-2), ActionError, "-2 replicas"),
        (Scale(key="k", container="auth", replicas=60), ActionError, "free"),
        (Scale(key="k", container="auth", replicas=65), ActionError, "65 replicas"),
        (SetLimits(key="k", container="auth", cpu_limit_cores=-1), ActionError, "cpu_limit_cores"),
        (SetLimits(key="k", container="auth", memory_limit_bytes=float("nan")), ActionError, "memory_limit_bytes"),
        (SetLimits(key="k", container="auth", cpu_limit_cores=100), ActionError, "free"),
        (SetLimits(key="k", container="auth", memory_limit_bytes=1e15), ActionError, "free"),
        (BlockSource(key="k", container="auth", source="nonsense", expires_at_s=10), ActionError, "nonsense"),
        (BlockSource(key="k", container="auth", source="0.0.0.0/0", expires_at_s=10), ActionError, "cuts"),
        (BlockSource(key="k", container="auth", source=SOURCE, expires_at_s=0), ActionError, "expires"),
    ],
)
def test_impossible_instructions_are_refused(instruction: Instruction, error: type[NatworkError], match: str) -> None:
    refused(instruction, error, match)


def test_mesh_retries_can_be_switched_off_again(calm: Testbed) -> None:
    testbed = Testbed(CITY, seed=7)
    testbed.apply(ACTIONS["mesh"])
    testbed.advance(100)
    testbed.apply(MeshRetry(key="off", container="auth", enabled=False))
    testbed.advance(1200)
    assert ratio(testbed, calm, Metric.NETWORK_RX) == pytest.approx(1, abs=1e-6)


NAMES = [c.name for c in CITY.topology.containers]
NODES = ["edge-1", "edge-2", "core-1", "edge-3"]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("move"), st.sampled_from(NAMES), st.sampled_from(NODES), st.sampled_from(MigrationMethod)),
        st.tuples(st.just("scale"), st.sampled_from(NAMES), st.integers(-1, 9)),
        st.tuples(st.just("limits"), st.sampled_from(NAMES), st.floats(0.1, 8), st.floats(1e8, 8e9)),
        st.tuples(st.just("restart"), st.sampled_from(NAMES)),
        st.tuples(st.just("node"), st.sampled_from(NAMES)),
        st.tuples(st.just("wait"), st.integers(1, 12)),
    ),
    max_size=30,
)


@settings(max_examples=20)
@given(steps)
def test_no_sequence_of_actions_breaks_placement(sequence: list[tuple[object, ...]]) -> None:
    testbed = Testbed(CITY, seed=1)
    for number, (kind, *rest) in enumerate(sequence):
        key = f"k{number}"
        try:
            if kind == "wait":
                testbed.advance(testbed.now_s + 10.0 * rest[0])  # type: ignore[operator]
            elif kind == "move":
                container = testbed.topology().container(str(rest[0]))
                assert container is not None
                testbed.apply(
                    Migrate(
                        key=key, container=container.name, source=container.node, target=str(rest[1]),
                        method=MigrationMethod(str(rest[2])),
                    )
                )  # fmt: skip
            elif kind == "scale":
                testbed.apply(Scale(key=key, container=str(rest[0]), replicas=rest[1]))  # type: ignore[arg-type]
            elif kind == "limits":
                testbed.apply(
                    SetLimits(key=key, container=str(rest[0]), cpu_limit_cores=rest[1], memory_limit_bytes=rest[2])  # type: ignore[arg-type]
                )
            elif kind == "restart":
                testbed.apply(Restart(key=key, container=str(rest[0])))
            else:
                testbed.apply(AddNode(key=key, container=str(rest[0])))
        except (ActionError, NotFoundError):
            assert testbed.effects(key) == 0
        topology = testbed.topology()
        assert [c.name for c in topology.containers] == NAMES
        for container in topology.containers:
            assert topology.node(container.node) is not None
        for node in topology.nodes:
            cores, memory = testbed._operations.free(node.name)
            assert cores >= -1e-6
            assert memory >= -2
