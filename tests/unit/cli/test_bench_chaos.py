"""The kill campaign's arithmetic: where it aims, and what it counts as lost. The campaign itself is in tests/e2e."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from natwork_ray.cli.bench_chaos import BusyTurn, Toll, busy_turns, draw, verdict
from natwork_ray.cli.in_process import Ending, run_in_process
from natwork_ray.config import load_config
from natwork_ray.control.cycle import Turn

NODES = ("edge-1", "edge-2", "core-1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Turn], Ending]:
    """A short run in which the loop acts."""
    flags = {"emulation.seed": 8, "emulation.duration_s": 900.0, "loop.mode": "act"}
    turns: list[Turn] = []
    state: Path = tmp_path_factory.mktemp("run") / "state"
    _, end = asyncio.run(run_in_process(load_config(environ={}, flags=flags), state, on_turn=turns.append))
    return turns, end


def test_the_same_configuration_comes_to_the_same_end(run: tuple[list[Turn], Ending], tmp_path: Path) -> None:
    turns, end = run
    assert len(turns) == 90
    assert end.issued
    flags = {"emulation.seed": 8, "emulation.duration_s": 900.0, "loop.mode": "act"}
    _, again = asyncio.run(run_in_process(load_config(environ={}, flags=flags), tmp_path / "state"))
    assert end.differences(again) == []


def test_another_seed_comes_to_another(run: tuple[list[Turn], Ending], tmp_path: Path) -> None:
    flags = {"emulation.seed": 9, "emulation.duration_s": 900.0, "loop.mode": "act"}
    _, other = asyncio.run(run_in_process(load_config(environ={}, flags=flags), tmp_path / "state"))
    assert {"world", "audit_root"} <= set(run[1].differences(other))


def test_points_are_repeatable_and_half_of_them_are_where_something_happens() -> None:
    busy = [BusyTurn(7, ("edge-2",)), BusyTurn(40, ())]
    points = draw(random.Random(1), kills=50, turns=90, nodes=NODES, busy=busy)
    assert points == draw(random.Random(1), kills=50, turns=90, nodes=NODES, busy=busy)
    assert [p.turn for p in points] == sorted(p.turn for p in points)
    assert sum(p.turn in (7, 40) for p in points) >= 25
    assert {p.victim for p in points} == {"control", "limi", "anomaly"}
    assert all((p.node in NODES) == (p.victim == "limi") for p in points)
    assert all(1 <= p.turn <= 90 and 0 <= p.moment <= 1.2 for p in points)


def test_without_a_busy_turn_all_points_are_anywhere() -> None:
    points = draw(random.Random(2), kills=20, turns=5, nodes=NODES, busy=[])
    assert {p.turn for p in points} <= set(range(1, 6))


def test_busy_turns_name_the_agents_that_had_work(run: tuple[list[Turn], Ending]) -> None:
    turns, end = run
    busy = busy_turns(turns, end)
    assert [b.turn for b in busy] == [n for n, t in enumerate(turns, start=1) if t.outcomes]
    assert {node for b in busy for node in b.nodes} <= {n.name for n in end.topology.nodes}


def test_an_undisturbed_end_passes(run: tuple[list[Turn], Ending]) -> None:
    _, end = run
    document = verdict(end, end, Toll(Counter(control=2), 1, 0, [0.5, 1.5], [2.0]))
    assert document["passed"]
    assert document["recovery_s"] == {"p50": 1.0, "max": 1.5}
    assert document["by_victim"] == {"control": 2}
    assert document["events"]["committed"] == len(end.events)


def test_everything_that_may_not_happen_is_found(run: tuple[list[Turn], Ending]) -> None:
    _, end = run
    key = next(iter(end.effects))
    gone = replace(end.topology, containers=end.topology.containers[1:])
    cases = {
        "lost event": replace(end, events=end.events[:-1]),
        "event twice": replace(end, events=(*end.events, end.events[-1])),
        "done twice": replace(end, effects=end.effects | {key: 2}),
        "container lost": replace(end, topology=gone),
        "other log": replace(end, audit_root="00" * 32),
        "other world": replace(end, world="00" * 32),
        "other outcome": replace(end, outcomes=end.outcomes[:-1]),
    }
    documents = {name: verdict(end, case, Toll()) for name, case in cases.items()}
    assert not [name for name, document in documents.items() if document["passed"]]
    assert documents["lost event"]["events"]["lost"] == 1
    assert documents["event twice"]["events"]["doubled"] == 1
    assert documents["done twice"]["instructions"]["done_twice"] == 1
    assert documents["container lost"]["containers_lost"] == 1
    assert documents["other log"]["differences"] == ["audit_root"]


def test_a_slow_recovery_does_not_pass(run: tuple[list[Turn], Ending]) -> None:
    _, end = run
    assert not verdict(end, end, Toll(recovery_s=[30.1]))["passed"]
    assert verdict(end, end, Toll(recovery_s=[29.9], return_s=[31.0]))["passed"]  # the loop went on without it
