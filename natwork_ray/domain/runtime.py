"""What a container runtime, an image transfer and an address bridge say of themselves (see natwork_ray.ports)."""

from __future__ import annotations

from enum import StrEnum

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.values import value


@value
class ContainerSpec:
    """What a node needs to run a container or to take it over.

    Attributes:
        image: name of the root file system image, which every node has.
        address: IPv4 address with prefix length, for example 10.77.3.20/24; `mac` goes with it.
        environment: variables of the first process.
        cpu_limit_cores, memory_limit_bytes: cgroup limits; 0 means none.
        writable_root: whether the root file system is the container's own and travels with it.
    """

    name: str
    image: str
    address: str
    mac: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    cpu_limit_cores: float = 0.0
    memory_limit_bytes: float = 0.0
    writable_root: bool = True
    service: str = ""
    depends_on: tuple[str, ...] = ()


class ContainerState(StrEnum):
    """What a runtime knows of a container on its node."""

    ABSENT = "absent"
    STOPPED = "stopped"
    FROZEN = "frozen"
    RUNNING = "running"


@value
class ContainerStatus:
    """One container on one node. `pid` is 0 unless it is running or frozen."""

    container: str
    state: ContainerState
    pid: int = 0


@value
class RuntimeAbilities:
    """Methods that work on this node, and for the others the reason why not, with the remedy."""

    methods: tuple[MigrationMethod, ...]
    dirty_tracking: bool
    reasons: tuple[tuple[MigrationMethod, str], ...] = ()


@value
class DumpReport:
    """A checkpoint. `frozen_s` is how long the processes stood still for it, by CRIU's own statistics.

    `pages_bytes` counts memory written by this dump, without what the parent holds. `page_server_port` is 0 unless
    pages are served.
    """

    size_bytes: float
    pages_bytes: float
    frozen_s: float
    page_server_port: int = 0


@value
class SendReport:
    """A transfer. `size_bytes` is what the set holds, `sent_bytes` what crossed the link; `digest` of what arrived."""

    size_bytes: float
    sent_bytes: float
    digest: str


@value
class PathReport:
    """The way to a node: what a new transfer may expect."""

    bandwidth_bytes_per_s: float
    rtt_s: float


@value
class PageServer:
    """Where the target fetches lazy pages."""

    host: str
    port: int


class Revival(StrEnum):
    """How a rolled-back container came to run again; only the last one loses memory."""

    STILL_RUNNING = "still_running"
    THAWED = "thawed"
    RESTORED = "restored"
    RESTARTED = "restarted"
