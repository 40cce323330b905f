"""Vocabulary of the migration state machine (`natwork_ray.limi.machine`): the steps it asks for, the events it is told.

A step is done by one side: the LiMi client on the source node, or the LiMi server on the target node (D3.3, Figure
1). Steps are values, so that they cross Ray as they are; `number` counts them within a migration and makes delivery
idempotent. Steps without an order between them are handed out together and run in parallel: D3.3 asks for the dump
delta, the volume delta and the address move to travel at the same time.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.migrations import ContainerLoad, MigrationForecast
from natwork_ray.domain.runtime import ContainerSpec, PageServer
from natwork_ray.domain.values import Backend, value


class Side(StrEnum):
    """Who performs a step."""

    SOURCE = "source"
    TARGET = "target"


class Verb(StrEnum):
    """What a step does. The side that performs it is `SIDE_OF[verb]`."""

    # before anything stands still
    CHECK_SOURCE = "check source"  # running here, method possible; answers with the spec
    CHECK_TARGET = "check target"  # absent there, method possible, room
    OPEN_PATH = "open path"
    PREPARE = "prepare"  # bundle, network namespace, lazy-pages folder on the target
    PRE_DUMP = "pre-dump"
    PRE_DUMP_TRANSFER = "pre-dump transfer"
    VOLUME_PRE_TRANSFER = "volume pre-transfer"  # while the container runs (pre-copy and hybrid)
    # nobody is served from here on
    FREEZE = "freeze"
    DUMP = "dump"
    DUMP_TRANSFER = "dump transfer"
    VOLUME_TRANSFER = "volume transfer"
    ADDRESS_DETACH = "address detach"
    PAGE_TUNNEL = "page tunnel"
    RESTORE = "restore"  # the target notes durably that it has it: the decision that counts
    ADDRESS_MOVE = "address move"  # attach and announce on the target
    # after it
    PAGES_FETCHED = "lazy pages"
    PAGES_SERVED = "lazy pages served"
    SETTLE_SOURCE = "settle source"  # destroy the old container, its namespace, images, tunnels
    SETTLE_TARGET = "settle target"  # images and daemons only
    # rolling back
    WITHDRAW = "withdraw"  # target: end whatever is there for ever, unless it had been restored: answers which
    FORCE_WITHDRAW = "force withdraw"  # target, past the point of no return: end it even if it was restored
    REVIVE = "revive"  # source: run again, address included


SIDE_OF: dict[Verb, Side] = {
    Verb.CHECK_SOURCE: Side.SOURCE, Verb.CHECK_TARGET: Side.TARGET, Verb.OPEN_PATH: Side.SOURCE,
    Verb.PREPARE: Side.TARGET, Verb.PRE_DUMP: Side.SOURCE, Verb.PRE_DUMP_TRANSFER: Side.SOURCE,
    Verb.VOLUME_PRE_TRANSFER: Side.SOURCE, Verb.FREEZE: Side.SOURCE, Verb.DUMP: Side.SOURCE,
    Verb.DUMP_TRANSFER: Side.SOURCE, Verb.VOLUME_TRANSFER: Side.SOURCE, Verb.ADDRESS_DETACH: Side.SOURCE,
    Verb.PAGE_TUNNEL: Side.SOURCE, Verb.RESTORE: Side.TARGET, Verb.ADDRESS_MOVE: Side.TARGET,
    Verb.PAGES_FETCHED: Side.TARGET, Verb.PAGES_SERVED: Side.SOURCE, Verb.SETTLE_SOURCE: Side.SOURCE,
    Verb.SETTLE_TARGET: Side.TARGET, Verb.WITHDRAW: Side.TARGET, Verb.FORCE_WITHDRAW: Side.TARGET,
    Verb.REVIVE: Side.SOURCE,
}  # fmt: skip


@value
class Step:
    """One thing to do, on one side. Fields that a verb does not need keep their defaults."""

    key: str
    number: int
    verb: Verb
    container: str
    source: str
    target: str
    method: MigrationMethod
    images: str = ""  # the set that a dump writes, a transfer carries, a restore reads
    parent: str | None = None  # the set before it
    lazy: bool = False
    spec: ContainerSpec | None = None
    page_server: PageServer | None = None
    port: int = 0
    attempt: int = 1

    @property
    def side(self) -> Side:
        """Who performs it."""
        return SIDE_OF[self.verb]


@value
class StepReport:
    """What a side answers to a step that it has done."""

    size_bytes: float = 0.0
    sent_bytes: float = 0.0
    pages_bytes: float = 0.0
    frozen_s: float = 0.0
    port: int = 0
    page_server: PageServer | None = None
    spec: ContainerSpec | None = None
    decided: str = ""  # withdraw: withdrawn | restored; revive: one of Revival
    detail: str = ""


@value
class MigrationStarted:
    """First event of every migration."""

    type: Literal["started"] = "started"
    at_s: float
    key: str
    container: str
    source: str
    target: str
    method: MigrationMethod
    backend: Backend
    max_rounds: int = 5  # of pre-copy
    chosen_by: str = "operator"
    load: ContainerLoad | None = None
    forecast: MigrationForecast | None = None


@value
class StepBegan:
    """A step was handed to its side. Journalled before the side hears of it."""

    type: Literal["step_began"] = "step_began"
    at_s: float
    number: int


@value
class StepDone:
    """A side has done a step."""

    type: Literal["step_done"] = "step_done"
    at_s: float
    number: int
    report: StepReport


@value
class StepFailed:
    """A side says that a step failed and had no effect, or that its effect is undone."""

    type: Literal["step_failed"] = "step_failed"
    at_s: float
    number: int
    error: str
    hint: str = ""


@value
class StepLost:
    """Nobody knows what became of a step: time-out, dead agent, cut link."""

    type: Literal["step_lost"] = "step_lost"
    at_s: float
    number: int
    error: str


@value
class CoordinatorRecovered:
    """The source's agent came back from the dead: steps under way are lost, what was journalled holds."""

    type: Literal["recovered"] = "recovered"
    at_s: float


@value
class Cancelled:
    """A person or the loop wants it stopped; heeded until the point of no return."""

    type: Literal["cancelled"] = "cancelled"
    at_s: float
    reason: str


MigrationEvent = Annotated[
    MigrationStarted | StepBegan | StepDone | StepFailed | StepLost | CoordinatorRecovered | Cancelled,
    Field(discriminator="type"),
]
