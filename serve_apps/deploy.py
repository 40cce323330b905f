"""Putting the applications on a cluster that this process is a client of."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from ray import serve

from agents.naming import SERVE_ANOMALY, SERVE_FORECAST, SERVE_GATEWAY, SERVE_MIGRATION_MODELS
from natwork_ray.config import HttpConfig
from natwork_ray.errors import PreconditionError
from serve_apps import anomaly, anomaly_wire, forecast, forecast_api, gateway, migration, migration_api

_TIMEOUT_S = 60


def make_token(state_dir: Path) -> Path:
    """The API token's file, made with mode 0600 when there is none."""
    path = state_dir / gateway.TOKEN_FILE
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
    return path


def deploy(http: HttpConfig, *, gateway_too: bool = True, replicas: int = 1, only: str | None = None) -> str:
    """Start Serve on loopback (unless configured otherwise) and run the applications; the base URL.

    `only` names the one application to run; `replicas` is for those of the anomaly and forecast doors.

    Raises:
        PreconditionError: an application does not start.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # of this client; it tells of every handle and step
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": http.host, "port": http.port, "request_timeout_s": _TIMEOUT_S},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    applications = {
        SERVE_ANOMALY: (anomaly.Anomaly.options(num_replicas=replicas).bind(), anomaly_wire.PREFIX),
        SERVE_FORECAST: (forecast.Forecast.options(num_replicas=replicas).bind(), forecast_api.PREFIX),
        SERVE_MIGRATION_MODELS: (migration.app, migration_api.PREFIX),
    }
    if gateway_too:
        applications[SERVE_GATEWAY] = (gateway.app, "/")
    for name, (application, prefix) in applications.items():
        if only not in (None, name):
            continue
        try:
            serve.run(application, name=name, route_prefix=prefix, blocking=False)
        except RuntimeError as error:
            raise PreconditionError(
                f"application {name} does not start: {error}",
                hint="the log of its replica says why: logs/serve in the session folder of Ray",
            ) from error
    return f"http://{http.host}:{http.port}"
