"""What every implementation of the world's ports keeps: TelemetrySource, NodeActions, Orchestrator, Firewall.

A real adapter joins by a further entry in `WORLDS`: a function that gives a `World`, with at least one container that
may be acted upon, two nodes, and ten samples in the past.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pytest

from natwork_ray.domain.actions import (
    ActionOutcome,
    AddNode,
    BlockSource,
    MeshRetry,
    Migrate,
    MigrationMethod,
    Restart,
    Scale,
    SetLimits,
)
from natwork_ray.domain.topology import Container
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.ports import (
    EmulatedClock,
    EmulatedFirewall,
    EmulatedOrchestrator,
    EmulatedRuntime,
    EmulatedTelemetry,
)
from natwork_ray.emulation.scenarios import smart_city
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import ActionError, InputError, NatworkError, NotFoundError
from natwork_ray.ports import Clock, Firewall, NodeActions, Orchestrator, TelemetrySource

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One implementation of each port, and how to let its time pass."""

    telemetry: TelemetrySource
    runtime: NodeActions
    orchestrator: Orchestrator
    firewall: Firewall
    clock: Clock
    backend: Backend
    step_s: float
    container: str
    target: str
    wait: Callable[[], None]  # until whatever was begun has finished


def emulated() -> World:
    testbed = Testbed(smart_city(), seed=13)
    testbed.advance(200)
    return World(
        telemetry=EmulatedTelemetry(testbed),
        runtime=EmulatedRuntime(testbed),
        orchestrator=EmulatedOrchestrator(testbed),
        firewall=EmulatedFirewall(testbed),
        clock=EmulatedClock(testbed),
        backend=Backend.EMULATED,
        step_s=testbed.step_s,
        container="auth",
        target="core-1",
        wait=lambda: testbed.advance(testbed.now_s + 120),
    )


WORLDS = {"emulated": emulated}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def container(world: World) -> Container:
    found = run(world.orchestrator.topology()).container(world.container)
    assert found is not None
    return found


def check(world: World, outcome: ActionOutcome, key: str) -> None:
    assert outcome.key == key
    assert outcome.done
    assert outcome.error == ""
    assert outcome.detail
    assert outcome.backend is world.backend
    assert outcome.finished_at_s >= outcome.started_at_s
    assert 0 <= outcome.downtime_s <= outcome.finished_at_s - outcome.started_at_s + 1e-9


def test_window_gives_what_was_asked_for(world: World) -> None:
    window = run(world.telemetry.window(end_s=world.clock.now_s(), length=10))
    assert window.values.shape == (len(window.containers), 10, 12)
    assert window.values.dtype == np.float32
    assert window.step_s == world.step_s
    assert window.end_s == world.clock.now_s()
    assert world.container in window.containers
    shorter = run(world.telemetry.window(end_s=world.clock.now_s(), length=4))
    np.testing.assert_array_equal(shorter.values, window.values[:, -4:])


def test_window_is_the_callers_own(world: World) -> None:
    now = world.clock.now_s()
    run(world.telemetry.window(end_s=now, length=5)).values[:] = -1
    assert not (run(world.telemetry.window(end_s=now, length=5)).values == -1).any()


@pytest.mark.parametrize("length", [0, -1])
def test_windows_of_no_length_are_refused(world: World, length: int) -> None:
    with pytest.raises(InputError):
        run(world.telemetry.window(end_s=world.clock.now_s(), length=length))


def test_windows_of_the_future_are_refused(world: World) -> None:
    with pytest.raises(InputError):
        run(world.telemetry.window(end_s=world.clock.now_s() + 1e6, length=3))


def test_node_usage_names_nodes_that_exist(world: World) -> None:
    nodes = {n.name for n in run(world.orchestrator.topology()).nodes}
    for usage in run(world.telemetry.node_usage(at_s=world.clock.now_s())):
        assert usage.node in nodes
        assert usage.cpu_fraction >= 0


def test_flows_are_shares_largest_first(world: World) -> None:
    flows = run(world.telemetry.flows([world.container], at_s=world.clock.now_s()))
    shares = [f.request_share for f in flows.get(world.container, ())]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 1 + 1e-6


