"""D3.3 Table 2, measured again: is a row of resource usage normal or anomalous?

- every row of the data is one sample, judged by the causal window that ends there;
- precision, recall and F1 are of the class "anomalous"; AUC pools the scores of all folds;
- `by-run` is the headline. `random (leaky)` is shown for a few models, because published figures are often made so.
"""

from __future__ import annotations

from collections.abc import Sequence

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import value
from natwork_ray.profiling.reproduction import published
from natwork_ray.profiling.reproduction.cells import RANDOM_FOLDS, Cell, Question, Split, by_run_cells
from natwork_ray.profiling.reproduction.contestants import TITLES
from natwork_ray.profiling.reproduction.figures import FigureRow, binary_row
from natwork_ray.profiling.reproduction.tables import Data, Demand, Results, data_of, pooled, rows_of

MODELS = (
    "best",
    "annex-a",
    "mlp",
    "random-forest",
    "svm",
    "lightgbm",
    "normal-only",
    "largest-deviation",
    "constant-threshold",
)
# Shown on the leaky split as well, where they are among the models.
LEAKY_MODELS = ("annex-a", "random-forest", "lightgbm")

DEFINITIONS = {
    "row": "one sample of 10 s, judged by the causal window that ends there",
    "by-run": "every row judged by a model of the other run numbers; thresholds and hyper-parameters chosen on those",
    "random (leaky)": "overlapping windows dealt out at random: the test set leaks into training; no performance",
    "f1_ci": "95 % bootstrap over recordings, 2,000 draws",
    "several seeds": "a row is the mean over seeds; f1_of_seeds has each",
}


@value
class Table2:
    """Measured rows, the headline first, and the published ones as printed."""

    rows: tuple[FigureRow, ...]
    published: tuple[published.PublishedRow, ...]
    demand: Demand
    data: Data
    definitions: dict[str, str]


def cells(runs: Sequence[LabelledRun], demand: Demand) -> tuple[Cell, ...]:
    """What has to be computed.

    Raises:
        InputError: fewer than two run names, or rows of one class only.
    """
    rows_of(runs)
    by_run = by_run_cells(runs, Question.ANOMALOUS, demand)
    leaky = tuple(
        Cell(
            question=Question.ANOMALOUS,
            model=model,
            split=Split.LEAKY,
            held=(str(fold),),
            seed=seed,
            quick=demand.quick,
        )
        for model in LEAKY_MODELS
        if model in demand.models
        for seed in demand.seeds
        for fold in range(RANDOM_FOLDS)
    )
    return by_run + leaky


def table(runs: Sequence[LabelledRun], demand: Demand, results: Results) -> Table2:
    """The table, from the results of all `cells`."""
    rows = rows_of(runs)
    found = []
    for split, models in ((Split.BY_RUN, demand.models), (Split.LEAKY, LEAKY_MODELS)):
        for model in (m for m in models if m in demand.models):
            seeds = [
                pooled(runs, results, question=Question.ANOMALOUS, model=model, split=split, seed=seed)
                for seed in demand.seeds
            ]
            found.append(
                binary_row(
                    TITLES[model],
                    split,
                    rows.truth,
                    [one.score for one in seeds],
                    [one.flagged for one in seeds],
                    rows.unit,
                )
            )
    return Table2(
        rows=tuple(found),
        published=published.TABLE_2,
        demand=demand,
        data=data_of(runs),
        definitions=DEFINITIONS,
    )
