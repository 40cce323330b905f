"""The gateway under /api/v1: state, decisions, approvals, migrations, events and the audit log (docs/http.md).

A plain FastAPI application over `ControlApi`; `serve_apps.gateway` gives it a process. It keeps nothing: each
request asks the control service anew, through a provider that finds the control actor again after it restarted.

Rules kept
1. What changes anything (an approval, the mode, an order to migrate) needs the token, is idempotent under an
   `Idempotency-Key`, and becomes an event that is journalled before it is answered.
2. Values go out as the domain defines them; there is no second model of a decision or a container.
3. The event stream is the audit log: the `id` of an event is the number of its entry and `data` is the line that is
   hashed and signed, so that a client can resume without a gap and verify what it was told.

    app = create_app(provider, token=token, max_body_bytes=2**24, allowed_hosts=LOOPBACK_HOSTS)
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Protocol

from fastapi import FastAPI, Header, Path, Query, Response, Security
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.security import HTTPBearer

from natwork_ray import __version__
from natwork_ray.audit.log import AuditEntry
from natwork_ray.control.api import ControlApi, LimiAgents
from natwork_ray.control.desk import Consideration, Migration, MigrationDesk
from natwork_ray.control.events import ApprovalAnswered, Event, ModeChanged
from natwork_ray.control.models import ModelCheck, ModelDesk, ShelfApi
from natwork_ray.domain.decisions import Decision, DecisionStatus
from natwork_ray.domain.shown_turn import ShownTurn
from natwork_ray.domain.status import LoopStatus
from natwork_ray.domain.topology import Container, Node
from natwork_ray.domain.values import encode
from natwork_ray.errors import ConflictError, NatworkError, NotFoundError
from serve_apps.event_stream import EventStream, StreamLimits, resume_point
from serve_apps.model_routes import model_router
from serve_apps.problems import install, printable, responses
from serve_apps.profile_routes import profile_router
from serve_apps.security import Door, token_digest
from serve_apps.series import SeriesLimits, series_router
from serve_apps.views import (
    Approval,
    AuditPage,
    ContainerDetail,
    Count,
    CurrentMode,
    DecisionPage,
    EntryProof,
    ExtensionProof,
    Filter,
    Health,
    IdempotencyKey,
    Limit,
    MigrationPage,
    ModeRequest,
    MoveRequest,
    Name,
    NodeDetail,
    ServiceMigration,
    ServiceMoveRequest,
    items_after,
)


class GatewayControl(ControlApi, ShelfApi, Protocol):
    """What the gateway asks of the control service."""

    async def shown_turn(self) -> ShownTurn | None:
        """The newest turn; None when there is none, or it is long ago."""
        ...


ControlProvider = Callable[[], Awaitable[GatewayControl]]

PREFIX = "/api/v1"
_HEALTH_TIMEOUT_S = 2.0


def create_app(
    control_provider: ControlProvider,
    *,
    token: str,
    max_body_bytes: int,
    allowed_hosts: Iterable[str],
    stream: StreamLimits | None = None,
    agents: LimiAgents | None = None,
    check: ModelCheck | None = None,
    series: SeriesLimits | None = None,
) -> FastAPI:
    """The gateway's application.

    Args:
        control_provider: gives a working `ControlApi`; may raise TimedOutError or PreconditionError (503).
        token: the secret that changes need, at least 16 visible ASCII characters.
        max_body_bytes: larger request bodies are refused with 413.
        allowed_hosts: names without port that the server answers for.
        stream: limits of /events (default: `StreamLimits()`).
        agents: the LiMi agents, for forecasts and progress; without them migrations are predicted from limits.
        check: tries versions of models; without it there are no routes for them.
        series: bounds of /metrics (default: `SeriesLimits()`).

    Raises:
        UsageError: an unusable token, no host, or no room for a body.
    """
    app = FastAPI(
        title="natwork-ray gateway",
        version=__version__,
        description="Intent-based, adaptive security for 6G services: the state, decisions and audit log of one loop.",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # both pages would load scripts from a content delivery network
        redoc_url=None,
        redirect_slashes=False,
    )
    install(app)
    app.add_middleware(
        Door, allowed_hosts=tuple(allowed_hosts), max_body_bytes=max_body_bytes, digest=token_digest(token)
    )
    events = EventStream(control_provider, stream or StreamLimits())
    # The door enforces the token; this puts it into the OpenAPI document.
    bearer = [Security(HTTPBearer(auto_error=False, description="The token in <state_dir>/api-token."))]

    async def status() -> LoopStatus:
        return await (await control_provider()).status()

    async def desk() -> MigrationDesk:
        return MigrationDesk(await control_provider(), agents)

    async def model_desk() -> ModelDesk:
        assert check is not None  # noqa: S101 - its routes are there with it only
        return ModelDesk(await control_provider(), check)

    if check is not None:
        app.include_router(model_router(PREFIX, model_desk, bearer))
    app.include_router(profile_router(PREFIX, control_provider, bearer))
    app.include_router(series_router(control_provider, series or SeriesLimits()))

    async def change(event: Event, response: Response) -> ControlApi:
        control = await control_provider()
        (answer,) = await control.submit((event,))
        answer.unwrap()
        if answer.known:
            response.headers["Idempotency-Replayed"] = "true"
        return control

    @app.get(f"{PREFIX}/health", tags=["loop"], responses=responses())
    async def health() -> Health:
        """Whether the gateway and the control service behind it answer. Always 200."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await status()
        except ConflictError as error:
            return Health(alive=True, control=True, detail=printable(str(error)))
        except NatworkError as error:
            return Health(alive=True, control=False, detail=printable(str(error)))
        except TimeoutError:
            return Health(alive=True, control=False, detail=f"no answer within {_HEALTH_TIMEOUT_S:.0f} s")
        return Health(alive=True, control=True, detail="")

    @app.get(f"{PREFIX}/state", tags=["loop"], responses=responses(409, 503))
    async def state() -> LoopStatus:
        """The loop at this moment: counts, mode, topology and the quota account of each container."""
        return await status()

    @app.get(f"{PREFIX}/mode", tags=["loop"], responses=responses(409, 503))
    async def mode() -> CurrentMode:
        """How much the loop may do by itself."""
        now = await status()
        return CurrentMode(mode=now.mode, at_s=now.at_s)

    @app.put(f"{PREFIX}/mode", tags=["loop"], dependencies=bearer, responses=responses(401, 409, 422, 503))
    async def set_mode(request: ModeRequest, response: Response, idempotency_key: IdempotencyKey = None) -> CurrentMode:
        """Let the loop do more, or less, by itself. Recorded in the audit log."""
        event_id = _event_id("mode", request, idempotency_key)
        at_s = (await status()).at_s
        control = await change(ModeChanged(id=event_id, at_s=at_s, mode=request.mode, by=request.by), response)
        now = await control.status()
        return CurrentMode(mode=now.mode, at_s=now.at_s)

    @app.get(f"{PREFIX}/nodes", tags=["network"], responses=responses(409, 503))
    async def nodes() -> tuple[Node, ...]:
        """Every node."""
        return (await status()).topology.nodes

    @app.get(f"{PREFIX}/nodes/{{name:path}}", tags=["network"], responses=responses(404, 409, 422, 503))
    async def node(name: Name) -> NodeDetail:
        """A node, what runs on it, and its links."""
        topology = (await status()).topology
        found = topology.node(name)
        if found is None:
            raise NotFoundError(f"there is no node {name!r}", hint=f"{PREFIX}/nodes lists them")
        return NodeDetail(
            node=found,
            containers=tuple(c for c in topology.containers if c.node == name),
            links=tuple(k for k in topology.links if name in (k.a, k.b)),
        )

    @app.get(f"{PREFIX}/containers", tags=["network"], responses=responses(409, 422, 503))
    async def containers(
        node: Filter = None, slice_name: Annotated[Filter, Query(alias="slice")] = None, service: Filter = None
    ) -> tuple[Container, ...]:
        """Every container (CNF), or those of a node, a slice, a service."""
        wanted = (node, slice_name, service)
        return tuple(
            c
            for c in (await status()).topology.containers
            if all(w is None or w == has for w, has in zip(wanted, (c.node, c.slice, c.service), strict=True))
        )

    @app.get(f"{PREFIX}/containers/{{name:path}}", tags=["network"], responses=responses(404, 409, 422, 503))
    async def container(name: Name) -> ContainerDetail:
        """A container, its downtime budget and its newest decision."""
        control = await control_provider()
        now = await control.status()
        found = now.topology.container(name)
        if found is None:
            raise NotFoundError(f"there is no container {name!r}", hint=f"{PREFIX}/containers lists them")
        mine = [d for d in await control.decisions() if d.container == name]
        return ContainerDetail(
            container=found,
            quota=next((q for q in now.quota if q.container == name), None),
            degraded=name in now.degraded,
            decision=mine[-1] if mine else None,
        )

    @app.get(f"{PREFIX}/decisions", tags=["decisions"], responses=responses(404, 422, 503))
    async def decisions(
        status: DecisionStatus | None = None, container: Filter = None, limit: Limit = 100, after: Filter = None
    ) -> DecisionPage:
        """Decisions in their newest form, oldest first; of one status, of one container."""
        every = await (await control_provider()).decisions()
        rest = items_after(every, [d.id for d in every], after, "decision")
        wanted = [d for d in rest if status in (None, d.status) and container in (None, d.container)]
        return DecisionPage(items=tuple(wanted[:limit]), next=wanted[limit - 1].id if len(wanted) > limit else None)

    @app.get(f"{PREFIX}/decisions/{{decision_id}}", tags=["decisions"], responses=responses(404, 422, 503))
    async def decision(decision_id: Name) -> Decision:
        """One decision, with its reason and the alternatives rejected."""
        return await (await control_provider()).decision(decision_id)

    @app.post(
        f"{PREFIX}/decisions/{{decision_id}}/approval",
        tags=["decisions"],
        dependencies=bearer,
        responses=responses(401, 404, 409, 422, 503),
    )
    async def approve(
        decision_id: Name, approval: Approval, response: Response, idempotency_key: IdempotencyKey = None
    ) -> Decision:
        """Grant or refuse a decision that awaits approval; answers with what became of it."""
        event = ApprovalAnswered(
            id=_event_id(f"approval:{decision_id}", approval, idempotency_key),
            at_s=(await status()).at_s,
            decision=decision_id,
            granted=approval.granted,
            by=approval.by,
            note=approval.note,
        )
        control = await change(event, response)
        return await control.decision(decision_id)

    @app.get(f"{PREFIX}/migrations", tags=["migrations"], responses=responses(404, 422, 503))
    async def migrations(container: Filter = None, limit: Limit = 100, after: Filter = None) -> MigrationPage:
        """Live migrations, oldest first: instructed, proposed or refused, with their outcomes and records."""
        every = await (await desk()).migrations()
        rest = items_after(every, [m.instruction.key for m in every], after, "migration")
        wanted = [m for m in rest if container in (None, m.instruction.container)]
        return MigrationPage(
            items=tuple(wanted[:limit]), next=wanted[limit - 1].instruction.key if len(wanted) > limit else None
        )

    @app.get(f"{PREFIX}/migrations/{{key:path}}", tags=["migrations"], responses=responses(404, 422, 503))
    async def migration(key: Name) -> Migration:
        """One live migration by the key of its instruction; with its progress while it runs."""
        return await (await desk()).migration(key)

    @app.post(
        f"{PREFIX}/migrations",
        tags=["migrations"],
        status_code=202,
        dependencies=bearer,
        responses=responses(401, 404, 409, 422, 503),
    )
    async def migrate(request: MoveRequest, response: Response, idempotency_key: IdempotencyKey = None) -> Migration:
        """Order a container's live migration. Measured and decided upon before the answer, carried out after it."""
        at_desk = await desk()
        decision, repeated = await at_desk.move(request.wish(), key=_wish_key("move", idempotency_key))
        (instruction,) = decision.instructions
        response.headers["Location"] = f"{PREFIX}/migrations/{instruction.key}"
        if repeated:
            response.headers["Idempotency-Replayed"] = "true"
        return await at_desk.migration(instruction.key)

    @app.post(
        f"{PREFIX}/service-migrations",
        tags=["migrations"],
        status_code=202,
        dependencies=bearer,
        responses=responses(401, 404, 409, 422, 503),
    )
    async def migrate_service(
        request: ServiceMoveRequest, response: Response, idempotency_key: IdempotencyKey = None
    ) -> ServiceMigration:
        """Order the migration of all containers of a network service, planned to arrive together."""
        at_desk = await desk()
        decision, repeated = await at_desk.move_service(request.wish(), key=_wish_key("service", idempotency_key))
        response.headers["Location"] = f"{PREFIX}/decisions/{decision.id}"
        if repeated:
            response.headers["Idempotency-Replayed"] = "true"
        mine = [m for m in await at_desk.migrations() if m.decision == decision.id]
        return ServiceMigration(decision=decision, migrations=tuple(mine))

    @app.post(
        f"{PREFIX}/migration-forecasts",
        tags=["migrations"],
        dependencies=bearer,
        responses=responses(401, 404, 409, 422, 503),
    )
    async def forecast(request: MoveRequest | ServiceMoveRequest) -> Consideration:
        """A dry run: the container is measured, each method is forecast, the loop says what it would answer.

        Nothing is changed or recorded. It needs the token because measuring takes some of the node's time.
        """
        return await (await desk()).consider(request.wish())

    @app.get(
        f"{PREFIX}/events",
        tags=["audit"],
        response_class=StreamingResponse,
        responses={
            200: {
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
                "description": "Server-sent events",
            },
            **responses(409, 422, 503),
        },
    )
    async def stream_events(
        start: Annotated[Count | None, Query(description="First entry; default: what comes from now on.")] = None,
        follow: Annotated[bool, Query(description="false: end at the present end of the log.")] = True,
        last_event_id: Annotated[str | None, Header(max_length=40)] = None,
    ) -> Response:
        """The audit log as server-sent events: `id` is the entry's number, `event` its kind, `data` its line.

        `Last-Event-ID` resumes after that entry and outranks `start`. The stream ends by itself after a while, as
        browsers expect: they reconnect and resume.
        """
        first = resume_point(start, last_event_id)
        return await events.respond(first, follow=follow)

    @app.get(f"{PREFIX}/audit", tags=["audit"], responses=responses(422, 503))
    async def audit(start: Annotated[Count, Query()] = 0, limit: Limit = 100) -> AuditPage:
        """Entries of the audit log from `start` on."""
        control = await control_provider()
        size = await control.audit_size()
        items = await control.audit_entries(start, limit)
        end = start + len(items)
        return AuditPage(size=max(size, end if items else 0), items=items, next=end if items and end < size else None)

    @app.get(f"{PREFIX}/audit/checkpoint", tags=["audit"], response_class=PlainTextResponse, responses=responses(503))
    async def checkpoint() -> PlainTextResponse:
        """The newest signed checkpoint (a signed note). Keep copies elsewhere: they are witnesses."""
        return PlainTextResponse(await (await control_provider()).audit_checkpoint())

    @app.get(f"{PREFIX}/audit/key", tags=["audit"], response_class=PlainTextResponse, responses=responses(503))
    async def key() -> PlainTextResponse:
        """The public key of the log, in the form that signed notes use."""
        return PlainTextResponse(f"{await (await control_provider()).audit_verifier_key()}\n")

    @app.get(f"{PREFIX}/audit/consistency", tags=["audit"], responses=responses(422, 503))
    async def consistency(old_size: Annotated[Count, Query()]) -> ExtensionProof:
        """That the log still begins with its first `old_size` entries."""
        return ExtensionProof.of(await (await control_provider()).audit_consistency(old_size))

    @app.get(f"{PREFIX}/audit/{{seq}}", tags=["audit"], responses=responses(404, 422, 503))
    async def entry(seq: Annotated[Count, Path()]) -> AuditEntry:
        """One entry; `line` is what is hashed."""
        return await (await control_provider()).audit_entry(seq)

    @app.get(f"{PREFIX}/audit/{{seq}}/proof", tags=["audit"], responses=responses(404, 422, 503))
    async def proof(seq: Annotated[Count, Path()]) -> EntryProof:
        """That one entry is in the log of the newest checkpoint."""
        return EntryProof.of(await (await control_provider()).audit_inclusion(seq))

    return app


def _wish_key(what: str, idempotency_key: str | None) -> str:
    """Keys of different routes are different keys; without one, each request is a wish of its own."""
    return f"{what}:{uuid.uuid4() if idempotency_key is None else idempotency_key}"


def _event_id(what: str, body: object, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return f"http:{what}:{uuid.uuid4()}"
    # Hashed, so that the id is short and no choice of key can collide with another route's. The body belongs to it: a
    # key that comes with another body is another request, and must not be answered as if it had been done before.
    digest = hashlib.sha256(b"\0".join((what.encode(), encode(body), idempotency_key.encode()))).hexdigest()
    return f"http:{what.partition(':')[0]}:{digest}"
