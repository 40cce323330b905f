"""Training the method selector from the data set, deterministically.

For each method and each duration, on logarithmic scales:

1. folds of whole runs; linear trees learn the mean logarithm on the other folds and are scored on their own;
2. `centre` moves these residuals' median to 0;
3. quantile trees learn the 95th percentile of the residuals, again across folds; `shift` is the amount by which the
   held-out residuals exceed it in 5 % of cases (split conformal correction, so that coverage holds on new runs);
4. both are trained once more on everything: that is what the file holds. Quality on the card is that of step 1 and 3.

Left out: a search over settings. The defaults were chosen by cross-validated regret on an emulated data set of another
seed than the shipped one (docs/migration-models.md).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.errors import InputError
from natwork_ray.limi.boosters import train_text, trees_of
from natwork_ray.limi.dataset import MigrationRow, dataset_lines
from natwork_ray.limi.features import EXTENT, Floats, extent, features
from natwork_ray.limi.selection import Duration
from natwork_ray.limi.selector_card import (
    Calibration,
    MethodQuality,
    SeenRange,
    SelectorCard,
    SelectorSettings,
)
from natwork_ray.limi.selector_file import TreeTexts, dumps
from natwork_ray.trees.boosters import lightgbm

MIN_RUNS = 20  # of a method; below, folds hold so few that neither margin nor shift means anything
_LEVEL = 0.95
_SHORTEST_S = 1e-6
Progress = Callable[[int, int, str], None]


def no_progress(_done: int, _total: int, _what: str) -> None:
    """Say nothing."""


def train_selector(
    rows: Sequence[MigrationRow],
    settings: SelectorSettings | None = None,
    progress: Progress = no_progress,
) -> bytes:
    """A selector of every method that has rows enough, as the bytes of its file.

    Raises:
        InputError: no method has 20 runs, or rows of several backends are mixed.
        PreconditionError: LightGBM cannot be loaded.
    """
    settings = settings or SelectorSettings()
    backends = {row.backend for row in rows}
    if len(backends) > 1:
        raise InputError("emulated and real migrations are mixed", hint="train one selector for each")
    by_method = {method: [row for row in rows if row.method is method] for method in MigrationMethod}
    enough = {method: own for method, own in by_method.items() if len(own) >= MIN_RUNS}
    if not enough:
        raise InputError(f"no method has {MIN_RUNS} rows", hint="collect more with `natwork migrations collect`")
    used = [row for own in enough.values() for row in own]
    qualities: list[MethodQuality] = []
    trees: list[TreeTexts] = []
    for number, (method, own) in enumerate(enough.items()):
        inputs, fold = features([row.load for row in own]), fold_of(own, settings)
        found = {}
        for place, duration in enumerate(Duration):
            progress(2 * number + place, 2 * len(enough), f"{method}: {duration}")
            fitted = _fit(inputs, seconds(own, duration), fold, settings)
            found[duration] = fitted
            trees.append(TreeTexts(method=method, duration=duration, median=fitted.median, margin=fitted.margin))
        total, down = found[Duration.TOTAL], found[Duration.DOWNTIME]
        qualities.append(
            MethodQuality(
                method=method,
                rows=len(own),
                total=total.calibration,
                downtime=down.calibration,
                total_mape_pct=total.mape_pct,
                downtime_mape_pct=down.mape_pct,
                total_p95_coverage=total.coverage,
                downtime_p95_coverage=down.coverage,
            )
        )
    progress(2 * len(enough), 2 * len(enough), "done")
    card = SelectorCard(
        methods=tuple(qualities),
        settings=settings,
        trained_on=next(iter(backends)),
        runs=len({row.run for row in used}),
        rows=len(used),
        data_sha256=data_digest(rows),
        lightgbm_version=str(lightgbm().__version__),
        seen=_seen(used),
    )
    return dumps(card, tuple(trees))


def data_digest(rows: Sequence[MigrationRow]) -> str:
    """SHA-256 of the data set as text, hex."""
    digest = hashlib.sha256()
    for line in dataset_lines(rows):
        digest.update(line.encode())
    return digest.hexdigest()


def seconds(rows: Sequence[MigrationRow], duration: Duration) -> Floats:
    """(N,) the duration of each row."""
    return np.array([r.total_s if duration is Duration.TOTAL else r.downtime_s for r in rows], dtype=np.float64)


def fold_of(rows: Sequence[MigrationRow], settings: SelectorSettings) -> NDArray[np.intp]:
    """(N,) the fold of each row; a run lies in one fold whatever its method, and folds hold about equally many runs."""
    runs = sorted({row.run for row in rows})
    dealt = np.random.default_rng(settings.seed).permutation(len(runs)) % settings.folds
    place = {run: int(dealt[i]) for i, run in enumerate(runs)}
    return np.array([place[row.run] for row in rows], dtype=np.intp)


class _Fitted:
    """Trees of one method and duration, their calibration, and their quality out of fold."""

    def __init__(
        self, median: str, margin: str, calibration: Calibration, *, residuals: Floats, margins: Floats
    ) -> None:
        self.median, self.margin, self.calibration = median, margin, calibration
        self.mape_pct = float(100 * np.mean(np.abs(np.expm1(-residuals))))
        above = np.maximum(0.0, margins + calibration.shift)
        self.coverage = float(np.mean(residuals <= above))


def _fit(inputs: Floats, seconds_: Floats, fold: NDArray[np.intp], settings: SelectorSettings) -> _Fitted:
    target = np.log(np.maximum(seconds_, _SHORTEST_S))

    def median_text(inside: NDArray[np.bool_]) -> str:
        return train_text(
            inputs[inside], target[inside], _median(settings, len(target)), trees=settings.trees, seed=settings.seed
        )

    residuals = np.empty_like(target)
    for number in range(settings.folds):
        own = fold == number
        residuals[own] = target[own] - trees_of(median_text(~own))(inputs[own])
    centre = float(np.median(residuals))
    residuals -= centre

    def margin_text(inside: NDArray[np.bool_]) -> str:
        return train_text(
            inputs[inside],
            residuals[inside],
            _margin(settings, len(target)),
            trees=settings.margin_trees,
            seed=settings.seed,
        )

    margins = np.empty_like(target)
    for number in range(settings.folds):
        own = fold == number
        margins[own] = trees_of(margin_text(~own))(inputs[own])
    everything = np.ones(len(target), dtype=np.bool_)
    calibration = Calibration(centre=centre, shift=_conformal(residuals - margins))
    return _Fitted(median_text(everything), margin_text(everything), calibration, residuals=residuals, margins=margins)


def _conformal(excess: Floats) -> float:
    """The amount that 95 % of new excesses stay below, with the finite-sample correction."""
    rank = math.ceil(_LEVEL * (len(excess) + 1))
    return float(np.sort(excess)[min(rank, len(excess)) - 1])


def _median(settings: SelectorSettings, rows: int) -> dict[str, Any]:
    return {
        "objective": "regression",
        "linear_tree": True,
        "linear_lambda": settings.linear_lambda,
        "num_leaves": settings.leaves,
        "learning_rate": settings.learning_rate,
        "min_data_in_leaf": _leaf_rows(settings, rows),
    }


def _margin(settings: SelectorSettings, rows: int) -> dict[str, Any]:
    return {
        "objective": "quantile",
        "alpha": _LEVEL,
        "num_leaves": settings.margin_leaves,
        "learning_rate": settings.learning_rate,
        "min_data_in_leaf": _leaf_rows(settings, rows),
    }


def _leaf_rows(settings: SelectorSettings, rows: int) -> int:
    """Small data sets, as real ones are, get smaller leaves: a tree that cannot split says the same of everything."""
    return max(2, min(settings.leaf_rows, rows // 6))


def _seen(rows: Sequence[MigrationRow]) -> tuple[SeenRange, ...]:
    where = extent([row.load for row in rows])
    return tuple(
        SeenRange(quantity=name, low=float(where[:, i].min()), high=float(where[:, i].max()))
        for i, name in enumerate(EXTENT)
    )
