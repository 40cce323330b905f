"""The cells of a reproduction with many hands: one Ray task per cell, the recordings in the object store once.

A cell depends on nothing but the recordings and its own fields, so tasks may end in any order, run anywhere, and be
repeated when their worker dies; the caller keeps each result as it comes. No more than one task per worker waits, so
that an interrupt loses little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.profiling.reproduction.cells import Cell, CellResult
from natwork_ray.profiling.reproduction.contestants import run_cell


@ray.remote(num_cpus=1, max_retries=3)
def _run(runs: tuple[LabelledRun, ...], cell: Cell) -> CellResult:
    return run_cell(runs, cell)


def fan_out(
    runs: Sequence[LabelledRun],
    cells: Sequence[Cell],
    *,
    workers: int,
    watching: Callable[[tuple[Cell, ...]], None] = lambda _running: None,
) -> Iterator[tuple[Cell, CellResult]]:
    """Results of these cells, in the order in which tasks end; `watching` is told which are under way.

    This process has to be a client of a cluster with at least `workers` CPUs.
    """
    shared = ray.put(tuple(runs))
    waiting = iter(cells)
    running: dict[Any, Cell] = {}

    def hand_out() -> bool:
        cell = next(waiting, None)
        if cell is not None:
            running[_run.remote(shared, cell)] = cell
        return cell is not None

    while len(running) < workers and hand_out():
        pass
    while running:
        watching(tuple(running.values()))
        (done,), _ = ray.wait(list(running), num_returns=1)
        cell = running.pop(done)
        hand_out()
        yield cell, ray.get(done)
