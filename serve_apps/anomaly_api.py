"""The anomaly door: windows of telemetry in, verdicts of the two detection stages out (D3.3 section 6.1.1).

A plain FastAPI application over a `Detector`; `serve_apps.anomaly` gives it a process that holds the model. It is
stateless and changes nothing, so it asks for no token; host check and body limit hold as everywhere (docs/http.md).

Two ways in, one way through:
- JSON, for people and for small batches; a missing sample is null.
- `application/octet-stream`, for batches: little-endian float32 of shape (N, T, 12), NaN where a sample is missing;
  with `profiles=true` followed by centre (N, 12) and scale (N, 12). Parsing JSON costs more than the networks do.

Rules kept: what no measurement can be (infinite, negative, the wrong number of samples) is refused with its place; a
window whose newest sample is missing altogether gets no verdict rather than a calm one; a verdict that rests on the
fleet-wide default profile says `cold_start`.

    curl -H 'Content-Type: application/octet-stream' --data-binary @windows.f32 \\
        'http://127.0.0.1:8000/api/v1/anomaly/verdicts?n=1024&t=10'
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from natwork_ray import __version__
from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind, Driver
from natwork_ray.domain.telemetry import METRICS, N_METRICS
from natwork_ray.domain.values import encode, value
from natwork_ray.errors import InputError
from natwork_ray.profiling.model_card import ModelCard
from natwork_ray.profiling.profile import SCALE_FLOOR, UNPROFILED_SCALE, Floats
from natwork_ray.profiling.verdicts import Scores, drivers
from serve_apps.problems import input_error, install, responses
from serve_apps.schemas import inlined
from serve_apps.security import Door

PREFIX = "/api/v1/anomaly"
MAX_WINDOWS = 65_536
RAW = "application/octet-stream"
JSON = "application/json"
_LE = np.dtype("<f4")
_MAX_SAMPLES = 4096
_MAX_CENTRE = 1000.0  # log1p of the largest float32 in the smallest unit stays below 100


class Detector(Protocol):
    """What the door needs of `natwork_ray.profiling.detector.TwoStageDetector`."""

    def score(self, values: Floats, centre: Floats, scale: Floats) -> Scores:
        """Scores of values (N, T, 12) against profiles (N, 12)."""
        ...


@value
class ModelInfo:
    """The model behind the door: its digest, the shortest window it takes, and its card."""

    sha256: str
    window: int
    card: ModelCard


@dataclass(frozen=True, eq=False)
class Served:
    """A detector with what the door has to know of it."""

    detector: Detector
    info: ModelInfo

    @property
    def centre(self) -> Floats:
        """(12,) of the fleet-wide default profile, for cold starts."""
        return np.array(self.info.card.fleet.centre, dtype=np.float32)

    @property
    def scale(self) -> Floats:
        """(12,) likewise."""
        return np.array(self.info.card.fleet.scale, dtype=np.float32)


Sample = Annotated[
    tuple[Annotated[float, Field(ge=0, le=float(np.finfo(np.float32).max))] | None, ...],
    Field(min_length=N_METRICS, max_length=N_METRICS),
]
Statistic = Annotated[tuple[float, ...], Field(min_length=N_METRICS, max_length=N_METRICS)]
Label = Annotated[str, Field(max_length=253, pattern=r"^[^\x00-\x1f\x7f]*$")]


@value
class Profile:
    """What is normal for the window's service, one figure per metric, as `natwork_ray.profiling` learns it."""

    centre: Statistic
    scale: Statistic


@value
class Window:
    """The last T samples of one container, oldest first, SI units, in the order of the card's `metrics`.

    T is at least the model's `window` and the same for all windows of a request.
    """

    container: Label
    service: Label = ""
    values: Annotated[tuple[Sample, ...], Field(min_length=1, max_length=_MAX_SAMPLES)]
    profile: Profile | None = None


@value
class VerdictRequest:
    """Windows to judge."""

    windows: Annotated[tuple[Window, ...], Field(min_length=1, max_length=MAX_WINDOWS)]


@value
class WindowVerdict:
    """What the two stages say of one window.

    Attributes:
        judged: false when the newest sample is missing altogether; then the next three are null.
        p_anomalous: stage 1, probability of "anomalous", 0 to 1.
        kind: stage 2's class; `false_positive` (normal) where stage 1 did not flag.
        confidence: probability of that class, 0 to 1.
        flagged: stage 1 reached its threshold, with evidence in the newest sample.
        drivers: the metrics of a flagged window that stand out most, farthest first.
        cold_start: the fleet-wide default profile stood in for the service's own.
    """

    container: str
    service: str
    judged: bool
    p_anomalous: float | None
    kind: AnomalyKind | None
    confidence: float | None
    flagged: bool
    drivers: tuple[Driver, ...]
    cold_start: bool


