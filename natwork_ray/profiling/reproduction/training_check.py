"""A training checked on runs that it did not see: what `natwork train profiler --evaluate` tells of a model.

The model that is stored has seen all recordings, so nothing honest can be said of it on them. What can be measured is
the training: the same code and settings, without each run number in turn, judged on that run; as the first row of
Table 2 is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.profiling.bounds import MAX_FOLDS
from natwork_ray.profiling.evaluation import folds_by_run
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.reproduction.cells import Cell, Question, Split
from natwork_ray.profiling.reproduction.contestants import TRAINED
from natwork_ray.profiling.reproduction.figures import FigureRow, binary_row
from natwork_ray.profiling.reproduction.tables import Results, pooled, rows_of


def cells(runs: Sequence[LabelledRun], settings: TrainingSettings, *, seeds: int) -> tuple[Cell, ...]:
    """One training per run number (or group of them) and seed, the first seed being that of the settings.

    Raises:
        InputError: fewer than two run names, or rows of one class only.
    """
    rows_of(runs)
    groups = folds_by_run([run.run for run in runs], MAX_FOLDS)
    return tuple(
        Cell(
            question=Question.ANOMALOUS,
            model=TRAINED,
            split=Split.BY_RUN,
            held=names,
            seed=seed,
            settings=replace(settings, seed=seed),
        )
        for seed in range(settings.seed, settings.seed + seeds)
        for names in groups
    )


def row(runs: Sequence[LabelledRun], results: Results) -> FigureRow:
    """Per-row figures over all runs, means over seeds."""
    rows = rows_of(runs)
    seeds = sorted({cell.seed for cell in results})
    answers = [
        pooled(runs, results, question=Question.ANOMALOUS, model=TRAINED, split=Split.BY_RUN, seed=seed)
        for seed in seeds
    ]
    detector = next(str(cell.settings.detector) for cell in results if cell.settings is not None)
    return binary_row(
        detector, Split.BY_RUN, rows.truth, [one.score for one in answers], [one.flagged for one in answers], rows.unit
    )
