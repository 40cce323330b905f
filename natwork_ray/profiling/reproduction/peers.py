"""The peers of Tables 2 and 3, and two more: what others would use on the same windows.

| key | model | sees |
|---|---|---|
| `mlp` | two hidden layers, 64 and 32 (scikit-learn) | the window of 5 rows, flattened |
| `random-forest` | 200 trees (scikit-learn) | the same |
| `svm` | RBF kernel (scikit-learn) | the same |
| `lightgbm` | gradient boosting | features of the window: newest row, mean, spread, extremes, change |
| `normal-only` | isolation forest per service (scikit-learn) | newest row against the profile; no anomaly label |

Their few hyper-parameters are chosen on inner folds of the training recordings (`trials.inner_folds`): whether they see
z-scores over all services or deviations from the service's profile, and one figure of their own (`_GRID`); the best F1
wins, or the best accuracy where types are told apart. The more probable class decides, as it comes: thresholds chosen
on so few recordings hurt every peer more than they helped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.profiling.detector import network_input
from natwork_ray.profiling.fitting import Progress
from natwork_ray.profiling.profile import Floats, ProfileBook
from natwork_ray.profiling.reproduction.trials import Answer, Trial, inner_folds
from natwork_ray.profiling.windows import Normaliser, by_profile, by_standard_score, cut

PEERS = ("mlp", "random-forest", "svm", "lightgbm")
NORMAL_ONLY = "normal-only"
WINDOW = 5
# Quantile of the scores of unseen normal rows above which the normal-only detector flags.
NORMAL_QUANTILE = 0.985

Inputs = Literal["z-score", "profile"]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
_INPUTS: tuple[Inputs, ...] = ("profile", "z-score")
# MLP: weight decay; forest: smallest leaf; SVM: C; LightGBM: leaves per tree.
_GRID: dict[str, tuple[float, ...]] = {
    "mlp": (1e-4, 1e-1),
    "random-forest": (1, 5),
    "svm": (1, 10),
    "lightgbm": (7, 31),
}


@dataclass(frozen=True)
class Choice:
    """One way to set a peer up."""

    inputs: Inputs
    figure: float

    def __str__(self) -> str:
        return f"{self.inputs} {self.figure:g}"


def choices_of(peer: str, *, quick: bool) -> tuple[Choice, ...]:
    """What is tried on inner folds; the first of each only, when it has to be quick."""
    every = tuple(Choice(inputs, figure) for inputs in _INPUTS for figure in _GRID[peer])
    return every[:1] if quick else every


def judge_binary(peer: str, trial: Trial, progress: Progress) -> Answer:
    """Normal or anomalous, for every tested row.

    Raises:
        InputError: too little training data to choose on.
    """
    targets = np.concatenate([run.anomalous for run in trial.training]).astype(np.int64)
    every = np.ones(len(targets), dtype=bool)
    choice = _chosen(peer, trial, targets, every, lambda told, truth: _f1(truth, told), progress)
    model = _fitted(peer, choice, trial.training, trial.book, targets, every, trial)
    margin = model.margins(_matrix(peer, trial.tested, model.normaliser))
    return Answer(margin, margin >= 0, choices=str(choice))


def judge_kinds(peer: str, trial: Trial, rows: Bools, progress: Progress) -> Answer:
    """Which class, for every tested row; trained on the chosen `rows` of the training recordings only.

    Raises:
        InputError: as `judge_binary`.
    """
    targets = np.concatenate([run.kinds for run in trial.training]).astype(np.int64)
    choice = _chosen(peer, trial, targets, rows, lambda told, truth: float(np.mean(told == truth)), progress)
    model = _fitted(peer, choice, trial.training, trial.book, targets, rows, trial)
    kinds = model.classes(_matrix(peer, trial.tested, model.normaliser)).astype(np.int8)
    return Answer(np.where(kinds != 0, 0.5, -0.5), kinds != 0, kinds=kinds, choices=str(choice))


def _chosen(
    peer: str,
    trial: Trial,
    targets: Ints,
    rows: Bools,
    merit: Callable[[Ints, Ints], float],
    progress: Progress,
) -> Choice:
    """The choice of the highest merit on inner folds, trained and judged on `rows`; the earlier one of equals."""
    options = choices_of(peer, quick=trial.quick)
    if len(options) == 1:
        return options[0]
    starts = np.concatenate([[0], np.cumsum([len(run.kinds) for run in trial.training])])
    folds = inner_folds(trial)
    merits = []
    for number, choice in enumerate(options):
        progress(number, len(options) + 1, f"choosing among {len(options)}")
        told = np.zeros_like(targets)
        for held in folds:
            out = np.zeros(len(targets), dtype=bool)
            for i in held:
                out[starts[i] : starts[i + 1]] = True
            model = _fitted(peer, choice, trial.training, trial.book, targets, rows & ~out, trial)
            told[out] = model.classes(_matrix(peer, [trial.training[i] for i in held], model.normaliser))
        merits.append(merit(told[rows], targets[rows]))
    progress(len(options), len(options) + 1, "training")
    return options[int(np.argmax(merits))]


def _f1(truth: Ints, told: Ints) -> float:
    return float(2 * np.sum(truth & told) / max(1, int(truth.sum() + told.sum())))


def judge_windows(
    peer: str, inputs: Floats, targets: Ints, tested: Floats, *, seed: int, quick: bool
) -> NDArray[np.float64]:
    """Margins of windows (K, T, 12) after training on others (M, T, 12): the leaky split, with nothing chosen."""
    model = _fit(peer, _GRID[peer][0], _flat(peer, inputs), targets, seed, quick)
    return _Fitted(peer, model, None).margins(_flat(peer, tested))


def judge_normal_only(trial: Trial, _progress: Progress) -> Answer:
    """Isolation forest per service on normal rows alone.

    The threshold is a quantile of the scores of normal rows that the forest was not fitted on: another run's where a
    service has several normal recordings, the other half of the hour where it has one.
    """
    from sklearn.ensemble import IsolationForest

    deviating = by_profile(trial.book)

    def fitted(samples: list[Floats]) -> Any:
        trees = 50 if trial.quick else 200
        return IsolationForest(n_estimators=trees, random_state=trial.seed, n_jobs=1).fit(np.concatenate(samples))

    margins = {}
    for service in sorted({run.service for run in trial.tested}):
        parts = [deviating(run) for run in trial.normal if run.service == service]
        if not parts:
            parts = [deviating(run) for run in trial.normal]  # cold start: the fleet's normal rows stand in
        halves = parts if len(parts) > 1 else [np.asarray(half) for half in np.array_split(parts[0], 2)]
        unseen = [
            -fitted([p for j, p in enumerate(halves) if j != i]).score_samples(part) for i, part in enumerate(halves)
        ]
        threshold = float(np.quantile(np.concatenate(unseen), NORMAL_QUANTILE))
        margins[service] = (fitted(parts), threshold)
    margin = np.concatenate(
        [-margins[run.service][0].score_samples(deviating(run)) - margins[run.service][1] for run in trial.tested]
    )
    return Answer(margin, margin >= 0, choices=f"{NORMAL_QUANTILE:.1%} of unseen normal rows pass")


def window_features(windows: Floats) -> Floats:
    """(M, 72) of windows (M, T, 12): newest row, mean, standard deviation, smallest, largest, newest minus mean."""
    mean = windows.mean(axis=1)
    newest = windows[:, -1]
    parts = (newest, mean, windows.std(axis=1), windows.min(axis=1), windows.max(axis=1), newest - mean)
    return np.concatenate(parts, axis=1)


class _Fitted:
    """A fitted peer with the way its inputs are made."""

    def __init__(self, peer: str, model: Any, normaliser: Normaliser | None) -> None:
        self._peer = peer
        self._model = model
        self._normaliser = normaliser

    @property
    def normaliser(self) -> Normaliser:
        assert self._normaliser is not None  # noqa: S101 - absent only where windows come ready-made
        return self._normaliser

    def margins(self, features: Floats) -> NDArray[np.float64]:
        """How far two-class scores lie beyond the point where both classes are as probable."""
        if self._peer == "svm":
            return np.asarray(self._model.decision_function(features), dtype=np.float64)
        if self._peer == "lightgbm":
            return np.asarray(self._model.predict(features, num_threads=1)[:, 1], dtype=np.float64) - 0.5
        return np.asarray(self._model.predict_proba(features)[:, 1], dtype=np.float64) - 0.5

    def classes(self, features: Floats) -> Ints:
        """Index of the most probable class."""
        if self._peer == "lightgbm":
            return np.asarray(self._model.predict(features, num_threads=1).argmax(axis=1), dtype=np.int64)
        return np.asarray(self._model.predict(features), dtype=np.int64)


def _fitted(
    peer: str,
    choice: Choice,
    training: Sequence[LabelledRun],
    book: ProfileBook,
    targets: Ints,
    rows: Bools,
    trial: Trial,
) -> _Fitted:
    normaliser = _as_profile(book) if choice.inputs == "profile" else by_standard_score(training)
    features = _matrix(peer, training, normaliser)[rows]
    return _Fitted(peer, _fit(peer, choice.figure, features, targets[rows], trial.seed, trial.quick), normaliser)


def _fit(peer: str, figure: float, features: Floats, targets: Ints, seed: int, quick: bool) -> Any:
    if peer == "lightgbm":
        import lightgbm

        settings = {
            "objective": "multiclass",
            "num_class": 2 if targets.max() < 2 else len(STAGE_2_CLASSES),
            "num_leaves": int(figure),
            "learning_rate": 0.08,
            "min_data_in_leaf": 10,
            "feature_fraction": 0.5,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "lambda_l2": 1.0,
            "seed": seed % 2**31,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }
        rounds = 20 if quick else (120 if settings["num_class"] == 2 else 60)
        return lightgbm.train(settings, lightgbm.Dataset(features, targets), num_boost_round=rounds)
    if peer == "mlp":
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        network = MLPClassifier((64, 32), alpha=figure, batch_size=64, max_iter=5 if quick else 40, random_state=seed)
        with warnings.catch_warnings():
            # A fixed number of epochs is the recipe; that the loss could still fall is no news.
            warnings.simplefilter("ignore", category=ConvergenceWarning)
            return network.fit(features, targets)
    if peer == "svm":
        from sklearn.svm import SVC

        return SVC(C=figure, random_state=seed).fit(features, targets)
    from sklearn.ensemble import RandomForestClassifier

    trees = 20 if quick else 200
    forest = RandomForestClassifier(trees, min_samples_leaf=int(figure), random_state=seed, n_jobs=1)
    return forest.fit(features, targets)


def _as_profile(book: ProfileBook) -> Normaliser:
    deviating = by_profile(book)
    return lambda run: network_input(deviating(run))


def _matrix(peer: str, runs: Sequence[LabelledRun], normaliser: Normaliser) -> Floats:
    return np.concatenate([_flat(peer, cut(normaliser(run), WINDOW)) for run in runs if len(run.kinds)])


def _flat(peer: str, windows: Floats) -> Floats:
    return window_features(windows) if peer == "lightgbm" else windows.reshape(len(windows), -1)
