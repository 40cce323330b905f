"""An anomaly of a type that training never showed: is it flagged, and is it called Unknown?

One type after the other is left out of training (spike and step together: they are one phenomenon at two lengths), and
the split is by run as well: every row is judged by a model that saw neither its run number nor, where the row is of
the left-out type, any like it. Shares are of rows:

- flagged: of the left-out type;
- named Unknown: of the left-out type, flagged and called Unknown;
- normal flagged: of the normal rows, by the same models;
- known called Unknown: of the anomalous rows of the other types.

Precision, recall and F1 are those of the answer "Unknown" for the left-out type; recall is the share named Unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError
from natwork_ray.profiling.reproduction import published
from natwork_ray.profiling.reproduction.cells import Cell, Question, Split, by_run_cells
from natwork_ray.profiling.reproduction.contestants import TITLES
from natwork_ray.profiling.reproduction.figures import FigureRow, binary_row
from natwork_ray.profiling.reproduction.tables import Data, Demand, Results, data_of, pooled, rows_of
from natwork_ray.profiling.reproduction.trials import LEFT_OUT

MODELS = ("best", "annex-a")
MEAN = "mean"

DEFINITIONS = {
    "held_out": "type that no training row is of; surge is spike and step together",
    "split": "by run as well: every row is judged by a model of the other run numbers",
    "flagged": "share of the left-out type's rows that stage 1 flags",
    "named_unknown": "share of the left-out type's rows that are flagged and called Unknown",
    "normal_flagged": "share of normal rows that are flagged, by the same models",
    "known_called_unknown": "share of the other types' rows that are flagged and called Unknown",
    "accuracy, precision, recall, f1": "of the answer Unknown for the left-out type",
    "mean": "of the rows above it",
}


@value
class UnknownRow(FigureRow):
    """What became of a type that was left out, `held_out`; shares, 0 to 1, means over seeds."""

    held_out: str
    flagged: float
    named_unknown: float
    normal_flagged: float
    known_called_unknown: float


@value
class Unknowns:
    """Rows of all models, by type and their mean; D3.3 publishes nothing comparable."""

    rows: tuple[UnknownRow, ...]
    published: tuple[published.PublishedRow, ...]
    demand: Demand
    data: Data
    definitions: dict[str, str]


def cells(runs: Sequence[LabelledRun], demand: Demand) -> tuple[Cell, ...]:
    """What has to be computed.

    Raises:
        InputError: fewer than two run names, or fewer than two types to leave out one of.
    """
    kinds = left_out_kinds(rows_of(runs).kinds)
    return tuple(
        cell
        for without in kinds
        for cell in by_run_cells(runs, Question.KIND, demand, without=without, split=Split.UNSEEN_TYPE)
    )


def left_out_kinds(kinds: NDArray[np.int8]) -> tuple[str, ...]:
    """The types that occur in these rows, as `LEFT_OUT` groups them.

    Raises:
        InputError: fewer than two.
    """
    found = tuple(name for name, group in LEFT_OUT.items() if _of(kinds, group).any())
    if len(found) < 2:
        raise InputError(
            f"these recordings hold anomalies of {len(found)} known types",
            hint="one is left out and the others are learnt: give recordings with two or more",
        )
    return found


def table(runs: Sequence[LabelledRun], demand: Demand, results: Results) -> Unknowns:
    """The table, from the results of all `cells`."""
    rows = rows_of(runs)
    found = []
    for model in demand.models:
        of_model = []
        for without in left_out_kinds(rows.kinds):
            seeds = [
                pooled(
                    runs,
                    results,
                    question=Question.KIND,
                    model=model,
                    split=Split.UNSEEN_TYPE,
                    seed=seed,
                    without=without,
                )
                for seed in demand.seeds
            ]
            held = _of(rows.kinds, LEFT_OUT[without])
            named = [one.flagged & (one.kinds == STAGE_2_CLASSES.index(AnomalyKind.UNKNOWN)) for one in seeds]
            base = binary_row(
                TITLES[model], Split.UNSEEN_TYPE, held, [n.astype(float) for n in named], named, rows.unit
            )
            of_model.append(
                UnknownRow(
                    **{name: getattr(base, name) for name in base.__dataclass_fields__ if name != "auc"},
                    auc=None,
                    held_out=without,
                    flagged=_share([one.flagged for one in seeds], held),
                    named_unknown=_share(named, held),
                    normal_flagged=_share([one.flagged for one in seeds], rows.kinds == 0),
                    known_called_unknown=_share(named, (rows.kinds > 0) & ~held),
                )
            )
        found += [*of_model, _mean_row(TITLES[model], of_model)]
    return Unknowns(rows=tuple(found), published=(), demand=demand, data=data_of(runs), definitions=DEFINITIONS)


def _of(kinds: NDArray[np.int8], group: Sequence[AnomalyKind]) -> NDArray[np.bool_]:
    return np.isin(kinds, [STAGE_2_CLASSES.index(kind) for kind in group])


def _share(flags: Sequence[NDArray[np.bool_]], among: NDArray[np.bool_]) -> float:
    return float(np.mean([one[among].mean() for one in flags])) if among.any() else 0.0


def _mean_row(model: str, rows: Sequence[UnknownRow]) -> UnknownRow:
    def mean(name: str) -> float:
        return float(np.mean([getattr(row, name) for row in rows]))

    return UnknownRow(
        model=model,
        split=Split.UNSEEN_TYPE,
        accuracy=mean("accuracy"),
        precision=mean("precision"),
        recall=mean("recall"),
        f1=mean("f1"),
        auc=None,
        f1_ci=None,
        held_out=MEAN,
        flagged=mean("flagged"),
        named_unknown=mean("named_unknown"),
        normal_flagged=mean("normal_flagged"),
        known_called_unknown=mean("known_called_unknown"),
    )
