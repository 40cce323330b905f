"""The forecast door: windows of telemetry in, expected load with its 90 % band out (D3.3 sections 4.2 and 6.3).

A plain FastAPI application over a `Forecaster`; `serve_apps.forecast` gives it a process that holds the model. It
changes nothing that lasts, so it asks for no token; host check and body limit hold as everywhere (docs/http.md).

Three ways in, as at the anomaly door:
- JSON, many containers per request; a missing sample is null.
- `application/octet-stream`: little-endian float32 (N, T, 12) of N containers of one service, NaN where missing. With
  `Accept: application/octet-stream` the answer is float32 (N, K, 3 H + 1): for each of the K metrics the lower,
  expected and upper values at the H horizons, then the anomaly likelihood; NaN where nothing was measured.
- Only the newest sample of each container (`/samples`): those before are remembered, shared with the anomaly door.

Rules kept: a window shorter than the model looks at is forecast, and `degraded` says so; every answer carries the
digest of the version that gave it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from pydantic import Field, TypeAdapter, ValidationError

from natwork_ray import __version__
from natwork_ray.domain.forecasts import LoadForecast
from natwork_ray.domain.telemetry import N_METRICS, Metric, TelemetryWindow
from natwork_ray.domain.values import encode, value
from natwork_ray.errors import InputError
from natwork_ray.forecasting.card import ForecasterCard
from natwork_ray.profiling.profile import Floats, check_samples
from natwork_ray.profiling.recent_samples import KEPT
from serve_apps.anomaly_api import MODEL_HEADER, SampleStore
from serve_apps.anomaly_wire import JSON, MAX_SAMPLES, RAW, Label, Sample
from serve_apps.problems import input_error, install, responses
from serve_apps.requests import binary, body_of, media_of, parsed
from serve_apps.schemas import inlined
from serve_apps.security import Door

PREFIX = "/api/v1/forecast"
MAX_WINDOWS = 8192
_LE = np.dtype("<f4")
_Seconds = Annotated[float, Field(ge=0, le=1e12)]
_Step = Annotated[float, Field(gt=0, le=86_400)]


class Forecaster(Protocol):
    """What the door needs of `natwork_ray.forecasting.forecaster.Forecaster`."""

    @property
    def window(self) -> int:
        """T, the samples per window that it looks at."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The K metrics that it forecasts."""
        ...

    @property
    def horizons(self) -> tuple[int, ...]:
        """The H horizons, steps ahead."""
        ...

    def forecast(self, window: TelemetryWindow) -> tuple[LoadForecast, ...]:
        """Up to N x K forecasts, all metrics of one container before the next; none of what was never measured."""
        ...


@value
class ForecastModelInfo:
    """The model behind the door: its digest, the samples that it looks at, and its card."""

    sha256: str
    window: int
    card: ForecasterCard


@dataclass(frozen=True, eq=False)
class ServedForecaster:
    """A version of the forecaster with what the door has to know of it."""

    forecaster: Forecaster
    info: ForecastModelInfo


@value
class LoadWindow:
    """The last samples of one container, oldest first, SI units, in the order of `domain.telemetry.METRICS`.

    The same number for all windows of a request.
    """

    container: Label
    service: Label = ""
    values: Annotated[tuple[Sample, ...], Field(min_length=1, max_length=MAX_SAMPLES)]


@value
class ForecastRequest:
    """Windows that end at `at_s`, with samples every `step_s` seconds."""

    at_s: _Seconds
    step_s: _Step
    windows: Annotated[tuple[LoadWindow, ...], Field(min_length=1, max_length=MAX_WINDOWS)]


@value
class NewestLoad:
    """The newest sample of one container."""

    container: Label
    service: Label = ""
    values: Sample


@value
class NewestLoads:
    """The samples of one moment: `at_s` in seconds, on one clock for all requests."""

    at_s: _Seconds
    samples: Annotated[tuple[NewestLoad, ...], Field(min_length=1, max_length=MAX_WINDOWS)]


