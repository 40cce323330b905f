"""`GET /metrics` of the gateway: the newest verdicts and forecasts as Prometheus series (docs/serving.md).

Ray's own metrics endpoint carries what the control actor counts (docs/ray.md). What is here has a container's name as a
label and changes with every turn, so it is made from the newest turn when somebody asks, and nothing is kept: a
container that has gone, or a loop that stands still, leaves no stale series behind.

Rules kept:
- Bounded: `SeriesLimits.containers`; flagged containers and likely anomalies go first, `natwork_series_left_out` counts
  the others.
- Silence is not health: a container that could not be judged has `natwork_container_degraded` 1 and no verdict score.
- Open on loopback. Where the doors leave loopback, reading this needs the token: these are names and loads of every
  container, and a scraper can carry a token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastapi import APIRouter, Request, Response
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.exceptions import HTTPException

from natwork_ray.domain.anomaly import AnomalyVerdict
from natwork_ray.domain.forecasts import LoadForecast
from natwork_ray.domain.model_versions import ModelOverview
from natwork_ray.domain.shown_turn import ShownTurn
from natwork_ray.domain.status import LoopStatus
from natwork_ray.errors import ConflictError
from serve_apps.problems import responses
from serve_apps.security import authorised

PATH = "/metrics"
# Every series that is exported, with its labels; dashboards, rules and documentation are compared with it.
SERIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "natwork_forecast_expected": ("Expected value, SI units.", ("container", "service", "metric", "horizon_s")),
    "natwork_forecast_lower": ("Lower end of the 90 % band.", ("container", "service", "metric", "horizon_s")),
    "natwork_forecast_upper": ("Upper end of the 90 % band.", ("container", "service", "metric", "horizon_s")),
    "natwork_anomaly_likelihood": (
        "How unlikely the newest sample is under the band forecast for it, 0 to 1.",
        ("container", "service", "metric"),
    ),
    "natwork_verdict": ("1 while the newest window is flagged as this kind.", ("container", "service", "kind")),
    "natwork_verdict_score": (
        "Probability of an anomaly where the newest window is flagged, 0 where it was judged and is not.",
        ("container", "service"),
    ),
    "natwork_container_degraded": (
        "1 where the newest window could not be judged, or only against a profile not its own.",
        ("container", "service"),
    ),
    "natwork_quota_left_seconds": ("Downtime that the container's budget still allows.", ("container", "service")),
    "natwork_loop_time_seconds": ("Time of the newest turn on the backend's clock.", ()),
    "natwork_loop_trouble": ("1 while the loop stands still.", ()),
    "natwork_model_info": ("1 for the version in use of each model.", ("name", "sha256")),
    "natwork_series_left_out": ("Containers without series, beyond the bound.", ()),
}


@dataclass(frozen=True)
class SeriesLimits:
    """Bounds of /metrics: how many containers have series; `digest` of the token that reading needs, None for none."""

    containers: int = 1000
    digest: bytes | None = None


class Shown(Protocol):
    """What is asked of the control service."""

    async def status(self) -> LoopStatus:
        """The loop at this moment; ConflictError when no run was started."""
        ...

    async def shown_turn(self) -> ShownTurn | None:
        """The newest turn; None when there is none, or it is long ago."""
        ...

    async def models(self) -> tuple[ModelOverview, ...]:
        """Every model with its versions."""
        ...


def series_router(control_provider: Callable[[], Awaitable[Shown]], limits: SeriesLimits) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["metrics"])

    @router.get(
        PATH,
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text format"},
            **responses(401, 503),
        },
    )
    async def metrics(request: Request) -> Response:
        """Verdicts, forecasts and downtime budgets of every container, in Prometheus' text format."""
        if limits.digest is not None and not authorised(request.scope["headers"], limits.digest):
            raise HTTPException(401, "reading needs a valid token here")
        control = await control_provider()
        try:
            status = await control.status()
        except ConflictError:
            status = None  # no run yet: there is nothing of a container to show
        turn = await control.shown_turn()
        body = exposition(status, turn, await control.models(), most=limits.containers)
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    return router


def exposition(
    status: LoopStatus | None, turn: ShownTurn | None, models: Sequence[ModelOverview], *, most: int
) -> bytes:
    """The series in Prometheus' text format, of at most `most` containers."""
    registry = CollectorRegistry()
    registry.register(_Once(_families(status, turn, models, most)))
    text: bytes = generate_latest(registry)
    return text


class _Once(Collector):
    """A collector of what was collected already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


class _Board:
    """Families under construction."""

    def __init__(self) -> None:
        self.families = {name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in SERIES.items()}

    def put(self, name: str, figure: float, *labels: str) -> None:
        self.families[name].add_metric(labels, figure)


def _families(
    status: LoopStatus | None, turn: ShownTurn | None, models: Sequence[ModelOverview], most: int
) -> list[Metric]:
    board = _Board()
    for model in models:
        board.put("natwork_model_info", 1.0, model.name, model.in_use.sha256)
    if status is not None:
        board.put("natwork_loop_trouble", float(bool(status.trouble)))
        left_out = _containers(board, status, turn, most)
        board.put("natwork_series_left_out", float(left_out))
    if turn is not None:
        board.put("natwork_loop_time_seconds", turn.at_s)
    return list(board.families.values())


def _containers(board: _Board, status: LoopStatus, turn: ShownTurn | None, most: int) -> int:
    """Series of the containers that run now; how many had no room."""
    flagged: dict[str, AnomalyVerdict] = {v.container: v for v in turn.verdicts} if turn else {}
    degraded = frozenset(turn.degraded if turn else ())
    forecasts: dict[str, list[LoadForecast]] = {}
    for forecast in turn.forecasts if turn else ():
        forecasts.setdefault(forecast.container, []).append(forecast)
    likelihood = {name: max(f.likelihood for f in several) for name, several in forecasts.items()}
    by_concern = sorted(
        status.topology.containers, key=lambda c: (c.name not in flagged, -likelihood.get(c.name, 0.0), c.name)
    )
    accounts = {account.container: account for account in status.quota}
    for container in by_concern[:most]:
        name, service = container.name, container.service
        if (account := accounts.get(name)) is not None:
            board.put("natwork_quota_left_seconds", account.left_s, name, service)
        if turn is None:
            continue
        board.put("natwork_container_degraded", float(name in degraded), name, service)
        verdict = flagged.get(name)
        if verdict is not None:
            board.put("natwork_verdict", 1.0, name, service, str(verdict.kind))
            board.put("natwork_verdict_score", verdict.score, name, service)
        elif name not in degraded:
            board.put("natwork_verdict_score", 0.0, name, service)
        for forecast in forecasts.get(name, ()):
            _forecast(board, forecast)
    return max(0, len(by_concern) - most)


def _forecast(board: _Board, forecast: LoadForecast) -> None:
    whose = (forecast.container, forecast.service, forecast.metric)
    board.put("natwork_anomaly_likelihood", forecast.likelihood, *whose)
    bands = zip(forecast.horizons, forecast.lower, forecast.expected, forecast.upper, strict=True)
    for horizon, lower, expected, upper in bands:
        ahead = f"{horizon * forecast.step_s:g}"
        board.put("natwork_forecast_lower", lower, *whose, ahead)
        board.put("natwork_forecast_expected", expected, *whose, ahead)
        board.put("natwork_forecast_upper", upper, *whose, ahead)
