"""Which service is the cause, ranked (D3.3 section 6.3, announced next steps: interactions between microservices).

Trouble travels. A slow callee slows its callers, and a surge at a caller loads its callees, so the container that
deviates most need not be the one to treat. Three things are weighed for each container:

1. **How far it left its normal behaviour**, and for how long (`natwork_ray.dependencies.deviation`).
2. **What its neighbours in the dependency graph do not explain.** Demand that grew at a caller explains, in a callee,
   more traffic, CPU and latency; what is then left at a callee explains, in its callers, latency, errors and lost
   requests. Memory is a container's own. Only neighbours that deviate plainly (3 robust standard deviations) explain
   anything: noise explains nothing.
3. **Who was first.** A deviation that lasted from earlier on is preferred, where the data can tell an order at all.

    score = what is left of the largest deviation * (1 + early * (1 - onset))

With no graph what remains is the size of the deviation and its onset. A random walk over the graph, as in the
literature, is kept as a baseline (`baselines.random_walk`): on our data it did worse than no graph at all.

What this can't do: a cause that the metrics of no container show (an exception that is swallowed, a delay outside of
every server's span) is not found; a cause outside the graph is blamed on whoever feels it first; and with one incident,
correlation is all there is. Scores order the containers; they are not probabilities.

    >>> ranking = rank_causes(normal, incident, graph)
    >>> ranking.causes[0].container
    'orders-db'
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from natwork_ray.dependencies.deviation import DEVIATES, DRIVEN, FELT, Evidence, Floats, gather, learn
from natwork_ray.dependencies.graph import DependencyGraph
from natwork_ray.domain.telemetry import METRICS, Metric, TelemetryWindow
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError

_THROUGHPUT = METRICS.index(Metric.THROUGHPUT)
MOST_CONTAINERS = 5_000


@value
class RankingSettings:
    """How much each reading weighs; 0 switches one off.

    Attributes:
        explained: share (0 to 1) of a neighbour's deviation that is taken off.
        early: weight of the onset, not negative.
        quantile: of the deviations over the incident that counts as their size, between 0 and 1; 0.5 is the median.
    """

    explained: float = 0.5
    early: float = 0.5
    quantile: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.explained <= 1 and 0 <= self.early <= 100 and 0 < self.quantile < 1):
            raise InputError(
                f"ranking settings out of range: {self}",
                hint="explained 0 to 1, early 0 to 100, quantile between 0 and 1",
            )


@value
class Cause:
    """One container in the ranking.

    Attributes:
        score: orders the containers; comparable within one ranking only.
        size: largest own deviation, robust standard deviations, before anything is explained away.
        metric: the metric that deviates most after that; `deviation` is its signed size.
        onset_s: seconds into the incident at which that metric's deviation began to last; None when it never did.
        explained_by: the neighbour that explains part of it, empty when none does.
    """

    container: str
    score: float
    size: float
    metric: str
    deviation: float
    onset_s: float | None
    explained_by: str = ""


@value
class CauseRanking:
    """All containers, the likeliest cause first. `degraded` names those without enough samples to be judged."""

    causes: tuple[Cause, ...]
    degraded: tuple[str, ...] = ()


def rank_causes(
    normal: TelemetryWindow,
    incident: TelemetryWindow,
    graph: DependencyGraph,
    settings: RankingSettings | None = None,
) -> CauseRanking:
    """Rank the containers of an incident.

    Args:
        normal: (N, T0, 12) normal operation of the same containers.
        incident: (N, T1, 12) from the moment that the trouble was noticed, or a little before.
        graph: who calls whom; containers that it does not know stand alone.
        settings: the weights.

    Raises:
        InputError: as `deviation.learn` and `deviation.gather`, or more than 5,000 containers.
    """
    settings = settings or RankingSettings()
    if len(incident.containers) > MOST_CONTAINERS:
        raise InputError(f"{len(incident.containers)} containers", hint=f"rank at most {MOST_CONTAINERS:,} at a time")
    evidence = gather(learn(normal), incident, quantile=settings.quantile)
    return rank(evidence, graph, settings, length_s=incident.length * incident.step_s)


def rank(
    evidence: Evidence, graph: DependencyGraph, settings: RankingSettings | None = None, *, length_s: float
) -> CauseRanking:
    """Rank by evidence that is there already; `length_s` is how long the incident lasted, for `Cause.onset_s`."""
    score, own, blamed = scores(evidence, graph, settings or RankingSettings())
    causes = []
    for i in np.argsort(-score, kind="stable"):
        k = int(np.argmax(own[i]))
        onset = float(evidence.onset[i, k])
        causes.append(
            Cause(
                container=evidence.containers[i],
                score=float(score[i]),
                size=float(evidence.farthest[i]),
                metric=str(METRICS[k]),
                deviation=float(evidence.size[i, k]),
                onset_s=None if onset >= 1.0 else onset * length_s,
                explained_by=evidence.containers[blamed[i]] if blamed[i] >= 0 else "",
            )
        )
    blind = np.flatnonzero(~np.asarray(evidence.judged.any(axis=1)))
    degraded = tuple(evidence.containers[i] for i in blind)
    return CauseRanking(causes=tuple(causes), degraded=degraded)


def scores(
    evidence: Evidence, graph: DependencyGraph, settings: RankingSettings
) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """(N,) scores, (N, 12) what neighbours leave of each deviation, (N,) row of who explains most, or -1."""
    calls = graph.matrix(evidence.containers)
    own, blamed = _unexplained(evidence, calls, settings.explained)
    first = 1.0 - np.min(np.where(np.abs(evidence.size) >= DEVIATES, evidence.onset, 1.0), axis=1)
    return np.asarray(own.max(axis=1) * (1.0 + settings.early * first)), own, blamed


def _unexplained(evidence: Evidence, calls: Floats, share: float) -> tuple[Floats, NDArray[np.intp]]:
    """(N, 12) what is left of each deviation, and (N,) the row of the neighbour that explains most, or -1."""
    size, up = np.abs(evidence.size), evidence.size > 0
    # Demand that grew at a caller explains what grows here, and how slow it gets.
    handed = calls.T * _plain(evidence.size[:, _THROUGHPUT])[None, :]
    demand = handed.max(axis=1, initial=0.0)
    own = size.copy()
    for k in {*DRIVEN, *FELT}:
        own[:, k] = np.where(up[:, k], np.maximum(size[:, k] - share * demand, 0.0), size[:, k])
    # What is left at a callee explains what its callers feel; but nobody gets more requests because a callee is slow.
    inherited = calls * _plain(own.max(axis=1))[None, :]
    trouble = inherited.max(axis=1, initial=0.0)
    for k in FELT:
        felt = np.maximum(own[:, k] - share * trouble, 0.0)
        own[:, k] = np.where(up[:, k], own[:, k], felt) if k == _THROUGHPUT else felt
    if not len(calls) or share == 0:
        return own, np.full(len(size), -1, dtype=np.intp)
    by = np.where(trouble >= demand, inherited.argmax(axis=1), handed.argmax(axis=1))
    told = (size.max(axis=1) >= DEVIATES) & (own.max(axis=1) < size.max(axis=1))
    return own, np.asarray(np.where(told, by, -1))


def _plain(size: Floats) -> Floats:
    """Deviations that are plain enough to explain others; noise explains nothing."""
    return np.where(size >= DEVIATES, size, 0.0)
