"""The emulated world: determinism, laws, visibility of injections, and hardness."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from natwork_ray.domain.actions import Restart, Scale
from natwork_ray.domain.labelled import LabelledEvent
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.domain.topology import Container, Topology
from natwork_ray.emulation.injections import KINDS, Injection, draw_schedule
from natwork_ray.emulation.physics import CallGraph
from natwork_ray.emulation.scenarios import Scenario, grid, scenario, smart_city
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import ConflictError, InputError, NotFoundError, UsageError

CITY = smart_city()
START, END = 600.0, 1200.0


def attack_source(kind: str) -> str:
    return "203.0.113.0/24" if kind in ("ddos", "brute_force", "sql_injection") else ""


def injected(kind: str, container: str, intensity: float = 0.8) -> Injection:
    return Injection(
        kind=kind, container=container, start_s=START, end_s=END, intensity=intensity, source=attack_source(kind)
    )


def median(testbed: Testbed, container: str, metric: Metric, since_s: float, until_s: float) -> float:
    window = testbed.window(end_s=until_s, length=round((until_s - since_s) / testbed.step_s))
    return float(np.nanmedian(window.values[testbed.names.index(container), :, METRICS.index(metric)]))


@pytest.fixture(scope="module")
def calm() -> Testbed:
    testbed = Testbed(CITY, seed=7)
    testbed.advance(3600)
    return testbed


def ratio(testbed: Testbed, calm: Testbed, container: str, metric: Metric) -> float:
    """Of the plateau of an injection to the same time without it."""
    floor = 1e-9
    return median(testbed, container, metric, 1000, 1200) / max(median(calm, container, metric, 1000, 1200), floor)


def test_same_seed_same_world_and_other_seed_another() -> None:
    digests = []
    for seed in (3, 3, 4):
        testbed = Testbed(CITY, seed=seed, schedule=[injected("ddos", "auth")])
        testbed.advance(700)
        testbed.apply(Restart(key="a", container="auth"))
        testbed.advance(900)
        digests.append(testbed.digest())
    assert digests[0] == digests[1] != digests[2]


def test_digest_sees_every_difference() -> None:
    def world(*, act: bool, steps: int = 5) -> str:
        testbed = Testbed(CITY, seed=3)
        testbed.advance(10.0 * steps)
        if act:
            testbed.apply(Scale(key="s", container="auth", replicas=3))
        return testbed.digest()

    assert len({world(act=False), world(act=True), world(act=False, steps=6)}) == 3


def test_advancing_in_pieces_is_the_same_as_at_once() -> None:
    whole, pieces = Testbed(CITY, seed=9), Testbed(CITY, seed=9)
    whole.advance(500)
    for to_s in (10, 30, 200, 200, 500):
        pieces.advance(to_s)
    assert whole.digest() == pieces.digest()


def test_actions_do_not_perturb_the_noise_of_strangers() -> None:
    # Two network services that share no node, no caller and no callee: what is done to one never shows in the other.
    world = grid(32, seed=5)
    left, right = Testbed(world, seed=1), Testbed(world, seed=1)
    for testbed in (left, right):
        testbed.advance(300)
    right.apply(Scale(key="x", container="svc-0", replicas=4))
    right.inject(Injection(kind="high_cpu", container="svc-1", start_s=300, end_s=500, intensity=1.0))
    for testbed in (left, right):
        testbed.advance(900)
    a, b = (t.window(end_s=900, length=60).values for t in (left, right))
    strangers = [i for i in range(32) if world.topology.containers[i].network_service == "ns-2"]
    np.testing.assert_array_equal(a[strangers], b[strangers])
    assert not np.array_equal(a[0], b[0], equal_nan=True)


@pytest.mark.parametrize("seed", range(4))
def test_metrics_keep_the_laws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    world = grid(24, seed=seed)
    testbed = Testbed(world, seed=seed, schedule=draw_schedule(world.topology, rng, 0, 3600, per_kind=3))
    testbed.advance(3600)
    values = testbed.window(end_s=3600, length=360).values
    known = values[~np.isnan(values)]
    assert np.isfinite(known).all()
    assert (known >= 0).all()
    column = {m: values[..., i] for i, m in enumerate(METRICS)}
    cpu = column[Metric.CPU]
    assert np.nanmax(cpu) <= 1
    served = ~np.isnan(column[Metric.LATENCY_P50])
    for low, high in ((Metric.LATENCY_P50, Metric.LATENCY_P90), (Metric.LATENCY_P90, Metric.LATENCY_P99)):
        assert (column[low][served] <= column[high][served]).all()
    limits = np.array([c.memory_limit_bytes for c in world.topology.containers])[:, None]
    rss = column[Metric.MEMORY_RSS]
    assert (rss[~np.isnan(rss)] <= np.broadcast_to(limits * 1.0001, rss.shape)[~np.isnan(rss)]).all()
    offered = np.stack([t[0].offered_rps for t in testbed._traffic], axis=1)
    answered = column[Metric.THROUGHPUT] + column[Metric.ERRORS]
    present = ~np.isnan(answered)
    assert (answered[present] <= offered[present] * 1.0001 + 1e-4).all()
    missing = np.isnan(values).all(axis=2).mean()
    assert 0.0005 < missing < 0.005


def test_latency_is_missing_when_nobody_was_served(calm: Testbed) -> None:
    values = calm.window(end_s=3600, length=360).values[calm.names.index("face-recogniser")]
    throughput, p50 = values[:, METRICS.index(Metric.THROUGHPUT)], values[:, METRICS.index(Metric.LATENCY_P50)]
    none = throughput == 0
    assert none.any()
    assert np.isnan(p50[none]).all()


@pytest.mark.parametrize(
    ("kind", "metric", "low", "high"),
    [
        ("high_cpu", Metric.CPU, 1.8, 20),
        ("high_memory", Metric.MEMORY_VSIZE, 2.5, 5),
        ("high_memory", Metric.MEMORY_RSS, 1.5, 6),
        ("traffic_spike", Metric.NETWORK_RX, 1.8, 6),
        ("step_load", Metric.THROUGHPUT, 1.8, 6),
        ("network_latency", Metric.THROUGHPUT, 0.05, 0.5),
        ("network_latency", Metric.LATENCY_P50, 0.3, 1.05),
        ("ddos", Metric.NETWORK_RX, 3, 20),
        ("ddos", Metric.ERRORS, 50, 1e9),
        ("brute_force", Metric.ERRORS, 20, 1e9),
        ("brute_force", Metric.CPU, 1.1, 2.5),
        ("sql_injection", Metric.DISK_READ, 5, 1e3),
        ("sql_injection", Metric.NETWORK_TX, 2, 10),
        ("sql_injection", Metric.LATENCY_P99, 1.8, 6),
    ],
)
def test_each_injection_shows_where_it_should(
    calm: Testbed, kind: str, metric: Metric, low: float, high: float
) -> None:
    testbed = Testbed(CITY, seed=7, schedule=[injected(kind, "timeseries-db")])
    testbed.advance(END)
    assert low < ratio(testbed, calm, "timeseries-db", metric) < high
    # Before it began nothing differed.
    before, undisturbed = (t.window(end_s=START, length=60).values for t in (testbed, calm))
    np.testing.assert_array_equal(before, undisturbed)


def test_subtle_injections_are_subtle(calm: Testbed) -> None:
    testbed = Testbed(CITY, seed=7, schedule=[injected("step_load", "auth", 0.25)])
    testbed.advance(END)
    assert 1.05 < ratio(testbed, calm, "auth", Metric.THROUGHPUT) < 1.8


def test_a_slow_service_slows_its_callers(calm: Testbed) -> None:
    testbed = Testbed(CITY, seed=7, schedule=[injected("high_cpu", "timeseries-db", 1.0)])
    testbed.advance(END)
    assert ratio(testbed, calm, "dashboard", Metric.LATENCY_P50) > 1.2
    assert ratio(testbed, calm, "dashboard", Metric.LATENCY_P99) > 1.4
    assert ratio(testbed, calm, "face-detector", Metric.CPU) == pytest.approx(1, abs=0.2)
    assert testbed.affected(testbed.truth()[0]) == (
        "timeseries-db", "face-recogniser", "stream-processor", "dashboard", "route-optimiser",
    )  # fmt: skip


def test_network_latency_slows_callers_while_the_container_looks_fast(calm: Testbed) -> None:
    testbed = Testbed(CITY, seed=7, schedule=[injected("network_latency", "stream-processor", 1.0)])
    testbed.advance(END)
    assert ratio(testbed, calm, "mqtt-broker", Metric.LATENCY_P50) > 2
    assert ratio(testbed, calm, "stream-processor", Metric.LATENCY_P50) < 1.05


def test_a_surge_reaches_the_callees(calm: Testbed) -> None:
    testbed = Testbed(CITY, seed=7, schedule=[injected("step_load", "sensor-ingest", 0.7)])
    testbed.advance(END)
    assert ratio(testbed, calm, "mqtt-broker", Metric.THROUGHPUT) > 1.3


def test_benign_life_is_not_quiet(calm: Testbed) -> None:
    window = calm.window(end_s=3600, length=360)
    cpu = window.values[..., METRICS.index(Metric.CPU)]
    level = np.nanmedian(cpu, axis=1)
    assert level.min() < 0.12
    assert level.max() > 0.8
    # Cron jobs: a service's own CPU well above its median, in normal operation.
    assert (np.nanmax(cpu, axis=1) > level + 0.15).sum() >= 5


def test_no_single_threshold_detects_well() -> None:
    testbeds = []
    for seed in range(3):
        schedule = draw_schedule(CITY.topology, np.random.default_rng(seed), 0, 7200, per_kind=6)
        testbed = Testbed(CITY, seed=seed, schedule=schedule)
        testbed.advance(7200)
        testbeds.append(testbed)
    values = np.concatenate([t.window(end_s=7200, length=720).values.reshape(-1, 12) for t in testbeds])
    truth = np.concatenate([_labels(t).reshape(-1) for t in testbeds])
    scores = [_best_f1(values[:, j], truth) for j in range(12)]
    assert max(scores) < 0.6
    assert np.median(scores) < 0.45


def _labels(testbed: Testbed) -> np.ndarray:
    ends = testbed.step_s * np.arange(1, 721)
    labels = np.zeros((len(testbed.names), 720), dtype=bool)
    for event in testbed.truth():
        labels[testbed.names.index(event.container)] |= (ends > event.start_s) & (ends <= event.end_s)
    return labels


def _best_f1(values: np.ndarray, truth: np.ndarray) -> float:
    """Of all thresholds, above or below, on one metric."""
    known = ~np.isnan(values)
    best = 0.0
    for sign in (1, -1):
        hits = np.cumsum(truth[known][np.argsort(-sign * values[known])])
        best = max(best, float((2 * hits / (np.arange(1, len(hits) + 1) + truth.sum())).max()))
    return best


def test_node_usage_adds_up(calm: Testbed) -> None:
    usage = calm.node_usage(3600)
    assert [u.node for u in usage] == ["edge-1", "edge-2", "core-1"]
    assert sum(u.containers for u in usage) == 12
    for u in usage:
        assert 0 < u.cpu_fraction <= 1
        assert 0 < u.memory_fraction <= 1


def test_users_come_from_many_networks_and_attackers_from_one(calm: Testbed) -> None:
    flows = calm.flows(["auth", "dashboard"], 3600)
    for shares in flows.values():
        assert sum(f.request_share for f in shares) == pytest.approx(1)
        assert shares[0].request_share < 0.35
        assert list(shares) == sorted(shares, key=lambda f: -f.request_share)
    testbed = Testbed(CITY, seed=7, schedule=[injected("brute_force", "auth")])
    testbed.advance(700)
    worst = max(testbed.flows(["auth"], 700)["auth"], key=lambda f: f.failed_share)
    assert worst.source == "203.0.113.0/24"
    assert worst.failed_share > 0.8


@pytest.mark.parametrize(
    ("end_s", "length"), [(3600, 361), (3610, 10), (3605, 10), (0, 1), (600, 0), (600, -3), (float("nan"), 5)]
)
def test_windows_that_were_not_measured_are_refused(calm: Testbed, end_s: float, length: int) -> None:
    with pytest.raises(InputError):
        calm.window(end_s=end_s, length=length)


def test_senseless_calls_are_refused(calm: Testbed) -> None:
    with pytest.raises(UsageError, match="forward"):
        calm.advance(100)
    with pytest.raises(UsageError, match="not a sample"):
        calm.advance(3603)
    with pytest.raises(InputError, match="no sample"):
        calm.node_usage(0)
    with pytest.raises(NotFoundError, match="nobody"):
        calm.flows(["nobody"], 3600)
    with pytest.raises(InputError, match="past"):
        calm.inject(injected("high_cpu", "auth"))
    with pytest.raises(UsageError, match="step_s"):
        Testbed(CITY, seed=1, step_s=0)


def test_injections_are_checked() -> None:
    testbed = Testbed(CITY, seed=1, schedule=[injected("high_cpu", "auth")])
    with pytest.raises(ConflictError, match="overlaps"):
        testbed.inject(injected("high_memory", "auth"))
    with pytest.raises(NotFoundError, match="nowhere"):
        testbed.inject(injected("high_memory", "nowhere"))
    with pytest.raises(UsageError, match="while the profile is learnt"):
        testbed.commission(3600)
    testbed.commission(START)
    assert testbed.now_s == START
    assert testbed.truth() == (LabelledEvent(container="auth", kind="high_cpu", start_s=START, end_s=END),)


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "earthquake"},
        {"intensity": 0.0},
        {"intensity": 1.5},
        {"start_s": -1.0},
        {"end_s": 10.0},
        {"source": "203.0.113.0/24"},
        {"kind": "ddos", "source": "8.8.8.0/24"},
        {"kind": "ddos", "source": "203.0.113.7/24"},
        {"kind": "ddos", "source": "not a network"},
        {"kind": "ddos"},
    ],
)
def test_senseless_injections_are_refused(changed: dict[str, object]) -> None:
    values = {"kind": "high_cpu", "container": "auth", "start_s": 600.0, "end_s": 700.0, "intensity": 0.5, **changed}
    with pytest.raises((UsageError, InputError)):
        Injection(**values)  # type: ignore[arg-type]


def test_schedules_keep_apart_and_inside() -> None:
    schedule = draw_schedule(CITY.topology, np.random.default_rng(1), 3600, 10_800, per_kind=5)
    assert sorted({i.kind for i in schedule}) == sorted(KINDS)
    assert len(schedule) == 5 * len(KINDS)
    for i in schedule:
        assert 3600 <= i.start_s < i.end_s <= 10_800
        assert i.start_s % 10 == 0 == i.end_s % 10
        if i.kind == "traffic_spike":
            assert 10 <= i.end_s - i.start_s <= 60
    by_container: dict[str, list[Injection]] = {}
    for i in schedule:
        by_container.setdefault(i.container, []).append(i)
    for row in by_container.values():
        for a, b in pairwise(row):
            assert b.start_s >= a.end_s + 300
    assert schedule == draw_schedule(CITY.topology, np.random.default_rng(1), 3600, 10_800, per_kind=5)


def test_schedules_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(1)
    with pytest.raises(UsageError, match="do not fit"):
        draw_schedule(CITY.topology, rng, 0, 900, per_kind=20)
    with pytest.raises(UsageError, match="earthquake"):
        draw_schedule(CITY.topology, rng, 0, 900, per_kind={"earthquake": 1})
    assert draw_schedule(CITY.topology, rng, 0, 9000, per_kind={"ddos": 2})[0].source == "203.0.113.0/24"


def test_scenarios_by_name() -> None:
    assert scenario("smart-city").topology == CITY.topology
    assert len(scenario("grid-100").topology.containers) == 100
    with pytest.raises(UsageError, match="smart-city"):
        scenario("smart-citty")
    with pytest.raises(UsageError, match="grid-10"):
        scenario("???")
    with pytest.raises(UsageError, match="1 to 10000"):
        grid(0)


@pytest.mark.parametrize("n", [1, 2, 3, 9, 40])
def test_grids_of_any_size_run_within_their_nodes(n: int) -> None:
    world = grid(n)
    assert len(world.topology.containers) == n
    for node in world.topology.nodes:
        there = [c for c in world.topology.containers if c.node == node.name]
        assert sum(c.replicas * c.cpu_limit_cores for c in there) <= node.cpu_cores
        assert sum(c.replicas * c.memory_limit_bytes for c in there) <= node.memory_bytes
    testbed = Testbed(world, seed=1)
    testbed.advance(100)
    assert testbed.window(end_s=100, length=10).values.shape == (n, 10, 12)


def test_circles_and_wrong_scenarios_are_refused() -> None:
    def container(name: str, *calls: str, node: str = "edge-1") -> Container:
        return Container(
            name=name, service=name, network_service="x", slice="cameras", node=node, replicas=1, cpu_limit_cores=1.0,
            memory_limit_bytes=1e9, depends_on=calls,
        )  # fmt: skip

    def topology(*containers: Container) -> Topology:
        return Topology(nodes=CITY.topology.nodes, links=(), slices=(), containers=containers)

    with pytest.raises(InputError, match="circle"):
        CallGraph.of(topology(container("a", "b"), container("b", "a")))
    profile = CITY.profiles["auth"]
    with pytest.raises(InputError, match="profiles"):
        Scenario("bad", topology(container("a")), {})
    with pytest.raises(InputError, match="not there"):
        Scenario("bad", topology(container("a", "ghost")), {"a": profile})
    with pytest.raises(InputError, match="not there"):
        Scenario("bad", topology(container("a", node="ghost")), {"a": profile})
