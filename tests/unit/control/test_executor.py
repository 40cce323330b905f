"""Each instruction reaches its port; a refusal is an outcome; a bug is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from natwork_ray.control.executor import Executor
from natwork_ray.domain.actions import (
    AddNode,
    BlockSource,
    FlowAlert,
    Instruction,
    MeshRetry,
    Migrate,
    MigrationMethod,
    Restart,
    Scale,
    SetLimits,
)
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.flow_alerts import FlowAdvice
from natwork_ray.domain.values import Backend
from natwork_ray.errors import ActionError, StoreError, TimedOutError

ROUTES: list[tuple[Instruction, str]] = [
    (Migrate(key="k", container="c", source="a", target="b", method=MigrationMethod.COLD), "runtime.migrate"),
    (SetLimits(key="k", container="c"), "runtime.set_limits"),
    (Restart(key="k", container="c"), "runtime.restart"),
    (BlockSource(key="k", container="c", source="192.0.2.1/32", expires_at_s=1.0), "firewall.block"),
    (Scale(key="k", container="c", replicas=2), "orchestrator.scale"),
    (AddNode(key="k", container="c"), "orchestrator.add_node"),
    (MeshRetry(key="k", container="c", enabled=True), "orchestrator.mesh_retry"),
    (
        FlowAlert(
            key="k", container="c", at_s=0.0, kind=AnomalyKind.TRAFFIC_SPIKE, likelihood=0.9, sources=(),
            advice=FlowAdvice.DROP, expires_at_s=1.0,
        ),
        "sdn.alert",
    ),
]  # fmt: skip


class Port:
    """Answers to every verb and notes that it was asked."""

    def __init__(self, name: str, calls: list[tuple[str, Instruction]], answer: Any) -> None:
        self.name, self.calls, self.answer = name, calls, answer

    def __getattr__(self, verb: str) -> Any:
        async def called(instruction: Instruction) -> Any:
            self.calls.append((f"{self.name}.{verb}", instruction))
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return called


class At:
    def now_s(self) -> float:
        return 42.0


def executor(calls: list[tuple[str, Instruction]], answer: Any) -> Executor:
    port: Any = {name: Port(name, calls, answer) for name in ("runtime", "firewall", "orchestrator", "sdn")}
    return Executor(**port, clock=At(), backend=Backend.EMULATED)


@pytest.mark.parametrize(("instruction", "route"), ROUTES)
def test_routes(world: Any, instruction: Instruction, route: str) -> None:
    calls: list[tuple[str, Instruction]] = []
    outcome = world.outcome("k")
    assert asyncio.run(executor(calls, outcome).execute(instruction)) is outcome
    assert calls == [(route, instruction)]


@pytest.mark.parametrize(("instruction", "route"), ROUTES)
def test_a_refusal_is_an_outcome(instruction: Instruction, route: str) -> None:
    error = ActionError("the disk is full", hint="make room")
    outcome = asyncio.run(executor([], error).execute(instruction))
    assert (outcome.key, outcome.done, outcome.downtime_s, outcome.finished_at_s) == ("k", False, 0.0, 42.0)
    assert outcome.error == "the disk is full (make room)"
    assert instruction.type in outcome.detail


def test_without_a_network_to_tell_the_hint_says_so() -> None:
    hands = replace(executor([], None), sdn=None)
    outcome = asyncio.run(hands.execute(ROUTES[-1][0]))
    assert not outcome.done
    assert "set sdn.kind" in outcome.error


@pytest.mark.parametrize("bug", [KeyError("x"), ZeroDivisionError()])
def test_a_bug_is_no_outcome(bug: Exception) -> None:
    with pytest.raises(type(bug)):
        asyncio.run(executor([], bug).execute(Restart(key="k", container="c")))


@pytest.mark.parametrize("kind", [TimedOutError, StoreError])
def test_an_unknown_outcome_is_not_booked_as_a_failure(kind: type[Exception]) -> None:
    """It may have happened: the instruction has to stay in the outbox, and its downtime in the quota."""
    error = kind("no answer", hint="later")  # type: ignore[call-arg]
    with pytest.raises(kind):
        asyncio.run(executor([], error).execute(ROUTES[0][0]))
