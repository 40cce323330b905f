"""A LiMi agent answers scrapes where the configuration says so; a port that is taken does not keep it from its work."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest

from agents import limi
from natwork_ray.config import Config, PrometheusConfig
from natwork_ray.errors import PreconditionError

CONFIG = Config(backend="testbed", prometheus=PrometheusConfig(exporter_port=9464))


@pytest.fixture(autouse=True)
def _no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limi, "build_limi_agent", lambda *_: ("agent", "control"))
    monkeypatch.setattr(limi, "NodeHome", lambda *parts: parts)


def test_scrapes_are_answered_for_as_long_as_the_agent_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []

    @contextlib.contextmanager
    def exporter() -> Iterator[tuple[str, int]]:
        entered.append("in")
        yield "127.0.0.1", 9465
        entered.append("out")

    monkeypatch.setattr(limi, "node_exporter", lambda config, node: exporter() if node == "node-1" else None)
    agent = limi.LimiAgent("node-1", "ns", CONFIG)
    limi.LimiAgent("node-2", "ns", CONFIG)
    assert entered == ["in"]
    agent._exporting.close()
    assert entered == ["in", "out"]


def test_a_port_that_is_taken_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def taken(config: Config, node: str) -> None:
        raise PreconditionError("cannot listen on 127.0.0.1:9464", hint="h")

    monkeypatch.setattr(limi, "node_exporter", taken)
    with caplog.at_level(logging.WARNING):
        limi.LimiAgent("node-1", "ns", CONFIG)
    assert "node-1 are not exported: cannot listen" in caplog.text
