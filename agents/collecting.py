"""Collecting the migration data set with many hands: one Ray task per handful of runs.

A run depends on nothing but the plan's seed and its own key, so tasks may end in any order, run anywhere, and be
repeated when their worker dies; the caller keeps each answer as it comes and puts them in order at the end. No more
than two tasks per worker are handed out at a time, so that an interrupt loses little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray

from natwork_ray.emulation.collecting import collect_emulated
from natwork_ray.limi.collection import CollectionPlan, RunKey
from natwork_ray.limi.dataset import MigrationRow

RUNS_PER_TASK = 8
_TASKS_PER_WORKER = 2


@ray.remote(num_cpus=1, max_retries=3)
def _collect(plan: CollectionPlan, keys: Sequence[RunKey]) -> tuple[MigrationRow, ...]:
    return collect_emulated(plan, keys)


def fan_out(plan: CollectionPlan, keys: Sequence[RunKey], *, workers: int) -> Iterator[tuple[MigrationRow, ...]]:
    """The rows of these runs, a handful of whole runs at a time, in the order in which tasks end.

    This process has to be a client of a cluster with at least `workers` CPUs.
    """
    batches = [keys[i : i + RUNS_PER_TASK] for i in range(0, len(keys), RUNS_PER_TASK)]
    waiting = iter(batches)
    pending: list[Any] = []
    for batch in waiting:
        pending.append(_collect.remote(plan, batch))
        if len(pending) >= workers * _TASKS_PER_WORKER:
            break
    while pending:
        (done,), pending = ray.wait(pending, num_returns=1)
        for batch in waiting:
            pending.append(_collect.remote(plan, batch))
            break
        yield ray.get(done)
