"""When the next step may be taken for a container: cool-downs, what still takes effect, and what was tried before.

Nothing is decided twice for what one decision treats; nothing begins while what was done before still takes effect.
"""

from __future__ import annotations

import math

from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.decisions import MitigationKind

WATCH_S = 60.0  # who is only watched is looked at again so soon
TRIED_S = 1800.0  # how long a mitigation that did not last counts against itself


class Pacing:
    """The clocks of all containers."""

    def __init__(self) -> None:
        self._quiet_until_s: dict[tuple[str, AnomalyKind | None], float] = {}
        self._changing_until_s: dict[str, float] = {}
        self._taking_effect: dict[str, float] = {}
        self._tried: dict[tuple[str, AnomalyKind], dict[MitigationKind, float]] = {}

    def forget(self) -> None:
        """A new run: what was seen in the one before says nothing about it."""
        self._quiet_until_s.clear()
        self._changing_until_s.clear()
        self._taking_effect.clear()
        self._tried.clear()

    def decided(self, name: str, kind: AnomalyKind | None, at_s: float, *, quiet_s: float) -> None:
        """A decision was taken: none of its kind for the container before `quiet_s` have passed."""
        self._quiet_until_s[name, kind] = at_s + quiet_s

    def reported(
        self, name: str, kind: AnomalyKind | None, finished_s: float, *, cooldown_s: float, changes: bool
    ) -> None:
        """An instruction has its outcome; `changes` says whether the container itself was touched."""
        if changes:
            self._changing_until_s[name] = max(self._changing_until_s.get(name, 0.0), finished_s)
        quiet_s = finished_s + cooldown_s
        self._quiet_until_s[name, kind] = max(self._quiet_until_s.get((name, kind), 0.0), quiet_s)

    def takes_effect(self, key: str, until_s: float) -> None:
        """What the instruction of that key claims stays claimed until then."""
        self._taking_effect[key] = until_s

    def took_effect(self, at_s: float) -> tuple[str, ...]:
        """Keys whose effect has come by now; each is told once."""
        done = tuple(k for k, finished_s in self._taking_effect.items() if finished_s <= at_s)
        for key in done:
            del self._taking_effect[key]
        return done

    def settled(self, name: str, at_s: float) -> bool:
        """Whether what was done at the container has taken effect, so that something new may be carried out."""
        return at_s >= self._changing_until_s.get(name, 0.0)

    def at_rest(self, name: str, at_s: float) -> bool:
        """As `settled`, and a sample of the time after it can have been taken."""
        return at_s > self._changing_until_s.get(name, -1.0)

    def changing_until_s(self, name: str, at_s: float) -> float | None:
        """When what was done before has taken effect; None when it has."""
        until_s = self._changing_until_s.get(name, -math.inf)
        return until_s if at_s < until_s else None

    def cooled_down(self, name: str, kind: AnomalyKind | None, at_s: float) -> bool:
        """Whether the container's cool-down for this kind is over."""
        return at_s >= self._quiet_until_s.get((name, kind), 0.0)

    def tried(self, name: str, kind: AnomalyKind | None, mitigation: MitigationKind, at_s: float) -> None:
        """A mitigation was carried out; without a kind there is nothing that it could have failed to mend."""
        if kind is not None:
            self._tried.setdefault((name, kind), {})[mitigation] = at_s

    def tried_lately(self, name: str, kind: AnomalyKind, at_s: float) -> frozenset[MitigationKind]:
        """What was done for this kind a short while ago."""
        done = self._tried.get((name, kind), {})
        return frozenset(m for m, when in done.items() if when >= at_s - TRIED_S)
