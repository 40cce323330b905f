"""Schemathesis over both OpenAPI documents: whatever a client makes of them, no 5xx, and answers as documented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from natwork_ray.limi.selector_file import read_selector
from serve_apps.migration_api import PREFIX, Served
from serve_apps.migration_api import create_app as create_migration_models

HOST = "testserver"  # what the ASGI client calls itself
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
bounded = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def conform(app: FastAPI, document: str, headers: dict[str, str]) -> int:
    """Try every operation of the document; the number of operations."""
    tried = 0
    # Not through Schemathesis' own pytest plugin: it reaches into pytest internals that pytest 9.2 no longer has.
    for result in schemathesis.openapi.from_asgi(document, app).get_all_operations():
        tried += 1
        assert isinstance(result, Ok), "the document is valid"

        @bounded
        @given(case=result.ok().as_strategy())
        def conforms(case: Any) -> None:
            case.call_and_validate(headers=headers, checks=CHECKS)

        conforms()
    return tried


def test_gateway_conforms(control: Any, make_gateway: Callable[..., FastAPI], token: str) -> None:
    app = make_gateway(control, hosts=[HOST])
    assert conform(app, "/api/v1/openapi.json", {"Authorization": f"Bearer {token}"}) == 30


def test_gateway_conforms_without_a_token(control: Any, make_gateway: Callable[..., FastAPI]) -> None:
    before = control.journal.entry_count()
    conform(make_gateway(control, hosts=[HOST]), "/api/v1/openapi.json", {})
    assert control.journal.entry_count() == before


def test_migration_models_conform() -> None:
    served = Served(*read_selector())

    async def provide() -> Served:
        return served

    app = create_migration_models(provide, max_body_bytes=65_536, allowed_hosts=(HOST,))
    assert conform(app, f"{PREFIX}/openapi.json", {}) == 3


def test_anomaly_conforms(served: Any, make_anomaly: Callable[..., FastAPI]) -> None:
    assert conform(make_anomaly(served, hosts=[HOST]), "/api/v1/anomaly/openapi.json", {}) == 3
