"""Verdicts of the two detection stages (D3.3 section 6.1.1)."""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum

from natwork_ray.domain.telemetry import FlowShare
from natwork_ray.domain.values import value


class AnomalyKind(StrEnum):
    """The seven outputs of stage 2 (D3.3 Table 3), in the order of the network's output units."""

    FALSE_POSITIVE = "false_positive"  # normal behaviour: stage 1 was wrong
    HIGH_CPU = "high_cpu"
    HIGH_MEMORY = "high_memory"
    TRAFFIC_SPIKE = "traffic_spike"
    STEP_LOAD = "step_load"
    NETWORK_LATENCY = "network_latency"
    UNKNOWN = "unknown"


STAGE_2_CLASSES: tuple[AnomalyKind, ...] = tuple(AnomalyKind)


@value
class Driver:
    """A metric that drove a verdict.

    Attributes:
        metric: its name.
        deviation: distance of the newest sample from the service's profile, in robust standard deviations.
        contribution: how much the metric pushed the detector towards "anomalous" (positive) or "normal" (negative), in
            the detector's own units (log odds); 0 where the detector does not say.
    """

    metric: str
    deviation: float
    contribution: float = 0.0


@value
class AnomalyVerdict:
    """What the two stages say of one container at one moment. Only windows that stage 1 flagged become verdicts.

    Attributes:
        score: stage 1, probability of "anomalous", 0 to 1.
        kind: stage 2's class.
        confidence: stage 2's probability of that class, 0 to 1.
        drivers: the metrics farthest from the profile, farthest first.
        flows: who sends the traffic, largest share first; empty where flows are not measured.
        observed: the newest sample by metric name, SI units; metrics that were not measured are left out.
    """

    container: str
    at_s: float
    score: float
    kind: AnomalyKind
    confidence: float
    drivers: tuple[Driver, ...] = ()
    flows: tuple[FlowShare, ...] = ()
    observed: dict[str, float] = field(default_factory=dict)
