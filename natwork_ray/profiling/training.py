"""Training the pair of networks of section 6.1.1, from labelled runs to the bytes of a model.

In order: deviations from each run's own commissioning hour; out-of-fold stage 1 scores, split by run; the threshold
that maximises F-beta on them; stage 1 on everything; stage 2 on the anomalous windows plus the normal ones that stage 1
found most suspicious (its "false positive" class has to learn from real mistakes).

Windows labelled anomalous of unlabelled type (-1) are left out of both stages: in the emulation these are neighbours
that merely suffer from another container's anomaly, and should be neither blamed nor called healthy.

    >>> data = train_profiler(runs, TrainingSettings(seed=7))
    >>> store.save(DEFAULT_MODEL, data)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.errors import InputError
from natwork_ray.profiling.detector import TwoStageDetector, named, network_input
from natwork_ray.profiling.evaluation import best_threshold, binary_metrics, folds_by_run
from natwork_ray.profiling.fitting import Progress, balanced_weights, fit, no_progress, predict
from natwork_ray.profiling.model_card import ModelCard, OutOfFoldMetrics, TrainingSettings
from natwork_ray.profiling.model_file import dumps
from natwork_ray.profiling.networks import LightCnn, SevenClassCnn
from natwork_ray.profiling.profile import FLEET, Floats, ServiceProfile
from natwork_ray.profiling.windows import WindowSet, by_own_commissioning, commissioning_book, windows_of


def train_profiler(
    runs: Sequence[LabelledRun], settings: TrainingSettings | None = None, progress: Progress = no_progress
) -> bytes:
    """Train both stages and return the model file: what `natwork train profiler` stores.

    The same runs and settings give the same model on the same machine; on other processors weights may differ in the
    last bits, and verdicts in a few windows.

    Raises:
        InputError: too few runs, no anomalies, or no normal windows to learn from.
    """
    return dumps(train(runs, settings, progress))


def train(
    runs: Sequence[LabelledRun], settings: TrainingSettings | None = None, progress: Progress = no_progress
) -> TwoStageDetector:
    """As `train_profiler`, but the detector itself."""
    settings = settings or TrainingSettings()
    normalise = by_own_commissioning(runs)
    # Commissioning samples of a run are both its profile and, being normal, worth training on.
    every = windows_of(runs, settings.window, lambda run: network_input(normalise(run)))
    windows = _labelled(every)
    anomalous = windows.anomalous
    if not anomalous.any() or anomalous.all():
        raise InputError(
            "training data hold only normal or only anomalous windows", hint="give labelled runs of both kinds"
        )

    folds = folds_by_run(windows.run_names, settings.folds)
    for names in folds:
        if not anomalous[~windows.of_runs(names)].any():
            raise InputError(
                f"all anomalies lie in run {', '.join(names)}", hint="give at least two runs that hold anomalies"
            )
    total = settings.epochs * (2 * len(folds) + 2)
    done = 0

    def step(_done: int, _total: int, what: str) -> None:
        nonlocal done
        done += 1
        progress(done, total, what)

    # Scores of runs that stage 1 was not trained on, and the operating point chosen on them.
    p = np.zeros(len(anomalous), dtype=np.float32)
    for number, names in enumerate(folds, start=1):
        held = windows.of_runs(names)
        network = _stage_1(windows, ~held, settings, step, f"stage 1, fold {number} of {len(folds)}")
        p[held] = predict(network, windows.inputs[held])[:, 1]
    threshold = best_threshold(anomalous, p, beta=settings.beta)

    kind_hits = []
    chosen = _stage_2_rows(windows, p, settings)
    for number, names in enumerate(folds, start=1):
        held = windows.of_runs(names)
        network_2 = _stage_2(windows, chosen & ~held, settings, step, f"stage 2, fold {number} of {len(folds)}")
        judged = held & anomalous & (p >= threshold)
        if judged.any():
            kinds, _ = named(predict(network_2, windows.inputs[judged]), settings.reject_below)
            kind_hits.append(kinds == windows.kinds[judged])

    light = _stage_1(windows, np.ones(len(anomalous), dtype=bool), settings, step, "stage 1, all runs")
    seven = _stage_2(windows, chosen, settings, step, "stage 2, all runs")
    reached = binary_metrics(anomalous, p, threshold)
    book = commissioning_book(runs)
    card = ModelCard(
        threshold=threshold,
        settings=settings,
        fleet=book.fleet or _no_fleet(),
        trained_on=runs[0].backend,
        runs=len(set(windows.run_names)),
        windows=len(anomalous),
        data_sha256=data_digest(runs),
        torch_version=torch.__version__.partition("+")[0],
        out_of_fold=OutOfFoldMetrics(
            accuracy=reached.accuracy,
            precision=reached.precision,
            recall=reached.recall,
            f1=reached.f1,
            auc=reached.auc,
            kind_accuracy=float(np.concatenate(kind_hits).mean()) if kind_hits else None,
        ),
    )
    return TwoStageDetector(light, seven, card)


def data_digest(runs: Sequence[LabelledRun]) -> str:
    """SHA-256 over names, samples and labels of all runs, hex."""
    sha = hashlib.sha256()
    for run in runs:
        sha.update(f"{run.service}\0{run.run}\0{run.step_s!r}\0{run.commissioning}\0{len(run.kinds)}\0".encode())
        sha.update(np.ascontiguousarray(run.values, dtype="<f4").tobytes())
        sha.update(np.ascontiguousarray(run.kinds).tobytes())
    return sha.hexdigest()


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


def _no_fleet() -> ServiceProfile:
    return ServiceProfile(service=FLEET, samples=(0,) * 12, centre=(0.0,) * 12, scale=(1e9,) * 12)
