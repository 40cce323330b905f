"""Putting the applications on a cluster that this process is a client of."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from ray import serve

from agents.naming import SERVE_ANOMALY, SERVE_GATEWAY, SERVE_MIGRATION_MODELS
from natwork_ray.config import HttpConfig
from serve_apps import anomaly, gateway, migration, migration_api

ANOMALY_PREFIX = "/api/v1/anomaly"
_TIMEOUT_S = 60


def make_token(state_dir: Path) -> Path:
    """The API token's file, made with mode 0600 when there is none."""
    path = state_dir / gateway.TOKEN_FILE
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
    return path


def deploy(http: HttpConfig, *, gateway_too: bool = True, replicas: int = 1) -> str:
    """Start Serve on loopback (unless configured otherwise) and run the applications; the base URL."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # of this client; it tells of every handle and step
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": http.host, "port": http.port, "request_timeout_s": _TIMEOUT_S},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    model = anomaly.Anomaly.options(num_replicas=replicas).bind()
    serve.run(model, name=SERVE_ANOMALY, route_prefix=ANOMALY_PREFIX, blocking=False)
    serve.run(migration.app, name=SERVE_MIGRATION_MODELS, route_prefix=migration_api.PREFIX, blocking=False)
    if gateway_too:
        serve.run(gateway.app, name=SERVE_GATEWAY, route_prefix="/", blocking=False)
    return f"http://{http.host}:{http.port}"
