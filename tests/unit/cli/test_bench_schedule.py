"""`natwork bench schedule`, small: what it reports is whole, repeatable, and judged by the laboratory's own log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from natwork_ray.cli import bench_schedule
from natwork_ray.domain.migrations import ContainerLoad, MigrationState
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.errors import ExitCode
from natwork_ray.limi.choosing import ByEquations, MethodChoice


def test_a_small_campaign(natwork: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_schedule, "LARGEST", 4)
    monkeypatch.setattr(bench_schedule, "PLANNED", 8)
    monkeypatch.setattr(bench_schedule, "RESAMPLES", 20)
    ended = natwork("bench", "schedule", "--services", "2", "--seed", "5", "--json")
    assert (ended.code, ended.err) == (0, "")
    document = json.loads(ended.out)
    assert (document["services"], document["seed"], document["backend"]) == (2, 5, "emulated")
    assert set(document["disruption_s"]) == {"ours", "together", "one_by_one"}
    assert set(document["arrival_spread_pct_of"]) == set(bench_schedule.WAYS) - {"ours"}
    assert document["arrival_spread_pct"]["p50"] <= document["arrival_spread_pct"]["p95"]
    assert document["disruption_s_of"]["ours"]["split_mean"] == pytest.approx(0, abs=0.05)
    assert document["plan_64_s"] > 0
    rows = bench_schedule.rows(document)
    assert [row["way"] for row in rows] == list(bench_schedule.WAYS)
    assert all(set(row) == set(bench_schedule.COLUMNS) for row in rows)
    shown = natwork("bench", "schedule", "--services", "2", "--seed", "5", "-o", "csv")
    assert shown.out.splitlines()[0].startswith("way,p50_pct")


def test_equal_seeds_equal_moves_and_held_members_arrive_together() -> None:
    service = bench_schedule.draw_service(np.random.default_rng(3), 4)
    once, again, other = (
        bench_schedule.move(service, "ours", bench_schedule.WAYS["ours"], seed=seed, chooser=ByEquations())
        for seed in (1, 1, 2)
    )
    assert once == again
    assert once.arrivals_s != other.arrivals_s
    assert once.spread_s < 0.05  # the noise of address moves of 50 ms
    loose = bench_schedule.move(service, "together", None, seed=1, chooser=ByEquations())
    assert loose.spread_s > once.spread_s


class OnlyPreCopy:
    def choose(self, load: ContainerLoad, methods: Sequence[MigrationMethod], *, weight: float) -> MethodChoice:
        return ByEquations().choose(load, [MigrationMethod.PRE_COPY], weight=weight)


@pytest.mark.parametrize(
    ("verb", "after_restores"), [("pre_dump", False), ("dump", False), ("send_volume", False), ("restore", True)]
)
def test_one_that_fails_brings_the_others_back_while_none_was_restored(verb: str, after_restores: bool) -> None:
    """With the very state machine and driver of real migrations: what is held at a gate can still go back."""
    service = bench_schedule.draw_service(np.random.default_rng(11), 5)
    lab = bench_schedule.laboratory(service, seed=1)
    lab.fail(verb, "c2", times=3)
    ours = bench_schedule.WAYS["ours"]
    request, _, records = bench_schedule.move_in(lab, service, "ours", ours, chooser=OnlyPreCopy())
    homes = {c.name: c.node for c in service.topology.containers}
    assert not lab.violations
    for m in request.members:
        moved = after_restores and m.container != "c2"
        if m.container in records:  # one whose turn had not come was never begun
            state = records[m.container].state
            assert state is (MigrationState.MIGRATED if moved else MigrationState.ROLLED_BACK)
        assert lab.runs_on(m.container) == ((m.target,) if moved else (homes[m.container],))
        assert lab.address_on(m.container) == lab.runs_on(m.container)


def test_services_are_whole() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        service = bench_schedule.draw_service(rng, int(rng.integers(2, 17)))
        containers = service.topology.containers
        assert set(service.targets) == set(service.profiles) == {c.name for c in containers}
        called = {name for c in containers for name in c.depends_on}
        assert called == {c.name for c in containers[1:]}
        for c in containers:
            assert service.topology.link(c.node, service.targets[c.name]) is not None


@pytest.mark.parametrize("arguments", [("--services", "1"), ("--services", "many"), ("--seed", "-1")])
def test_senseless_numbers(natwork: Any, arguments: tuple[str, ...]) -> None:
    ended = natwork("bench", "schedule", *arguments)
    assert (ended.code, ended.out) == (ExitCode.USAGE, "")
