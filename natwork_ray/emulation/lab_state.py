"""What the migration laboratory keeps of a container: on each node, and over all nodes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from natwork_ray.domain.runtime import ContainerSpec, ContainerState
from natwork_ray.emulation.lab_values import ContainerProfile, LabContainer


@dataclass
class Image:
    """One set of images on one node. `counter` is the container's when it was taken; without `digest` it is torn.

    `ends`: the dump that ended the container. `lazy`: with a page server for `lazy_bytes`.
    """

    counter: float
    size_bytes: float
    pages_bytes: float
    parent: str | None
    ends: bool = False
    lazy: bool = False
    lazy_bytes: float = 0.0
    digest: str = ""


@dataclass
class Presence:
    """A container on one node, dead or alive. `copied_at` is the counter of the newest copy of the volume there."""

    state: ContainerState = ContainerState.ABSENT
    counter: float = 0.0
    since_s: float = 0.0
    prepared: bool = False
    namespace: bool = False
    attached: bool = False
    key: str = ""
    copied_at: float | None = None
    images: dict[tuple[str, str], Image] = field(default_factory=dict)
    serves: Image | None = None  # the source's page server: the lazy image whose pages it holds
    fetched: asyncio.Task[float] | None = None  # the target's lazy pages, on their way


@dataclass
class LabState:
    """A container over all nodes, with the log of when it was served and when it was degraded."""

    spec: ContainerSpec
    given: LabContainer
    presences: dict[str, Presence]
    served: list[tuple[float, bool]] = field(default_factory=list)
    migrations: int = 0
    degraded: list[list[float]] = field(default_factory=list)

    @property
    def profile(self) -> ContainerProfile:
        """The truth about its load."""
        return self.given.profile
