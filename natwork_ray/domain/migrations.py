"""Live migrations: what is known of a container before one, and the record that one leaves (D3.3 section 2.1)."""

from __future__ import annotations

from enum import StrEnum

from natwork_ray.domain.phases import MigrationMethod, Phase
from natwork_ray.domain.values import Backend, value


class LoadLevel(StrEnum):
    """Levels of load on one type of resource; only networking knows `zero`."""

    ZERO = "zero"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@value
class LoadClass:
    """One of the 108 combinations of load levels, of which 34 are feasible (docs/migration-data.md)."""

    cpu: LoadLevel
    memory: LoadLevel
    storage: LoadLevel
    network: LoadLevel

    @property
    def name(self) -> str:
        """For example `cpu-high_memory-low_storage-low_network-zero`."""
        return f"cpu-{self.cpu}_memory-{self.memory}_storage-{self.storage}_network-{self.network}"


@value
class ContainerLoad:
    """What can be measured of a running container and of its path before a migration; the models' only input.

    Attributes:
        memory_bytes: resident memory of all its processes.
        dirty_bytes_per_s: rate at which distinct pages are written, seen over `observed_s`.
        working_set_bytes: memory written at least once during `observed_s`, at most `memory_bytes`.
        cpu_cores: use of CPU; cpu_limit_cores: what the cgroup allows (0 when it sets no limit).
        volume_bytes: size of the writable file system.
        volume_delta_bytes: the part of it that the target does not have yet.
        volume_write_bytes_per_s: writes to it.
        network_rx_bytes_per_s, network_tx_bytes_per_s: traffic of the container.
        bandwidth_bytes_per_s: what the path to the target offers a new transfer.
        rtt_s: round trip to the target.
        observed_s: how long was measured.
    """

    memory_bytes: float
    dirty_bytes_per_s: float
    working_set_bytes: float
    cpu_cores: float
    cpu_limit_cores: float
    volume_bytes: float
    volume_delta_bytes: float
    volume_write_bytes_per_s: float
    network_rx_bytes_per_s: float
    network_tx_bytes_per_s: float
    bandwidth_bytes_per_s: float
    rtt_s: float
    observed_s: float


@value
class MigrationForecast:
    """A prediction for one container, one method and one path, in seconds: median and 95th percentile."""

    method: MigrationMethod
    total_p50_s: float
    total_p95_s: float
    downtime_p50_s: float
    downtime_p95_s: float


class MigrationState(StrEnum):
    """Where a migration stands. All but `running` are final.

    `migrated`: the container runs on the target. `rolled_back`: it runs on the source, with its memory; but see
    `lost_s` of the record. `refused`: nothing was begun. `restarted`: it runs on one node, but from its beginning: all
    that it had in memory is lost. That is the last resort of going back, taken when neither its processes nor a
    complete checkpoint were left on the source: with post-copy and hybrid, when its memory had gone to the target and
    did not arrive; with any method, when what the source held cannot be brought back to life. What was lost after
    `rolled_back`, the record's `lost_s` tells.
    """

    RUNNING = "running"
    MIGRATED = "migrated"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
    RESTARTED = "restarted"


@value
class MigrationRecord:
    """One migration, with the time and the size of every phase.

    `phases` hold `starts_s` (from the start of the migration), duration and sizes; some overlap. `downtime_s` is the
    approximate downtime of D3.3 (dump + transfer + restore, as they lay in time: from the freeze to the restored
    container); `client_downtime_s` is the longest gap that a client saw, queueing included, where one was watching.
    `point_of_no_return_s` counts from the start; None where the method has none, or it was not reached. `lost_s` is
    None unless the container came back from beyond it: for so many seconds it had run on the target, and what it did
    and answered there is gone. `runs_on` is where the container was when the record was closed.
    """

    key: str
    container: str
    source: str
    target: str
    method: MigrationMethod
    backend: Backend
    state: MigrationState
    started_at_s: float
    total_s: float
    downtime_s: float
    runs_on: str
    phases: tuple[Phase, ...] = ()
    pre_copy_rounds: int = 0
    client_downtime_s: float | None = None
    point_of_no_return_s: float | None = None
    lost_s: float | None = None
    load: ContainerLoad | None = None
    forecast: MigrationForecast | None = None
    chosen_by: str = "operator"  # operator, model, rule
    error: str = ""
    hint: str = ""


@value
class MethodReason:
    """Why a method is not possible, or not chosen."""

    method: MigrationMethod
    reason: str


@value
class MigrationOutlook:
    """How moving one container to one node would go, before anything is done (a dry run).

    Attributes:
        load: what was measured of the container and of the path; None where only estimates are to be had.
        forecasts: one for each method that is possible there.
        chosen: the method that `auto` would take now; None when none is possible.
        chosen_by: model or rule.
        reason: why that one.
        impossible: methods that the two nodes cannot do, with the remedy.
        weight: share of total time against downtime that the choice was made with.
    """

    container: str
    source: str
    target: str
    backend: Backend
    weight: float
    load: ContainerLoad | None
    forecasts: tuple[MigrationForecast, ...]
    chosen: MigrationMethod | None
    chosen_by: str
    reason: str
    impossible: tuple[MethodReason, ...] = ()

    def forecast(self, method: MigrationMethod | None = None) -> MigrationForecast | None:
        """The forecast of a method (None: of the chosen one), if there is one."""
        wanted = method or self.chosen
        return next((f for f in self.forecasts if f.method is wanted), None)


@value
class MigrationProgress:
    """A migration while it runs. `under_way` names the steps that are being done now, `phases` those that are over.

    `phases_in_all` is how many there will be, as far as that is known, for a progress bar. `past_return` says that the
    point of no return of post-copy or hybrid lies behind it.
    """

    key: str
    container: str
    source: str
    target: str
    method: MigrationMethod
    elapsed_s: float
    under_way: tuple[str, ...]
    phases: tuple[Phase, ...] = ()
    phases_in_all: int = 0
    past_return: bool = False


@value
class ContainerForecast:
    """A forecast and whom it is about; with what it was made from, where that was measured, and by whom."""

    container: str
    target: str
    forecast: MigrationForecast
    load: ContainerLoad | None = None
    chosen_by: str = "rule"
