"""The migration models' door on Ray Serve: ingress and models in one replica, as with the anomaly door.

The trees answer in well under a millisecond, so a hop between an ingress and a model would cost more than they do. A
replica keeps nothing between calls: killing one costs a retry.

    serve run serve_apps.migration:app
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from ray import serve
from starlette.types import ASGIApp

from natwork_ray.config import load_config
from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.errors import PreconditionError
from natwork_ray.limi.selection import Forecasts
from natwork_ray.limi.selector_file import PACKAGED_SELECTOR, read_selector
from serve_apps.anomaly import unprefixed
from serve_apps.migration_api import Served, create_app
from serve_apps.security import LOOPBACK_HOSTS


def load_served(path: Path = PACKAGED_SELECTOR) -> Served:
    """A selector's file, ready to serve; errors as `read_selector`."""
    selector, sha256 = read_selector(path)
    return Served(selector, sha256)


class MigrationModelsReplica:
    """One replica: the selector, its HTTP door, and `forecasts` for handles."""

    def __init__(self, selector: Path | None = None) -> None:
        # Without LightGBM's OpenMP runtime the rest of the system still works: this door alone says so, with 503.
        self._served: Served | PreconditionError
        try:
            configured = load_config().migration.selector
            self._served = load_served((selector or configured or PACKAGED_SELECTOR).expanduser())
        except PreconditionError as error:
            self._served = error

    def served(self) -> Served:
        """The selector.

        Raises:
            PreconditionError: there is none on this machine.
        """
        if isinstance(self._served, PreconditionError):
            raise self._served
        return self._served

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The door, built in the replica: it reads the replica's own configuration."""
        http = load_config().http

        async def provide() -> Served:
            return self.served()

        hosts = (*LOOPBACK_HOSTS, http.host)
        return unprefixed(create_app(provide, max_body_bytes=http.max_body_bytes, allowed_hosts=hosts))

    async def forecasts(self, loads: Sequence[ContainerLoad]) -> Forecasts:
        """See `MethodSelector.forecasts`."""
        return await asyncio.to_thread(self.served().selector.forecasts, loads)


MigrationModels: serve.Deployment = serve.deployment(
    name="MigrationModels",
    num_replicas=1,
    max_ongoing_requests=64,
    health_check_period_s=5,
    health_check_timeout_s=10,
    graceful_shutdown_timeout_s=5,
    ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
)(serve.ingress()(MigrationModelsReplica))

app = MigrationModels.bind()
