"""The forecast door on Ray Serve: ingress and model in one replica, as with the anomaly door.

A replica keeps nothing between calls that a client would miss, so killing one costs a retry; the version of the model
follows the control actor's choice (agents.models).

    serve run serve_apps.forecast:app
"""

from __future__ import annotations

import asyncio

from ray import serve
from starlette.types import ASGIApp

from agents.models import ModelWatch
from agents.samples import SharedSamples
from natwork_ray.adapters.model_directory import ModelDirectory
from natwork_ray.config import load_config
from natwork_ray.control.models import ModelFacts
from natwork_ray.domain.forecasts import LoadForecast
from natwork_ray.domain.telemetry import TelemetryWindow
from natwork_ray.errors import NatworkError, PreconditionError
from natwork_ray.forecasting.bounds import DEFAULT_FORECASTER
from serve_apps.anomaly import unprefixed
from serve_apps.forecast_api import ServedForecaster, create_app
from serve_apps.forecast_model import load_served
from serve_apps.model_slot import ModelSlot
from serve_apps.security import LOOPBACK_HOSTS


class ForecastReplica:
    """One replica: the forecaster, its HTTP door, and `forecast` and `check` for handles."""

    def __init__(self) -> None:
        self._config = load_config()
        # Without a model the rest of the system still works: this door alone says so, with 503, until one is used.
        first: ServedForecaster | PreconditionError
        try:
            first = load_served(ModelDirectory().load(DEFAULT_FORECASTER))
        except NatworkError as error:
            first = PreconditionError(
                f"there is no forecaster: {error.what}",
                hint="`natwork train forecaster` makes one, `natwork models publish` brings it here",
            )
        self._slot: ModelSlot[ServedForecaster | PreconditionError] = ModelSlot(load_served, first)
        self._watch = ModelWatch(DEFAULT_FORECASTER, serving=self._serving, swap=self._slot.swap)

    def _serving(self) -> str:
        current = self._slot.current
        return "" if isinstance(current, PreconditionError) else current.info.sha256

    async def served(self) -> ServedForecaster:
        """The version in use.

        Raises:
            PreconditionError: there is none.
        """
        current = self._slot.current
        if isinstance(current, PreconditionError):
            raise current
        return current

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The door, built in the replica: it reads the replica's own configuration."""
        http, step_s = self._config.http, self._config.loop.step_s
        return unprefixed(
            create_app(
                self.served,
                max_body_bytes=http.max_body_bytes,
                allowed_hosts=(*LOOPBACK_HOSTS, http.host),
                samples=SharedSamples(step_s),
                step_s=step_s,
            )
        )

    async def check_health(self) -> None:
        """Called by Serve before the first request and every few seconds: also sees to it that versions are watched."""
        self._watch.tend()

    async def forecast(self, window: TelemetryWindow) -> tuple[LoadForecast, ...]:
        """What is expected of every container of the window; see `Forecaster.forecast`."""
        return await asyncio.to_thread((await self.served()).forecaster.forecast, window)

    async def check(self, data: bytes) -> ModelFacts:
        """Load a version without using it; see `natwork_ray.control.models.ModelCheck`."""
        tried = await self._slot.check(data)
        assert not isinstance(tried, PreconditionError)  # noqa: S101 - `load_served` gives a version or raises
        # Shorter windows are forecast too, so no version refuses what clients send.
        return ModelFacts(sha256=tried.info.sha256, window=1, window_in_use=1)


Forecast: serve.Deployment = serve.deployment(
    name="Forecast",
    num_replicas=1,
    max_ongoing_requests=64,
    health_check_period_s=5,
    health_check_timeout_s=10,
    graceful_shutdown_timeout_s=5,
    ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
)(serve.ingress()(ForecastReplica))

app = Forecast.bind()
