"""From flagged windows to alarms: a vote that quietens single flags, and a fast path that keeps real spikes.

Spikes in recorded services last one to six samples (median one), so a plain k-of-n vote loses them; without a vote,
false alarms double or worse. Hence both: k flags among the last n windows, or one window that is beyond doubt.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from natwork_ray.config import AlarmConfig
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict


@dataclass(frozen=True)
class Alarm:
    """What the vote concluded: the kind to act upon, and the newest verdict behind it."""

    kind: AnomalyKind
    verdict: AnomalyVerdict

    def __str__(self) -> str:
        verdict = self.verdict
        drivers = ", ".join(f"{d.metric} {d.deviation:+.1f} sd" for d in verdict.drivers[:2]) or "no single metric"
        return (
            f"{self.kind} on {verdict.container} (stage 1 {verdict.score:.2f}, "
            f"stage 2 {verdict.kind} {verdict.confidence:.2f}, driven by {drivers})"
        )


class AlarmVote:
    """Votes of one container."""

    def __init__(self) -> None:
        self._flags: deque[tuple[int, AnomalyKind]] = deque()

    def add(self, turn: int, verdict: AnomalyVerdict, settings: AlarmConfig) -> AnomalyKind | None:
        """Count a verdict reached in `turn`; the kind to act upon when it makes an alarm, else None.

        The kind is the majority among the votes, the newest one deciding a tie; a window that alarms on the fast path
        before the votes suffice speaks for itself.
        """
        if verdict.kind is AnomalyKind.FALSE_POSITIVE:
            return None
        self._flags.append((turn, verdict.kind))
        self._forget(turn, settings)
        kinds = [kind for _, kind in self._flags]
        if len(kinds) >= settings.votes_needed:
            counts = Counter(kinds)
            most = max(counts.values())
            return next(kind for kind in reversed(kinds) if counts[kind] == most)
        return verdict.kind if beyond_doubt(verdict, settings) else None

    def idle(self, turn: int, settings: AlarmConfig) -> bool:
        """Whether no vote is left that could still count, so that this state may be dropped."""
        self._forget(turn, settings)
        return not self._flags

    def _forget(self, turn: int, settings: AlarmConfig) -> None:
        while self._flags and self._flags[0][0] <= turn - settings.votes_of:
            self._flags.popleft()


def beyond_doubt(verdict: AnomalyVerdict, settings: AlarmConfig) -> bool:
    """The fast path: a sure stage 1 and a metric very far from the profile."""
    farthest = max((abs(d.deviation) for d in verdict.drivers), default=0.0)
    return verdict.score >= settings.fast_score and farthest >= settings.fast_deviation
