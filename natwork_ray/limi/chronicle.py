"""The times of a migration as its events tell them: phases, downtime, total; and the record made of them.

Downtime is the approximate one of D3.3: from handing out the freeze until the address has moved to the restored
container (or until it is back on the revived one), orchestration between the steps included. After a failed post-copy
the time from the decision to go back until the container runs again is added. The short freezes that pre-dumps make are
not in it. A step that was held (`Hold`) begins when it is released; the time before is a phase of its own, and no
downtime if the container was serving meanwhile, as before a freeze. The total ends when the container runs whole in one
place: with lazy pages when the last one has arrived; settling and cleaning come after it and are phases of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from natwork_ray.domain.migrations import MigrationRecord, MigrationState
from natwork_ray.domain.phases import Phase
from natwork_ray.limi.steps import MigrationStarted, StepReport, Verb

MAX_TEXT = 2000  # of error and hint: an error of CRIU's may quote its whole log
SHORTEST_HOLD_S = 0.001  # less is what asking costs


def hold_name(verb: Verb) -> str:
    """The phase in which a step was held."""
    return f"hold before {verb.value}"


@dataclass
class Chronicle:
    """What `Migration` notes down as it goes."""

    started: MigrationStarted
    phases: list[Phase] = field(default_factory=list)
    rounds: int = 0
    point_of_no_return_at_s: float | None = None
    whole_at_s: float | None = None
    downtime_s: float = 0.0
    errors: list[str] = field(default_factory=list)
    hint: str = ""
    lost_s: float | None = None
    _down_since_s: float | None = None

    def ended(self, verb: Verb, *, began_s: float, at_s: float, report: StepReport | None) -> None:
        """A step ended, well (`report`) or otherwise."""
        sizes = report or StepReport()
        self.phases.append(
            Phase(
                name=verb.value,
                starts_s=max(0.0, began_s - self.started.at_s),
                duration_s=max(0.0, at_s - began_s),
                size_bytes=max(sizes.size_bytes, 0.0),
                transferred_bytes=max(sizes.sent_bytes, 0.0),
            )
        )

    def held(self, verb: Verb, *, since_s: float, at_s: float) -> None:
        """A step was held before it began: a phase of its own, if it was worth the name."""
        if at_s - since_s >= SHORTEST_HOLD_S:
            starts_s = max(0.0, since_s - self.started.at_s)
            self.phases.append(Phase(name=hold_name(verb), starts_s=starts_s, duration_s=at_s - since_s))

    def down(self, at_s: float) -> None:
        """Nobody is served from now on; harmless when that is so already."""
        if self._down_since_s is None:
            self._down_since_s = at_s

    def up(self, at_s: float) -> None:
        """Users are served again."""
        if self._down_since_s is not None:
            self.downtime_s += max(0.0, at_s - self._down_since_s)
            self._down_since_s = None

    def never_down(self) -> None:
        """What was taken for an interruption was none."""
        self._down_since_s = None

    def lost(self, at_s: float) -> None:
        """It was ended on the target: what it did there since the point of no return, if that was passed, is gone."""
        if self.point_of_no_return_at_s is not None:
            self.lost_s = max(0.0, at_s - self.point_of_no_return_at_s)
            self.blame(f"what the container did on {self.started.target} for {self.lost_s:.3f} s is lost")

    def blame(self, error: str, hint: str = "") -> None:
        """Something went wrong, or has to be known by who reads the record. The first hint is kept."""
        self.errors.append(error)
        self.hint = self.hint or hint

    def record(self, state: MigrationState, *, runs_on: str) -> MigrationRecord:
        """The record of a migration that is over."""
        start = self.started
        back = self.point_of_no_return_at_s
        return MigrationRecord(
            key=start.key,
            container=start.container,
            source=start.source,
            target=start.target,
            method=start.method,
            backend=start.backend,
            state=state,
            started_at_s=start.at_s,
            total_s=max(0.0, (start.at_s if self.whole_at_s is None else self.whole_at_s) - start.at_s),
            downtime_s=self.downtime_s,
            runs_on=runs_on,
            phases=tuple(sorted(self.phases, key=lambda phase: phase.starts_s)),
            pre_copy_rounds=self.rounds,
            point_of_no_return_s=None if back is None else max(0.0, back - start.at_s),
            lost_s=self.lost_s,
            load=start.load,
            forecast=start.forecast,
            chosen_by=start.chosen_by,
            error="; ".join(self.errors)[:MAX_TEXT],
            hint=self.hint[:MAX_TEXT],
        )
