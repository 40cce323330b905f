"""The doors as Serve opens them, with a loop behind them that turns only when a test turns it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from natwork_ray.config import load_config
from natwork_ray.control.cycle import Turn


@dataclass
class Loop:
    """A loop in mode approve, in the namespace that the gateway looks into."""

    runner: asyncio.Runner
    supervisor: Any  # agents.supervisor.Supervisor
    at_s: float

    def turn(self) -> Turn:
        """One turn; time goes on by one step."""
        self.at_s += self.supervisor.facts.step_s
        turn: Turn = self.runner.run(self.supervisor.turn(self.at_s))
        return turn


@pytest.fixture(scope="session")
def loop(ray_cluster: Any, anomaly_app: str) -> Iterator[Loop]:
    from agents.supervisor import Supervisor

    run = {"emulation.seed": 8, "emulation.duration_s": 3600.0, "loop.mode": "approve", "sla.window_s": 86_400.0}
    config = load_config(environ={}, flags=run)
    with asyncio.Runner() as runner:
        supervisor = runner.run(Supervisor.begin(config, ray_cluster.state_dir))
        yield Loop(runner, supervisor, supervisor.facts.begins_s)


@pytest.fixture
def http(anomaly_app: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{anomaly_app}/api/v1", trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def token(ray_cluster: Any, anomaly_app: str) -> dict[str, str]:
    text = (ray_cluster.state_dir / "api-token").read_text(encoding="ascii").strip()
    return {"Authorization": f"Bearer {text}"}
