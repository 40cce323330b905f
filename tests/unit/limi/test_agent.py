"""The LiMi agent in the emulated laboratory: measured, chosen, moved once by key, brought to an end after its death."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from natwork_ray.domain.actions import Migrate
from natwork_ray.domain.migrations import ContainerLoad, MigrationForecast, MigrationState
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.topology import Link
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.lab_runtime import LabRuntime
from natwork_ray.emulation.lab_transfer import LabBridge, LabJournal, LabTransfer
from natwork_ray.emulation.lab_values import ContainerProfile, LabContainer, LabNode
from natwork_ray.emulation.migration_lab import MigrationLab
from natwork_ray.errors import ActionError, ConflictError, NatworkError, PreconditionError, StoreError, UsageError
from natwork_ray.limi.agent import AgentSettings, MigrationAgent, outcome_of
from natwork_ray.limi.choosing import ByEquations, ByModel
from natwork_ray.limi.node import LimiNode

MIB = float(2**20)
M = MigrationMethod
ALL = tuple(MigrationMethod)


def laboratory(methods: Sequence[MigrationMethod] = ALL, containers: int = 1) -> MigrationLab:
    profile = ContainerProfile(memory_bytes=128 * MIB, dirty_bytes_per_s=4 * MIB, working_set_bytes=32 * MIB)
    return MigrationLab(
        [LabNode(name=n) for n in ("a", "b")],
        [Link(a="a", b="b", bandwidth_bytes_per_s=120 * MIB, rtt_s=0.001)],
        [LabContainer(name=f"c{n}", node="a", profile=profile) for n in range(containers)],
        seed=7,
        methods=tuple(methods),
    )


class Agents:
    """The agents of both nodes; journals outlive them."""

    def __init__(self, lab: MigrationLab, chooser: Any = None) -> None:
        self.lab, self.chooser = lab, chooser or ByEquations()
        self.journals = {name: LabJournal() for name in ("a", "b")}
        self.agents: dict[str, MigrationAgent] = {}
        for name in self.journals:
            self.begin(name)

    def begin(self, name: str) -> MigrationAgent:
        lab = self.lab
        node = LimiNode(
            name, LabRuntime(lab, name), LabTransfer(lab, name), LabBridge(lab, name), self.journals[name], lab.clock
        )
        self.agents[name] = MigrationAgent(
            node,
            backend=Backend.EMULATED,
            peer=lambda n: self.agents[n],
            chooser=self.chooser,
            settings=AgentSettings(),
        )
        return self.agents[name]

    async def kill(self, name: str) -> MigrationAgent:
        """Its tasks end where they stand; the next agent has the journal."""
        dead = self.agents[name]
        for task in list(dead._tasks.values()):
            task.cancel()
        await dead.node.close()
        await asyncio.sleep(1.0)
        return self.begin(name)


def order(**fields: Any) -> Migrate:
    return Migrate(**{"key": "d-1/0", "container": "c0", "source": "a", "target": "b", **fields})


@pytest.mark.parametrize("method", [None, *MigrationMethod])
def test_a_container_moves_once_by_its_key(method: MigrationMethod | None) -> None:
    lab = laboratory()

    async def scene() -> None:
        agents = Agents(lab)
        agent = agents.agents["a"]
        first, second = await asyncio.gather(agent.migrate(order(method=method)), agent.migrate(order(method=method)))
        assert first == second
        assert first.done
        record = first.record
        assert record is not None
        assert (record.state, record.runs_on, record.chosen_by) == (
            MigrationState.MIGRATED, "b", "operator" if method else "rule",
        )  # fmt: skip
        assert (record.load is None, record.forecast is None) == (method is not None, method is not None)
        assert method in (None, record.method)
        assert first.downtime_s == record.downtime_s > 0
        reborn = await agents.kill("a")
        assert await reborn.migrate(order(method=method)) == first, "answered from the journal"
        assert await reborn.progress("d-1/0") is None
        with pytest.raises(ConflictError, match="was used to move c0 to b"):
            await reborn.migrate(order(target="a", source="b"))

    lab.run(scene)
    assert lab.runs_on("c0") == ("b",)


@pytest.mark.parametrize("after_s", [0.05, 0.3, 0.6, 1.0, 1.4, 1.6, 1.8, 2.0])
@pytest.mark.parametrize("method", [M.COLD, M.PRE_COPY, M.HYBRID])
def test_a_killed_agent_brings_what_it_left_to_an_end(method: MigrationMethod, after_s: float) -> None:
    lab = laboratory()

    async def scene() -> str:
        agents = Agents(lab)
        asked = asyncio.create_task(agents.agents["a"].migrate(order(method=method)))
        await asyncio.sleep(after_s)
        if asked.done():
            return (await asked).record.runs_on  # type: ignore[union-attr]
        reborn = await agents.kill("a")
        with pytest.raises(asyncio.CancelledError):
            await asked
        recovered = await reborn.recover()
        outcome = await reborn.migrate(order(method=method))
        assert outcome.record is not None
        assert [r.key for r in recovered] in ([], ["d-1/0"])
        assert outcome.done == (outcome.record.runs_on == "b")
        return outcome.record.runs_on

    where = lab.run(scene)
    assert lab.runs_on("c0") == (where,)
    assert lab.address_on("c0") == (where,)
    assert lab.leftovers("c0") == ()


def test_progress_is_told_while_it_runs() -> None:
    lab = laboratory()

    async def scene() -> None:
        agent = Agents(lab).agents["a"]
        asked = asyncio.create_task(agent.migrate(order(method=M.PRE_COPY)))
        names: set[str] = set()
        while not asked.done():
            progress = await agent.progress("d-1/0")
            if progress is not None:
                assert (progress.key, progress.container, progress.target) == ("d-1/0", "c0", "b")
                names |= {name for name in progress.under_way if "attempt" not in name}
            await asyncio.sleep(0.02)
        assert {"pre-dump", "pre-dump transfer", "dump"} <= names

    lab.run(scene)


def test_who_starts_later_waits_and_another_one_is_refused() -> None:
    lab = laboratory()

    async def scene() -> None:
        agent = Agents(lab).agents["a"]
        start_s = lab.now_s() + 5.0
        later = asyncio.create_task(agent.migrate(order(method=M.COLD, not_before_s=start_s)))
        await asyncio.sleep(5.3)
        with pytest.raises(ActionError, match="is under way"):
            await agent.migrate(order(key="d-2/0", method=M.COLD))
        record = (await later).record
        assert record is not None
        assert record.started_at_s == pytest.approx(start_s)

    lab.run(scene)


def test_an_outlook_measures_and_changes_nothing() -> None:
    lab = laboratory(methods=(M.COLD, M.PRE_COPY))

    async def scene() -> None:
        agents = Agents(lab)
        agent = agents.agents["a"]
        found = await agent.outlook("c0", "b", weight=None)
        assert found.load is not None
        assert found.load.bandwidth_bytes_per_s > 0
        assert [f.method for f in found.forecasts] == [M.COLD, M.PRE_COPY]
        assert {r.method for r in found.impossible} == {M.POST_COPY, M.HYBRID}
        assert all(r.reason for r in found.impossible)
        assert found.chosen is M.PRE_COPY
        assert (await agent.outlook("c0", "b", weight=1.0)).chosen is M.COLD
        assert agents.journals["a"].open_keys() == agents.journals["a"].records() == ()

    lab.run(scene)
    assert lab.runs_on("c0") == ("a",)


def test_without_a_method_nothing_is_begun() -> None:
    lab = laboratory(methods=())

    async def scene() -> None:
        agent = Agents(lab).agents["a"]
        assert (await agent.outlook("c0", "b", weight=None)).chosen is None
        with pytest.raises(PreconditionError):
            await agent.migrate(order())
        assert agent._tasks == {}

    lab.run(scene)
    assert lab.runs_on("c0") == ("a",)


@pytest.mark.parametrize("state", [MigrationState.ROLLED_BACK, MigrationState.RESTARTED, MigrationState.REFUSED])
def test_only_what_runs_on_its_target_is_done(state: MigrationState) -> None:
    lab = laboratory()

    async def scene() -> Any:
        return (await Agents(lab).agents["a"].migrate(order(method=M.COLD))).record

    record = lab.run(scene)
    failed = outcome_of(replace(record, state=state, runs_on="a", error="the disk is full", hint="make room"))
    assert (failed.done, failed.error) == (False, "the disk is full (make room)")
    assert outcome_of(replace(record, state=state)).error


class Model:
    """Knows two methods; cold is said to be best."""

    def predict(self, load: ContainerLoad) -> tuple[MigrationForecast, ...]:
        return tuple(
            MigrationForecast(method=m, total_p50_s=t, total_p95_s=2 * t, downtime_p50_s=t / 2, downtime_p95_s=t)
            for m, t in ((M.COLD, 1.0), (M.HYBRID, 2.0))
        )

    def extrapolated(self, load: ContainerLoad) -> tuple[str, ...]:
        return ("memory",)


def test_a_model_chooses_and_says_where_it_guesses() -> None:
    lab = laboratory()

    async def scene() -> None:
        agent = Agents(lab, ByModel(Model())).agents["a"]
        found = await agent.outlook("c0", "b", weight=0.3)
        assert (found.chosen, found.chosen_by) == (M.COLD, "model")
        assert "beyond what it was trained on: memory" in found.reason
        outcome = await agent.migrate(order())
        assert outcome.record is not None
        assert (outcome.record.chosen_by, outcome.record.method) == ("model", M.COLD)
        assert outcome.record.forecast == found.forecast()
        with pytest.raises(PreconditionError):
            ByModel(Model()).choose(outcome.record.load, (M.PRE_COPY,), weight=0.2)  # type: ignore[arg-type]

    lab.run(scene)


@pytest.mark.parametrize(("methods", "weight", "error"), [((), 0.2, PreconditionError), (ALL, 1.1, UsageError)])
def test_choices_that_cannot_be_made(methods: tuple[M, ...], weight: float, error: type[NatworkError]) -> None:
    load = ContainerLoad(**dict.fromkeys(ContainerLoad.__dataclass_fields__, 1.0))
    for chooser in (ByEquations(), ByModel(Model())):
        with pytest.raises(error):
            chooser.choose(load, methods, weight=weight)


def test_a_damaged_journal_holds_up_its_own_node_only(caplog: pytest.LogCaptureFixture) -> None:
    lab = laboratory()

    async def scene() -> None:
        agents = Agents(lab)
        agent = agents.agents["a"]
        agents.journals["a"].append("d-9/0", b'{"type":"nonsense"}')
        assert await agent.recover() == ()
        assert "nothing can be recovered on a" in caplog.text
        for asked in (agent.outlook("c0", "b", weight=None), agent.migrate(order(method=M.COLD))):
            with pytest.raises(StoreError, match="d-9/0"):
                await asked
        assert await agents.agents["b"].recover() == ()
        assert caplog.text.count("nothing can be recovered") == 1

    lab.run(scene)
    assert lab.runs_on("c0") == ("a",)
