"""The gateway's routes for profiles: what is taken for normal, what has drifted, and learning a profile anew.

An order to learn anew needs the token, is journalled and audited, and is refused where the stretch holds alarms, unless
the person insists (docs/profiling.md). It is carried out beside the next turns; the list says when it was.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import Field

from natwork_ray.control.api import ControlApi
from natwork_ray.control.events import RelearnRequested
from natwork_ray.domain.profiles import ProfilesInUse, Relearning
from natwork_ray.domain.values import encode, value
from serve_apps.problems import responses
from serve_apps.views import IdempotencyKey, Note, Person

ServiceName = Annotated[str, Path(max_length=253, description="Name of the service.")]
Moment = Annotated[float, Field(ge=0, allow_inf_nan=False, description="Seconds on the backend's clock.")]


@value
class RelearnRequest:
    """The stretch of normal operation that the profile is to be learnt from; by default the hour that ends now."""

    by: Person
    note: Note = ""
    from_s: Moment | None = None
    to_s: Moment | None = None
    force: bool = False


LAST_HOUR_S = 3600.0


def profile_router(prefix: str, control: Callable[[], Awaitable[ControlApi]], secured: list[Any]) -> APIRouter:
    """The routes below `<prefix>/profiles`. `secured` puts the token into OpenAPI; the door enforces it."""
    router = APIRouter(prefix=f"{prefix}/profiles", tags=["profiles"])

    @router.get("", responses=responses(503))
    async def profiles() -> ProfilesInUse:
        """Where each service's profile was learnt, what it takes for normal, which have drifted, which are ordered."""
        return await (await control()).profiles()

    @router.post(
        "/{service}/relearn", status_code=202, dependencies=secured, responses=responses(401, 404, 409, 422, 503)
    )
    async def relearn(
        service: ServiceName, wanted: RelearnRequest, response: Response, idempotency_key: IdempotencyKey = None
    ) -> Relearning:
        """Learn a service's profile anew. 409 where the service was in alarm then, and `force` is not set."""
        api = await control()
        now_s = (await api.status()).at_s
        to_s = now_s if wanted.to_s is None else wanted.to_s
        from_s = max(to_s - LAST_HOUR_S, 0.0) if wanted.from_s is None else wanted.from_s
        order = Relearning(
            service=service, from_s=from_s, to_s=to_s, by=wanted.by, note=wanted.note, forced=wanted.force
        )
        event = RelearnRequested(id=_event_id(service, wanted, idempotency_key), at_s=now_s, order=order)
        (answer,) = await api.submit((event,))
        answer.unwrap()
        if answer.known:
            response.headers["Idempotency-Replayed"] = "true"
        return order

    return router


def _event_id(service: str, wanted: RelearnRequest, idempotency_key: str | None) -> str:
    """Another service or another wish under one key is another request."""
    if idempotency_key is None:
        return f"http:relearn:{uuid.uuid4()}"
    parts = (b"relearn", service.encode(), encode(wanted), idempotency_key.encode())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    return f"http:relearn:{digest}"
