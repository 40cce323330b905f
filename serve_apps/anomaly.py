"""The anomaly door on Ray Serve: ingress and model in one replica.

A hop between an ingress and a model deployment costs several times what the model does, so there is none: HTTP
requests are parsed, judged and answered in the process that holds the model, and the loop's supervisor calls `score`
of the same replica by handle, arrays in and arrays out. A replica keeps nothing between calls that a client would miss:
killing one costs a retry. The newest samples of `/samples` lie in an actor beside the replicas.

The version of the model follows the control actor's choice (agents.models); a swap refuses no request.

    serve run serve_apps.anomaly:app
"""

from __future__ import annotations

import torch
from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from agents.models import ModelWatch
from agents.samples import SharedSamples
from natwork_ray.backends import model_bytes
from natwork_ray.config import load_config
from natwork_ray.control.models import ModelFacts
from natwork_ray.profiling.bounds import DEFAULT_MODEL
from natwork_ray.profiling.profile import Floats
from natwork_ray.profiling.verdicts import Scores
from serve_apps.anomaly_api import create_app
from serve_apps.anomaly_model import load_served
from serve_apps.gathering import Gathering
from serve_apps.model_slot import ModelSlot
from serve_apps.security import LOOPBACK_HOSTS


class AnomalyReplica:
    """One replica: the detector, its HTTP door, and `score` and `check` for handles."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # more threads than cores cost a factor of ten
        self._config = load_config()
        self._slot = ModelSlot(load_served, load_served(model_bytes(self._config)))
        self._gathering = Gathering()
        self._watch = ModelWatch(DEFAULT_MODEL, serving=lambda: self._slot.current.info.sha256, swap=self._slot.swap)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The door, built in the replica: it reads the replica's own configuration."""
        http = self._config.http
        return unprefixed(
            create_app(
                self._slot.provide,
                max_body_bytes=http.max_body_bytes,
                allowed_hosts=(*LOOPBACK_HOSTS, http.host),
                samples=SharedSamples(self._config.loop.step_s),
                gathering=self._gathering,
            )
        )

    async def check_health(self) -> None:
        """Called by Serve before the first request and every few seconds: also sees to it that versions are watched."""
        self._watch.tend()

    async def score(self, values: Floats, references: Floats) -> Scores:
        """Scores of values (N, T, 12) against reference rows (N, P); see `Detector.score`."""
        return await self._gathering.score(self._slot.current.detector, values, references)

    async def check(self, data: bytes) -> ModelFacts:
        """Load a version without using it; see `natwork_ray.control.models.ModelCheck`."""
        tried = (await self._slot.check(data)).info
        return ModelFacts(sha256=tried.sha256, window=tried.window, window_in_use=self._slot.current.info.window)


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
