"""Profiles learnt while a fleet is being watched: each service's from the first normal hour that it is seen (D3.3 6.1).

Services come at any time, so each has an hour of its own, which begins with its first sample. That it was a normal hour
is the operator's word; nobody can tell from inside. Until it is over, a provisional profile stands in, learnt from what
there is (from a dozen samples on, anew whenever there are twice as many), and before that the model's own profile of
the service, or the fleet-wide one. Whose profile judged is always told (`Basis`).

Rules kept: an hour with gaps counts by what was measured, at least half of it, else it goes on, and begins anew when
four times as long was not enough; profiles are learnt from whole series, container by container, not from shuffled
samples.

Left out: noticing that the hour was not normal, or that a service has changed since (see drift).

    >>> commissioning = Commissioning(wanted_s=3600.0, own=detector.book)
    >>> commissioning.observe(window)
    (Learnt(service='web', measured_s=3600.0, basis=<Basis.OWN: 'own'>),)
    >>> scores = detector.score(window.values, commissioning.book.references(window.services))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from natwork_ray.domain.telemetry import METRICS, N_METRICS, TelemetryWindow
from natwork_ray.domain.values import value
from natwork_ray.errors import UsageError
from natwork_ray.profiling.profile import MIN_SAMPLES, Floats, ProfileBook

MIN_MEASURED = 0.5
PATIENCE = 4


class Basis(StrEnum):
    """Whose profile a service is judged by."""

    OWN = "own"
    PROVISIONAL = "provisional"  # its own, from less than was asked for
    MODEL = "model"  # that of a service of this name which the model was trained on
    FLEET = "fleet"  # cold start: nobody knows the service


@value
class Learnt:
    """A profile that was just learnt, from `measured_s` seconds of samples."""

    service: str
    measured_s: float
    basis: Basis


@dataclass
class _Hour:
    """What a service's commissioning has so far; rows of (12,) per container, one per step since `began_s`."""

    began_s: float
    step_s: float
    rows: dict[str, dict[int, Floats]] = field(default_factory=dict)
    steps: set[int] = field(default_factory=set)
    learnt_from: int = 0

    @property
    def measured(self) -> int:
        """Steps at which any of its containers was measured."""
        return len(self.steps)

    def window(self, service: str) -> TelemetryWindow:
        """Everything so far as one window."""
        length = 1 + max(self.steps)
        values = np.full((len(self.rows), length, N_METRICS), np.nan, dtype=np.float32)
        for number, rows in enumerate(self.rows.values()):
            values[number, list(rows)] = np.array(list(rows.values()), dtype=np.float32)
        return TelemetryWindow(
            containers=tuple(self.rows),
            services=(service,) * len(self.rows),
            end_s=self.began_s + (length - 1) * self.step_s,
            step_s=self.step_s,
            values=values,
        )


class Commissioning:
    """The profiles of the services seen so far.

    Args:
        wanted_s: how long each service's commissioning lasts.
        own: the detector's own book; its profiles and fleet-wide one stand in until a service has its own.
    """

    def __init__(self, *, wanted_s: float, own: ProfileBook) -> None:
        if not wanted_s > 0:
            raise UsageError(f"a commissioning of {wanted_s} s", hint="seconds, more than 0")
        self.wanted_s = wanted_s
        self.book = own
        self._profiles = {each.service: each for each in own.profiles}
        self._modelled = frozenset(self._profiles)
        self._bases: dict[str, Basis] = {}
        self._hours: dict[str, _Hour] = {}
        self._measured_s: dict[str, float] = {}
        self._last_s = -np.inf

    def unprofiled(self, service: str) -> tuple[str, ...]:
        """Metrics of which the profile that judges the service knows nothing, so that they cannot be anomalous."""
        profile = self._profiles.get(service, self.book.fleet)
        return tuple(map(str, METRICS)) if profile is None else profile.unprofiled

    def basis(self, service: str) -> Basis:
        """Whose profile the service is judged by now."""
        return self._bases.get(service, Basis.MODEL if service in self._modelled else Basis.FLEET)

    def measured_s(self, service: str) -> float:
        """Seconds of measured commissioning of a service so far, or from which its profile was learnt."""
        hour = self._hours.get(service)
        return self._measured_s.get(service, 0.0) if hour is None else hour.measured * hour.step_s

    def observe(self, window: TelemetryWindow) -> tuple[Learnt, ...]:
        """Take the samples of a window that are newer than those before; the profiles learnt from them.

        A window may hold samples that were taken before. What is missing altogether is no sample.
        """
        learnt = []
        times = window.end_s - window.step_s * np.arange(window.length - 1, -1, -1)
        for step in np.flatnonzero(times > self._last_s + window.step_s / 2):
            for row in np.flatnonzero(~np.isnan(window.values[:, step]).all(axis=1)):
                self._take(window, int(row), int(step), float(times[step]))
            learnt += [each for service in tuple(self._hours) if (each := self._learn(service, float(times[step])))]
        self._last_s = max(self._last_s, window.end_s)
        # Only what is judged next counts: a profile may have been learnt more than once on the way.
        newest = {each.service: each for each in learnt}
        return tuple(newest.values())

    def _take(self, window: TelemetryWindow, row: int, step: int, at_s: float) -> None:
        service = window.services[row]
        if self._bases.get(service) is Basis.OWN:
            return
        hour = self._hours.setdefault(service, _Hour(at_s, window.step_s))
        place = round((at_s - hour.began_s) / hour.step_s)
        hour.rows.setdefault(window.containers[row], {})[place] = window.values[row, step].copy()
        hour.steps.add(place)

    def _learn(self, service: str, at_s: float) -> Learnt | None:
        hour = self._hours[service]
        wanted = max(1, round(self.wanted_s / hour.step_s))
        passed = round((at_s - hour.began_s) / hour.step_s) + 1
        over = passed >= wanted and hour.measured >= max(MIN_MEASURED * wanted, MIN_SAMPLES)
        if not over and passed > PATIENCE * wanted:
            del self._hours[service]
            return None
        if not over and hour.measured < max(MIN_SAMPLES, 2 * hour.learnt_from):
            return None
        hour.learnt_from = hour.measured
        found = ProfileBook.learn(hour.window(service))
        self.book = self.book.joined(ProfileBook(profiles=found.profiles))
        self._profiles |= {each.service: each for each in found.profiles}
        basis = Basis.OWN if over else Basis.PROVISIONAL
        self._bases[service], self._measured_s[service] = basis, hour.measured * hour.step_s
        if over:
            del self._hours[service]
        return Learnt(service=service, measured_s=self._measured_s[service], basis=basis)
