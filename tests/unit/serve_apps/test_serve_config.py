from __future__ import annotations

from typing import Any

import pytest
import yaml

from natwork_ray.errors import PreconditionError
from serve_apps import serve_config
from serve_apps.event_stream import StreamLimits


@pytest.fixture(scope="module")
def config() -> Any:
    return yaml.safe_load(serve_config.CONFIG.read_text(encoding="utf-8"))


def test_the_file_is_current() -> None:
    again = "make it again with `python -m serve_apps.serve_config`"
    assert serve_config.CONFIG.read_text(encoding="utf-8") == serve_config.render(), again


def test_nothing_listens_beyond_loopback(config: Any) -> None:
    assert config["http_options"]["host"] == "127.0.0.1"
    assert config["proxy_location"] == "HeadOnly"
    assert "grpc_options" not in config


def test_a_stream_ends_before_serve_cuts_it(config: Any) -> None:
    assert StreamLimits().stream_s < config["http_options"]["request_timeout_s"]


def test_prefixes_and_names_are_those_of_the_routes(config: Any) -> None:
    found = {a["name"]: a["route_prefix"] for a in config["applications"]}
    assert found == {
        "gateway": "/",
        "anomaly": "/api/v1/anomaly",
        "forecast": "/api/v1/forecast",
        "migration-models": "/api/v1/migration-models",
    }


def test_a_build_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_config, "APPLICATIONS", {"serve_apps.nothing:app": ("x", "/")})
    with pytest.raises(PreconditionError, match="nothing"):
        serve_config.render()
