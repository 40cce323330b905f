"""LiMi agents: pinned to their node, idempotent, back after a kill."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from agents.limi import home_of, start_limi
from agents.naming import HOST_LABEL, NODE_LABEL
from agents.world import WorldClient, start_world
from natwork_ray.config import load_config
from natwork_ray.domain.actions import Migrate, MigrationMethod, Restart, SetLimits

PINNED = "edge-2"


@pytest.fixture
def world(ray_cluster: Any, namespace: str) -> WorldClient:
    return start_world(load_config(environ={}), namespace=namespace)


@pytest.mark.parametrize(("node", "machine"), [(PINNED, PINNED), ("edge-1", "control")])
def test_an_agent_lives_on_its_node_or_where_nodes_are_emulated(
    ray_cluster: Any, world: WorldClient, namespace: str, node: str, machine: str
) -> None:
    agent = start_limi(node, namespace=namespace)
    assert ray_cluster.child_of(asyncio.run(agent.pid())) == machine


def test_a_killed_agent_comes_back_to_its_node_and_repeats_nothing(
    ray_cluster: Any, world: WorldClient, namespace: str
) -> None:
    move = Migrate(key="k/0", container="auth", source=PINNED, target="core-1", method=MigrationMethod.PRE_COPY)

    async def scene() -> None:
        agent = start_limi(PINNED, namespace=namespace)
        first = await agent.execute(move)
        assert first.done
        assert first.downtime_s > 0
        pid = await agent.pid()
        os.kill(pid, signal.SIGKILL)
        assert await agent.execute(move) == first
        assert await agent.pid() != pid
        assert ray_cluster.child_of(await agent.pid()) == PINNED
        assert await world.effects([move.key]) == (1,)

    asyncio.run(scene())


def test_a_kill_while_it_acts_does_nothing_twice(world: WorldClient, namespace: str) -> None:
    async def scene() -> None:
        agent = start_limi("edge-1", namespace=namespace)
        work = [Restart(key=f"r/{n}", container="sensor-ingest") for n in range(40)]
        pid = await agent.pid()
        calls = [asyncio.create_task(agent.execute(instruction)) for instruction in work]
        await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        outcomes = await asyncio.gather(*calls)
        assert [o.key for o in outcomes] == [w.key for w in work]
        effects = await world.effects([o.key for o in outcomes if o.done])
        assert set(effects) == {1}
        assert max(await world.effects([w.key for w in work])) == 1

    asyncio.run(scene())


def test_what_a_node_cannot_do_is_a_failed_outcome(world: WorldClient, namespace: str) -> None:
    limits = SetLimits(key="l/0", container="auth", cpu_limit_cores=10_000.0)
    outcome = asyncio.run(start_limi(PINNED, namespace=namespace).execute(limits))
    assert not outcome.done
    assert outcome.error


def test_where_an_agent_belongs() -> None:
    host, own = {HOST_LABEL: "yes"}, {NODE_LABEL: "edge-1"}
    assert home_of("edge-1", [host, own]) == own
    assert home_of("edge-2", [host, own]) == host
    assert home_of("edge-2", []) == host
