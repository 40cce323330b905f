"""The gateway's routes for model versions: which there are, publish one, use one, take that back (docs/serving.md).

Changes need the token, as everywhere behind the gateway's door. A version is tried by a replica before it is kept and
again before it is used; one that does not load is refused with 422 and the version in use stays. The choice is an event
of the control service: journalled, audited, and followed by every replica without dropping a request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import Field

from natwork_ray.control.models import ModelDesk
from natwork_ray.domain.model_versions import ModelInUse, ModelOverview, ModelVersion
from natwork_ray.domain.values import encode, value
from serve_apps.problems import responses
from serve_apps.requests import binary, body_of, media_of
from serve_apps.views import IdempotencyKey, Note, Person

RAW = "application/octet-stream"
ModelName = Annotated[str, Path(max_length=64, description="Name of the model, such as `profiler`.")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the version's bytes, hex.")]


@value
class ModelList:
    """Every model that is served."""

    items: tuple[ModelOverview, ...]


@value
class UseRequest:
    """The version that is to answer from now on."""

    sha256: Digest
    by: Person
    note: Note = ""


@value
class RollbackRequest:
    """The version used before is to answer again."""

    by: Person
    note: Note = ""


def model_router(prefix: str, desk: Callable[[], Awaitable[ModelDesk]], secured: list[Any]) -> APIRouter:
    """The routes below `<prefix>/models`. `secured` puts the token into the OpenAPI document; the door enforces it."""
    router = APIRouter(prefix=f"{prefix}/models", tags=["models"])

    @router.get("", responses=responses(503))
    async def models() -> ModelList:
        """Every model that is served: the version in use, and those that are kept, newest first."""
        return ModelList(items=await (await desk()).models())

    @router.post(
        "/{name}/versions",
        status_code=201,
        dependencies=secured,
        responses=responses(401, 404, 415, 422, 503),
        openapi_extra={"requestBody": body_of({RAW: binary()})},
    )
    async def publish(name: ModelName, request: Request) -> ModelVersion:
        """Keep a version: the body is the model file. It is tried first; it does not answer until it is used."""
        media_of(request, RAW)
        return await (await desk()).publish(name, await request.body())

    @router.put("/{name}/current", dependencies=secured, responses=responses(401, 404, 409, 422, 503))
    async def use(
        name: ModelName, wanted: UseRequest, response: Response, idempotency_key: IdempotencyKey = None
    ) -> ModelInUse:
        """Let a version answer from now on. Requests under way end with the version that they began with."""
        key = _key("use", name, wanted, idempotency_key)
        return _told(response, await (await desk()).use(name, wanted.sha256, by=wanted.by, note=wanted.note, key=key))

    @router.post("/{name}/rollback", dependencies=secured, responses=responses(401, 404, 409, 422, 503))
    async def rollback(
        name: ModelName, wanted: RollbackRequest, response: Response, idempotency_key: IdempotencyKey = None
    ) -> ModelInUse:
        """Let the version used before the present one answer again."""
        key = _key("rollback", name, wanted, idempotency_key)
        return _told(response, await (await desk()).rollback(name, by=wanted.by, note=wanted.note, key=key))

    return router


def _told(response: Response, outcome: tuple[ModelInUse, bool]) -> ModelInUse:
    in_use, repeated = outcome
    if repeated:
        response.headers["Idempotency-Replayed"] = "true"
    return in_use


def _key(what: str, name: str, body: object, idempotency_key: str | None) -> str | None:
    # Hashed with the route and the body: a key that comes with another body is another request.
    if idempotency_key is None:
        return None
    parts = (what.encode(), name.encode(), encode(body), idempotency_key.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
