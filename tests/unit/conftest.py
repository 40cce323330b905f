"""Unit tests know nothing of Ray: starting it fails the test."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `ray.init` raise, also where Ray was imported already."""
    ray = sys.modules.get("ray")
    if ray is not None:

        def forbidden(*_args: object, **_kwargs: object) -> None:
            raise AssertionError("a unit test may not start Ray: it belongs into tests/agents or tests/serve")

        monkeypatch.setattr(ray, "init", forbidden)
