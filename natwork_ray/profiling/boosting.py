"""Stage 1 of the detector `best`, learnt from labelled runs.

In order: features of every window against several profiles of its service; trees trained without each group of runs in
turn, for scores of runs that they had not seen; two numbers that turn such scores into probabilities, and the threshold
on them; trees trained on everything.

Rules kept:

- A profile learnt on one day judges other days. So a window is trained on as seen by the profile of its own run, by
  those of other runs of its service, and by all of them pooled, sharing its weight among them.
- Scores out of fold come from the profile that a detector would have had: that of the service's other runs, else of its
  own commissioning hour.
- Windows labelled anomalous of unlabelled type (-1) are left out.

The trees: few rows per leaf, random splits (`extra_trees`), a twentieth of the features per split, 60 % of the rows per
tree, and steps so small that a hundred trees together correct the first guess about threefold. Labels of recorded runs
are wrong in places and contradict each other at the edges of events; ordinary boosting learns those by heart.

    >>> learnt = fit_tree_stage(runs, TrainingSettings(seed=7), step)
    >>> learnt.stage.probability(observe(values, references))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.profiling.evaluation import best_threshold, folds_by_run
from natwork_ray.profiling.features import FEATURES, inputs, observe
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.profile import Floats, unprofiled_fleet
from natwork_ray.profiling.stages import TreeStage
from natwork_ray.profiling.windows import commissioning_book, cut
from natwork_ray.trees.boosters import train_text
from natwork_ray.trees.engines import raw_sums

# Profiles of single runs that a window is trained on; beside them the pooled one.
MOST_PROFILES = 4
_PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "num_leaves": 63,
    "min_data_in_leaf": 5,
    "extra_trees": True,
    "feature_fraction": 0.9,
    "feature_fraction_bynode": 0.05,
    "bagging_fraction": 0.6,
    "bagging_freq": 1,
}
# How far all steps together go: the first guess is corrected about threefold.
_TOTAL_STEP = 3.0
_CHUNK = 8192


@dataclass(frozen=True, eq=False)
class LearntStage:
    """A trained stage 1 with its operating point, and how it fared on runs that it had not seen.

    Attributes:
        stage: trained on all runs.
        calibration: slope and intercept of its probabilities.
        threshold: on these.
        truth: bool (M,), labels of all labelled windows.
        scores: float32 (M,), probabilities by trees that had not seen the window's run.
        unit: (M,) index of the run.
    """

    stage: TreeStage
    calibration: tuple[float, float]
    threshold: float
    truth: NDArray[np.bool_]
    scores: Floats
    unit: NDArray[np.intp]


def fit_tree_stage(runs: Sequence[LabelledRun], settings: TrainingSettings, step: Callable[[str], None]) -> LearntStage:
    """Train stage 1. `step` is called with what was done, once per fold and once at the end.

    Raises:
        InputError: fewer than two run names.
    """
    folds = folds_by_run([run.run for run in runs], settings.folds)
    labelled = [np.asarray(run.kinds >= 0) for run in runs]
    raw = [np.zeros(len(run.kinds)) for run in runs]
    every = References.of(runs)
    seen: dict[tuple[int, bytes], Floats] = {}

    def features_of(number: int, row: Floats) -> Floats:
        key = (number, row.tobytes())
        if key not in seen:
            seen[key] = features_of_run(runs[number], row, settings.window)[labelled[number]]
        return seen[key]

    def rows_of(numbers: Sequence[int], references: References) -> tuple[Floats, NDArray[np.float64], Floats]:
        parts, targets, weights = [], [], []
        for number in numbers:
            rows = references.for_training(runs[number])
            for row in rows:
                parts.append(features_of(number, row))
                targets.append(runs[number].anomalous[labelled[number]].astype(np.float64))
                weights.append(np.full(len(parts[-1]), 1.0 / len(rows), dtype=np.float32))
        return np.concatenate(parts), np.concatenate(targets), np.concatenate(weights)

    for place, names in enumerate(folds, start=1):
        held = [i for i, run in enumerate(runs) if run.run in names]
        kept = [i for i, run in enumerate(runs) if run.run not in names]
        references = References.of([runs[i] for i in kept])
        trees = raw_sums(_fit(*rows_of(kept, references), settings), feature_names=FEATURES)
        for number in held:
            row = references.for_judging(runs[number], every)
            raw[number][labelled[number]] = trees(features_of(number, row))
        step(f"stage 1, fold {place} of {len(folds)}")

    truth = np.concatenate([run.anomalous[of] for run, of in zip(runs, labelled, strict=True)])
    unit = np.concatenate([np.full(int(of.sum()), i, dtype=np.intp) for i, of in enumerate(labelled)])
    out_of_fold = np.concatenate([r[of] for r, of in zip(raw, labelled, strict=True)])
    calibration = calibrate(truth, out_of_fold)
    text = _fit(*rows_of(range(len(runs)), every), settings)
    stage = TreeStage(text, calibration)
    scores = stage.calibrated(out_of_fold)
    step("stage 1, all runs")
    return LearntStage(
        stage=stage,
        calibration=calibration,
        threshold=best_threshold(truth, scores, beta=settings.beta),
        truth=truth,
        scores=scores,
        unit=unit,
    )


def features_of_run(run: LabelledRun, reference: Floats, window: int) -> Floats:
    """Features (T, F) of each of a run's T samples, judged by its causal window and one reference row (P,)."""
    if not len(run.values):
        return np.zeros((0, len(FEATURES)), dtype=np.float32)
    windows = cut(run.values, window)
    return np.concatenate(
        [
            inputs(observe(part, np.broadcast_to(reference, (len(part), len(reference)))))
            for part in (windows[i : i + _CHUNK] for i in range(0, len(windows), _CHUNK))
        ]
    )


