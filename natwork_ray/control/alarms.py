"""From flagged windows to alarms: a vote that quietens single flags, and a fast path that keeps real spikes.

Spikes in recorded services last one to six samples (median one), so a plain k-of-n vote loses them; without a vote,
false alarms double or worse. Hence both: k flags among the last n windows, or one window that is sure enough. Once an
alarm is open, every flag confirms it, until none has come for `hold` turns.

It is the rule of `profiling.alarming`, one container and one turn at a time. A model's card says with which numbers its
alarms were best on recordings that it had not seen; `calibrated` fills them in where the operator did not decide.

What an alarm is called may change while it lasts: a spike that lasts becomes a step.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from natwork_ray.config import AlarmConfig
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict
from natwork_ray.profiling.alarming import AlarmRule


def calibrated(settings: AlarmConfig, rule: AlarmRule | None) -> AlarmConfig:
    """The settings with what was left at its default taken from a model's rule; as they are where it has none.

    A vote that is set in part is the operator's as a whole, and so is the fast path: half of each makes no sense.
    """
    if rule is None:
        return settings
    chosen = settings.model_fields_set
    taken: dict[str, float] = {}
    if not chosen & {"votes_needed", "votes_of"}:
        taken |= {"votes_needed": rule.needed, "votes_of": rule.of}
    if not chosen & {"fast_score", "fast_deviation"}:
        # The model's score was calibrated with every metric in view; asking for one far metric on top loses spikes.
        taken |= {"fast_score": min(rule.high, 1.0), "fast_deviation": 0.0}
    if "hold" not in chosen:
        taken["hold"] = rule.hold
    return settings.model_copy(update=taken)


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
    """Votes of one container, and its alarm while that is open."""

    def __init__(self) -> None:
        self._flags: deque[tuple[int, AnomalyKind]] = deque()
        self._open_at: int | None = None  # the turn of the newest flag while an alarm is open

    def add(self, turn: int, verdict: AnomalyVerdict, settings: AlarmConfig) -> AnomalyKind | None:
        """Count a verdict reached in `turn`; the kind to act upon when it makes or confirms an alarm, else None.

        The kind is the majority among the votes, the newest one deciding a tie; a window that alarms on the fast path
        before the votes suffice speaks for itself.
        """
        if verdict.kind is AnomalyKind.FALSE_POSITIVE:
            return None
        self._forget(turn, settings)
        self._flags.append((turn, verdict.kind))
        kinds = [kind for _, kind in self._flags]
        voted = len(kinds) >= settings.votes_needed
        if not voted and self._open_at is None and not beyond_doubt(verdict, settings):
            return None
        confirmed = self._open_at is not None
        self._open_at = turn
        if not voted and not confirmed:
            return verdict.kind
        counts = Counter(kinds)
        most = max(counts.values())
        return next(kind for kind in reversed(kinds) if counts[kind] == most)

    def idle(self, turn: int, settings: AlarmConfig) -> bool:
        """Whether no vote is left that could still count and no alarm is open, so that this state may be dropped."""
        self._forget(turn, settings)
        return not self._flags and self._open_at is None

    def _forget(self, turn: int, settings: AlarmConfig) -> None:
        while self._flags and self._flags[0][0] <= turn - settings.votes_of:
            self._flags.popleft()
        if self._open_at is not None and turn - self._open_at > settings.hold:
            self._open_at = None


def beyond_doubt(verdict: AnomalyVerdict, settings: AlarmConfig) -> bool:
    """The fast path: a sure stage 1 and a metric very far from the profile."""
    farthest = max((abs(d.deviation) for d in verdict.drivers), default=0.0)
    return verdict.score >= settings.fast_score and farthest >= settings.fast_deviation
