"""The anomaly door on Ray Serve: ingress and model in one replica.

A hop between an ingress and a model deployment costs several times what the networks do, so there is none: HTTP
requests are parsed, judged and answered in the process that holds the model, and the loop's supervisor calls `score`
of the same replica by handle, arrays in and arrays out. A replica keeps nothing between calls: killing one costs a
retry.

    serve run serve_apps.anomaly:app
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch
from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from natwork_ray.config import load_config
from natwork_ray.errors import PreconditionError
from natwork_ray.profiling.bounds import DEFAULT_MODEL, PACKAGED_MODELS
from natwork_ray.profiling.model_file import digest, loads
from natwork_ray.profiling.profile import Floats
from natwork_ray.profiling.verdicts import Scores
from serve_apps.anomaly_api import ModelInfo, Served, create_app
from serve_apps.security import LOOPBACK_HOSTS

MODEL = PACKAGED_MODELS / f"{DEFAULT_MODEL}.safetensors"


def load_served(path: Path = MODEL) -> Served:
    """A model file, ready to serve.

    Raises:
        PreconditionError: there is no such file; the packaged one may have been left out of an installation.
        InputError: the file is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PreconditionError(
            f"cannot read the model {path}: {error}", hint="`natwork train profiler` makes one, or install again"
        ) from error
    detector = loads(data)
    return Served(detector, ModelInfo(sha256=digest(data), window=detector.window, card=detector.card))


class AnomalyReplica:
    """One replica: the detector, its HTTP door, and `score` for handles."""

    def __init__(self, model: Path | None = None) -> None:
        torch.set_num_threads(1)  # more threads than cores cost a factor of ten
        self._served = load_served(model or load_config().model or MODEL)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The door, built in the replica: it reads the replica's own configuration."""
        http = load_config().http

        async def provide() -> Served:
            return self._served

        hosts = (*LOOPBACK_HOSTS, http.host)
        return unprefixed(create_app(provide, max_body_bytes=http.max_body_bytes, allowed_hosts=hosts))

    async def score(self, values: Floats, centre: Floats, scale: Floats) -> Scores:
        """Scores of values (N, T, 12) against profiles (N, 12); see `TwoStageDetector.score`."""
        return await asyncio.to_thread(self._served.detector.score, values, centre, scale)


def unprefixed(app: ASGIApp) -> ASGIApp:
    """Route by the whole path, whatever prefix Serve mounts the application at: its routes carry theirs themselves."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": ""}, receive, send)

    return route


Anomaly: serve.Deployment = serve.deployment(
    name="Anomaly",
    num_replicas=1,
    max_ongoing_requests=64,
    health_check_period_s=5,
    health_check_timeout_s=10,
    graceful_shutdown_timeout_s=5,
    ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
)(serve.ingress()(AnomalyReplica))

app = Anomaly.bind()