def calibrate(truth: NDArray[np.bool_], raw: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and intercept of the log odds of `truth` (M,) given raw scores (M,): logistic regression by Newton steps.

    A faint pull towards slope 1 keeps perfectly separated scores finite.
    """
    design = np.stack([raw, np.ones_like(raw)], axis=1)
    prior, strength = np.array([1.0, 0.0]), np.diag([1.0, 1e-3])
    weights = prior.copy()
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -30.0, 30.0)))
        gradient = design.T @ (truth - p) - strength @ (weights - prior)
        curvature = (design * (p * (1.0 - p))[:, None]).T @ design + strength
        change = np.linalg.solve(curvature, gradient)
        weights += np.clip(change, -1.0, 1.0)
        if np.abs(change).max() < 1e-9:
            break
    # A score that points the wrong way on unseen runs must not be turned around by them.
    return max(float(weights[0]), 1e-3), float(weights[1])


@dataclass(frozen=True, eq=False)
class References:
    """Reference rows per service: of single runs by name, and pooled; and of the fleet."""

    single: dict[str, dict[str, Floats]]
    pooled: dict[str, Floats]
    fleet: Floats

    @classmethod
    def of(cls, runs: Sequence[LabelledRun]) -> References:
        """Learnt from the commissioning parts of these runs."""
        single: dict[str, dict[str, Floats]] = {}
        pooled: dict[str, Floats] = {}
        hours = [run for run in runs if run.commissioning > 0]
        for service in dict.fromkeys(run.service for run in hours):
            own = [run for run in hours if run.service == service]
            pooled[service] = _reference(own)
            names = tuple(dict.fromkeys(run.run for run in own))
            single[service] = (
                {name: _reference([run for run in own if run.run == name]) for name in names}
                if len(names) > 1
                else {names[0]: pooled[service]}
            )
        fleet = commissioning_book(hours).fleet or unprofiled_fleet()
        return cls(single, pooled, np.array(fleet.reference, dtype=np.float32))

    def for_training(self, run: LabelledRun) -> list[Floats]:
        """The rows that a window of this run is trained on: its own run's first."""
        singles = self.single.get(run.service)
        if singles is None:
            return [self.fleet]
        own = [singles[run.run]] if run.run in singles else []
        rows = [*own, *(row for name, row in singles.items() if name != run.run)][:MOST_PROFILES]
        return rows if len(singles) == 1 else [*rows, self.pooled[run.service]]

    def for_judging(self, run: LabelledRun, every: References) -> Floats:
        """What would judge this run, which is not among the runs behind these rows."""
        if run.service in self.pooled:
            return self.pooled[run.service]
        own = every.single.get(run.service, {})
        return own.get(run.run, next(iter(own.values()), self.fleet))


def _reference(hours: Sequence[LabelledRun]) -> Floats:
    return np.array(commissioning_book(hours).profiles[0].reference, dtype=np.float32)


def _fit(rows: Floats, targets: NDArray[np.float64], weights: Floats, settings: TrainingSettings) -> str:
    parameters = _PARAMETERS | {"learning_rate": _TOTAL_STEP / settings.trees}
    return train_text(
        rows, targets, parameters, feature_names=FEATURES, trees=settings.trees, seed=settings.seed, weight=weights
    )
