"""Instructions that the control loop gives, and the outcomes that come back.

Every instruction carries an idempotency key. Whoever carries it out must answer the second delivery of a key with
the outcome of the first, and must not act again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from natwork_ray.domain.flow_alerts import FlowAlert as FlowAlert
from natwork_ray.domain.migrations import ContainerLoad, MigrationForecast, MigrationRecord
from natwork_ray.domain.phases import Gate as Gate
from natwork_ray.domain.phases import MigrationMethod as MigrationMethod
from natwork_ray.domain.phases import OnFailure as OnFailure
from natwork_ray.domain.phases import Phase as Phase
from natwork_ray.domain.values import Backend, value


@value
class ServiceMove:
    """What the migrations of one service have in common; `id` tells which belong together.

    Each is held at its `gates` until whoever conducts them releases it. `patience_s` is how long a container may stand
    still at one gate although the conductor lives; for how long they wait for one that is silent, the agents decide.
    `arrives_s` (the last arrival) and `unavailable_s` (how long some container is down) are what was planned.
    """

    id: str
    service: str
    gates: tuple[Gate, ...]
    on_failure: OnFailure
    patience_s: float
    arrives_s: float = 0.0
    unavailable_s: float = 0.0


@value
class Migrate:
    """Move a running container to another node, keeping its address and its sessions.

    `method` None leaves the choice to the LiMi agent of the source node, which measures the container first and weighs
    with `weight`: the share (0 to 1) that total time has against downtime, None for the configured one. `chosen_by`
    says who chose a given method (operator or rule). The agent does not begin before `not_before_s` on the backend's
    clock, so that the containers of one service can arrive together. With `together` they are conducted instead: the
    schedule was made with `load` and `forecast`, and begins each one; `not_before_s` is for worlds without a conductor.
    """

    type: Literal["migrate"] = "migrate"
    key: str
    container: str
    source: str
    target: str
    method: MigrationMethod | None = None
    chosen_by: str = "operator"
    weight: float | None = None
    not_before_s: float = 0.0
    load: ContainerLoad | None = None
    forecast: MigrationForecast | None = None
    together: ServiceMove | None = None


class ScaleSignal(StrEnum):
    """What an autoscaler is to follow from then on (D3.3 Table 4)."""

    CPU = "cpu"
    REQUESTS = "requests"  # per second
    FORECAST = "forecast"  # of the CPU's utilisation, the upper edge of the band


@value
class Scale:
    """Set the number of replicas (horizontal scaling).

    With a `signal`, an orchestrator that has an autoscaler also lets it go on from there, never below `replicas`;
    `target_per_replica` is what one replica should carry (requests per second; None where it is not known). Without
    one, the number is all that is set, and an autoscaler that an earlier instruction brought goes away.
    """

    type: Literal["scale"] = "scale"
    key: str
    container: str
    replicas: int
    signal: ScaleSignal | None = None
    target_per_replica: float | None = None


@value
class SetLimits:
    """Set CPU and memory limits (vertical scaling). None leaves a limit as it is."""

    type: Literal["set_limits"] = "set_limits"
    key: str
    container: str
    cpu_limit_cores: float | None = None
    memory_limit_bytes: float | None = None


@value
class Restart:
    """Restart a container in place: clears leaked memory and stray processes, at the price of a short downtime."""

    type: Literal["restart"] = "restart"
    key: str
    container: str


@value
class AddNode:
    """Bring a spare node into service (cluster autoscaling), because `container` needs room."""

    type: Literal["add_node"] = "add_node"
    key: str
    container: str


@value
class MeshRetry:
    """Let the service mesh retry and balance requests around slow connections of a container."""

    type: Literal["mesh_retry"] = "mesh_retry"
    key: str
    container: str
    enabled: bool


@value
class BlockSource:
    """Drop traffic from one source (CIDR) to a container at the node's firewall until `expires_at_s`."""

    type: Literal["block_source"] = "block_source"
    key: str
    container: str
    source: str
    expires_at_s: float


Instruction = Annotated[
    Migrate | Scale | SetLimits | Restart | AddNode | MeshRetry | BlockSource | FlowAlert, Field(discriminator="type")
]

# Node-local instructions go to the LiMi agent of the container's node, the others to the orchestrator or the SDN.
NODE_LOCAL: tuple[type, ...] = (Migrate, SetLimits, Restart, BlockSource)


@value
class ActionOutcome:
    """What came of an instruction.

    `downtime_s` is what users of the container lost; it is charged to the quota. `error` is empty when `done`. `record`
    is the whole record of a live migration, None for every other action.
    """

    key: str
    done: bool
    started_at_s: float
    finished_at_s: float
    downtime_s: float
    backend: Backend
    detail: str
    error: str = ""
    phases: tuple[Phase, ...] = ()
    record: MigrationRecord | None = None
