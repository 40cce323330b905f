"""Events that the control loop understands. They are what the journal stores and what a restart replays.

An event carries everything that its handling depends on, so that replaying the journal rebuilds the state exactly,
also after the configuration file was changed. `id` makes delivery idempotent: an id that was committed is not
handled again.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from natwork_ray.config import AlarmConfig, SlaConfig
from natwork_ray.domain.actions import ActionOutcome, MigrationMethod, ServiceMove
from natwork_ray.domain.anomaly import AnomalyVerdict
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.flow_alerts import SuspectSource
from natwork_ray.domain.forecasts import LoadForecast, PlacementAdvice
from natwork_ray.domain.migrations import ContainerForecast, MigrationForecast
from natwork_ray.domain.outlook import LoadOutlook
from natwork_ray.domain.profiles import ProfileDrift, ProfileSummary, Relearning
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import Backend, value


@value
class RunStarted:
    """The loop takes charge of a world.

    `token` becomes part of the ids of decisions, and so of idempotency keys. A world that outlives journals (a real
    one: its agents remember every key that they carried out) needs another one for each journal. `sdn` says whether
    there is a network controller that flow alerts can be given to.
    """

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
    token: str = ""
    sdn: bool = False


@value
class VerdictsReached:
    """One window of every container was judged. `verdicts` holds only those that stage 1 flagged.

    `degraded` names containers whose window could not be judged, or only against the fleet-wide profile (cold start),
    so that silence about them is not taken for health; `scanned` counts the others. `suspects` holds, by container, the
    sources whose share of its traffic jumped. Of the forecasts and the advice of a turn only those of flagged
    containers are kept, which a decision may be about; `outlook` sums up all.
    """

    type: Literal["verdicts_reached"] = "verdicts_reached"
    id: str
    at_s: float
    scanned: int
    verdicts: tuple[AnomalyVerdict, ...] = ()
    degraded: tuple[str, ...] = ()
    suspects: dict[str, tuple[SuspectSource, ...]] = field(default_factory=dict)
    forecasts: tuple[LoadForecast, ...] = ()
    advice: tuple[PlacementAdvice, ...] = ()
    outlook: LoadOutlook | None = None


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


@value
class ModelChosen:
    """A person chose the version of a model that answers from now on; `previous` is the one that did before."""

    type: Literal["model_chosen"] = "model_chosen"
    id: str
    at_s: float
    name: str
    sha256: str
    previous: str | None
    by: str
    note: str = ""


@value
class ProfilesLearnt:
    """Profiles were learnt from normal operation; `failed` says, by service, why an order could not be carried out."""

    type: Literal["profiles_learnt"] = "profiles_learnt"
    id: str
    at_s: float
    profiles: tuple[ProfileSummary, ...]
    failed: dict[str, str] = field(default_factory=dict)


@value
class DriftObserved:
    """All profiles were compared with the last hours; those that no longer hold."""

    type: Literal["drift_observed"] = "drift_observed"
    id: str
    at_s: float
    drifts: tuple[ProfileDrift, ...] = ()


@value
class RelearnRequested:
    """A person wants the profile of a service learnt anew."""

    type: Literal["relearn_requested"] = "relearn_requested"
    id: str
    at_s: float
    order: Relearning


@value
class MigrationRequested:
    """A person wants one container moved.

    `method` None leaves the choice to the source's LiMi agent, which weighs with `weight`. `forecast` is what was
    predicted from a measurement, for the method asked for or the best one; without it the loop predicts from the
    container's limits. `digest` is of the request as it came, so that a repeated id with another wish can be told.
    """

    type: Literal["migration_requested"] = "migration_requested"
    id: str
    at_s: float
    container: str
    target: str
    by: str
    method: MigrationMethod | None = None
    note: str = ""
    weight: float | None = None
    forecast: MigrationForecast | None = None
    digest: str = ""


@value
class PlannedStart:
    """When one container of a service begins to move, from the moment of the order."""

    container: str
    starts_s: float


@value
class ServiceMigrationRequested:
    """A person wants every container of a network service moved: to one node, or apart (`target` None).

    `starts` is the plan that lets them arrive together; whoever is not named begins at once. With `together` that plan
    is conducted while it runs (its `id` is given by the decision); it needs the forecast of each member.
    """

    type: Literal["service_migration_requested"] = "service_migration_requested"
    id: str
    at_s: float
    service: str
    target: str | None
    by: str
    note: str = ""
    weight: float | None = None
    forecasts: tuple[ContainerForecast, ...] = ()
    starts: tuple[PlannedStart, ...] = ()
    together: ServiceMove | None = None
    digest: str = ""


OrderEvent = MigrationRequested | ServiceMigrationRequested

Event = Annotated[
    RunStarted
    | VerdictsReached
    | TopologyObserved
    | OutcomeReported
    | ApprovalAnswered
    | ModeChanged
    | ModelChosen
    | ProfilesLearnt
    | DriftObserved
    | RelearnRequested
    | MigrationRequested
    | ServiceMigrationRequested,
    Field(discriminator="type"),
]
