"""Evidence from verdicts alone: for ranking causes where the samples are gone and the journal is what is left.

A verdict carries the metrics that drove it, in robust standard deviations from the service's profile. That is less
than samples are: metrics that drove nothing are not in it, and a container that was never flagged is taken for normal.

    >>> ranking = rank(from_verdicts(verdicts, containers, start_s=now - 600, end_s=now), graph, RankingSettings(), 600)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from natwork_ray.dependencies.deviation import Evidence
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict
from natwork_ray.domain.telemetry import METRICS, N_METRICS
from natwork_ray.errors import InputError

_ROW = {str(metric): k for k, metric in enumerate(METRICS)}


def from_verdicts(
    verdicts: Sequence[AnomalyVerdict], containers: Sequence[str], *, start_s: float, end_s: float
) -> Evidence:
    """What the verdicts between `start_s` (excluded) and `end_s` (included) say of these containers.

    Size is the median of a metric's deviations over the verdicts that name it; onset is the container's first verdict.
    What stage 2 called a false positive is left out.

    Raises:
        InputError: the window is empty, or a verdict names a metric that does not exist.
    """
    if not end_s > start_s:
        raise InputError(f"window from {start_s} to {end_s} s", hint="it must end after it starts")
    row = {name: i for i, name in enumerate(containers)}
    seen: dict[tuple[int, int], list[float]] = {}
    first: dict[int, float] = {}
    for verdict in verdicts:
        i = row.get(verdict.container)
        if i is None or verdict.kind is AnomalyKind.FALSE_POSITIVE or not start_s < verdict.at_s <= end_s:
            continue
        first[i] = min(first.get(i, verdict.at_s), verdict.at_s)
        for driver in verdict.drivers:
            if driver.metric not in _ROW:
                raise InputError(f"verdict on {verdict.container}: metric {driver.metric!r}", hint="Table 1 names them")
            seen.setdefault((i, _ROW[driver.metric]), []).append(driver.deviation)
    size = np.zeros((len(containers), N_METRICS))
    onset = np.ones((len(containers), N_METRICS))
    for (i, k), deviations in seen.items():
        size[i, k] = np.median(deviations)
        onset[i, k] = (first[i] - start_s) / (end_s - start_s)
    return Evidence(
        containers=tuple(containers), size=size, onset=onset, judged=np.ones((len(containers), N_METRICS), dtype=bool)
    )
