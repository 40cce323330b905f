"""How well causes are ranked: top-1, top-3 and Avg@5 over recorded or emulated incidents, baselines in the same run.

Protocol: the cases of each data set are cut into a tuning and a test part by when they were recorded (days,
repetitions, worlds). The three weights of the ranking are chosen once, for all data sets together, by the mean Avg@5
over the tuning parts; every figure is of the test part, with a bootstrap interval over cases. Containers with equal
scores share their ranks, as if ties were broken at random.

Avg@5 is the mean of top-1 to top-5. `chance` is what a random order gets on the same cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from natwork_ray.dependencies.baselines import largest_deviation, random_walk, robust_scorer
from natwork_ray.dependencies.deviation import Floats, NormalPart, gather, learn
from natwork_ray.dependencies.graph import DependencyGraph
from natwork_ray.dependencies.ranking import RankingSettings, scores
from natwork_ray.domain.telemetry import TelemetryWindow
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError

OURS = "deviations unexplained by the graph"
_DRAWS = 2_000
_DEPTH = 5
_GRID = {"explained": (0.5, 0.0, 1.0), "early": (0.5, 0.0, 2.0), "quantile": (0.5, 0.25, 0.75)}

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class IncidentCase:
    """One incident with its known cause. `part` is `tune` or `test`; `kind` is what was injected."""

    data: str
    kind: str
    part: str
    normal: TelemetryWindow
    incident: TelemetryWindow
    graph: DependencyGraph
    cause: str

    def __post_init__(self) -> None:
        if self.part not in ("tune", "test") or self.cause not in self.incident.containers:
            raise InputError(
                f"case of {self.data}: part {self.part!r}, cause {self.cause!r}",
                hint="part is tune or test, and the cause is one of the containers",
            )


@value
class CauseRow:
    """One method on the test part of one data set; `kind` is `all` or one kind of injection. Shares, 0 to 1."""

    data: str
    kind: str
    model: str
    cases: int
    top_1: float
    top_3: float
    avg_5: float
    top_1_ci: tuple[float, float]
    avg_5_ci: tuple[float, float]


@value
class CauseTable:
    """The result: rows, and the settings that the tuning parts chose."""

    rows: tuple[CauseRow, ...]
    chosen: RankingSettings
    tuned_on: int


def evaluate(cases: Sequence[IncidentCase], *, seed: int, progress: Progress | None = None) -> CauseTable:
    """Tune on the tuning parts, and report on the test parts.

    Raises:
        InputError: a data set without a tuning or without a test part.
    """
    names = tuple(dict.fromkeys(c.data for c in cases))
    for name in names:
        if {c.part for c in cases if c.data == name} != {"tune", "test"}:
            raise InputError(f"cases of {name} have no tuning or no test part", hint="give several days or repetitions")
    tune = [c for c in cases if c.part == "tune"]
    learnt = {id(c.normal): learn(c.normal) for c in cases}
    chosen = _choose(tune, learnt, names, progress)
    test = [c for c in cases if c.part == "test"]
    usual = RankingSettings()
    evidence = [gather(learnt[id(c.normal)], c.incident, quantile=usual.quantile) for c in test]
    tuned = [gather(learnt[id(c.normal)], c.incident, quantile=chosen.quantile) for c in test]
    every: dict[str, list[Floats]] = {
        OURS: [scores(e, c.graph, chosen)[0] for e, c in zip(tuned, test, strict=True)],
        "the same, untuned": [scores(e, c.graph, usual)[0] for e, c in zip(evidence, test, strict=True)],
        "largest deviation alone": [largest_deviation(e) for e in evidence],
        "robust scorer (after BARO)": [robust_scorer(c.normal, c.incident) for c in test],
        "random walk": [random_walk(e, c.graph) for e, c in zip(evidence, test, strict=True)],
        "chance": [np.zeros(len(e.containers)) for e in evidence],
    }
    rows = [
        row
        for model, found in every.items()
        for row in _rows(model, test, np.array([_hits(s, c) for s, c in zip(found, test, strict=True)]), names, seed)
    ]
    return CauseTable(rows=tuple(rows), chosen=chosen, tuned_on=len(tune))


def _choose(
    tune: Sequence[IncidentCase], learnt: Mapping[int, NormalPart], names: Sequence[str], progress: Progress | None
) -> RankingSettings:
    """The settings with the best Avg@5, each data set counting alike.

    The defaults stay unless others beat them by more than one standard error: a few incidents should not move them.
    """
    weight = np.array([1.0 / (len(names) * sum(o.data == c.data for o in tune)) for c in tune])
    usual: Floats = np.zeros(0)
    best, best_gain = RankingSettings(), 0.0
    for number, quantile in enumerate(_GRID["quantile"]):
        if progress is not None:
            progress(number, len(_GRID["quantile"]), "tuning")
        evidence = [gather(learnt[id(c.normal)], c.incident, quantile=quantile) for c in tune]
        for explained, early in product(_GRID["explained"], _GRID["early"]):
            settings = RankingSettings(explained=explained, early=early, quantile=quantile)
            hits = np.array(
                [_hits(scores(e, c.graph, settings)[0], c).mean() for e, c in zip(evidence, tune, strict=True)]
            )
            if not len(usual):
                usual = hits  # the grid begins with the defaults
            gain = float((weight * (hits - usual)).sum())
            error = float(np.sqrt((weight**2 * (hits - usual) ** 2).sum()))
            if gain > max(best_gain, error):
                best, best_gain = settings, gain
    return best


def _hits(score: Floats, case: IncidentCase) -> Floats:
    """(5,) probability that the cause is among the first 1 to 5 when ties are broken at random."""
    mine = score[case.incident.containers.index(case.cause)]
    above, tied = int((score > mine).sum()), int((score == mine).sum())
    return np.clip((np.arange(1, _DEPTH + 1) - above) / tied, 0.0, 1.0)


def _rows(
    model: str, test: Sequence[IncidentCase], hits: Floats, names: Sequence[str], seed: int
) -> Iterator[CauseRow]:
    for name in names:
        kinds = sorted({c.kind for c in test if c.data == name})
        for kind in ("all", *(kinds if len(kinds) > 1 else ())):
            chosen = hits[[c.data == name and kind in ("all", c.kind) for c in test]]
            rng = np.random.default_rng(seed)  # the same cases are drawn for every model
            draws = chosen[rng.integers(len(chosen), size=(_DRAWS, len(chosen)))]
            yield CauseRow(
                data=name,
                kind=kind,
                model=model,
                cases=len(chosen),
                top_1=_rounded(chosen[:, 0].mean()),
                top_3=_rounded(chosen[:, 2].mean()),
                avg_5=_rounded(chosen.mean()),
                top_1_ci=_interval(draws[:, :, 0].mean(axis=1)),
                avg_5_ci=_interval(draws.mean(axis=(1, 2))),
            )


def _interval(figures: Floats) -> tuple[float, float]:
    low, high = np.quantile(figures, [0.025, 0.975])
    return _rounded(low), _rounded(high)


def _rounded(x: float | np.floating) -> float:
    return round(float(x), 4)
