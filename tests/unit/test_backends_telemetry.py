"""Where a world's telemetry comes from: the choice of the configuration, and what it is refused for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from natwork_ray import backends
from natwork_ray.config import Config, LoopConfig, PrometheusConfig
from natwork_ray.errors import ConfigError, NotFoundError, PreconditionError, UsageError


@pytest.mark.parametrize("backend", ["emulated", "replay"])
def test_a_world_with_a_clock_of_its_own_has_its_own_telemetry(backend: Any) -> None:
    with pytest.raises(UsageError, match="telemetry = prometheus"):
        backends.build_world(Config(backend=backend, telemetry="prometheus"))


def test_prometheus_with_the_loops_step() -> None:
    source = backends.prometheus_telemetry(Config(loop=LoopConfig(step_s=2.5)))
    assert source.step_s == 2.5
    source.close()
    with pytest.raises(ConfigError):
        backends.prometheus_telemetry(Config(prometheus=PrometheusConfig(url="nowhere")))


def test_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "natwork_ray.adapters.prometheus", None)
    with pytest.raises(PreconditionError) as caught:
        backends.prometheus_telemetry(Config())
    assert "natwork-ray[prometheus]" in caught.value.hint


def test_a_node_exports_only_where_a_port_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert backends.node_exporter(Config(), "node-1") is None
    layouts = tuple(SimpleNamespace(name=f"node-{n}", bundles=tmp_path / "none") for n in range(3))

    def node(name: str) -> Any:
        for layout in layouts:
            if layout.name == name:
                return layout
        raise NotFoundError(name, hint="h")

    record = SimpleNamespace(nodes=layouts, node=node)
    monkeypatch.setattr(backends, "real_testbed", lambda _: (record, None))
    asked: list[tuple[str, int]] = []
    exporters = "natwork_ray.adapters.cadvisor_exporter.serving"
    monkeypatch.setattr(exporters, lambda exporter, *, host, port: asked.append((host, port)))
    config = Config(prometheus=PrometheusConfig(exporter_port=9464))
    backends.node_exporter(config, "node-2")
    assert asked == [("127.0.0.1", 9466)]
    with pytest.raises(NotFoundError):
        backends.node_exporter(config, "node-9")
