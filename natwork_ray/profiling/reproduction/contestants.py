"""Every model that a table compares, under one signature: a trial in, an answer out.

| key | model |
|---|---|
| `best` | the default detector: `training.train` exactly as `natwork train profiler --data` calls it |
| `annex-a` | Annex A's light CNN, deviations from the profile; the larger softmax output decides |
| `annex-a-raw` | the same on z-scores over all services, without profiles |
| `mlp`, `random-forest`, `svm`, `lightgbm`, `normal-only` | `peers` |
| `largest-deviation` | the farthest metric's distance from the profile; threshold from the training recordings |
| `constant-threshold` | the best single metric and constant of the training recordings |
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.errors import InputError
from natwork_ray.profiling.alarming import Alarms
from natwork_ray.profiling.detector import named, network_input
from natwork_ray.profiling.evaluation import ConstantThreshold, best_threshold
from natwork_ray.profiling.fitting import Progress, balanced_weights, fit, no_progress, predict
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.naming import fit_namer
from natwork_ray.profiling.networks import LightCnn, SevenClassCnn
from natwork_ray.profiling.profile import Floats
from natwork_ray.profiling.recorded import alarms_of, judge_recording
from natwork_ray.profiling.reproduction import peers
from natwork_ray.profiling.reproduction.cells import Cell, CellResult, Question, Split, rows_tested
from natwork_ray.profiling.reproduction.mix import mixed_rows
from natwork_ray.profiling.reproduction.trials import Answer, Trial, trial_of
from natwork_ray.profiling.training import train
from natwork_ray.profiling.windows import by_profile, by_standard_score, commissioning_book, cut, windows_of

TITLES: dict[str, str] = {
    "best": "default detector",
    "annex-a": "Annex A 1D-CNN",
    "annex-a-raw": "Annex A 1D-CNN, raw z-score",
    "mlp": "MLP",
    "random-forest": "random forest",
    "svm": "SVM",
    "lightgbm": "LightGBM, window features",
    "normal-only": "isolation forest, normal rows only",
    "largest-deviation": "largest deviation from the profile",
    "constant-threshold": "constant threshold, best single metric",
}

# The detector that `training.train` makes with the cell's own settings; not a contestant of any table.
TRAINED = "trained"

# Annex A states architectures only. Window and recipe of its networks here; chosen once, the same for every fold.
CNN_WINDOW = 5
CNN_EPOCHS = 20
_QUICK_EPOCHS = 3
_BATCH = 64
_LEARNING_RATE = 0.002
_NOISE = 0.4


def run_cell(runs: Sequence[LabelledRun], cell: Cell, progress: Progress = no_progress) -> CellResult:
    """Train and score one cell.

    Raises:
        InputError: no such model, or the recordings do not allow this split.
        PreconditionError: a library is missing.
    """
    began = time.monotonic()

    def step(done: int, total: int, what: str) -> None:
        progress(done, total, f"{cell.title}: {what}")

    if cell.split is Split.LEAKY:
        answer = _leaky(runs, cell, step)
    else:
        trial = trial_of(runs, cell)
        answer = _kinds(cell, trial, step) if cell.question is Question.KIND else _binary(cell.model, trial, step)
        answer = _of_tested(answer, runs, cell, trial)
    return CellResult(
        score=tuple(round(float(m), 6) for m in answer.margin),
        flagged=tuple(int(f) for f in answer.flagged),
        fires=() if answer.alarms is None else tuple(int(a) for a in answer.alarms.fires),
        opened=() if answer.alarms is None else tuple(int(a) for a in answer.alarms.opened),
        kinds=() if answer.kinds is None else tuple(int(k) for k in answer.kinds),
        choices=answer.choices,
        seconds=round(time.monotonic() - began, 3),
    )


def _binary(model: str, trial: Trial, progress: Progress) -> Answer:
    if model in peers.PEERS:
        return peers.judge_binary(model, trial, progress)
    judges: dict[str, Callable[[Trial, Progress], Answer]] = {
        "best": _trained,
        TRAINED: _trained,
        peers.NORMAL_ONLY: peers.judge_normal_only,
        "annex-a": _light_cnn,
        "annex-a-raw": _light_cnn_raw,
        "largest-deviation": _largest_deviation,
        "constant-threshold": _constant_threshold,
    }
    if model not in judges:
        raise InputError(f"no model {model!r}", hint=f"one of {', '.join(TITLES)}")
    return judges[model](trial, progress)


def _trained(trial: Trial, progress: Progress) -> Answer:
    settings = trial.settings or TrainingSettings(detector="best", seed=trial.seed)
    detector = train(trial.training, replace(settings, epochs=2) if trial.quick else settings, progress)
    judged = [judge_recording(detector, run.values, trial.book.references((run.service,))[0]) for run in trial.tested]
    return Answer(
        np.concatenate([one.score for one in judged]).astype(np.float64),
        np.concatenate([one.flagged for one in judged]),
        alarms=_joined([alarms_of(detector, one) for one in judged]),
        kinds=np.concatenate([one.kinds for one in judged]),
        choices=f"threshold {detector.card.threshold:.3g}",
    )


def _joined(alarms: Sequence[Alarms]) -> Alarms:
    return Alarms(np.concatenate([one.fires for one in alarms]), np.concatenate([one.opened for one in alarms]))


def _light_cnn(trial: Trial, progress: Progress) -> Answer:
    deviating = by_profile(trial.book)
    return _cnn_answer(trial, lambda run: network_input(deviating(run)), progress)


def _light_cnn_raw(trial: Trial, progress: Progress) -> Answer:
    return _cnn_answer(trial, by_standard_score(trial.training), progress)


def _cnn_answer(trial: Trial, normaliser: Callable[[LabelledRun], Floats], progress: Progress) -> Answer:
    windows = windows_of(trial.training, CNN_WINDOW, normaliser)
    network = _light(windows.inputs, windows.anomalous, trial.seed, trial.quick, progress)
    p = predict(network, windows_of(trial.tested, CNN_WINDOW, normaliser).inputs)[:, 1].astype(np.float64)
    return Answer(p, p >= 0.5)


def _light(
    inputs: Floats, anomalous: NDArray[np.bool_], seed: int, quick: bool, progress: Progress = no_progress
) -> LightCnn:
    targets = anomalous.astype(np.int64)
    return fit(
        LightCnn,
        inputs,
        targets,
        weights=balanced_weights(targets, 2, power=0.0),
        seed=seed,
        epochs=_QUICK_EPOCHS if quick else CNN_EPOCHS,
        batch=_BATCH,
        learning_rate=_LEARNING_RATE,
        noise=_NOISE,
        progress=progress,
        what="epochs",
    )


def _largest_deviation(trial: Trial, _progress: Progress) -> Answer:
    deviating = by_profile(trial.book)
    seen = np.concatenate([np.abs(deviating(run)).max(axis=1) for run in trial.training])
    threshold = best_threshold(np.concatenate([run.anomalous for run in trial.training]), seen)
    margin = np.concatenate([np.abs(deviating(run)).max(axis=1) for run in trial.tested]).astype(np.float64) - threshold
    return Answer(margin, margin >= 0, choices=f"threshold {threshold:.3g}")


def _constant_threshold(trial: Trial, _progress: Progress) -> Answer:
    # A latency that was not measured exceeds no threshold: zero lies below all, and nothing beats "above" there.
    seen, tested = (
        np.concatenate([np.nan_to_num(run.values, nan=0.0) for run in runs]).astype(np.float64)
        for runs in (trial.training, trial.tested)
    )
    rule = ConstantThreshold.fit(seen, np.concatenate([run.anomalous for run in trial.training]))
    # Folds may settle on different metrics; in standard deviations their margins can be ranked together.
    margin = rule.margin(tested) / max(float(seen[:, rule.metric].std()), 1e-12)
    return Answer(margin, margin >= 0, choices=f"metric {rule.metric}")


def _leaky(runs: Sequence[LabelledRun], cell: Cell, progress: Progress) -> Answer:
    deviating = by_profile(commissioning_book(runs))
    inputs = np.concatenate([cut(network_input(deviating(run)), CNN_WINDOW) for run in runs])
    anomalous = np.concatenate([run.anomalous for run in runs])
    tested = np.zeros(len(anomalous), dtype=bool)
    tested[rows_tested(runs, cell)] = True
    if cell.model == "annex-a":
        network = _light(inputs[~tested], anomalous[~tested], cell.seed, cell.quick, progress)
        margin = predict(network, inputs[tested])[:, 1].astype(np.float64) - 0.5
    elif cell.model in peers.PEERS:
        targets = anomalous[~tested].astype(np.int64)
        margin = peers.judge_windows(
            cell.model, inputs[~tested], targets, inputs[tested], seed=cell.seed, quick=cell.quick
        )
    else:
        raise InputError(f"{cell.model} is not shown on the leaky split", hint="annex-a, or one of the peers")
    return Answer(margin, margin >= 0)


def _kinds(cell: Cell, trial: Trial, progress: Progress) -> Answer:
    if cell.model == "best":
        return _trained(trial, progress) if cell.split is Split.UNSEEN_TYPE else _namer(trial)
    rows = mixed_rows(np.concatenate([run.kinds for run in trial.training]), cell.seed)
    if cell.model == "annex-a":
        return _seven_classes(trial, rows, cell.split is Split.UNSEEN_TYPE, progress)
    if cell.model in peers.PEERS and cell.split is Split.BY_RUN:
        return peers.judge_kinds(cell.model, trial, rows, progress)
    raise InputError(
        f"{cell.model!r} does not name {'unseen ' if cell.split is Split.UNSEEN_TYPE else ''}types",
        hint=f"best, annex-a{'' if cell.split is Split.UNSEEN_TYPE else ', ' + ', '.join(peers.PEERS)}",
    )


def _namer(trial: Trial) -> Answer:
    """The default detector's stage 2, before it rejects anything, on every row; it draws its own mix (`naming`)."""
    normaliser = by_profile(trial.book)
    namer = fit_namer(trial.training, normaliser, seed=trial.seed)
    shares = np.concatenate([namer.shares(cut(normaliser(run), namer.history)) for run in trial.tested])
    kinds = shares.argmax(axis=1).astype(np.int8)
    return Answer(np.where(kinds != 0, 0.5, -0.5), kinds != 0, kinds=kinds)


