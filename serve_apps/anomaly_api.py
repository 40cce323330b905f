"""The anomaly door: windows of telemetry in, verdicts of the two detection stages out (D3.3 section 6.1.1).

A plain FastAPI application over a `Detector`; `serve_apps.anomaly` gives it a process that holds the model. It changes
nothing that lasts, so it asks for no token; host check and body limit hold as everywhere (docs/http.md).

Three ways in, one way through:
- JSON, for people and for small batches; a missing sample is null.
- `application/octet-stream`, for batches: little-endian float32 of shape (N, T, 12), NaN where a sample is missing;
  with `profiles=R` followed by R profiles (R, P) and, per window, the int32 number of its own, -1 for none.
- Only the newest sample of each container (`/samples`): the samples before it are remembered for the client.

Rules kept: what no measurement can be (infinite, negative, the wrong number of samples) is refused with its place; a
window whose newest sample is missing altogether gets no verdict rather than a calm one; a verdict that rests on the
fleet-wide default profile says `cold_start`, one that rests on fewer samples than the model looks at says so in
`history`; every answer carries the digest of the version that gave it, in its body or in `Natwork-Model`.

    curl -H 'Content-Type: application/octet-stream' --data-binary @windows.f32 \\
        'http://127.0.0.1:8000/api/v1/anomaly/verdicts?n=1024&t=10'
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Query, Request, Response

from natwork_ray import __version__
from natwork_ray.profiling.profile import Floats
from natwork_ray.profiling.recent_samples import KEPT, Recent
from serve_apps.anomaly_wire import (
    JSON,
    MAX_PROFILES,
    MAX_SAMPLES,
    MAX_WINDOWS,
    PREFIX,
    RAW,
    REQUEST,
    SAMPLES,
    Batch,
    ModelInfo,
    SamplesAnswer,
    Served,
    VerdictAnswer,
    json_answer,
    parse_json,
    parse_raw,
    parse_samples,
    raw_answer,
    samples_answer,
    windows_of_samples,
)
from serve_apps.gathering import Gathering
from serve_apps.problems import install, responses
from serve_apps.requests import binary, body_of, media_of, parsed
from serve_apps.schemas import inlined
from serve_apps.security import Door

MODEL_HEADER = "Natwork-Model"
# Answers so short are written at once: handing them to a thread would cost more.
_FEW_WINDOWS = 8


class SampleStore(Protocol):
    """Where the newest samples are remembered: `agents.samples.SharedSamples`, or `LocalSamples`."""

    async def append(self, at_s: float, containers: Sequence[str], values: Floats, *, length: int) -> Recent:
        """See `natwork_ray.profiling.recent_samples.RecentSamples.append`."""
        ...


def create_app(
    detector_provider: Callable[[], Awaitable[Served]],
    *,
    max_body_bytes: int,
    allowed_hosts: Iterable[str],
    samples: SampleStore,
    gathering: Gathering | None = None,
) -> FastAPI:
    """The anomaly application.

    Args:
        detector_provider: gives the version in use; may raise PreconditionError (503) while there is none.
        max_body_bytes: larger request bodies are refused with 413.
        allowed_hosts: names without port that the server answers for.
        samples: where the newest samples are remembered.
        gathering: scores the windows; shared with whoever else asks the same model.

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
    scoring = gathering or Gathering()

    @app.get(f"{PREFIX}/model", tags=["anomaly"], responses=responses(503))
    async def model() -> ModelInfo:
        """The model, and the orders and lengths it expects."""
        return (await detector_provider()).info

    @app.post(
        f"{PREFIX}/verdicts",
        tags=["anomaly"],
        responses={
            200: {"content": {RAW: {"schema": binary()}}, "model": VerdictAnswer},
            **responses(415, 422, 503),
        },
        openapi_extra={"requestBody": body_of({JSON: inlined(REQUEST), RAW: binary()})},
    )
    async def verdicts(
        request: Request,
        n: Annotated[int | None, Query(ge=1, le=MAX_WINDOWS, description="Raw input: number of windows.")] = None,
        t: Annotated[int | None, Query(ge=1, le=MAX_SAMPLES, description="Raw input: samples per window.")] = None,
        profiles: Annotated[
            int, Query(ge=0, le=MAX_PROFILES, description="Raw input: so many profiles follow, and whose they are.")
        ] = 0,
    ) -> Response:
        """Judge windows. Raw input answers raw, (N, 3) float32 of p_anomalous, kind and confidence, where accepted."""
        served = await detector_provider()
        body = await request.body()
        media = media_of(request, JSON, RAW)
        if media == RAW:
            batch = parse_raw(body, served, n=n, t=t, profiles=profiles)
        else:
            batch = await parsed(parse_json, body, served)
        scores = await scoring.score(served.detector, batch.values, batch.references)
        if media == RAW and RAW in request.headers.get("accept", ""):
            return _answer(raw_answer(scores), RAW, served)
        return _answer(await _written(batch, json_answer, scores, batch, served.info.sha256), JSON, served)

    @app.post(
        f"{PREFIX}/samples",
        tags=["anomaly"],
        responses={200: {"model": SamplesAnswer}, **responses(415, 422, 503)},
        openapi_extra={"requestBody": body_of({JSON: inlined(SAMPLES)})},
    )
    async def newest(request: Request) -> Response:
        """Judge containers by their newest samples: those sent before are remembered, as a cache.

        Sent again, the samples of one moment change nothing. `history` says how many of the samples that the model
        looks at are known: fewer after a start, a gap, or the death of the process that remembers.
        """
        served = await detector_provider()
        body = await request.body()
        media_of(request, JSON)
        sent = await parsed(parse_samples, body)
        recent = await samples.append(
            sent.at_s, [s.container for s in sent.samples], sent.values, length=min(served.detector.history, KEPT)
        )
        batch = windows_of_samples(sent, recent, served)
        scores = await scoring.score(served.detector, batch.values, batch.references)
        made = await _written(batch, samples_answer, scores, batch, recent, sent.at_s, served.info.sha256)
        return _answer(made, JSON, served)

    return app


async def _written(batch: Batch, write: Callable[..., bytes], *arguments: Any) -> bytes:
    return write(*arguments) if len(batch.values) <= _FEW_WINDOWS else await asyncio.to_thread(write, *arguments)


def _answer(body: bytes, media: str, served: Served) -> Response:
    return Response(body, media_type=media, headers={MODEL_HEADER: served.info.sha256})
