"""Training a detector (section 6.1.1), from labelled runs to the bytes of a model.

`TrainingSettings.detector` says which: `best`, trees and a forest (`profiling.boosting`, `profiling.naming`), or
`annex-a`, the networks of the annex (`profiling.annex_a_training`). Either way the operating point is chosen on scores
of runs that were not learnt from, and the final stages learn from all runs.

The detector keeps the profiles of the services it was trained on, so that they need no commissioning hour later; not
those of emulated services, for no real service is one of them, whatever it is called.

    >>> data = train_profiler(runs, TrainingSettings(seed=7))
    >>> store.save(DEFAULT_MODEL, data)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError
from natwork_ray.profiling.alarming import FALSE_ALARMS_PER_HOUR, FLEET_FALSE_ALARMS_PER_HOUR, fit_rule
from natwork_ray.profiling.boosting import fit_tree_stage
from natwork_ray.profiling.detector import TwoStageDetector
from natwork_ray.profiling.evaluation import binary_metrics, folds_by_run
from natwork_ray.profiling.model_card import ModelCard, OutOfFoldMetrics, TrainingSettings
from natwork_ray.profiling.model_file import dumps
from natwork_ray.profiling.naming import EMULATED_DRIFT, fit_namer
from natwork_ray.profiling.profile import Floats, ProfileBook, ServiceProfile, unprofiled_fleet
from natwork_ray.profiling.progress import Counted, Progress, no_progress
from natwork_ray.profiling.stages import StageTwo, Unnamed
from natwork_ray.profiling.windows import by_profile, commissioning_book


def train_profiler(
    runs: Sequence[LabelledRun], settings: TrainingSettings | None = None, progress: Progress = no_progress
) -> bytes:
    """Train both stages and return the model file: what `natwork train profiler` stores.

    The same runs and settings give the same model on the same machine; on other processors figures may differ in the
    last bits, and verdicts in a few windows.

    Raises:
        InputError: too few runs, no anomalies, or no normal windows to learn from.
    """
    return dumps(train(runs, settings, progress))


def train(
    runs: Sequence[LabelledRun],
    settings: TrainingSettings | None = None,
    progress: Progress = no_progress,
    *,
    naming: bool = True,
) -> TwoStageDetector:
    """As `train_profiler`, but the detector itself; without `naming`, stage 1 only: all that is flagged is Unknown."""
    settings = settings or TrainingSettings()
    _check(runs, settings)
    folds = len(folds_by_run([run.run for run in runs if len(run.kinds)], settings.folds))
    book = commissioning_book(runs)
    if settings.detector == "best":
        counted = Counted(progress, folds + 1 + int(naming))
        boosted = fit_tree_stage(runs, settings, counted.step)
        stage_2: StageTwo = Unnamed()
        if naming:
            drift = EMULATED_DRIFT if runs[0].backend is Backend.EMULATED else 0.0
            stage_2 = fit_namer(runs, by_profile(book), seed=settings.seed, drift=drift)
            counted.step("stage 2")
        card = _card(
            runs, settings, book, boosted.truth, boosted.scores, boosted.threshold,
            calibration=boosted.calibration, kind_accuracy=None, made_with=("lightgbm", "scikit-learn"),
        )  # fmt: skip
        return TwoStageDetector(boosted.stage, stage_2, card, _kept(book, runs))
    # Torch costs seconds and 200 MiB, and the default detector does not need it.
    from natwork_ray.profiling.annex_a_training import fit_networks, steps_of

    counted = Counted(progress, steps_of(folds, settings, naming=naming))
    networks = fit_networks(runs, settings, counted.step, naming=naming)
    card = _card(
        runs, settings, book, networks.truth, networks.scores, networks.threshold,
        calibration=(1.0, 0.0), kind_accuracy=networks.kind_accuracy, made_with=("torch",),
    )  # fmt: skip
    return TwoStageDetector(networks.stage_1, networks.stage_2, card, _kept(book, runs))


def data_digest(runs: Sequence[LabelledRun]) -> str:
    """SHA-256 over names, samples and labels of all runs, hex."""
    sha = hashlib.sha256()
    for run in runs:
        sha.update(f"{run.service}\0{run.run}\0{run.step_s!r}\0{run.commissioning}\0{len(run.kinds)}\0".encode())
        sha.update(np.ascontiguousarray(run.values, dtype="<f4").tobytes())
        sha.update(np.ascontiguousarray(run.kinds).tobytes())
    return sha.hexdigest()


def _check(runs: Sequence[LabelledRun], settings: TrainingSettings) -> None:
    """Refuse runs that nothing can be learnt from.

    Raises:
        InputError: no samples, one class only, fewer than two runs, or all anomalies in the runs of one fold.
    """
    kinds = [run.kinds for run in runs if len(run.kinds)]
    if not kinds:
        raise InputError(f"{len(runs)} runs without a sample", hint="give runs that hold samples")
    every = np.concatenate(kinds)
    if not (every > 0).any() or not (every == 0).any():
        raise InputError(
            "training data hold only normal or only anomalous windows", hint="give labelled runs of both kinds"
        )
    for names in folds_by_run([run.run for run in runs if len(run.kinds)], settings.folds):
        if not any((run.kinds > 0).any() for run in runs if run.run not in names):
            raise InputError(
                f"all anomalies lie in run {', '.join(names)}", hint="give at least two runs that hold anomalies"
            )


def _kept(book: ProfileBook, runs: Sequence[LabelledRun]) -> tuple[ServiceProfile, ...]:
    return () if runs[0].backend is Backend.EMULATED else book.profiles


def _promised(runs: Sequence[LabelledRun]) -> float:
    # Recordings are looked at one by one. A model from the emulation goes into loops over whole fleets, whose one
    # operator is called by every container.
    return FLEET_FALSE_ALARMS_PER_HOUR if runs[0].backend is Backend.EMULATED else FALSE_ALARMS_PER_HOUR


def _card(
    runs: Sequence[LabelledRun],
    settings: TrainingSettings,
    book: ProfileBook,
    truth: NDArray[np.bool_],
    scores: Floats,
    threshold: float,
    *,
    calibration: tuple[float, float],
    kind_accuracy: float | None,
    made_with: tuple[str, ...],
) -> ModelCard:
    reached = binary_metrics(truth, scores, threshold)
    # Scores out of fold are those of all labelled windows, run by run.
    unit = np.repeat(np.arange(len(runs)), [np.count_nonzero(run.kinds >= 0) for run in runs])
    folds = len(folds_by_run([run.run for run in runs], settings.folds))
    return ModelCard(
        threshold=threshold,
        alarm=fit_rule(
            truth,
            scores >= threshold,
            scores,
            unit,
            step_s=runs[0].step_s,
            # Detectors out of fold saw only so much of the data, and ring the more often: let them.
            budget_per_hour=_promised(runs) * folds / (folds - 1),
        ),
        calibration=calibration,
        settings=settings,
        fleet=book.fleet or unprofiled_fleet(),
        trained_on=runs[0].backend,
        runs=len({run.run for run in runs}),
        windows=len(truth),
        data_sha256=data_digest(runs),
        made_with=", ".join(f"{name} {version(name).partition('+')[0]}" for name in made_with),
        out_of_fold=OutOfFoldMetrics(
            accuracy=reached.accuracy,
            precision=reached.precision,
            recall=reached.recall,
            f1=reached.f1,
            auc=reached.auc,
            kind_accuracy=kind_accuracy,
        ),
    )
