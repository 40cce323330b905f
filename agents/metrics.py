"""`natwork_*` metrics on Ray's Prometheus endpoint (Ray puts its own prefix `ray_` before each name).

Only long-lived actors report: Ray forgets a series when its process ends. After a restart counters start again at zero,
as Prometheus expects.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from natwork_ray.control.events import Event, OutcomeReported, VerdictsReached
from natwork_ray.control.service import Answer


class ControlMetrics:
    """What the control actor counts."""

    def __init__(self) -> None:
        self._windows = Counter("natwork_windows_total", "Container windows judged.")
        self._degraded = Gauge("natwork_degraded_containers", "Containers whose newest window could not be judged.")
        self._flagged = Counter("natwork_flagged_total", "Windows flagged by stage 1, by stage 2 class.", ("kind",))
        self._decisions = Counter("natwork_decisions_total", "Decisions made.", ("mitigation", "status"))
        self._actions = Counter("natwork_actions_total", "Instructions reported.", ("result",))
        self._downtime = Histogram(
            "natwork_action_downtime_seconds",
            "Downtime of one action.",
            boundaries=[0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
        )

    def count(self, events: Sequence[Event], answers: Sequence[Answer]) -> None:
        """Take note of a committed batch."""
        for event, answer in zip(events, answers, strict=True):
            if answer.known or answer.error is not None:
                continue
            if isinstance(event, VerdictsReached):
                if event.scanned:
                    self._windows.inc(event.scanned)
                self._degraded.set(len(event.degraded))
                for verdict in event.verdicts:
                    self._flagged.inc(1, {"kind": verdict.kind})
            elif isinstance(event, OutcomeReported):
                self._actions.inc(1, {"result": "done" if event.outcome.done else "failed"})
                self._downtime.observe(event.outcome.downtime_s)
            for decision in answer.step.decisions:
                self._decisions.inc(1, {"mitigation": decision.mitigation, "status": decision.status})
