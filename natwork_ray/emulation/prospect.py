"""What the doors may ask about migrations of the emulated world: how one would go. They take virtual time only."""

from __future__ import annotations

from natwork_ray.domain.migrations import MigrationOutlook, MigrationProgress
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.limi.choosing import MethodChooser, outlook


class EmulatedAgents:
    """`LimiAgents` of an emulated world."""

    def __init__(self, testbed: Testbed, chooser: MethodChooser, weight: float) -> None:
        self._testbed, self._chooser, self._weight = testbed, chooser, weight

    async def outlook(self, container: str, *, source: str, target: str, weight: float | None) -> MigrationOutlook:
        """See `LimiAgents`. All four methods work everywhere."""
        return outlook(
            container,
            source=source,
            target=target,
            backend=Backend.EMULATED,
            load=self._testbed.measure(container, target),
            methods=tuple(MigrationMethod),
            chooser=self._chooser,
            weight=self._weight if weight is None else weight,
        )

    async def progress(self, key: str, *, source: str) -> MigrationProgress | None:
        """None: an emulated migration's whole record is known when it begins."""
        return None