@value
class VerdictAnswer:
    """One verdict per window, in the order sent; `model` is the digest of the model that gave them."""

    model: str
    verdicts: tuple[WindowVerdict, ...]


@dataclass(frozen=True, eq=False)
class _Batch:
    values: Floats  # (N, T, 12)
    centre: Floats  # (N, 12)
    scale: Floats  # (N, 12)
    cold: NDArray[np.bool_]  # (N,)
    names: tuple[tuple[str, str], ...]


_REQUEST: TypeAdapter[VerdictRequest] = TypeAdapter(VerdictRequest)


def create_app(
    detector_provider: Callable[[], Awaitable[Served]], *, max_body_bytes: int, allowed_hosts: Iterable[str]
) -> FastAPI:
    """The anomaly application.

    Args:
        detector_provider: gives the detector; may raise PreconditionError (503) while there is none.
        max_body_bytes: larger request bodies are refused with 413.
        allowed_hosts: names without port that the server answers for.

    Raises:
        UsageError: no host, or no room for a body.
    """
    app = FastAPI(
        title="natwork-ray anomaly detection",
        version=__version__,
        description="Two-stage detection of anomalies in twelve metrics per container (D3.3 section 6.1.1, Annex A).",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # both pages would load scripts from a content delivery network
        redoc_url=None,
        redirect_slashes=False,
    )
    install(app)
    app.add_middleware(Door, allowed_hosts=tuple(allowed_hosts), max_body_bytes=max_body_bytes)

    @app.get(f"{PREFIX}/model", tags=["anomaly"], responses=responses(503))
    async def model() -> ModelInfo:
        """The model, and the orders and lengths it expects."""
        return (await detector_provider()).info

    @app.post(
        f"{PREFIX}/verdicts",
        tags=["anomaly"],
        responses={
            200: {"content": {RAW: {"schema": {"type": "string", "format": "binary"}}}, "model": VerdictAnswer},
            **responses(415, 422, 503),
        },
        openapi_extra={"requestBody": _request_body()},
    )
    async def verdicts(
        request: Request,
        n: Annotated[int | None, Query(ge=1, le=MAX_WINDOWS, description="Raw input: number of windows.")] = None,
        t: Annotated[int | None, Query(ge=1, le=_MAX_SAMPLES, description="Raw input: samples per window.")] = None,
        profiles: Annotated[bool, Query(description="Raw input: centre and scale (N, 12) each follow.")] = False,
    ) -> Response:
        """Judge windows. Raw input answers raw, (N, 3) float32 of p_anomalous, kind and confidence, where accepted."""
        served = await detector_provider()
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await request.body()
        if media == RAW:
            batch = parse_raw(body, served, n=n, t=t, profiles=profiles)
        elif media == JSON:
            batch = await asyncio.to_thread(parse_json, body, served)
        else:
            raise HTTPException(415, f"no reading of {media[:80] or 'a body without a Content-Type'}")
        if media == RAW and RAW in request.headers.get("accept", ""):
            return Response(await asyncio.to_thread(_raw_answer, served, batch), media_type=RAW)
        return Response(await asyncio.to_thread(_json_answer, served, batch), media_type=JSON)

    return app


def parse_json(body: bytes, served: Served) -> _Batch:
    """A batch from JSON.

    Raises:
        InputError: malformed, of the wrong shape, infinite or negative.
    """
    try:
        request = _REQUEST.validate_json(body, strict=True)
    except ValidationError as error:
        raise input_error(error, "body") from error
    windows = request.windows
    t = served.info.window
    for i, window in enumerate(windows):
        if len(window.values) < t or len(window.values) != len(windows[0].values):
            raise _wrong_length(f"windows.{i}.values has {len(window.values)} samples", t)
    # numpy reads None as NaN.
    values = np.array([w.values for w in windows], dtype=np.float32)
    centre = np.array([w.profile.centre if w.profile else served.centre for w in windows], dtype=np.float64)
    scale = np.array([w.profile.scale if w.profile else served.scale for w in windows], dtype=np.float64)
    cold = np.array([w.profile is None for w in windows])
    return _checked(values, centre, scale, cold, tuple((w.container, w.service) for w in windows))


