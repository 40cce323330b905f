"""The record of one run of the loop: what a report, a summary and a comparison of two runs are made from."""

from __future__ import annotations

from dataclasses import dataclass

from natwork_ray.domain.actions import ActionOutcome
from natwork_ray.domain.anomaly import AnomalyVerdict
from natwork_ray.domain.decisions import Decision, Mode
from natwork_ray.domain.labelled import LabelledEvent
from natwork_ray.domain.quota import QuotaAccount
from natwork_ray.domain.telemetry import NodeUsage, TelemetryWindow
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import Backend, value


@value
class DetectionScore:
    """How the alarms fared against the truth. An event is detected when an alarm falls inside it or its grace.

    `precision`, `recall` and `f1` are per sample and None where the truth has no per-sample labels.
    """

    injected: int
    detected: int
    false_alarms: int
    false_alarms_per_hour: float
    mean_delay_s: float | None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


@dataclass(frozen=True)
class RunRecord:
    """One finished run.

    `telemetry` spans the whole run (N, T, 12); `started_s` and `ended_s` bound the part that was decided upon, what
    lies before is the commissioning hour. `audit_root` is the hex Merkle root over `audit_entries` entries.
    """

    scenario: str
    seed: int
    backend: Backend
    mode: Mode
    detector: str
    started_s: float
    ended_s: float
    windows: int
    topology_before: Topology
    topology_after: Topology
    telemetry: TelemetryWindow
    node_usage: tuple[NodeUsage, ...]
    truth: tuple[LabelledEvent, ...]
    verdicts: tuple[AnomalyVerdict, ...]
    decisions: tuple[Decision, ...]
    outcomes: tuple[ActionOutcome, ...]
    quota: tuple[QuotaAccount, ...]
    score: DetectionScore
    audit_entries: int
    audit_root: str
    audit_verified: bool
    wall_s: float
