"""How a container may be moved, alone and with the others of its service, and what a timed part of an action took."""

from __future__ import annotations

from enum import StrEnum

from natwork_ray.domain.values import value


class MigrationMethod(StrEnum):
    """The four live migration methods of D3.3 section 2.1."""

    COLD = "cold"
    PRE_COPY = "pre-copy"
    POST_COPY = "post-copy"
    HYBRID = "hybrid"


class Gate(StrEnum):
    """Where a migration can be held until the others of its service are as far (docs/schedule.md)."""

    FREEZE = "freeze"
    RESTORE = "restore"
    ATTACH = "attach"


class OnFailure(StrEnum):
    """What becomes of the others when one member of a service fails.

    `bring_back`: while nobody of the wave was restored, all go back to their sources; afterwards they go on, since the
    target has them already. `carry_on`: the others go on without it.
    """

    BRING_BACK = "bring-back"
    CARRY_ON = "carry-on"


@value
class Phase:
    """One timed phase of an action.

    Phases may overlap: `starts_s` counts from the start of the action. `size_bytes` is what the phase produced or had
    to carry, `transferred_bytes` what really crossed the link (rsync sends differences only).
    """

    name: str
    duration_s: float
    transferred_bytes: float = 0.0
    starts_s: float = 0.0
    size_bytes: float = 0.0
