"""D3.3 Table 3, measured again: which anomaly is it?

Asked on the declared mix (`mix`): all anomalous rows of known type and few normal ones, because on all rows four of
five are normal and accuracy says little. Models are trained on the same mix of the training recordings. The normal rows
of the test are drawn 20 times, and figures are means over these draws (and over seeds).

Precision, recall and F1 are weighted by how often a class occurs (as the published accuracies, which equal the
published recalls, suggest); macro F1 counts every class that occurs the same. "Unknown" as an answer is an error here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError
from natwork_ray.profiling.reproduction import published
from natwork_ray.profiling.reproduction.cells import Cell, Question, Split, by_run_cells
from natwork_ray.profiling.reproduction.contestants import TITLES
from natwork_ray.profiling.reproduction.figures import FigureRow, drawn_recordings, interval
from natwork_ray.profiling.reproduction.mix import NORMAL_PER_ANOMALY, mixed_rows
from natwork_ray.profiling.reproduction.tables import Data, Demand, Results, data_of, pooled, rows_of

MODELS = ("best", "annex-a", "mlp", "random-forest", "svm", "lightgbm")
DRAWS = 20

DEFINITIONS = {
    "mix": f"all anomalous rows of known type, and {NORMAL_PER_ANOMALY:.3f} normal rows for each, drawn at random; "
    "the same for training",
    "draws": f"figures are means over {DRAWS} draws of the tested normal rows",
    "precision, recall, f1": "weighted by how often a class occurs",
    "macro_f1": "mean of the F1 of every class that occurs",
    "unknown": "as an answer it is an error here",
    "f1_ci": "95 % bootstrap over recordings, 2,000 draws, of the weighted F1; macro_f1_ci of the macro F1",
    "auc": "not stated: models name classes",
}


@value
class KindRow(FigureRow):
    """Weighted figures, and macro F1 with its interval; `f1_of_class` by class name; `mix` counts tested rows."""

    macro_f1: float
    macro_f1_ci: tuple[float, float]
    f1_of_class: dict[str, float]
    mix: dict[str, int]


@value
class Table3:
    """Measured rows, the headline first, and the published ones as printed."""

    rows: tuple[KindRow, ...]
    published: tuple[published.PublishedRow, ...]
    demand: Demand
    data: Data
    definitions: dict[str, str]


def cells(runs: Sequence[LabelledRun], demand: Demand) -> tuple[Cell, ...]:
    """What has to be computed.

    Raises:
        InputError: fewer than two run names, or no anomaly of known type.
    """
    if not (rows_of(runs).kinds > 0).any():
        raise InputError(
            "no anomaly in these recordings is of known type",
            hint="types follow from file names and the order of blocks; docs/profiling.md says how",
        )
    return by_run_cells(runs, Question.KIND, demand)


def table(runs: Sequence[LabelledRun], demand: Demand, results: Results) -> Table3:
    """The table, from the results of all `cells`."""
    rows = rows_of(runs)
    draws = [mixed_rows(rows.kinds, 1000 + draw) for draw in range(DRAWS)]
    found = [
        _row(
            TITLES[model],
            rows.kinds,
            [
                pooled(runs, results, question=Question.KIND, model=model, split=Split.BY_RUN, seed=seed).kinds
                for seed in demand.seeds
            ],
            draws,
            rows.unit,
        )
        for model in demand.models
    ]
    return Table3(
        rows=tuple(found),
        published=published.TABLE_3,
        demand=demand,
        data=data_of(runs),
        definitions=DEFINITIONS,
    )


def _row(
    model: str,
    truth: NDArray[np.int8],
    said: Sequence[NDArray[np.int8]],
    draws: Sequence[NDArray[np.bool_]],
    unit: NDArray[np.intp],
) -> KindRow:
    classes = len(STAGE_2_CLASSES)
    units = int(unit.max()) + 1
    # (seeds, units, truth, answer), the mean over draws: every figure is a function of such counts.
    counts = np.zeros((len(said), units, classes, classes))
    for number, answers in enumerate(said):
        for draw in draws:
            np.add.at(counts[number], (unit[draw], truth[draw], answers[draw]), 1.0 / len(draws))
    per_seed = [_figures(counts[number].sum(axis=0)) for number in range(len(said))]
    resampled = drawn_recordings(units)
    weighted = np.zeros(len(resampled))
    macro = np.zeros(len(resampled))
    for number in range(len(said)):
        confusion = np.tensordot(resampled, counts[number], axes=(1, 0))
        f1, support = _f1(confusion)
        total = np.maximum(support.sum(axis=-1), 1e-12)
        weighted += (f1 * support).sum(axis=-1) / total
        macro += (f1 * (support > 0)).sum(axis=-1) / np.maximum((support > 0).sum(axis=-1), 1)
    mean = np.mean(per_seed, axis=0)
    f1, support = _f1(counts.mean(axis=0).sum(axis=0))
    return KindRow(
        model=model,
        split=Split.BY_RUN,
        accuracy=float(mean[0]),
        precision=float(mean[1]),
        recall=float(mean[2]),
        f1=float(mean[3]),
        auc=None,
        f1_ci=interval(weighted / len(said)),
        f1_of_seeds=tuple(float(one[3]) for one in per_seed),
        macro_f1=float(mean[4]),
        macro_f1_ci=interval(macro / len(said)),
        f1_of_class={str(STAGE_2_CLASSES[k]): float(f1[k]) for k in range(classes) if support[k] > 0},
        mix={str(STAGE_2_CLASSES[k]): round(float(support[k])) for k in range(classes) if support[k] > 0},
    )


def _f1(confusion: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F1 and support (..., C) of confusion counts (..., C, C), truth first."""
    hit = np.einsum("...kk->...k", confusion)
    support = confusion.sum(axis=-1)
    said = confusion.sum(axis=-2)
    return 2 * hit / np.maximum(support + said, 1e-12), support


def _figures(confusion: NDArray[np.float64]) -> tuple[float, float, float, float, float]:
    """Accuracy, weighted precision, weighted recall, weighted F1 and macro F1 of confusion counts (C, C)."""
    f1, support = _f1(confusion)
    hit = np.diagonal(confusion)
    weight = support / max(float(support.sum()), 1e-12)
    precision = hit / np.maximum(confusion.sum(axis=0), 1e-12)
    recall = hit / np.maximum(support, 1e-12)
    present = support > 0
    return (
        float(hit.sum() / max(float(support.sum()), 1e-12)),
        float((weight * precision).sum()),
        float((weight * recall).sum()),
        float((weight * f1).sum()),
        float(f1[present].mean()),
    )
