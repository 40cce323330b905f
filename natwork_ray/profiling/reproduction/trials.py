"""What a contestant is given, and what it answers: no tested label is in reach of it.

>>> trial = binary_trial(runs, cell)
>>> answer = contestants.judge(trial, progress)        # one figure per row of `trial.tested`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.errors import InputError
from natwork_ray.profiling.alarming import Alarms
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.profile import ProfileBook
from natwork_ray.profiling.reproduction.cells import Cell, Split, commissioning_hour, first_hour, run_order
from natwork_ray.profiling.windows import commissioning_book

INNER_FOLDS = 3
# What can be left out of training: types, or types that are one phenomenon.
LEFT_OUT: dict[str, tuple[AnomalyKind, ...]] = {
    "high_cpu": (AnomalyKind.HIGH_CPU,),
    "high_memory": (AnomalyKind.HIGH_MEMORY,),
    "network_latency": (AnomalyKind.NETWORK_LATENCY,),
    "surge": (AnomalyKind.TRAFFIC_SPIKE, AnomalyKind.STEP_LOAD),
}


@dataclass(frozen=True, eq=False)
class Trial:
    """Training and tested recordings of one cell.

    Attributes:
        training: labelled; everything may be chosen on them.
        tested: their labels are blanked: a contestant that looks finds only normal rows.
        book: profiles of all services, from normal hours that may be known: those of the training recordings, or the
            first hour of a service that was never seen.
        normal: the normal recordings behind `book`, of the tested services.
        unseen_service: whether the tested service is none of the training recordings'.
        settings: of the training, where the cell brings them.
    """

    training: tuple[LabelledRun, ...]
    tested: tuple[LabelledRun, ...]
    book: ProfileBook
    normal: tuple[LabelledRun, ...]
    seed: int
    quick: bool
    unseen_service: bool = False
    settings: TrainingSettings | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """One entry per row of the tested recordings, one after the other.

    Attributes:
        margin: float64 (M,), larger is more anomalous: a probability, or the distance beyond its own threshold.
        flagged: bool (M,).
        alarms: what its own alarm rule makes of the scores; None where it has none.
        kinds: int8 (M,), or None where it was not asked.
        choices: what was chosen on inner folds, as text.
    """

    margin: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    alarms: Alarms | None = None
    kinds: NDArray[np.int8] | None = None
    choices: str = ""


def trial_of(runs: Sequence[LabelledRun], cell: Cell) -> Trial:
    """Training and tested recordings of a cell that holds out whole recordings.

    Raises:
        InputError: nothing is left on one side, or training lacks one of the classes.
    """
    if cell.split is Split.UNSEEN_SERVICE:
        hour = commissioning_hour(runs[first_hour(runs, cell.held[0])])
        training = tuple(run for run in runs if run.service != cell.held[0])
        tested = tuple(run for run in runs if run.service == cell.held[0])
        book = commissioning_book(training).joined(commissioning_book([hour]))
        normal: tuple[LabelledRun, ...] = (hour,)
    else:
        training = tuple(run for run in runs if run.run not in cell.held)
        tested = tuple(run for run in runs if run.run in cell.held)
        if cell.without:
            training = tuple(without_kind(run, cell.without) for run in training)
        book = commissioning_book(training)
        normal = tuple(run for run in training if run.commissioning > 0)
    if not tested:
        raise InputError(f"nothing to test in {', '.join(cell.held)}", hint="give recordings of more runs or services")
    anomalous = [run.anomalous for run in training]
    if not any(a.any() for a in anomalous) or all(a.all() for a in anomalous):
        raise InputError(
            f"without {', '.join(cell.held)} only rows of one class are left to train on",
            hint="give at least two runs (and two services) that hold normal and anomalous rows",
        )
    blank = tuple(replace(run, kinds=np.zeros_like(run.kinds), commissioning=0) for run in tested)
    return Trial(
        training, blank, book, normal, cell.seed, cell.quick, cell.split is Split.UNSEEN_SERVICE, cell.settings
    )


def without_kind(run: LabelledRun, group: str) -> LabelledRun:
    """The recording without the rows of one group of `LEFT_OUT`, and without any of unlabelled type."""
    left_out = [STAGE_2_CLASSES.index(kind) for kind in LEFT_OUT[group]]
    kept = ~np.isin(run.kinds, left_out) & (run.kinds >= 0)
    return replace(run, values=run.values[kept], kinds=run.kinds[kept])


def inner_folds(trial: Trial, folds: int = INNER_FOLDS) -> tuple[tuple[int, ...], ...]:
    """Which training recordings to hold out in turn, to choose hyper-parameters on.

    Where the tested service is unseen, all recordings of a service. Otherwise whole recordings, of every service some:
    not by run number, because a run that recorded one service only would leave the others unseen, and choose for that.

    Raises:
        InputError: nothing is left to learn from when one fold is held out.
    """
    places = sorted(
        range(len(trial.training)), key=lambda i: (trial.training[i].service, run_order(trial.training[i].run), i)
    )
    dealt: dict[object, list[int]] = {}
    seen: Counter[str] = Counter()
    for i in places:
        service = trial.training[i].service
        dealt.setdefault(service if trial.unseen_service else seen[service] % folds, []).append(i)
        seen[service] += 1
    if len(dealt) < 2:
        what = "service" if trial.unseen_service else "recording of each service"
        raise InputError(f"one {what} is left to train on", hint="give more, or --models that choose nothing")
    return tuple(tuple(sorted(fold)) for fold in dealt.values())
