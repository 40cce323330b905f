"""What is taken for a service's normal operation, where it was learnt, and whether it still holds."""

from __future__ import annotations

from natwork_ray.domain.values import value
from natwork_ray.errors import InputError


@value
class NormalRange:
    """One metric of a profile in SI units: the middle, and the edges three robust standard deviations away."""

    metric: str
    low: float
    centre: float
    high: float
    samples: int


@value
class ProfileSummary:
    """A service's profile in a form for people and for the audit log.

    Attributes:
        from_s, to_s: the time that it was learnt from (the first excluded), on the backend's clock.
        digest: SHA-256 (hex) of the profile itself; equal digests, equal profiles.
        ranges: the metrics that were measured often enough.
        unprofiled: those that were not: no deviation of them will be seen.
    """

    service: str
    from_s: float
    to_s: float
    digest: str
    ranges: tuple[NormalRange, ...]
    unprofiled: tuple[str, ...] = ()


@value
class MetricDrift:
    """One metric that left its profile for hours.

    Attributes:
        shift: median deviation from the profile over the time looked at, robust standard deviations, signed.
        outside: share of its samples beyond three of them, 0 to 1.
        psi: population stability index of its deviations against the commissioning time; above 0.25 is a plain change.
    """

    metric: str
    shift: float
    outside: float
    psi: float


@value
class ProfileDrift:
    """A service whose normal operation no longer fits its profile; the metric that moved most comes first."""

    service: str
    at_s: float
    metrics: tuple[MetricDrift, ...]


@value
class Relearning:
    """A person's order to learn a service's profile anew from one stretch of time."""

    service: str
    from_s: float
    to_s: float
    by: str
    note: str = ""
    forced: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.from_s < self.to_s:
            raise InputError(
                f"profile of {self.service} from {self.from_s} to {self.to_s} s", hint="a stretch of time in the past"
            )


@value
class ProfilesInUse:
    """The profiles of one run, what has drifted, and what is to be learnt anew.

    A service without a summary here has none of its own (cold start): the fleet-wide profile stands in for it.
    """

    profiles: tuple[ProfileSummary, ...] = ()
    drifts: tuple[ProfileDrift, ...] = ()
    relearning: tuple[Relearning, ...] = ()
