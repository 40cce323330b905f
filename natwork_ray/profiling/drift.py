"""Does what is normal today still fit the profile? A check over hours, not a detector (D3.3 section 6.1).

A profile is what the commissioning hour was. Releases, seasons and customers change a service for good, and then every
verdict rests on the wrong idea of normal. The check looks back over `BLOCKS` blocks of equal length:

- a metric's block is *off* when the median of its deviations is `OFF` robust standard deviations or more away from the
  profile, all in the same direction, and its population stability index against the commissioning hour is above `PSI`;
- a service *has drifted* when a metric is off in `NEEDED` of the blocks. Medians over hours: an attack of minutes, or
  an incident of one block, is no drift;
- it *has come back* when no metric has more than `KEPT` blocks off by the smaller distance `BACK` (hysteresis).

What follows is never automatic. A drifted profile is reported, and its verdicts are to be read with care; learning anew
is a person's order (`natwork profile relearn`), because whoever stays long enough would otherwise become normal.

The population stability index is sum((p - q) * ln(p / q)) over ten bins of deviations, p now and q in the commissioning
hour, with half a sample added to each bin so that an empty one does not decide. Readings above 0.25 are called a plain
change in credit scoring, where the measure comes from; it says little by itself with few samples, hence the medians.

    >>> check = DriftCheck.learn(hour, book)
    >>> check.drifts(recent, drifted_before=frozenset())
    ()
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.profiles import MetricDrift, NormalRange, ProfileDrift, ProfileSummary
from natwork_ray.domain.telemetry import METRICS, N_METRICS, TelemetryWindow
from natwork_ray.domain.values import encode
from natwork_ray.errors import InputError
from natwork_ray.profiling.profile import MIN_SAMPLES, UNITS, Floats, ProfileBook, deviations

BLOCKS = 4
NEEDED = 3
KEPT = 1
OFF = 2.0
BACK = 1.0
PSI = 0.25
OUTSIDE = 3.0
MIN_BLOCK = 30  # samples; five minutes at the default step
_EDGES = np.array([-4.0, -2.5, -1.5, -0.75, 0.0, 0.75, 1.5, 2.5, 4.0])


@dataclass(frozen=True, eq=False)
class DriftCheck:
    """What the commissioning time looked like, to compare with. Frozen; `learn` makes it."""

    book: ProfileBook
    services: tuple[str, ...]
    shares: NDArray[np.float64]  # (S, 12, 10) share of each bin, smoothed; NaN where a metric is not profiled

    @classmethod
    def learn(cls, window: TelemetryWindow, book: ProfileBook) -> DriftCheck:
        """Remember how the deviations of a commissioning window were spread around the profiles learnt from it.

        Raises:
            InputError: infinite or negative samples.
        """
        away = deviations(window.values, book.references(window.services))
        services = tuple(dict.fromkeys(window.services))
        shares = np.full((len(services), N_METRICS, len(_EDGES) + 1), np.nan)
        for i, service in enumerate(services):
            pooled = away[[name == service for name in window.services]].reshape(-1, N_METRICS)
            for k in range(N_METRICS):
                column = pooled[~np.isnan(pooled[:, k]), k]
                if len(column) >= MIN_SAMPLES:
                    shares[i, k] = _shares(column)
        return cls(book, services, shares)

    def with_book(self, window: TelemetryWindow, book: ProfileBook) -> DriftCheck:
        """The same with what `window` teaches of its services, whose profiles in `book` were learnt anew."""
        fresh = DriftCheck.learn(window, book)
        kept = [i for i, name in enumerate(self.services) if name not in fresh.services]
        return DriftCheck(
            book,
            (*(self.services[i] for i in kept), *fresh.services),
            np.concatenate([self.shares[kept], fresh.shares]),
        )

    def drifts(self, recent: TelemetryWindow, *, drifted_before: Set[str]) -> tuple[ProfileDrift, ...]:
        """Services whose profile no longer holds.

        Args:
            recent: hours of operation; what is left over from four blocks of equal length is left out at its start.
            drifted_before: services that had drifted at the last check, for the hysteresis.

        Raises:
            InputError: less than `BLOCKS * MIN_BLOCK` samples, or infinite or negative ones.
        """
        length = recent.length // BLOCKS
        if length < MIN_BLOCK:
            raise InputError(
                f"{recent.length} samples are too few to see a drift", hint=f"give at least {BLOCKS * MIN_BLOCK}"
            )
        away = deviations(recent.values, self.book.references(recent.services))[:, -BLOCKS * length :]
        found = []
        for i, service in enumerate(self.services):
            rows = [name == service for name in recent.services]
            if not any(rows):
                continue
            metrics = tuple(
                sorted(
                    self._metrics(i, away[rows], length, before=service in drifted_before),
                    key=lambda m: -abs(m.shift),
                )
            )
            if metrics:
                found.append(ProfileDrift(service=service, at_s=recent.end_s, metrics=metrics))
        return tuple(found)

    def _metrics(self, i: int, away: Floats, length: int, *, before: bool) -> Iterator[MetricDrift]:
        for k in range(N_METRICS):
            if np.isnan(self.shares[i, k]).any():
                continue
            blocks = [_measured(away[:, b * length : (b + 1) * length, k]) for b in range(BLOCKS)]
            judged = [block for block in blocks if len(block) >= MIN_BLOCK / 2]
            needed, distance = (KEPT + 1, BACK) if before else (NEEDED, OFF)
            medians = np.array([float(np.median(block)) for block in judged])
            off = max(int((medians >= distance).sum()), int((medians <= -distance).sum()))
            if off < needed:
                continue
            column = np.concatenate(judged)
            psi = _psi(_shares(column), self.shares[i, k])
            if psi > PSI:
                yield MetricDrift(
                    metric=str(METRICS[k]),
                    shift=round(float(np.median(column)), 3),
                    outside=round(float((np.abs(column) > OUTSIDE).mean()), 4),
                    psi=round(psi, 3),
                )


def summaries(book: ProfileBook, *, from_s: float, to_s: float) -> tuple[ProfileSummary, ...]:
    """The profiles of a book in SI units, as learnt from one stretch of time."""
    found = []
    for profile in book.profiles:
        known = np.asarray(profile.samples) >= MIN_SAMPLES
        middle, scale = (np.where(known, figures, 0.0) for figures in (profile.centre, profile.scale))
        low, centre, high = (np.expm1(middle + d * scale) * UNITS for d in (-OUTSIDE, 0, OUTSIDE))
        found.append(
            ProfileSummary(
                service=profile.service,
                from_s=from_s,
                to_s=to_s,
                digest=hashlib.sha256(encode(profile)).hexdigest(),
                ranges=tuple(
                    NormalRange(
                        metric=str(metric),
                        low=max(float(low[k]), 0.0),
                        centre=float(centre[k]),
                        high=float(high[k]),
                        samples=profile.samples[k],
                    )
                    for k, metric in enumerate(METRICS)
                    if known[k]
                ),
                unprofiled=profile.unprofiled,
            )
        )
    return tuple(found)


def _measured(block: Floats) -> Floats:
    flat = block.reshape(-1)
    return np.asarray(flat[~np.isnan(flat)])


def _shares(column: Floats) -> NDArray[np.float64]:
    counts = np.bincount(np.searchsorted(_EDGES, column), minlength=len(_EDGES) + 1) + 0.5
    return np.asarray(counts / counts.sum())


def _psi(now: NDArray[np.float64], then: NDArray[np.float64]) -> float:
    return float(((now - then) * np.log(now / then)).sum())
