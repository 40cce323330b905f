"""What the gateway shows and takes: joins and pages over domain values, and the two requests that change something.

Values that the domain defines go out as they are; only what no domain value says by itself is defined here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

from fastapi import Header, Path, Query
from pydantic import Field, Strict

from natwork_ray.audit.log import AuditEntry
from natwork_ray.audit.proofs import ConsistencyProof, InclusionProof
from natwork_ray.control.desk import Migration, MoveWish, ServiceWish
from natwork_ray.domain.decisions import Decision, Mode
from natwork_ray.domain.phases import MigrationMethod, OnFailure
from natwork_ray.domain.quota import QuotaAccount
from natwork_ray.domain.topology import Container, Link, Node
from natwork_ray.domain.values import value
from natwork_ray.errors import NotFoundError

T = TypeVar("T")

_PERSON = r"^[^\x00-\x1f\x7f]+$"

# A 64-bit count: nothing larger can name an entry, and SQLite would refuse it.
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Name = Annotated[str, Path(max_length=253, description="Exact name.")]
Filter = Annotated[str | None, Query(max_length=253)]
Limit = Annotated[int, Query(ge=1, le=1000, description="Items per page.")]
Person = Annotated[
    str, Field(min_length=1, max_length=200, pattern=_PERSON, description="Who says so; recorded.", examples=["alice"])
]


@value
class Health:
    """Liveness. The gateway lives when it answers; `control` says whether the control service answers it."""

    alive: bool
    control: bool
    detail: str


@value
class NodeDetail:
    """A node, what runs on it, and its links."""

    node: Node
    containers: tuple[Container, ...]
    links: tuple[Link, ...]


@value
class ContainerDetail:
    """A container, its downtime budget, whether it could be judged last time, and its newest decision."""

    container: Container
    quota: QuotaAccount | None
    degraded: bool
    decision: Decision | None


@value
class DecisionPage:
    """Decisions, oldest first. `next` goes into `after` for the page that follows; None at the end."""

    items: tuple[Decision, ...]
    next: str | None


@value
class MigrationPage:
    """Migrations, oldest first. `next` goes into `after` for the page that follows; None at the end."""

    items: tuple[Migration, ...]
    next: str | None


@value
class AuditPage:
    """Entries of the audit log. `next` goes into `start` for the page that follows; None at the present end."""

    size: int
    items: tuple[AuditEntry, ...]
    next: int | None


@value
class EntryProof:
    """That entry `seq` is in the log of `checkpoint` (a signed note): RFC 6962 path, hex, lowest first."""

    seq: int
    size: int
    hashes: tuple[str, ...]
    checkpoint: str

    @classmethod
    def of(cls, proof: InclusionProof) -> EntryProof:
        """The proof as text."""
        hashes = tuple(h.hex() for h in proof.hashes)
        return cls(seq=proof.seq, size=proof.size, hashes=hashes, checkpoint=proof.checkpoint.decode("utf-8"))


@value
class ExtensionProof:
    """That the log of `checkpoint` (a signed note) begins with its first `old_size` entries: RFC 6962, hex."""

    old_size: int
    size: int
    hashes: tuple[str, ...]
    checkpoint: str

    @classmethod
    def of(cls, proof: ConsistencyProof) -> ExtensionProof:
        """The proof as text."""
        hashes = tuple(h.hex() for h in proof.hashes)
        return cls(old_size=proof.old_size, size=proof.size, hashes=hashes, checkpoint=proof.checkpoint.decode("utf-8"))


@value
class Approval:
    """A person's word on a decision that awaits approval."""

    granted: Annotated[bool, Strict(), Field(examples=[True])]
    by: Person
    note: Annotated[str, Field(max_length=2000, description="Why; recorded.")] = ""


@value
class ModeRequest:
    """How much the loop may do by itself from now on."""

    mode: Mode
    by: Person


@value
class CurrentMode:
    """How much the loop may do by itself, as of `at_s` on the backend's clock."""

    mode: Mode
    at_s: float


Weight = Annotated[
    float | None,
    Field(ge=0, le=1, description="Share of total time against downtime in the choice of a method; null: configured."),
]
NodeName = Annotated[str, Field(min_length=1, max_length=253, examples=["core-1"])]
Note = Annotated[str, Field(max_length=2000, description="Why; recorded.")]


@value
class MoveRequest:
    """A person's wish to have one container moved. `method` null leaves the choice to the source's LiMi agent."""

    container: Annotated[str, Field(min_length=1, max_length=253, examples=["video-analytics"])]
    target: NodeName
    by: Person
    method: MigrationMethod | None = None
    weight: Weight = None
    note: Note = ""

    def wish(self) -> MoveWish:
        """As the desk takes it."""
        return MoveWish(**vars(self))


@value
class ServiceMoveRequest:
    """A person's wish to have a whole network service moved. `target` null spreads it over the roomiest nodes.

    `on_failure` says what becomes of the others when one container cannot be moved: all come back, or they carry on.
    """

    service: Annotated[str, Field(min_length=1, max_length=253, examples=["traffic"])]
    target: NodeName | None
    by: Person
    weight: Weight = None
    note: Note = ""
    on_failure: OnFailure = OnFailure.BRING_BACK

    def wish(self) -> ServiceWish:
        """As the desk takes it."""
        return ServiceWish(**vars(self))


@value
class ServiceMigration:
    """What a service's order led to: the decision, and one migration for each container."""

    decision: Decision
    migrations: tuple[Migration, ...]


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="Sent again, the same key on the same path changes nothing a second time; the answer is the "
        "present state, with `Idempotency-Replayed: true`.",
    ),
]


def items_after(items: Sequence[T], names: Sequence[str], after: str | None, what: str) -> Sequence[T]:
    """What comes after the item named `after`; NotFoundError when there is none of that name."""
    if after is None:
        return items
    try:
        return items[names.index(after) + 1 :]
    except ValueError:
        raise NotFoundError(
            f"there is no {what} {after!r} to go on from", hint="`after` takes the `next` of the page before"
        ) from None
