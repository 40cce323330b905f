"""Concurrent small requests become one call of the model, at no cost to a request that comes alone.

Scoring 32 windows takes hardly longer than scoring one. So what the event loop has ready in one of its turns waits for
the end of that turn, microseconds later, and is then scored together; there is no timer. Measured (docs/serving.md):
16 clients with one window each are served at a higher rate than without, one client as fast as without.

Large requests do not wait for each other on the event loop: they go to the one scoring thread of the replica, so that
health checks and small requests are answered meanwhile.

    scores = await gathering.score(served.detector, values, references)
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from natwork_ray.errors import NatworkError
from natwork_ray.profiling.profile import Floats
from natwork_ray.profiling.verdicts import Scores

# Windows that may be scored on the event loop's own thread: about a millisecond.
INLINE_WINDOWS = 128


class Scoring(Protocol):
    """What is asked of a detector."""

    @property
    def history(self) -> int:
        """The samples per window that it makes use of, where it gets so many."""
        ...

    def score(self, values: Floats, references: Floats) -> Scores:
        """Scores of values (N, T, 12) against reference rows (N, P)."""
        ...


@dataclass(frozen=True, eq=False)
class _Job:
    detector: Scoring
    values: Floats
    references: Floats
    done: asyncio.Future[Scores]


class Gathering:
    """Scores windows for many requests at a time. For one event loop."""

    def __init__(self, *, inline_windows: int = INLINE_WINDOWS) -> None:
        """Requests of more than `inline_windows` windows are scored in the thread, each by itself."""
        self._inline = inline_windows
        self._waiting: list[_Job] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        self.calls = 0

    async def score(self, detector: Scoring, values: Floats, references: Floats) -> Scores:
        """Scores of values (N, T, 12) against reference rows (N, P); errors as the detector's own.

        The figures may differ in their last bits from those of the same windows scored alone: libraries add up in
        another order in larger batches.
        """
        loop = asyncio.get_running_loop()
        if len(values) > self._inline:
            self.calls += 1
            return await loop.run_in_executor(self._thread, detector.score, values, references)
        job = _Job(detector, values[:, -detector.history :], references, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append(job)
        return await job.done

    def _flush(self) -> None:
        jobs, self._waiting = self._waiting, []
        groups: list[list[_Job]] = []
        for job in jobs:
            group = next((g for g in groups if self._fits(g, job)), None)
            if group is None:
                groups.append([job])
            else:
                group.append(job)
        for group in groups:
            self._score(group)

    def _fits(self, group: list[_Job], job: _Job) -> bool:
        first = group[0]
        # One version of the model at a time (around a swap, two may be in use), and windows of one length.
        if first.detector is not job.detector or first.values.shape[1] != job.values.shape[1]:
            return False
        return sum(len(each.values) for each in group) + len(job.values) <= self._inline

    def _score(self, jobs: list[_Job]) -> None:
        self.calls += 1
        try:
            values = np.concatenate([job.values for job in jobs]) if len(jobs) > 1 else jobs[0].values
            references = np.concatenate([job.references for job in jobs]) if len(jobs) > 1 else jobs[0].references
            scores = jobs[0].detector.score(values, references)
        except NatworkError as error:
            if len(jobs) > 1:  # one of them is at fault, and the others must not pay for it
                for job in jobs:
                    self._score([job])
            elif not jobs[0].done.done():
                jobs[0].done.set_exception(error)
            return
        except Exception as error:
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(error)
            return
        start = 0
        for job in jobs:
            end = start + len(job.values)
            if not job.done.done():  # its client may have gone
                job.done.set_result(scores if len(jobs) == 1 else _part(scores, start, end))
            start = end


def _part(scores: Scores, start: int, end: int) -> Scores:
    columns: dict[str, Any] = {field.name: getattr(scores, field.name)[start:end] for field in fields(Scores)}
    return Scores(**columns)