def test_migration_ends_on_the_target(world: World) -> None:
    before = container(world)
    instruction = Migrate(
        key="m", container=world.container, source=before.node, target=world.target, method=MigrationMethod.COLD
    )
    outcome = run(world.runtime.migrate(instruction))
    check(world, outcome, "m")
    assert outcome.downtime_s > 0
    # Phases overlap: dump, volume and address travel side by side.
    assert all(p.starts_s >= 0 and p.duration_s >= 0 for p in outcome.phases)
    total_s = outcome.finished_at_s - outcome.started_at_s
    assert max(p.starts_s + p.duration_s for p in outcome.phases) == pytest.approx(total_s)
    assert outcome.record is not None
    assert outcome.record.key == "m"
    assert outcome.record.method is MigrationMethod.COLD
    assert outcome.record.runs_on == world.target
    assert run(world.runtime.migrate(instruction)) == outcome
    world.wait()
    assert container(world).node == world.target
    # The first delivery's outcome comes back, although the container has left its source long since.
    assert run(world.runtime.migrate(instruction)) == outcome


def test_failed_migration_leaves_the_container_where_it_was(world: World) -> None:
    before = container(world)
    with pytest.raises(NatworkError):
        run(
            world.runtime.migrate(
                Migrate(
                    key="m", container=world.container, source=before.node, target="no-such-node",
                    method=MigrationMethod.COLD,
                )
            )
        )  # fmt: skip
    world.wait()
    assert container(world) == before


def test_limits_are_set_and_left(world: World) -> None:
    before = container(world)
    instruction = SetLimits(key="l", container=world.container, cpu_limit_cores=before.cpu_limit_cores * 1.5)
    outcome = run(world.runtime.set_limits(instruction))
    check(world, outcome, "l")
    assert run(world.runtime.set_limits(instruction)) == outcome
    world.wait()
    assert container(world).cpu_limit_cores == pytest.approx(before.cpu_limit_cores * 1.5)
    assert container(world).memory_limit_bytes == before.memory_limit_bytes


def test_restart_costs_downtime_once(world: World) -> None:
    before = container(world)
    instruction = Restart(key="r", container=world.container)
    outcome = run(world.runtime.restart(instruction))
    check(world, outcome, "r")
    assert outcome.downtime_s > 0
    assert run(world.runtime.restart(instruction)) == outcome
    world.wait()
    assert container(world) == before


def test_scaling_sets_replicas(world: World) -> None:
    wanted = container(world).replicas + 1
    instruction = Scale(key="s", container=world.container, replicas=wanted)
    check(world, run(world.orchestrator.scale(instruction)), "s")
    world.wait()
    assert container(world).replicas == wanted
    with pytest.raises(ActionError):
        run(world.orchestrator.scale(Scale(key="s2", container=world.container, replicas=-1)))


def test_a_node_is_added_once(world: World) -> None:
    before = len(run(world.orchestrator.topology()).nodes)
    instruction = AddNode(key="n", container=world.container)
    outcome = run(world.orchestrator.add_node(instruction))
    check(world, outcome, "n")
    assert run(world.orchestrator.add_node(instruction)) == outcome
    world.wait()
    assert len(run(world.orchestrator.topology()).nodes) == before + 1


def test_mesh_retries_are_switched(world: World) -> None:
    for key, enabled in (("on", True), ("off", False)):
        instruction = MeshRetry(key=key, container=world.container, enabled=enabled)
        check(world, run(world.orchestrator.mesh_retry(instruction)), key)
        world.wait()


def test_blocked_sources_disappear_from_the_flows(world: World) -> None:
    source = run(world.telemetry.flows([world.container], at_s=world.clock.now_s()))[world.container][0].source
    instruction = BlockSource(key="b", container=world.container, source=source, expires_at_s=world.clock.now_s() + 1e5)
    outcome = run(world.firewall.block(instruction))
    check(world, outcome, "b")
    assert run(world.firewall.block(instruction)) == outcome
    world.wait()
    flows = run(world.telemetry.flows([world.container], at_s=world.clock.now_s()))[world.container]
    assert source not in {f.source for f in flows}


def test_unknown_containers_are_not_found(world: World) -> None:
    with pytest.raises(NotFoundError):
        run(world.runtime.restart(Restart(key="x", container="no-such-container")))
