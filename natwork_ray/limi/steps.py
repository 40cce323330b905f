"""Vocabulary of the migration state machine (`natwork_ray.limi.machine`): events in, steps and instructions out.

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
from natwork_ray.domain.migrations import ContainerLoad, MigrationForecast, MigrationRecord
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
    FORCE_WITHDRAW = "force withdraw"  # target, past the point of no return: end it, unless all pages have arrived
    REVIVE = "revive"  # source: run again, address included
    CLEAN_SOURCE = "clean source"  # images, daemons and tunnels only: the container runs here


SIDE_OF: dict[Verb, Side] = {
    Verb.CHECK_SOURCE: Side.SOURCE, Verb.CHECK_TARGET: Side.TARGET, Verb.OPEN_PATH: Side.SOURCE,
    Verb.PREPARE: Side.TARGET, Verb.PRE_DUMP: Side.SOURCE, Verb.PRE_DUMP_TRANSFER: Side.SOURCE,
    Verb.VOLUME_PRE_TRANSFER: Side.SOURCE, Verb.FREEZE: Side.SOURCE, Verb.DUMP: Side.SOURCE,
    Verb.DUMP_TRANSFER: Side.SOURCE, Verb.VOLUME_TRANSFER: Side.SOURCE, Verb.ADDRESS_DETACH: Side.SOURCE,
    Verb.PAGE_TUNNEL: Side.SOURCE, Verb.RESTORE: Side.TARGET, Verb.ADDRESS_MOVE: Side.TARGET,
    Verb.PAGES_FETCHED: Side.TARGET, Verb.PAGES_SERVED: Side.SOURCE, Verb.SETTLE_SOURCE: Side.SOURCE,
    Verb.SETTLE_TARGET: Side.TARGET, Verb.WITHDRAW: Side.TARGET, Verb.FORCE_WITHDRAW: Side.TARGET,
    Verb.REVIVE: Side.SOURCE, Verb.CLEAN_SOURCE: Side.SOURCE,
}  # fmt: skip


# What may be held: the way forward. Going back, and asking the target for its word, wait for nobody.
GATED = frozenset(Verb) - {Verb.WITHDRAW, Verb.FORCE_WITHDRAW, Verb.REVIVE, Verb.CLEAN_SOURCE}


@value
class Step:
    """One thing to do, on one side. Fields that a verb does not need keep their defaults.

    A step that is asked again keeps its `number` and has a higher `attempt`.
    """

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


WITHDRAWN = "withdrawn"  # noted durably: a later restore of that key is refused for ever, and nothing is left of it
RESTORED = "restored"  # noted durably before: the container runs on the target (force withdraw: with all its memory)


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
    decided: str = ""  # withdraw, force withdraw: WITHDRAWN | RESTORED; revive: one of Revival
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
    gated: bool = False  # every step in `GATED` is held until it is released


@value
class StepReleased:
    """A step that was held (`Hold`) may be handed out now."""

    type: Literal["released"] = "released"
    at_s: float
    number: int


@value
class WaitOver:
    """The back-off of a `Wait` has passed. If its step is still wanted, the answer is its `Perform`."""

    type: Literal["wait_over"] = "wait_over"
    at_s: float
    number: int
    attempt: int = 1


@value
class StepDone:
    """A side has done a step; it does not matter at which attempt."""

    type: Literal["step_done"] = "step_done"
    at_s: float
    number: int
    report: StepReport


@value
class StepFailed:
    """A side says that a step failed and had no effect, or that its effect is undone. `attempt`: of which attempt."""

    type: Literal["step_failed"] = "step_failed"
    at_s: float
    number: int
    error: str
    hint: str = ""
    attempt: int = 1


@value
class StepLost:
    """Nobody knows what became of an attempt at a step: time-out, dead agent, cut link."""

    type: Literal["step_lost"] = "step_lost"
    at_s: float
    number: int
    error: str
    hint: str = ""
    attempt: int = 1


@value
class CoordinatorRecovered:
    """The source's agent came back from the dead: steps under way are lost, what was journalled holds."""

    type: Literal["recovered"] = "recovered"
    at_s: float


@value
class Cancelled:
    """A person or the loop wants it stopped; heeded until the restore is handed out."""

    type: Literal["cancelled"] = "cancelled"
    at_s: float
    reason: str


MigrationEvent = Annotated[
    MigrationStarted | StepReleased | WaitOver | StepDone | StepFailed | StepLost | CoordinatorRecovered | Cancelled,
    Field(discriminator="type"),
]


@value
class Perform:
    """Hand the step to its side. With `durable`, only once every event so far is in the journal, or not at all:
    then the step has failed.
    """

    step: Step
    durable: bool = False


@value
class Hold:
    """Say `StepReleased` when the step may be done; it is not handed out, and has not begun, before that."""

    step: Step


@value
class Wait:
    """Say `WaitOver` in `seconds`; the step will then be asked for, at the attempt that it names."""

    step: Step
    seconds: float


@value
class Abandon:
    """Nobody waits for this step any longer. Its side ends it when it is told to revive or to withdraw."""

    number: int


@value
class Finish:
    """The last instruction: file the record."""

    record: MigrationRecord


Instruction = Perform | Hold | Wait | Abandon | Finish
