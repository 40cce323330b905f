"""The newest samples in the process of the door itself, where no other replica shares them."""

from __future__ import annotations

from collections.abc import Sequence

from natwork_ray.profiling.profile import Floats
from natwork_ray.profiling.recent_samples import Recent, RecentSamples


class LocalSamples:
    """The newest samples in this process."""

    def __init__(self, step_s: float) -> None:
        self._recent = RecentSamples(step_s=step_s)

    async def append(self, at_s: float, containers: Sequence[str], values: Floats, *, length: int) -> Recent:
        """See `RecentSamples.append`."""
        return self._recent.append(at_s, containers, values, length=length)
