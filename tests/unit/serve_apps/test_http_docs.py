"""docs/http.md names every route, every status and every bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from natwork_ray.config import HttpConfig
from serve_apps.anomaly_wire import MAX_WINDOWS
from serve_apps.event_stream import StreamLimits
from serve_apps.migration_api import MAX_LOADS, Served
from serve_apps.migration_api import create_app as create_migration_models
from serve_apps.problems import STATUS, kind_of

DOCS = Path(__file__).parents[3] / "docs" / "http.md"


async def _nobody() -> Served:
    raise AssertionError("a document is made without any model")


@pytest.fixture(scope="module")
def text() -> str:
    return DOCS.read_text(encoding="utf-8")


def test_every_route_is_described(text: str, gateway: Any, anomaly: Any) -> None:
    documents = (
        gateway.get("/api/v1/openapi.json").json(),
        anomaly.get("/api/v1/anomaly/openapi.json").json(),
        create_migration_models(_nobody, max_body_bytes=1, allowed_hosts=("localhost",)).openapi(),
    )
    for document in documents:
        for path, operations in document["paths"].items():
            for method in operations:
                assert f"`{method.upper()} {path}`" in text


def test_every_problem_is_described(text: str) -> None:
    for error, status in STATUS.items():
        if kind_of(error) != "natwork":
            assert f"| `{kind_of(error)}` | {status} |" in text


def test_bounds_are_the_real_ones(text: str) -> None:
    assert f"{MAX_WINDOWS:,} windows" in text
    assert f"{MAX_LOADS:,} containers" in text
    assert f"{HttpConfig().max_body_bytes // 2**20} MiB" in text
    assert f"{StreamLimits().stream_s:.0f} s" in text
    assert f"{StreamLimits().streams} streams" in text
