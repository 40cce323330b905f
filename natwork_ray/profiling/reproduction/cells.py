"""The unit of work behind every table: one model, trained once, scoring what it never saw.

A cell is one model on one fold of one split with one seed. It depends on nothing but the recordings and its own
fields, so cells may be computed in any order, on any machine, and be kept: a result is one figure per tested row.

The splits:

- `by-run`: the tested rows are those of all recordings of one run number (or of a group of them); everything that is
  chosen (weights, profiles, thresholds, hyper-parameters) is chosen on the recordings of the other numbers. This is
  the headline.
- `random (leaky)`: overlapping windows dealt out at random, so that tested windows lie between those trained on. Shown
  because published figures are often made so; never to be quoted as performance.
- `unseen service`: trained on the other services only. The profile comes from the first normal hour of the held-out
  service's lowest run, and that hour is not tested.
- `unseen type`: by run, and one type of anomaly is left out of training as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import encode, value
from natwork_ray.errors import InputError
from natwork_ray.profiling.evaluation import folds_by_run
from natwork_ray.profiling.model_card import TrainingSettings

RANDOM_FOLDS = 5
_CODE = Path(__file__).parents[1]
_LIBRARIES = ("numpy", "torch", "lightgbm", "scikit-learn")


class Split(StrEnum):
    """How training and tested rows are kept apart; the value is what tables print."""

    BY_RUN = "by-run"
    LEAKY = "random (leaky)"
    UNSEEN_SERVICE = "unseen service"
    UNSEEN_TYPE = "unseen type, by-run"


class Question(StrEnum):
    """What a cell's model is asked of every tested row."""

    ANOMALOUS = "anomalous"  # Table 2, events, unseen services
    KIND = "kind"  # Table 3, Unknown


@value
class Cell:
    """One model on one fold with one seed.

    Attributes:
        model: key in `contestants`.
        held: run names that are tested; the service, for `UNSEEN_SERVICE`; the fold's number, for `LEAKY`.
        without: group of anomaly types (`trials.LEFT_OUT`) that training leaves out, "" for none.
        quick: smaller models and fewer choices, to see that it works.
        settings: of the training, for `contestants.TRAINED`; all other models bring their own.
    """

    question: Question
    model: str
    split: Split
    held: tuple[str, ...]
    seed: int
    without: str = ""
    quick: bool = False
    settings: TrainingSettings | None = None

    @property
    def title(self) -> str:
        """For a progress bar."""
        left_out = f", {self.without} never shown" if self.without else ""
        return f"{self.model}, {self.split}, held out: {', '.join(self.held)}{left_out}, seed {self.seed}"


@value
class CellResult:
    """What the model said of the tested rows, in the order of `rows_tested`.

    Attributes:
        score: larger is more anomalous: a probability, or the distance beyond the model's own threshold.
        flagged: 0 or 1.
        fires: 0 or 1, evidence for an alarm by the model's alarm rule; empty where it has none.
        opened: 0 or 1, an alarm is open; likewise.
        kinds: index into `STAGE_2_CLASSES` per row; empty where nobody asked.
        choices: what was chosen inside, as text.
        seconds: how long it took.
    """

    score: tuple[float, ...]
    flagged: tuple[int, ...]
    fires: tuple[int, ...] = ()
    opened: tuple[int, ...] = ()
    kinds: tuple[int, ...] = ()
    choices: str = ""
    seconds: float = 0.0


class Asked(Protocol):
    """What `by_run_cells` reads of a demand (`tables.Demand`)."""

    @property
    def models(self) -> tuple[str, ...]:
        """Keys in `contestants`."""
        ...

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every model is trained with each."""
        ...

    @property
    def folds(self) -> int:
        """Groups of run names at most."""
        ...

    @property
    def quick(self) -> bool:
        """Smaller models."""
        ...


def by_run_cells(
    runs: Sequence[LabelledRun], question: Question, asked: Asked, *, without: str = "", split: Split = Split.BY_RUN
) -> tuple[Cell, ...]:
    """Every model on every fold of run names, with every seed.

    Raises:
        InputError: fewer than two run names.
    """
    groups = folds_by_run([run.run for run in runs], asked.folds)
    return tuple(
        Cell(question=question, model=model, split=split, held=names, seed=seed, without=without, quick=asked.quick)
        for model in asked.models
        for seed in asked.seeds
        for names in groups
    )


def rows_tested(runs: Sequence[LabelledRun], cell: Cell) -> NDArray[np.intp]:
    """Which of all rows (recordings one after the other) a cell tests, ascending."""
    starts = np.concatenate([[0], np.cumsum([len(run.kinds) for run in runs])])
    if cell.split is Split.LEAKY:
        fold = np.random.default_rng(cell.seed).integers(0, RANDOM_FOLDS, size=int(starts[-1]))
        return np.flatnonzero(fold == int(cell.held[0]))
    rows = []
    hour = first_hour(runs, cell.held[0]) if cell.split is Split.UNSEEN_SERVICE else None
    for i, run in enumerate(runs):
        if cell.split is Split.UNSEEN_SERVICE:
            if run.service == cell.held[0]:
                skipped = run.commissioning if i == hour else 0
                rows.append(np.arange(starts[i] + skipped, starts[i + 1]))
        elif run.run in cell.held:
            rows.append(np.arange(starts[i], starts[i + 1]))
    return np.concatenate(rows) if rows else np.zeros(0, dtype=np.intp)


def first_hour(runs: Sequence[LabelledRun], service: str) -> int:
    """Index of the recording that holds a service's first normal hour: that of its lowest run.

    Raises:
        InputError: no normal recording of that service.
    """
    candidates = [i for i, run in enumerate(runs) if run.service == service and run.commissioning > 0]
    if not candidates:
        raise InputError(
            f"no normal recording of {service}", hint="a service that was never seen is profiled from one normal hour"
        )
    return min(candidates, key=lambda i: run_order(runs[i].run))


def run_order(run: str) -> tuple[int, int, str]:
    """Run numbers by value, other names after them by text."""
    return (0, int(run), "") if run.isdecimal() else (1, 0, run)


def commissioning_hour(run: LabelledRun) -> LabelledRun:
    """The leading normal samples of a recording, alone."""
    n = run.commissioning
    return replace(run, values=run.values[:n], kinds=run.kinds[:n])


def cell_key(cell: Cell, data: str, code: str) -> str:
    """Name under which a result may be kept: digest of the data, of the code, and of all that the cell says."""
    return hashlib.sha256(b"\0".join([data.encode(), code.encode(), encode(cell)])).hexdigest()[:32]


def code_digest() -> str:
    """SHA-256 over this package's sources and the versions of what computes: another program, another result."""
    sha = hashlib.sha256()
    for path in sorted(_CODE.rglob("*.py")):
        sha.update(path.relative_to(_CODE).as_posix().encode() + b"\0" + path.read_bytes())
    for name in _LIBRARIES:
        try:
            sha.update(f"{name} {metadata.version(name)}\0".encode())
        except metadata.PackageNotFoundError:
            sha.update(f"{name} absent\0".encode())
    return sha.hexdigest()