def parse_raw(body: bytes, served: Served, *, n: int | None, t: int | None, profiles: bool) -> _Batch:
    """A batch from little-endian float32.

    Raises:
        InputError: `n` or `t` missing, a length that does not fit them, infinite or negative.
    """
    if n is None or t is None:
        raise InputError("query: raw input needs n and t", hint="send ?n=<windows>&t=<samples per window>")
    if t < served.info.window:
        raise _wrong_length(f"query.t is {t}", served.info.window)
    samples, stats = n * t * N_METRICS, n * N_METRICS
    expected = _LE.itemsize * (samples + (2 * stats if profiles else 0))
    if len(body) != expected:
        raise InputError(
            f"body: {len(body)} bytes, expected {expected}",
            hint=f"little-endian float32: ({n}, {t}, {N_METRICS}) values"
            + (f", then ({n}, {N_METRICS}) centre and ({n}, {N_METRICS}) scale" if profiles else ""),
        )
    data = np.frombuffer(body, dtype=_LE).astype(np.float32, copy=False)
    values = data[:samples].reshape(n, t, N_METRICS)
    if profiles:
        centre, scale = data[samples:].reshape(2, n, N_METRICS)
    else:
        centre, scale = (np.broadcast_to(a, (n, N_METRICS)) for a in (served.centre, served.scale))
    return _checked(values, centre, scale, np.full(n, not profiles), (("", ""),) * n)


def _checked(
    values: Floats,
    centre: NDArray[np.floating[Any]],
    scale: NDArray[np.floating[Any]],
    cold: NDArray[np.bool_],
    names: tuple[tuple[str, str], ...],
) -> _Batch:
    bad = (values < 0) | np.isinf(values)  # NaN is neither
    if bad.any():
        i, j, k = (int(x) for x in np.argwhere(bad)[0])
        raise InputError(
            f"window {i}, sample {j}, {METRICS[k]}: {float(values[i, j, k])!r}",
            hint="metrics are finite and not negative; send NaN (raw) or null (JSON) where nothing was measured",
        )
    ranges = (("centre", centre, -_MAX_CENTRE, _MAX_CENTRE), ("scale", scale, SCALE_FLOOR, UNPROFILED_SCALE))
    for what, array, low, high in ranges:
        wrong = ~((array >= low) & (array <= high))  # true for NaN as well
        if wrong.any():
            i, k = (int(x) for x in np.argwhere(wrong)[0])
            raise InputError(
                f"window {i}, profile {what} of {METRICS[k]}: {float(array[i, k])!r}",
                hint=f"a {what} lies between {low:g} and {high:g}",
            )
    # One spelling of NaN: a signalling one, which only raw input can hold, would make arithmetic warn.
    values = np.where(np.isnan(values), np.float32(np.nan), values)
    centre, scale = centre.astype(np.float32), scale.astype(np.float32)
    return _Batch(values, centre, scale, cold, names)


def _score(served: Served, batch: _Batch) -> Scores:
    return served.detector.score(batch.values, batch.centre, batch.scale)


def _raw_answer(served: Served, batch: _Batch) -> bytes:
    """(N, 3): p_anomalous, kind, confidence; NaN where there is no verdict."""
    scores = _score(served, batch)
    out = np.stack([scores.p_anomalous, scores.kinds, scores.confidence], axis=1).astype(_LE)
    out[~scores.scored] = np.nan
    return out.tobytes()


def _json_answer(served: Served, batch: _Batch) -> bytes:
    scores = _score(served, batch)
    verdicts = []
    for i, (container, service) in enumerate(batch.names):
        judged, flagged = bool(scores.scored[i]), bool(scores.flagged[i])
        verdicts.append(
            WindowVerdict(
                container=container,
                service=service,
                judged=judged,
                p_anomalous=float(scores.p_anomalous[i]) if judged else None,
                kind=STAGE_2_CLASSES[scores.kinds[i]] if judged else None,
                confidence=float(scores.confidence[i]) if judged else None,
                flagged=flagged,
                drivers=drivers(scores.deviations[i]) if flagged else (),
                cold_start=bool(batch.cold[i]),
            )
        )
    return encode(VerdictAnswer(model=served.info.sha256, verdicts=tuple(verdicts)))


def _wrong_length(what: str, window: int) -> InputError:
    return InputError(
        f"{what}, the model takes {window} or more", hint=f"send windows of one length, see {PREFIX}/model"
    )


def _request_body() -> dict[str, Any]:
    return {"required": True, "content": {JSON: {"schema": inlined(_REQUEST)}, RAW: {"schema": _BINARY}}}


_BINARY = {"type": "string", "format": "binary"}
