"""Events that the control loop understands. They are what the journal stores and what a restart replays.

An event carries everything that its handling depends on, so that replaying the journal rebuilds the state exactly,
also after the configuration file was changed. `id` makes delivery idempotent: an id that was committed is not
handled again.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from natwork_ray.config import AlarmConfig, SlaConfig
from natwork_ray.domain.actions import ActionOutcome
from natwork_ray.domain.anomaly import AnomalyVerdict
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import Backend, value


@value
class RunStarted:
    """The loop takes charge of a world."""

    type: Literal["run_started"] = "run_started"
    id: str
    at_s: float
    backend: Backend
    mode: Mode
    scenario: str
    seed: int
    step_s: float
    approval_lapse_s: float
    topology: Topology
    alarm: AlarmConfig
    sla: SlaConfig


@value
class VerdictsReached:
    """One window of every container was judged. `verdicts` holds only those that stage 1 flagged.

    `degraded` names containers whose window could not be judged, or only against the fleet-wide profile (cold start),
    so that silence about them is not taken for health; `scanned` counts the others.
    """

    type: Literal["verdicts_reached"] = "verdicts_reached"
    id: str
    at_s: float
    scanned: int
    verdicts: tuple[AnomalyVerdict, ...] = ()
    degraded: tuple[str, ...] = ()


@value
class TopologyObserved:
    """The orchestrator's word on what runs where; replaces what the loop believed."""

    type: Literal["topology_observed"] = "topology_observed"
    id: str
    at_s: float
    topology: Topology


@value
class OutcomeReported:
    """An instruction was carried out, or failed."""

    type: Literal["outcome_reported"] = "outcome_reported"
    id: str
    at_s: float
    outcome: ActionOutcome


@value
class ApprovalAnswered:
    """A person granted or refused a decision that awaited approval."""

    type: Literal["approval_answered"] = "approval_answered"
    id: str
    at_s: float
    decision: str
    granted: bool
    by: str
    note: str = ""


@value
class ModeChanged:
    """A person changed how much the loop may do by itself."""

    type: Literal["mode_changed"] = "mode_changed"
    id: str
    at_s: float
    mode: Mode
    by: str


Event = Annotated[
    RunStarted | VerdictsReached | TopologyObserved | OutcomeReported | ApprovalAnswered | ModeChanged,
    Field(discriminator="type"),
]
