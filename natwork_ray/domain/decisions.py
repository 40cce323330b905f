"""Decisions: what was chosen, why, and what was not."""

from __future__ import annotations

from enum import StrEnum

from natwork_ray.domain.actions import Instruction
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict
from natwork_ray.domain.forecasts import LoadForecast, PlacementAdvice
from natwork_ray.domain.values import value


class Mode(StrEnum):
    """How much the loop may do by itself."""

    OBSERVE = "observe"  # recommend only
    APPROVE = "approve"  # queue for a person
    ACT = "act"


class MitigationKind(StrEnum):
    """Mitigations: both columns of D3.3 Table 4, moving target defence, and what remains for a person."""

    HORIZONTAL_SCALE = "horizontal_scale"
    VERTICAL_CPU = "vertical_cpu"
    MEMORY_LIMIT_RESTART = "memory_limit_restart"
    VERTICAL_MEMORY = "vertical_memory"
    CLUSTER_SCALE = "cluster_scale"
    CUSTOM_METRIC_SCALE = "custom_metric_scale"
    PREDICTIVE_SCALE = "predictive_scale"
    MESH_RETRY = "mesh_retry"
    TOPOLOGY_MOVE = "topology_move"
    MTD_MOVE = "mtd_move"
    OPERATOR_MOVE = "operator_move"  # a person said so
    BLOCK_SOURCE = "block_source"
    FLOW_ALERT = "flow_alert"  # the SDN controller is told of suspect sources
    NOTIFY = "notify"
    RELAX = "relax"  # give resources back once it is calm
    KEEP_WATCHING = "keep_watching"


class DecisionStatus(StrEnum):
    """Where a decision stands. `recommended`, `refused`, `lapsed`, `done`, `failed` and `noted` are final."""

    RECOMMENDED = "recommended"
    AWAITING_APPROVAL = "awaiting_approval"
    ISSUED = "issued"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    LAPSED = "lapsed"
    NOTED = "noted"  # nothing to carry out


@value
class Alternative:
    """An option that was weighed. `utility` orders the feasible ones; `reason` says why it was not taken, or why."""

    mitigation: MitigationKind
    feasible: bool
    utility: float
    predicted_downtime_s: float
    reason: str


@value
class Order:
    """A person's wish that led to a decision. `digest` tells a repeated wish from another one under the same id."""

    id: str
    by: str
    note: str = ""
    digest: str = ""


@value
class Decision:
    """One decision of the loop, complete enough to be audited by itself.

    `verdict` and `kind` are None for a decision that no alarm caused (resources given back after calm). `kind` is what
    was acted upon: the majority of the votes, which may differ from the class of the newest verdict.
    `predicted_downtime_s` is the 95th percentile; that much is reserved in the quota ledger.
    `instructions` are what was, or would be, carried out. `order` is set where a person asked for it; then `container`
    may name a network service, whose containers the instructions name, and `downtimes_s` are the 95th percentiles of
    the instructions one by one (empty: the first has all of it). `forecasts` and `advice` are what was expected of the
    container when it was decided, where that was known.
    """

    id: str
    at_s: float
    container: str
    mode: Mode
    status: DecisionStatus
    verdict: AnomalyVerdict | None
    mitigation: MitigationKind
    reason: str
    predicted_downtime_s: float
    instructions: tuple[Instruction, ...]
    rejected: tuple[Alternative, ...]
    kind: AnomalyKind | None = None
    order: Order | None = None
    downtimes_s: tuple[float, ...] = ()
    forecasts: tuple[LoadForecast, ...] = ()
    advice: PlacementAdvice | None = None
