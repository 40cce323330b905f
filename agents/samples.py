"""The rings of newest samples in an actor of their own, shared by the replicas of the anomaly door.

Replicas come and go, and each gets only a part of the requests: rings in them would have holes. So there is one actor.
What it holds is a cache; it dies without leaving anything, and windows are short, and say so, until they fill again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from agents.calls import NamedActor
from agents.naming import NAMESPACE, SAMPLES
from natwork_ray.profiling.profile import Floats
from natwork_ray.profiling.recent_samples import Recent, RecentSamples

_PATIENCE_S = 20.0


class SamplesActor:
    """`RecentSamples`, one call at a time."""

    def __init__(self, step_s: float) -> None:
        self._recent = RecentSamples(step_s=step_s)

    async def append(self, at_s: float, containers: Sequence[str], values: Floats, length: int) -> Recent:
        """See `RecentSamples.append`."""
        return self._recent.append(at_s, containers, values, length=length)


class SharedSamples:
    """The actor's client. Finds the actor, or makes it."""

    def __init__(self, step_s: float, *, namespace: str = NAMESPACE, patience_s: float = _PATIENCE_S) -> None:
        self._step_s, self._namespace = step_s, namespace
        self._actor = NamedActor(SAMPLES, namespace=namespace, what="newest samples", patience_s=patience_s)
        self._made: Any = None

    async def append(self, at_s: float, containers: Sequence[str], values: Floats, *, length: int) -> Recent:
        """See `RecentSamples.append`. Sent twice it changes nothing, so it is repeated when the actor dies under it.

        Raises:
            TimedOutError: the actor does not answer.
        """
        if self._made is None:
            self._made = (
                ray.remote(SamplesActor)
                .options(
                    name=SAMPLES,
                    namespace=self._namespace,
                    lifetime="detached",
                    get_if_exists=True,
                    max_restarts=-1,
                    max_task_retries=0,
                    max_concurrency=100,
                    num_cpus=0,
                )
                .remote(self._step_s)
            )
        recent: Recent = await self._actor.call("append", at_s, tuple(containers), values, length)
        return recent
