"""The supervisor: the loop across Ray ends as the loop in one process does, also when its processes are killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from agents.supervisor import Supervisor, start_supervisor
from natwork_ray.cli.in_process import Ending, ending, run_in_process
from natwork_ray.config import Config, load_config
from natwork_ray.domain.actions import Migrate
from natwork_ray.errors import NatworkError

SEED, MINUTES = 8, 20


@pytest.fixture(scope="module")
def config() -> Config:
    run = {"emulation.seed": SEED, "emulation.duration_s": MINUTES * 60, "emulation.speed": 1e6}
    return load_config(environ={}, flags={**run, "loop.mode": "act", "sla.window_s": 86_400.0})


@pytest.fixture(scope="module")
def expected(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Ending:
    _, end = asyncio.run(run_in_process(config, tmp_path_factory.mktemp("undisturbed") / "state"))
    assert Migrate in {type(i) for i in end.issued}, "a run in which nothing moves shows little"
    return end


async def ending_of(supervisor: Supervisor, state_dir: Path) -> Ending:
    control, world = supervisor.crew.control, supervisor.crew.world
    outcomes = await control.outcomes()
    keys = [o.key for o in outcomes]
    return ending(
        state_dir,
        status=await control.status(),
        decisions=await control.decisions(),
        outcomes=outcomes,
        topology=await world.topology(),
        effects=dict(zip(keys, await world.effects(keys), strict=True)),
        world=(await world.facts()).digest,
    )


def test_across_ray_the_run_ends_as_in_one_process(
    anomaly_app: str, namespace: str, config: Config, expected: Ending, tmp_path: Path
) -> None:
    async def scene() -> Ending:
        supervisor = await Supervisor.begin(config, tmp_path / "state", namespace=namespace)
        turns: list[float] = []
        assert await supervisor.run(on_turn=lambda turn: turns.append(turn.at_s)) == len(turns) == MINUTES * 6
        assert set(supervisor.crew.limi) == {node.name for node in (await supervisor.crew.world.topology()).nodes}
        return await ending_of(supervisor, tmp_path / "state")

    assert asyncio.run(scene()).differences(expected) == []


def test_turns_that_are_repeated_change_nothing(
    anomaly_app: str, namespace: str, config: Config, expected: Ending, tmp_path: Path
) -> None:
    async def scene() -> Ending:
        supervisor = await Supervisor.begin(config, tmp_path / "state", namespace=namespace)
        at_s = supervisor.facts.begins_s
        for _ in range(MINUTES * 6):
            at_s += supervisor.facts.step_s
            await supervisor.turn(at_s)
            again = await supervisor.turn(at_s)
            assert (again.decisions, again.outcomes) == ((), ())
        return await ending_of(supervisor, tmp_path / "state")

    assert asyncio.run(scene()).differences(expected) == []


def test_a_killed_supervisor_goes_on_unasked(
    anomaly_app: str, namespace: str, config: Config, expected: Ending, tmp_path: Path
) -> None:
    # At this pace the run takes long enough to kill the actor in the middle of it.
    slower = config.model_copy(update={"emulation": config.emulation.model_copy(update={"speed": 200.0})})

    async def scene() -> Ending:
        actor = start_supervisor(slower, tmp_path / "state", namespace=namespace)
        supervisor = await Supervisor.begin(config, tmp_path / "state", namespace=namespace)
        begins_s, step_s = supervisor.facts.begins_s, supervisor.facts.step_s
        await reached(supervisor, begins_s + 30 * step_s)
        pid = await actor.call("pid")
        os.kill(pid, signal.SIGKILL)
        killed = await supervisor.stands_at_s()
        await reached(supervisor, killed + 10 * step_s)
        assert await actor.call("pid") != pid
        await reached(supervisor, supervisor.facts.ends_s)
        assert (await supervisor.crew.control.status()).trouble == ""
        return await ending_of(supervisor, tmp_path / "state")

    end = asyncio.run(scene())
    # A new supervisor says once more what runs where, which the loop knew.
    again = Counter(end.events) - Counter(expected.events)
    assert [event.partition("@")[0] for event in again] in ([], ["topology"])
    assert not Counter(expected.events) - Counter(end.events)
    assert set(end.differences(expected)) <= {"events"}


async def reached(supervisor: Supervisor, at_s: float) -> None:
    deadline = time.monotonic() + 60
    while await supervisor.stands_at_s() < at_s - 1e-6:
        assert time.monotonic() < deadline, f"the loop stands at {await supervisor.stands_at_s()} s"
        await asyncio.sleep(0.1)


def test_a_model_that_is_away_stops_the_loop_only_as_long_as_it_is_away(
    ray_cluster: Any, anomaly_app: str, namespace: str, config: Config, tmp_path: Path
) -> None:
    async def scene() -> None:
        supervisor = await Supervisor.begin(config, tmp_path / "state", namespace=namespace, patience_s=30.0)
        at_s = supervisor.facts.begins_s + supervisor.facts.step_s
        await supervisor.turn(at_s)
        for process in psutil.Process().children(recursive=True):
            if "".join(process.cmdline()[:1]).startswith("ray::ServeReplica:anomaly:"):
                process.kill()
        began = time.monotonic()
        while True:
            try:
                await supervisor.turn(at_s + supervisor.facts.step_s)
                break
            except NatworkError:
                assert time.monotonic() - began < 60
        assert time.monotonic() - began < 30

    asyncio.run(scene())


def test_metrics_reach_prometheus(
    ray_cluster: Any, anomaly_app: str, namespace: str, config: Config, tmp_path: Path
) -> None:
    async def scene() -> int:
        supervisor = await Supervisor.begin(config, tmp_path / "state", namespace=namespace)
        await supervisor.run(until_s=supervisor.facts.begins_s + 300.0)
        return (await supervisor.crew.control.status()).windows

    windows = asyncio.run(scene())
    deadline = time.monotonic() + 30
    while True:
        found = scraped()
        if windows in found.get("ray_natwork_windows_total", []):
            break
        assert time.monotonic() < deadline, json.dumps({k: v for k, v in found.items() if "natwork" in k})
        time.sleep(0.5)
    assert "ray_natwork_degraded_containers" in found


def scraped() -> dict[str, list[float]]:
    """Samples of all machines, by name."""
    samples: dict[str, list[float]] = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for family in text_string_to_metric_families(httpx.get(url, trust_env=False).text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append(sample.value)
    return samples
