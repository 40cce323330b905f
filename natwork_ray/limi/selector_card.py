"""What a trained method selector says of itself: settings, origin, the ranges that it has seen, and how good it was."""

from __future__ import annotations

from typing import Literal

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.values import Backend, value
from natwork_ray.errors import InputError
from natwork_ray.limi.features import EXTENT, FEATURES

FORMAT: Literal["natwork-selector/1"] = "natwork-selector/1"
# Four seconds of migration weigh as much as one second of downtime, as in limi.durations.
DEFAULT_WEIGHT = 0.2


@value
class SelectorSettings:
    """Everything that decides a training run besides the data. The defaults made the model that is shipped.

    Attributes:
        seed: of the folds and of LightGBM.
        trees, leaves, learning_rate, leaf_rows, linear_lambda: of the medians, linear trees on logarithmic scales. A
            leaf never holds more than a sixth of the rows back: small data sets get smaller leaves.
        margin_trees, margin_leaves: of the 95th percentiles above them.
        folds: groups of runs for the residuals that the percentiles are learnt from.
    """

    seed: int = 7
    trees: int = 60
    leaves: int = 5
    learning_rate: float = 0.1
    leaf_rows: int = 40
    linear_lambda: float = 0.01
    margin_trees: int = 30
    margin_leaves: int = 4
    folds: int = 5

    def __post_init__(self) -> None:
        ranges = {
            "seed": (0, 2**31 - 1),
            "trees": (1, 512),
            "leaves": (2, 64),
            "learning_rate": (1e-3, 1.0),
            "leaf_rows": (2, 100_000),
            "linear_lambda": (0.0, 1e3),
            "margin_trees": (1, 512),
            "margin_leaves": (2, 64),
            "folds": (2, 100),
        }
        for name, (low, high) in ranges.items():
            given = getattr(self, name)
            if not low <= given <= high:
                raise InputError(f"training setting {name} = {given}", hint=f"use {low} to {high}")


@value
class Calibration:
    """How one method's trees become percentiles of one duration.

    `centre` moves the trees' logarithm to the median, `shift` widens the margin until it covers 95 % of migrations
    that no tree had seen (a conformal correction; it may narrow it as well).
    """

    centre: float
    shift: float

    def __post_init__(self) -> None:
        if not (abs(self.centre) <= 5 and abs(self.shift) <= 5):
            raise InputError(
                f"calibration centre {self.centre}, shift {self.shift}",
                hint="train it anew with `natwork train selector`",
            )


@value
class MethodQuality:
    """One method, on runs that were not trained on. Coverage is the share of migrations within p95.

    The shift was chosen on the same residuals that coverage is counted on, so this coverage is near 0.95 by making;
    `natwork reproduce migration-models` counts it on runs that had no part in it.
    """

    method: MigrationMethod
    rows: int
    total: Calibration
    downtime: Calibration
    total_mape_pct: float
    downtime_mape_pct: float
    total_p95_coverage: float
    downtime_p95_coverage: float


@value
class SeenRange:
    """The smallest and the largest value of one quantity of `EXTENT` in the training data."""

    quantity: str
    low: float
    high: float


@value
class SelectorCard:
    """Metadata of a selector. `methods` are those that it was trained on, in their order."""

    format: Literal["natwork-selector/1"] = FORMAT
    features: tuple[str, ...] = FEATURES
    methods: tuple[MethodQuality, ...]
    settings: SelectorSettings
    trained_on: Backend
    runs: int
    rows: int
    data_sha256: str
    lightgbm_version: str
    seen: tuple[SeenRange, ...]

    def __post_init__(self) -> None:
        given = tuple(m.method for m in self.methods)
        known = tuple(method for method in MigrationMethod if method in given)
        if self.features != FEATURES or not given or given != known:
            raise InputError(
                "selector was made for other features or methods", hint="train it anew with `natwork train selector`"
            )
        if tuple(r.quantity for r in self.seen) != EXTENT:
            raise InputError("selector's ranges are not those of its quantities", hint="train it anew")
