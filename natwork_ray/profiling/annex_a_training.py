"""Training Annex A's pair of networks.

In order: deviations from each run's own commissioning hour; out-of-fold stage 1 scores, split by run; the threshold
that maximises F-beta on them; stage 1 on everything; stage 2 on the anomalous windows plus the normal ones that stage 1
found most suspicious (its "false positive" class has to learn from real mistakes).

Windows labelled anomalous of unlabelled type (-1) are left out of both stages.

    >>> learnt = fit_networks(runs, TrainingSettings(detector="annex-a"), counted.step, naming=True)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.profiling.annex_a import LightStage, SevenClassStage
from natwork_ray.profiling.detector import named, network_input
from natwork_ray.profiling.evaluation import best_threshold, folds_by_run
from natwork_ray.profiling.fitting import balanced_weights, fit, predict
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.networks import LightCnn, SevenClassCnn
from natwork_ray.profiling.profile import Floats
from natwork_ray.profiling.progress import Progress
from natwork_ray.profiling.stages import StageTwo, Unnamed
from natwork_ray.profiling.windows import WindowSet, by_own_commissioning, windows_of


@dataclass(frozen=True, eq=False)
class LearntNetworks:
    """Both stages with the operating point, and how they fared on runs that they had not seen.

    Attributes:
        stage_1, stage_2: trained on all runs.
        threshold: of stage 1.
        truth: bool (M,), labels of all labelled windows.
        scores: float32 (M,), stage 1 by networks that had not seen the window's run.
        unit: (M,) index of the run.
        kind_accuracy: of stage 2 on flagged anomalies of unseen runs; None where it was not trained or not measured.
    """

    stage_1: LightStage
    stage_2: StageTwo
    threshold: float
    truth: NDArray[np.bool_]
    scores: Floats
    unit: NDArray[np.intp]
    kind_accuracy: float | None


def steps_of(folds: int, settings: TrainingSettings, *, naming: bool) -> int:
    """How often `fit_networks` calls `step`: once per epoch of every network."""
    return settings.epochs * (folds + 1) * (2 if naming else 1)


def fit_networks(
    runs: Sequence[LabelledRun], settings: TrainingSettings, step: Callable[[str], None], *, naming: bool
) -> LearntNetworks:
    """Train stage 1, and stage 2 too if `naming`.

    Raises:
        InputError: fewer than two run names, or no samples.
    """
    normalise = by_own_commissioning(runs)
    # Commissioning samples of a run are both its profile and, being normal, worth training on.
    windows = _labelled(windows_of(runs, settings.window, lambda run: network_input(normalise(run))))
    anomalous = windows.anomalous
    folds = folds_by_run(windows.run_names, settings.folds)

    def epoch(_done: int, _total: int, what: str) -> None:
        step(what)

    # Scores of runs that stage 1 was not trained on, and the operating point chosen on them.
    p = np.zeros(len(anomalous), dtype=np.float32)
    for number, names in enumerate(folds, start=1):
        held = windows.of_runs(names)
        network = _stage_1(windows, ~held, settings, epoch, f"stage 1, fold {number} of {len(folds)}")
        p[held] = predict(network, windows.inputs[held])[:, 1]
    threshold = best_threshold(anomalous, p, beta=settings.beta)
    light = _stage_1(windows, np.ones(len(anomalous), dtype=bool), settings, epoch, "stage 1, all runs")
    stage_2: StageTwo = Unnamed()
    hits: list[NDArray[np.bool_]] = []
    if naming:
        chosen = _stage_2_rows(windows, p, settings)
        for number, names in enumerate(folds, start=1):
            held = windows.of_runs(names)
            network_2 = _stage_2(windows, chosen & ~held, settings, epoch, f"stage 2, fold {number} of {len(folds)}")
            judged = held & anomalous & (p >= threshold)
            if judged.any():
                kinds, _ = named(predict(network_2, windows.inputs[judged]), settings.reject_below)
                hits.append(kinds == windows.kinds[judged])
        seven = _stage_2(windows, chosen, settings, epoch, "stage 2, all runs")
        stage_2 = SevenClassStage(seven, window=settings.window, reject_below=settings.reject_below)
    return LearntNetworks(
        stage_1=LightStage(light),
        stage_2=stage_2,
        threshold=threshold,
        truth=anomalous,
        scores=p,
        unit=windows.unit,
        kind_accuracy=float(np.concatenate(hits).mean()) if hits else None,
    )


def _labelled(windows: WindowSet) -> WindowSet:
    kept = windows.kinds >= 0
    return WindowSet(windows.inputs[kept], windows.kinds[kept], windows.unit[kept], windows.run_names)


def _stage_1(
    windows: WindowSet, rows: NDArray[np.bool_], settings: TrainingSettings, progress: Progress, what: str
) -> LightCnn:
    targets = windows.anomalous[rows].astype(np.int64)
    return fit(
        LightCnn,
        windows.inputs[rows],
        targets,
        weights=balanced_weights(targets, 2, power=settings.balance),
        seed=settings.seed,
        epochs=settings.epochs,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        noise=settings.noise,
        progress=progress,
        what=what,
    )


def _stage_2(
    windows: WindowSet, rows: NDArray[np.bool_], settings: TrainingSettings, progress: Progress, what: str
) -> SevenClassCnn:
    targets = windows.kinds[rows].astype(np.int64)
    return fit(
        SevenClassCnn,
        windows.inputs[rows],
        targets,
        weights=balanced_weights(targets, len(STAGE_2_CLASSES), power=0.5),
        seed=settings.seed,
        epochs=settings.epochs,
        batch=max(2, settings.batch // 4),
        learning_rate=settings.learning_rate,
        noise=settings.noise,
        progress=progress,
        what=what,
    )


def _stage_2_rows(windows: WindowSet, p: Floats, settings: TrainingSettings) -> NDArray[np.bool_]:
    rows = windows.anomalous.copy()
    normal = np.flatnonzero(~rows)
    wanted = min(len(normal), round(settings.normal_share * int(rows.sum())))
    suspicious = normal[np.argsort(-p[normal], kind="stable")[:wanted]]
    rows[suspicious] = True
    return rows