@value
class ForecastAnswer:
    """All metrics of the first container, then of the next, in the order sent; `model` is the version's digest.

    What was never measured in a window has no forecast.
    `history` says how many of the samples that the model looks at (`of`) are known of each container.
    """

    model: str
    forecasts: tuple[LoadForecast, ...]
    history: tuple[int, ...]
    of: int


_REQUEST: TypeAdapter[ForecastRequest] = TypeAdapter(ForecastRequest)
_NEWEST: TypeAdapter[NewestLoads] = TypeAdapter(NewestLoads)


def create_app(
    provider: Callable[[], Awaitable[ServedForecaster]],
    *,
    max_body_bytes: int,
    allowed_hosts: Iterable[str],
    samples: SampleStore,
    step_s: float,
) -> FastAPI:
    """The forecast application.

    Args:
        provider: gives the version in use; may raise PreconditionError (503) while there is none.
        max_body_bytes: larger request bodies are refused with 413.
        allowed_hosts: names without port that the server answers for.
        samples: where the newest samples are remembered.
        step_s: seconds between the samples that are remembered.

    Raises:
        UsageError: no host, or no room for a body.
    """
    app = FastAPI(
        title="natwork-ray load forecasts",
        version=__version__,
        description="Expected load of each container with its 90 % band and anomaly likelihood (D3.3 section 4.2).",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # both pages would load scripts from a content delivery network
        redoc_url=None,
        redirect_slashes=False,
    )
    install(app)
    app.add_middleware(Door, allowed_hosts=tuple(allowed_hosts), max_body_bytes=max_body_bytes)

    @app.get(f"{PREFIX}/model", tags=["forecast"], responses=responses(503))
    async def model() -> ForecastModelInfo:
        """The model: horizons, metrics, the services it knows, and how well it did on runs it had not seen."""
        return (await provider()).info

    @app.post(
        f"{PREFIX}/forecasts",
        tags=["forecast"],
        responses={200: {"content": {RAW: {"schema": binary()}}, "model": ForecastAnswer}, **responses(415, 422, 503)},
        openapi_extra={"requestBody": body_of({JSON: inlined(_REQUEST), RAW: binary()})},
    )
    async def forecasts(
        request: Request,
        n: Annotated[int | None, Query(ge=1, le=MAX_WINDOWS, description="Raw input: number of windows.")] = None,
        t: Annotated[int | None, Query(ge=1, le=MAX_SAMPLES, description="Raw input: samples per window.")] = None,
        at_s: Annotated[float, Query(ge=0, le=1e12, description="Raw input: time of the newest samples.")] = 0.0,
        step: Annotated[float | None, Query(gt=0, le=86_400, description="Raw input: seconds between them.")] = None,
        service: Annotated[str, Query(max_length=253, description="Raw input: the containers' service.")] = "",
    ) -> Response:
        """Forecast windows. Raw input answers raw, (N, K, 3 H + 1) float32, where accepted."""
        served = await provider()
        body = await request.body()
        media = media_of(request, JSON, RAW)
        if media == RAW:
            window = parse_raw(body, n=n, t=t, at_s=at_s, step_s=step or step_s, service=service)
        else:
            window = await parsed(parse_json, body)
        found = await asyncio.to_thread(served.forecaster.forecast, window)
        if media == RAW and RAW in request.headers.get("accept", ""):
            return _answer(raw_answer(found, window, served.forecaster), RAW, served)
        return _answer(await asyncio.to_thread(json_answer, found, window, served), JSON, served)

    @app.post(
        f"{PREFIX}/samples",
        tags=["forecast"],
        responses={200: {"model": ForecastAnswer}, **responses(415, 422, 503)},
        openapi_extra={"requestBody": body_of({JSON: inlined(_NEWEST)})},
    )
    async def newest(request: Request) -> Response:
        """Forecast containers from their newest samples: those sent before are remembered, as a cache.

        Sent again, the samples of one moment change nothing; `history` says how many samples are known.
        """
        served = await provider()
        body = await request.body()
        media_of(request, JSON)
        sent: NewestLoads = await parsed(parse_newest, body)
        values = np.array([s.values for s in sent.samples], dtype=np.float32)
        length = min(served.forecaster.window, KEPT)
        names = tuple(s.container for s in sent.samples)
        recent = await samples.append(sent.at_s, names, values, length=length)
        window = TelemetryWindow(
            names, tuple(s.service for s in sent.samples), end_s=sent.at_s, step_s=step_s, values=recent.windows
        )
        found = await asyncio.to_thread(served.forecaster.forecast, window)
        return _answer(await asyncio.to_thread(json_answer, found, window, served), JSON, served)

    return app


