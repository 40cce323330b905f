"""The migration models of D3.3 section 2.1, measured: forecasts and choices on runs that no model was trained on.

D3.3 prints no figure for its classifier and its regressor, so the protocol is our own, and stated:

- split by run, never by row: a run's four migrations share one container. Five folds; every run is held out once;
- *classes out*: the harder split. Whole load classes are held out, so the models meet containers of a kind that they
  never saw; and *high memory out*: trained without the largest containers, asked about them only;
- regret, hindsight regret, balanced accuracy and noise ceiling as `limi.run_table` defines them, for several weights of
  total time; the headline is at the default weight;
- the same for the baselines, and for a classifier trained on the winners.

Real migrations are looked at three times: with the models of the emulation, which nobody fitted to this machine; with
the same, each forecast multiplied by one factor per method that the other real runs give; and with models refitted on
the real runs, each held out once. Their expected costs are unknown, so there is hindsight regret only,
beside the mean cost that each policy would have had.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.migrations import LoadLevel
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError
from natwork_ray.limi.baselines import by_classifier, by_equations, by_rule_of_thumb
from natwork_ray.limi.dataset import MigrationRow
from natwork_ray.limi.features import Floats
from natwork_ray.limi.load_classes import load_class
from natwork_ray.limi.run_table import (
    METHODS,
    Choices,
    RunTable,
    balanced_accuracy,
    balanced_accuracy_interval,
    coverage,
    interval,
    mape_pct,
    regret_pct,
    regrets_pct,
)
from natwork_ray.limi.selection import Forecasts, cost
from natwork_ray.limi.selector_card import DEFAULT_WEIGHT, SelectorSettings
from natwork_ray.limi.selector_file import loads
from natwork_ray.limi.selector_training import MIN_RUNS, Progress, no_progress, train_selector

WEIGHTS = (0.0, DEFAULT_WEIGHT, 0.5, 0.8, 1.0)
FOLDS = 5


@dataclass(frozen=True, eq=False)
class ExpectedCosts:
    """(R, 4) mean total time and mean downtime of every run under every method, where they are known."""

    total_s: Floats
    downtime_s: Floats


@value
class PolicyScore:
    """How one way of choosing fares. `regret_pct` is None where expected costs are unknown."""

    regret_pct: float | None
    hindsight_regret_pct: float
    mean_cost_s: float
    balanced_accuracy: float


@value
class WeightReport:
    """Every way of choosing, at one weight. `selector` is ours; `oracle` knows the expected costs."""

    weight: float
    selector: PolicyScore
    regret_ci: tuple[float, float] | None
    balanced_accuracy_ci: tuple[float, float]
    oracle: PolicyScore | None
    noise_ceiling_ci: tuple[float, float] | None
    baselines: dict[str, PolicyScore]
    wins: dict[str, int]
    chosen: dict[str, int]


@value
class ForecastReport:
    """Errors of the forecasts on held-out runs; coverage is the share of migrations within p95 (0.95 is aimed at)."""

    total_time_mape_pct: float
    downtime_mape_pct: float
    total_p95_coverage: float
    downtime_p95_coverage: float
    total_time_mape_floor_pct: float | None
    total_time_mape_by_method_pct: dict[str, float]
    downtime_mape_by_method_pct: dict[str, float]


@value
class SplitReport:
    """One way of holding out: forecasts, then choices at every weight."""

    split: str
    runs: int
    rows: int
    forecasts: ForecastReport
    weights: tuple[WeightReport, ...]

    def at(self, weight: float) -> WeightReport:
        """The report of one weight."""
        return next(report for report in self.weights if report.weight == weight)


def held_out(
    rows: Sequence[MigrationRow],
    *,
    split: str,
    settings: SelectorSettings,
    expected: Callable[[RunTable], ExpectedCosts] | None = None,
    weights: Sequence[float] = WEIGHTS,
    progress: Progress = no_progress,
) -> SplitReport:
    """Train on some runs, look at the others, until each was looked at once.

    Args:
        rows: migrations of one backend; choices are judged on runs that have all four methods, forecasts on all.
        split: `by run`, `classes out` or `high memory out` (this one looks at the runs of high memory only).
        settings: of the training.
        expected: gives the expected costs of complete runs, in the emulation.

    Raises:
        InputError: too few runs for the split.
    """
    table = RunTable.of(rows)
    group = _GROUPS[split](table, settings.seed)
    places = {run: i for i, run in enumerate(table.runs)}
    row_place = np.array([places[row.run] for row in rows])
    shape = table.total_s.shape
    held = Forecasts(METHODS, *(np.full(shape, np.nan) for _ in range(4)))
    classified = {weight: np.full(len(table.runs), -1, dtype=np.intp) for weight in weights}
    numbers = [n for n in np.unique(group).tolist() if n >= 0]
    for done, number in enumerate(numbers):
        progress(done, len(numbers), f"{split}: fold {done + 1}")
        asked, known = np.flatnonzero(group == number), group != number
        selector = loads(train_selector([rows[i] for i in np.flatnonzero(known[row_place]).tolist()], settings))
        _place(held, selector.forecasts([table.loads[i] for i in asked]), asked)
        whole = table.select(known & table.complete)
        for weight in weights:
            if len(whole.runs) >= MIN_RUNS:
                classified[weight][asked] = by_classifier(
                    whole, [table.loads[i] for i in asked], weight=weight, seed=settings.seed
                )
    progress(len(numbers), len(numbers), split)
    looked = np.flatnonzero(group >= 0)
    judged = np.flatnonzero((group >= 0) & table.complete)
    costs = expected(table.select(judged)) if expected and len(judged) else None
    reports = tuple(
        _weight_report(
            table.select(judged), _rows_of(held, judged), weight, costs,
            classified=classified[weight][judged], seed=settings.seed,
        )
        for weight in (weights if len(judged) else ())
    )  # fmt: skip
    floor = expected(table.select(looked)).total_s if expected else None
    return SplitReport(
        split=split,
        runs=len(looked),
        rows=int(np.isin(row_place, looked).sum()),
        forecasts=_forecast_report(table.select(looked), _rows_of(held, looked), floor),
        weights=reports,
    )


def judge(
    rows: Sequence[MigrationRow],
    forecasts: Callable[[RunTable], Forecasts],
    *,
    name: str,
    seed: int,
    weights: Sequence[float] = WEIGHTS,
) -> SplitReport:
    """Look at migrations with models that were trained elsewhere. Expected costs are unknown here."""
    table = RunTable.of(rows)
    held = Forecasts(METHODS, *(np.full(table.total_s.shape, np.nan) for _ in range(4)))
    _place(held, forecasts(table), np.arange(len(table.runs)))
    judged = np.flatnonzero(table.complete)
    reports = tuple(
        _weight_report(table.select(judged), _rows_of(held, judged), weight, None, classified=None, seed=seed)
        for weight in (weights if len(judged) else ())
    )
    return SplitReport(
        split=name,
        runs=len(table.runs),
        rows=len(rows),
        forecasts=_forecast_report(table, held, None),
        weights=reports,
    )


def rescaled(forecasts: Forecasts, table: RunTable) -> Forecasts:
    """Forecasts of models from elsewhere, moved by what the other runs say of this machine: one factor per method and
    duration, the median of actual over forecast on all runs but the one looked at.
    """
    columns = [METHODS.index(method) for method in forecasts.methods]
    total = _factors(forecasts.total_p50_s, table.total_s[:, columns])
    down = _factors(forecasts.downtime_p50_s, table.downtime_s[:, columns])
    return Forecasts(
        forecasts.methods,
        forecasts.total_p50_s * total,
        forecasts.total_p95_s * total,
        forecasts.downtime_p50_s * down,
        forecasts.downtime_p95_s * down,
    )


def _factors(predicted: Floats, actual: Floats) -> Floats:
    """(R, M) the factor for each run and method, learnt from the other runs; 1 where none of them has the method."""
    ratio = actual / predicted
    factors = np.ones_like(ratio)
    for i in range(len(ratio)):
        others = np.delete(ratio, i, axis=0)
        there = ~np.isnan(others).all(axis=0)
        factors[i, there] = np.nanmedian(others[:, there], axis=0)
    return factors


def _by_run(table: RunTable, seed: int) -> NDArray[np.intp]:
    dealt = np.random.default_rng(seed).permutation(len(table.runs))
    return np.asarray(dealt % min(FOLDS, len(table.runs)), dtype=np.intp)


def _one_by_one(table: RunTable, seed: int) -> NDArray[np.intp]:
    return np.arange(len(table.runs), dtype=np.intp)


def _classes_out(table: RunTable, seed: int) -> NDArray[np.intp]:
    names = sorted(set(table.classes))
    if len(names) < FOLDS:
        raise InputError(f"{len(names)} load classes", hint=f"holding classes out takes {FOLDS} at least")
    dealt = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    place = dict(zip(names, dealt.tolist(), strict=True))
    return np.array([place[name] for name in table.classes], dtype=np.intp)


def _high_memory_out(table: RunTable, seed: int) -> NDArray[np.intp]:
    high = [load_class(name).memory is LoadLevel.HIGH for name in table.classes]
    if not any(high):
        raise InputError("no load class with high memory", hint="collect all classes")
    return np.where(high, 0, -1).astype(np.intp)


BY_RUN, ONE_BY_ONE, CLASSES_OUT, HIGH_MEMORY_OUT = "by run", "one run out", "classes out", "high memory out"
_GROUPS: dict[str, Callable[[RunTable, int], NDArray[np.intp]]] = {
    BY_RUN: _by_run,
    ONE_BY_ONE: _one_by_one,
    CLASSES_OUT: _classes_out,
    HIGH_MEMORY_OUT: _high_memory_out,
}


def _place(held: Forecasts, found: Forecasts, where: NDArray[np.intp]) -> None:
    """Enter forecasts of the methods that a selector knows; the others stay NaN."""
    columns = np.array([METHODS.index(method) for method in found.methods], dtype=np.intp)
    cells = np.ix_(where, columns)
    held.total_p50_s[cells], held.total_p95_s[cells] = found.total_p50_s, found.total_p95_s
    held.downtime_p50_s[cells], held.downtime_p95_s[cells] = found.downtime_p50_s, found.downtime_p95_s


def _rows_of(held: Forecasts, places: NDArray[np.intp]) -> Forecasts:
    return Forecasts(
        held.methods,
        held.total_p50_s[places],
        held.total_p95_s[places],
        held.downtime_p50_s[places],
        held.downtime_p95_s[places],
    )


def _forecast_report(table: RunTable, held: Forecasts, floor: Floats | None) -> ForecastReport:
    total, down = table.total_s, table.downtime_s
    present = [m for m in range(len(METHODS)) if not np.isnan(total[:, m]).all()]
    return ForecastReport(
        total_time_mape_pct=mape_pct(held.total_p50_s, total),
        downtime_mape_pct=mape_pct(held.downtime_p50_s, down),
        total_p95_coverage=coverage(held.total_p95_s, total),
        downtime_p95_coverage=coverage(held.downtime_p95_s, down),
        total_time_mape_floor_pct=None if floor is None else mape_pct(floor, total),
        total_time_mape_by_method_pct={str(METHODS[m]): mape_pct(held.total_p50_s[:, m], total[:, m]) for m in present},
        downtime_mape_by_method_pct={str(METHODS[m]): mape_pct(held.downtime_p50_s[:, m], down[:, m]) for m in present},
    )


def _weight_report(
    table: RunTable,
    held: Forecasts,
    weight: float,
    expected: ExpectedCosts | None,
    *,
    classified: Choices | None,
    seed: int,
) -> WeightReport:
    realised = table.costs(weight)
    known = None if expected is None else cost(expected.total_s, expected.downtime_s, weight)
    best = realised.argmin(axis=1)

    def score(chosen: Choices) -> PolicyScore:
        return PolicyScore(
            regret_pct=None if known is None else regret_pct(known, chosen),
            hindsight_regret_pct=regret_pct(realised, chosen),
            mean_cost_s=float(realised[np.arange(len(chosen)), chosen].mean()),
            balanced_accuracy=balanced_accuracy(best, chosen),
        )

    # A method that the selector does not know is never chosen.
    ours = np.where(np.isnan(held.costs(weight)), np.inf, held.costs(weight)).argmin(axis=1)
    baselines = {f"always {method}": score(np.full(len(best), m)) for m, method in enumerate(METHODS)}
    each = list(baselines.values())
    baselines["random"] = PolicyScore(
        regret_pct=None if known is None else float(np.mean([s.regret_pct for s in each if s.regret_pct is not None])),
        hindsight_regret_pct=float(np.mean([s.hindsight_regret_pct for s in each])),
        mean_cost_s=float(np.mean([s.mean_cost_s for s in each])),
        balanced_accuracy=1 / len(METHODS),
    )
    baselines["rule of thumb"] = score(by_rule_of_thumb(table.loads))
    baselines["equations"] = score(by_equations(table.loads, weight))
    if classified is not None and (classified >= 0).all():
        baselines["classifier"] = score(classified)
    oracle = None if known is None else known.argmin(axis=1)
    return WeightReport(
        weight=weight,
        selector=score(ours),
        regret_ci=None if known is None else interval(regrets_pct(known, ours), seed=seed),
        balanced_accuracy_ci=balanced_accuracy_interval(best, ours, seed=seed),
        oracle=None if oracle is None else score(oracle),
        noise_ceiling_ci=None if oracle is None else balanced_accuracy_interval(best, oracle, seed=seed),
        baselines=baselines,
        wins=_counted(best),
        chosen=_counted(ours),
    )


def _counted(choices: Choices) -> dict[str, int]:
    counts = Counter(choices.tolist())
    return {str(method): counts.get(m, 0) for m, method in enumerate(METHODS)}