def _seven_classes(trial: Trial, rows: NDArray[np.bool_], with_stage_1: bool, progress: Progress) -> Answer:
    """Annex A's larger network on the mix; where types may be unseen, after its light one, and "Unknown" by doubt."""
    deviating = by_profile(trial.book)

    def normaliser(run: LabelledRun) -> Floats:
        return network_input(deviating(run))

    windows = windows_of(trial.training, CNN_WINDOW, normaliser)
    tested = windows_of(trial.tested, CNN_WINDOW, normaliser).inputs
    targets = windows.kinds[rows].astype(np.int64)
    network = fit(
        SevenClassCnn,
        windows.inputs[rows],
        targets,
        weights=balanced_weights(targets, len(STAGE_2_CLASSES), power=0.0),
        seed=trial.seed,
        epochs=_QUICK_EPOCHS if trial.quick else 2 * CNN_EPOCHS,
        batch=_BATCH,
        learning_rate=_LEARNING_RATE,
        noise=_NOISE,
        progress=progress,
        what="epochs",
    )
    probability = predict(network, tested)
    if not with_stage_1:
        kinds = probability.argmax(axis=1).astype(np.int8)
        return Answer(np.where(kinds != 0, 0.5, -0.5), kinds != 0, kinds=kinds)
    light = _light(windows.inputs, windows.anomalous, trial.seed, trial.quick, progress)
    p = predict(light, tested)[:, 1].astype(np.float64)
    kinds, _ = named(probability, TrainingSettings().reject_below)
    return Answer(p, p >= 0.5, kinds=np.where(p >= 0.5, kinds, np.int8(0)))


def _of_tested(answer: Answer, runs: Sequence[LabelledRun], cell: Cell, trial: Trial) -> Answer:
    """The answer without rows that were judged only because their recording was (a commissioning hour)."""
    if cell.split is not Split.UNSEEN_SERVICE:
        return answer
    starts = np.concatenate([[0], np.cumsum([len(run.kinds) for run in runs])])
    whole = np.concatenate([np.arange(starts[i], starts[i + 1]) for i, r in enumerate(runs) if r.service in cell.held])
    kept = np.isin(whole, rows_tested(runs, cell))
    kinds = None if answer.kinds is None else answer.kinds[kept]
    alarms = None if answer.alarms is None else Alarms(answer.alarms.fires[kept], answer.alarms.opened[kept])
    return Answer(answer.margin[kept], answer.flagged[kept], alarms, kinds, answer.choices)