def parse_json(body: bytes) -> TelemetryWindow:
    """Windows from JSON.

    Raises:
        InputError: malformed, of unequal lengths, infinite or negative.
    """
    try:
        request = _REQUEST.validate_json(body, strict=True)
    except ValidationError as error:
        raise input_error(error, "body") from error
    lengths = [len(w.values) for w in request.windows]
    if len(set(lengths)) != 1:
        odd = next(i for i, length in enumerate(lengths) if length != lengths[0])
        raise InputError(
            f"windows.{odd}.values has {lengths[odd]} samples, windows.0.values {lengths[0]}",
            hint="send windows of one length; null where nothing was measured",
        )
    return TelemetryWindow(
        tuple(w.container for w in request.windows),
        tuple(w.service for w in request.windows),
        end_s=request.at_s,
        step_s=request.step_s,
        values=np.array([w.values for w in request.windows], dtype=np.float32),  # numpy reads None as NaN
    )


def parse_newest(body: bytes) -> NewestLoads:
    """Newest samples from JSON.

    Raises:
        InputError: malformed, infinite or negative.
    """
    try:
        return _NEWEST.validate_json(body, strict=True)
    except ValidationError as error:
        raise input_error(error, "body") from error


def parse_raw(
    body: bytes, *, n: int | None, t: int | None, at_s: float, step_s: float, service: str
) -> TelemetryWindow:
    """Windows from little-endian float32.

    Raises:
        InputError: `n` or `t` missing, a length that does not fit them, infinite or negative.
    """
    if n is None or t is None:
        raise InputError("query: raw input needs n and t", hint="send ?n=<windows>&t=<samples per window>")
    expected = _LE.itemsize * n * t * N_METRICS
    if len(body) != expected:
        raise InputError(
            f"body: {len(body)} bytes, expected {expected}", hint=f"little-endian float32: ({n}, {t}, {N_METRICS})"
        )
    data: Floats = np.frombuffer(body, dtype=_LE).astype(np.float32, copy=False).reshape(n, t, N_METRICS)
    check_samples(data)
    # One spelling of NaN: a signalling one, which only raw input can hold, would make arithmetic warn.
    values = np.where(np.isnan(data), np.float32(np.nan), data)
    names = tuple(str(i) for i in range(n))
    return TelemetryWindow(names, (service,) * n, end_s=at_s, step_s=step_s, values=values)


def raw_answer(found: Sequence[LoadForecast], window: TelemetryWindow, forecaster: Forecaster) -> bytes:
    """(N, K, 3 H + 1): lower, expected, upper at the horizons, then the likelihood; NaN where there is no forecast."""
    width = 3 * len(forecaster.horizons) + 1
    out = np.full((len(window.containers), len(forecaster.metrics), width), np.nan, dtype=_LE)
    row = {name: i for i, name in enumerate(window.containers)}
    column = {str(metric): k for k, metric in enumerate(forecaster.metrics)}
    for f in found:
        out[row[f.container], column[f.metric]] = (*f.lower, *f.expected, *f.upper, f.likelihood)
    return out.tobytes()


def json_answer(found: Sequence[LoadForecast], window: TelemetryWindow, served: ServedForecaster) -> bytes:
    """`ForecastAnswer` of that version."""
    of = served.info.window
    known = (~np.isnan(window.values[:, -of:]).all(axis=2)).sum(axis=1)
    answer = ForecastAnswer(
        model=served.info.sha256, forecasts=tuple(found), history=tuple(int(k) for k in known), of=of
    )
    return encode(answer)


def _answer(body: bytes, media: str, served: ServedForecaster) -> Response:
    return Response(body, media_type=media, headers={MODEL_HEADER: served.info.sha256})
