"""What a trained model says of itself: shape, operating point, and where it comes from."""

from __future__ import annotations

import math
from typing import Literal

from natwork_ray.domain.anomaly import STAGE_2_CLASSES
from natwork_ray.domain.telemetry import METRICS
from natwork_ray.domain.values import Backend, value
from natwork_ray.errors import InputError
from natwork_ray.profiling.alarming import AlarmRule
from natwork_ray.profiling.bounds import MAX_WINDOW, MIN_WINDOW
from natwork_ray.profiling.profile import ServiceProfile
from natwork_ray.trees.tree_text import MAX_TREES

FORMAT: Literal["natwork-profiler/2"] = "natwork-profiler/2"

_MAX_CALIBRATION = 1e3


@value
class TrainingSettings:
    """Everything that decides a training run besides the data. The defaults made the models that are shipped.

    Attributes:
        detector: `best`, or `annex-a` for the networks of the annex alone.
        seed: of initial weights, batch order, dropout and noise.
        window: T, samples per window of stage 1.
        trees: of stage 1 of `best`.
        epochs, batch, learning_rate: of both networks (`annex-a` only, as are the next two).
        noise: standard deviation of the noise added to network inputs, in units of `detector.network_input`.
        balance: power of the class weights, 0 (none) to 1 (all classes count the same).
        folds: run groups for the out-of-fold scores from which the operating point is chosen.
        beta: the threshold maximises F-beta on them; below 1 precision counts more, since an alarm may move containers.
        normal_share: normal windows given to the annex's stage 2 as "false positive", per anomalous one; those that
            stage 1 finds most suspicious first.
        reject_below: the annex's stage 2 says Unknown when its best class is less probable than this.
    """

    detector: Literal["best", "annex-a"] = "best"
    seed: int = 7
    window: int = 8
    trees: int = 100
    epochs: int = 12
    batch: int = 256
    learning_rate: float = 0.003
    noise: float = 0.3
    balance: float = 0.0
    folds: int = 4
    beta: float = 0.5
    normal_share: float = 0.5
    reject_below: float = 0.5

    def __post_init__(self) -> None:
        ranges = {
            "seed": (0, 2**32 - 1),
            "window": (MIN_WINDOW, MAX_WINDOW),
            "trees": (1, MAX_TREES),
            "epochs": (1, 10_000),
            "batch": (2, 65_536),
            "learning_rate": (1e-7, 1.0),
            "noise": (0.0, 10.0),
            "balance": (0.0, 1.0),
            "folds": (2, 100),
            "beta": (0.1, 10.0),
            "normal_share": (0.0, 10.0),
            "reject_below": (0.0, 1.0),
        }
        for name, (low, high) in ranges.items():
            given = getattr(self, name)
            if not low <= given <= high:
                raise InputError(f"training setting {name} = {given}", hint=f"use {low} to {high}")


@value
class OutOfFoldMetrics:
    """Stage 1 on runs that were not trained on, at the chosen threshold; `kind_accuracy` is stage 2's on anomalies.

    The threshold was chosen on the same scores, so these are slightly optimistic: fresh runs are the test.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    auc: float
    kind_accuracy: float | None


@value
class ModelCard:
    """Metadata of a detector.

    Attributes:
        threshold: of stage 1's probability.
        calibration: slope and intercept that turned its raw log odds into that probability; (1, 0) for none.
        alarm: when its scores become an alarm; None where every flag is one.
        fleet: stands in for services without a profile.
        made_with: the libraries that trained it, with their versions.
    """

    format: Literal["natwork-profiler/2"] = FORMAT
    metrics: tuple[str, ...] = tuple(str(m) for m in METRICS)
    classes: tuple[str, ...] = tuple(str(k) for k in STAGE_2_CLASSES)
    threshold: float
    calibration: tuple[float, float] = (1.0, 0.0)
    alarm: AlarmRule | None = None
    settings: TrainingSettings
    fleet: ServiceProfile
    trained_on: Backend
    runs: int
    windows: int
    data_sha256: str
    made_with: str
    out_of_fold: OutOfFoldMetrics

    def __post_init__(self) -> None:
        if self.metrics != tuple(str(m) for m in METRICS) or self.classes != tuple(str(k) for k in STAGE_2_CLASSES):
            raise InputError(
                "model was made for other metrics or classes", hint="train it anew with `natwork train profiler`"
            )
        if not (math.isfinite(self.threshold) and 0.0 <= self.threshold <= 1.0):
            raise InputError(f"model's threshold is {self.threshold}", hint="it must lie between 0 and 1")
        slope, intercept = self.calibration
        if not (0.0 < slope <= _MAX_CALIBRATION and abs(intercept) <= _MAX_CALIBRATION):
            raise InputError(f"model's calibration is {self.calibration}", hint="train it anew")
