"""Computing the cells of a reproduction: kept ones first, the rest here or on Ray, and what is under way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from natwork_ray.cli.output import talk
from natwork_ray.cli.workers import own_cluster
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.errors import UsageError

WorkersOption = Annotated[int, typer.Option(min=0, help="Processes, on Ray; 0 or 1 for none besides this one.")]
ResumeOption = Annotated[
    Path | None, typer.Option(help="Folder that keeps what is finished; the same command then goes on from there.")
]
SeedsOption = Annotated[int, typer.Option(min=1, max=100, help="Train with so many seeds, and show the mean.")]


def compute(
    runs: Sequence[LabelledRun], cells: Sequence[Any], *, workers: int, resume: Path | None, quiet: bool
) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Results of all cells, kept ones first, and how that went.

    Raises:
        UsageError: `resume` is a file.
        NatworkError: a cell failed; what was finished before is kept.
    """
    from natwork_ray.adapters.finished_cells import FinishedCells
    from natwork_ray.profiling.reproduction.cells import code_digest
    from natwork_ray.profiling.training import data_digest

    if resume is not None and resume.exists() and not resume.is_dir():
        raise UsageError(f"--resume {resume} is a file", hint="name a folder")
    began = time.monotonic()
    kept = FinishedCells(resume, data=data_digest(runs), code=code_digest()) if resume is not None else None
    results: dict[Any, Any] = {}
    if kept is not None:
        results = {cell: result for cell in cells if (result := kept.load(cell)) is not None}
    resumed = len(results)
    missing = [cell for cell in cells if cell not in results]
    if resumed and not quiet:
        talk.print(f"{resumed} of {len(cells)} were finished before.")
    with contextlib.ExitStack() as stack:
        if workers > 1 and len(missing) > 1:
            stack.enter_context(own_cluster(workers))
        bar = stack.enter_context(_bar(quiet))
        whole = bar.add_task("all", total=len(missing))
        under_way = bar.add_task("", total=None)

        def tell(done: int, total: int, what: str) -> None:
            bar.update(under_way, completed=done, total=total, description=what)

        # Closed, not left to the garbage collector: an interrupt must end what runs.
        source = (
            _on_ray(runs, missing, workers, tell) if workers > 1 and len(missing) > 1 else _here(runs, missing, tell)
        )
        with contextlib.closing(source):
            for cell, result in source:
                results[cell] = result
                if kept is not None:
                    kept.save(cell, result)
                bar.advance(whole)
    work = {
        "cells": len(cells),
        "resumed": resumed,
        "workers": max(1, workers),
        "wall_s": round(time.monotonic() - began, 1),
        "cell_s": round(sum(result.seconds for result in results.values()), 1),
    }
    return {cell: results[cell] for cell in cells}, work


_Tell = Callable[[int, int, str], None]


def _here(runs: Sequence[LabelledRun], cells: Sequence[Any], tell: _Tell) -> Generator[tuple[Any, Any], None, None]:
    from natwork_ray.profiling.reproduction.contestants import run_cell

    for cell in cells:
        tell(0, 1, cell.title)
        yield cell, run_cell(runs, cell, tell)


def _on_ray(
    runs: Sequence[LabelledRun], cells: Sequence[Any], workers: int, tell: _Tell
) -> Generator[tuple[Any, Any], None, None]:
    from agents.reproducing import fan_out

    def watching(running: tuple[Any, ...]) -> None:
        tell(0, 1, "; ".join(f"{cell.model} without {', '.join(cell.held)}" for cell in running)[:200])

    yield from fan_out(runs, cells, workers=workers, watching=watching)


@contextlib.contextmanager
def _bar(quiet: bool) -> Iterator[Progress]:
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=talk,
        transient=True,
        disable=quiet,
    ) as bar:
        yield bar
