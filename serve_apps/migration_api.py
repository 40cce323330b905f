"""The migration models' door: container loads in, forecasts for every method and a choice out (D3.3 section 2.1).

A plain FastAPI application over a `MethodSelector`; `serve_apps.migration` gives it a process that holds one. It is
stateless and changes nothing, so it asks for no token; host check and body limit hold as everywhere (docs/http.md).

Rules kept: what no measurement can be (negative, infinite, a path without bandwidth) is refused with its place; all
loads of a request are forecast at once; whatever lies outside what the training had seen is named, and forecast all
the same.

    curl -H 'Content-Type: application/json' --data @loads.json \\
        http://127.0.0.1:8000/api/v1/migration-models/choose
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import Field, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from natwork_ray import __version__
from natwork_ray.domain.migrations import ContainerLoad, MigrationForecast
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import encode, value
from natwork_ray.errors import InputError
from natwork_ray.limi.selection import MethodSelector, pick
from natwork_ray.limi.selector_card import DEFAULT_WEIGHT, SelectorCard
from serve_apps.problems import input_error, install, responses
from serve_apps.schemas import inlined
from serve_apps.security import Door

PREFIX = "/api/v1/migration-models"
MAX_LOADS = 4096
JSON = "application/json"
T = TypeVar("T")

Loads = Annotated[tuple[ContainerLoad, ...], Field(min_length=1, max_length=MAX_LOADS)]


@value
class SelectorInfo:
    """The models behind the door: their digest and their card."""

    sha256: str
    card: SelectorCard


@dataclass(frozen=True, eq=False)
class Served:
    """A selector with what the door has to know of it."""

    selector: MethodSelector
    sha256: str


@value
class ForecastRequest:
    """Containers to forecast, each as measured before its migration (quantities and units as in the card)."""

    loads: Loads


@value
class ChoiceRequest:
    """Containers to choose a method for.

    `weight` is the share of total time in the cost, 0 (downtime only) to 1 (total time only).
    """

    loads: Loads
    weight: Annotated[float, Field(ge=0, le=1)] = DEFAULT_WEIGHT
    allowed: Annotated[tuple[MigrationMethod, ...], Field(min_length=1, max_length=len(MigrationMethod))] = tuple(
        MigrationMethod
    )


@value
class LoadForecast:
    """Every method's forecast for one load; `extrapolated` names quantities outside what the training had seen."""

    forecasts: tuple[MigrationForecast, ...]
    extrapolated: tuple[str, ...]


@value
class ForecastAnswer:
    """One entry per load, in the order sent; `model` is the digest of the models that gave them."""

    model: str
    loads: tuple[LoadForecast, ...]


@value
class LoadChoice:
    """The method with the least cost, and what it is expected to take."""

    method: MigrationMethod
    cost_s: float
    forecast: MigrationForecast
    extrapolated: tuple[str, ...]


@value
class ChoiceAnswer:
    """One choice per load, in the order sent; `model` is the digest of the models that made them."""

    model: str
    weight: float
    choices: tuple[LoadChoice, ...]


_FORECAST: TypeAdapter[ForecastRequest] = TypeAdapter(ForecastRequest)
_CHOICE: TypeAdapter[ChoiceRequest] = TypeAdapter(ChoiceRequest)


def create_app(
    selector_provider: Callable[[], Awaitable[Served]], *, max_body_bytes: int, allowed_hosts: Iterable[str]
) -> FastAPI:
    """The application.

    Args:
        selector_provider: gives the selector; may raise PreconditionError (503) while there is none.
        max_body_bytes: larger request bodies are refused with 413.
        allowed_hosts: names without port that the server answers for.

    Raises:
        UsageError: no host, or no room for a body.
    """
    app = FastAPI(
        title="natwork-ray migration models",
        version=__version__,
        description="Forecasts of live migrations and the choice of their method (D3.3 section 2.1).",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # both pages would load scripts from a content delivery network
        redoc_url=None,
        redirect_slashes=False,
    )
    install(app)
    app.add_middleware(Door, allowed_hosts=tuple(allowed_hosts), max_body_bytes=max_body_bytes)

    @app.get(f"{PREFIX}/model", tags=["migration models"], responses=responses(503))
    async def model() -> SelectorInfo:
        """The models: what they expect, what they were trained on, and how good they were on runs held out."""
        served = await selector_provider()
        return SelectorInfo(sha256=served.sha256, card=served.selector.card)

    @app.post(
        f"{PREFIX}/predict",
        tags=["migration models"],
        responses={200: {"model": ForecastAnswer}, **responses(415, 422, 503)},
        openapi_extra={"requestBody": _request_body(_FORECAST)},
    )
    async def predict(request: Request) -> Response:
        """Total time and downtime (p50 and p95, seconds) of each load under every method."""
        served = await selector_provider()
        asked = await _read(request, _FORECAST)
        return Response(await asyncio.to_thread(_forecast, served, asked), media_type=JSON)

    @app.post(
        f"{PREFIX}/choose",
        tags=["migration models"],
        responses={200: {"model": ChoiceAnswer}, **responses(409, 415, 422, 503)},
        openapi_extra={"requestBody": _request_body(_CHOICE)},
    )
    async def choose(request: Request) -> Response:
        """The method with the least weight * total + (1 - weight) * downtime for each load."""
        served = await selector_provider()
        asked = await _read(request, _CHOICE)
        return Response(await asyncio.to_thread(_choose, served, asked), media_type=JSON)

    return app


async def _read(request: Request, kind: TypeAdapter[T]) -> T:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != JSON:
        raise HTTPException(415, f"no reading of {media[:80] or 'a body without a Content-Type'}")
    body = await request.body()
    try:
        return await asyncio.to_thread(lambda: kind.validate_json(body, strict=True))
    except ValidationError as error:
        raise input_error(error, "body") from error


def _forecast(served: Served, asked: ForecastRequest) -> bytes:
    _check(asked.loads)
    forecasts = served.selector.forecasts(asked.loads)
    answer = ForecastAnswer(
        model=served.sha256,
        loads=tuple(
            LoadForecast(forecasts=forecasts.of(i), extrapolated=served.selector.extrapolated(load))
            for i, load in enumerate(asked.loads)
        ),
    )
    return encode(answer)


def _choose(served: Served, asked: ChoiceRequest) -> bytes:
    _check(asked.loads)
    forecasts = served.selector.forecasts(asked.loads)
    places = pick(forecasts, weight=asked.weight, allowed=asked.allowed).tolist()
    costs = forecasts.costs(asked.weight)
    answer = ChoiceAnswer(
        model=served.sha256,
        weight=asked.weight,
        choices=tuple(
            LoadChoice(
                method=forecasts.methods[place],
                cost_s=float(costs[i, place]),
                forecast=forecasts.of(i)[place],
                extrapolated=served.selector.extrapolated(load),
            )
            for i, (load, place) in enumerate(zip(asked.loads, places, strict=True))
        ),
    )
    return encode(answer)


def _check(loads: tuple[ContainerLoad, ...]) -> None:
    for i, load in enumerate(loads):
        if load.observed_s < 0:
            raise InputError(f"load {i}, observed_s: {load.observed_s!r}", hint="a time is not negative")


def _request_body(kind: TypeAdapter[Any]) -> dict[str, Any]:
    return {"required": True, "content": {JSON: {"schema": inlined(kind)}}}
