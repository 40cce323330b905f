"""A service that was never seen: the case that every deployment begins with.

Each service is held out in turn: detectors are trained on the recordings of the others, and learn of it no more than
its first normal hour (of its lowest run), which is not tested. The pooled row comes first, then one per service.
"""

from __future__ import annotations

from collections.abc import Sequence

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError
from natwork_ray.profiling.reproduction import published
from natwork_ray.profiling.reproduction.cells import Cell, Question, Split, first_hour
from natwork_ray.profiling.reproduction.contestants import TITLES
from natwork_ray.profiling.reproduction.figures import FigureRow, binary_row
from natwork_ray.profiling.reproduction.tables import Data, Demand, Results, data_of, pooled, rows_of

MODELS = ("best", "annex-a", "annex-a-raw", "random-forest", "lightgbm", "normal-only", "largest-deviation")

DEFINITIONS = {
    "unseen service": "trained on the other services; the profile comes from the first normal hour of the held-out one",
    "tested": "all rows of the held-out service but those of that hour",
    "pooled": "every service held out once, all tested rows together",
    "f1_ci": "95 % bootstrap over recordings, 2,000 draws",
}


@value
class UnseenServices:
    """Rows of all models; D3.3 publishes nothing comparable."""

    rows: tuple[FigureRow, ...]
    published: tuple[published.PublishedRow, ...]
    demand: Demand
    data: Data
    definitions: dict[str, str]


def cells(runs: Sequence[LabelledRun], demand: Demand) -> tuple[Cell, ...]:
    """What has to be computed.

    Raises:
        InputError: fewer than two services, or one without a normal recording.
    """
    rows_of(runs)
    services = sorted({run.service for run in runs})
    if len(services) < 2:
        raise InputError(f"only {', '.join(services)} was recorded", hint="give recordings of at least two services")
    for service in services:
        first_hour(runs, service)
    return tuple(
        Cell(
            question=Question.ANOMALOUS,
            model=model,
            split=Split.UNSEEN_SERVICE,
            held=(service,),
            seed=seed,
            quick=demand.quick,
        )
        for model in demand.models
        for seed in demand.seeds
        for service in services
    )


def table(runs: Sequence[LabelledRun], demand: Demand, results: Results) -> UnseenServices:
    """The table, from the results of all `cells`."""
    rows = rows_of(runs)
    found = []
    services = sorted({run.service for run in runs})
    for held in ((), *((service,) for service in services)):
        for model in demand.models:
            seeds = [
                pooled(
                    runs,
                    results,
                    question=Question.ANOMALOUS,
                    model=model,
                    split=Split.UNSEEN_SERVICE,
                    seed=seed,
                    held=held,
                )
                for seed in demand.seeds
            ]
            where = seeds[0].tested
            found.append(
                binary_row(
                    TITLES[model],
                    f"{Split.UNSEEN_SERVICE}, {held[0] if held else 'pooled'}",
                    rows.truth[where],
                    [one.score[where] for one in seeds],
                    [one.flagged[where] for one in seeds],
                    rows.unit[where],
                )
            )
    return UnseenServices(rows=tuple(found), published=(), demand=demand, data=data_of(runs), definitions=DEFINITIONS)
