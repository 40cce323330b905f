"""What all tables share: what was asked for, which cells that takes, and results put back in the order of the rows.

>>> demand = Demand(models=("annex-a", "svm"), seeds=(7,))
>>> cells = table_2.cells(runs, demand)
>>> results = {cell: run_cell(runs, cell) for cell in cells}
>>> table_2.table(runs, demand, results).rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError, UsageError
from natwork_ray.profiling.bounds import MAX_FOLDS
from natwork_ray.profiling.reproduction.cells import Cell, CellResult, Question, Split, rows_tested
from natwork_ray.profiling.reproduction.contestants import TITLES

MAX_SEEDS = 100
Results = Mapping[Cell, CellResult]


@value
class Demand:
    """What a table is asked to compare.

    Attributes:
        models: keys of `contestants.TITLES`, the headline first.
        seeds: every model is trained with each; a row is their mean.
        folds: groups of run names at most; by default every run name is a fold of its own.
        quick: smaller models and fewer choices: shows that it works, not how well.
    """

    models: tuple[str, ...]
    seeds: tuple[int, ...] = (7,)
    folds: int = MAX_FOLDS
    quick: bool = False

    def __post_init__(self) -> None:
        for model in self.models:
            if model not in TITLES:
                raise UsageError(f"no model {model!r}", hint=f"one of {', '.join(TITLES)}")
        if not self.models or len(set(self.models)) != len(self.models):
            raise UsageError(f"models {', '.join(self.models) or '(none)'}", hint="name each of them once")
        if not 1 <= len(set(self.seeds)) == len(self.seeds) <= MAX_SEEDS or self.folds < 2:
            raise UsageError(
                f"{len(self.seeds)} seeds, {self.folds} folds", hint=f"1 to {MAX_SEEDS} seeds, at least 2 folds"
            )


@value
class Data:
    """What the figures rest on."""

    runs: tuple[str, ...]
    services: tuple[str, ...]
    recordings: int
    samples: int
    anomalous: int


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of all recordings, one after the other.

    Attributes:
        truth: bool (M,), labelled anomalous.
        kinds: int8 (M,), as `LabelledRun.kinds`.
        unit: (M,) index of the recording.
    """

    truth: NDArray[np.bool_]
    kinds: NDArray[np.int8]
    unit: NDArray[np.intp]


def rows_of(runs: Sequence[LabelledRun]) -> Rows:
    """The labels of all rows.

    Raises:
        InputError: only normal or only anomalous rows: nothing to tell apart.
    """
    kinds = np.concatenate([run.kinds for run in runs]) if runs else np.zeros(0, dtype=np.int8)
    truth = np.asarray(kinds != 0)
    if not truth.any() or truth.all():
        raise InputError(
            "the recordings hold only normal or only anomalous rows", hint="a comparison needs labelled rows of both"
        )
    return Rows(truth, kinds, np.repeat(np.arange(len(runs)), [len(run.kinds) for run in runs]))


def data_of(runs: Sequence[LabelledRun]) -> Data:
    """A summary of the recordings."""
    return Data(
        runs=tuple(sorted({run.run for run in runs})),
        services=tuple(sorted({run.service for run in runs})),
        recordings=len(runs),
        samples=sum(len(run.kinds) for run in runs),
        anomalous=sum(int(run.anomalous.sum()) for run in runs),
    )


@dataclass(frozen=True, eq=False)
class Pooled:
    """One model, split and seed: the answers of all folds in one array each.

    Attributes:
        tested: bool (M,), rows that some cell tested.
        score: float64 (M,), 0 where not tested.
        flagged: bool (M,).
        fires, opened: bool (M,), by the model's alarm rule; `flagged` where it has none.
        kinds: int8 (M,).
    """

    tested: NDArray[np.bool_]
    score: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    fires: NDArray[np.bool_]
    opened: NDArray[np.bool_]
    kinds: NDArray[np.int8]


def pooled(
    runs: Sequence[LabelledRun],
    results: Results,
    *,
    question: Question,
    model: str,
    split: Split,
    seed: int,
    held: Sequence[str] = (),
    without: str = "",
) -> Pooled:
    """Put the results of all folds together; of one held-out name only, where `held` says so."""
    count = sum(len(run.kinds) for run in runs)
    out = Pooled(
        np.zeros(count, dtype=bool),
        np.zeros(count),
        np.zeros(count, dtype=bool),
        np.zeros(count, dtype=bool),
        np.zeros(count, dtype=bool),
        np.zeros(count, dtype=np.int8),
    )
    for cell, result in results.items():
        same = (cell.question, cell.model, cell.split, cell.seed, cell.without)
        if same != (question, model, split, seed, without) or (held and cell.held != tuple(held)):
            continue
        rows = rows_tested(runs, cell)
        if len(rows) != len(result.score):
            raise InputError(
                f"a result for {cell.title} has {len(result.score)} rows, not {len(rows)}",
                hint="it is of other recordings: name another folder with --resume",
            )
        out.tested[rows] = True
        out.score[rows] = result.score
        out.flagged[rows] = np.array(result.flagged, dtype=bool)
        out.fires[rows] = np.array(result.fires or result.flagged, dtype=bool)
        out.opened[rows] = np.array(result.opened or result.flagged, dtype=bool)
        if result.kinds:
            out.kinds[rows] = result.kinds
    return out
