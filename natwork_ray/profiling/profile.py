"""What is normal for a service: centre and scale of each metric, learnt from one commissioning hour (D3.3 section 6.1).

A detector that was trained on some services meets others in the field, and a CPU at 90 % is an alarm for one service
and Tuesday for the next. So networks never see raw metrics: they see deviations from the service's own profile,

    deviation = clip((log1p(x / unit) - centre) / scale, -CLIP, CLIP)

with the median as centre and the scaled median absolute deviation as scale, both unmoved by a few bad samples. That is
too narrow where a metric rests and sometimes bursts: for latencies and errors, and for any metric whose median
deviation is below the floor, the 5 % and 95 % quantiles may widen it, lest the next ordinary burst look like a
catastrophe. The scale has a floor, because a metric that stood still for an hour would otherwise turn the first flicker
into infinity.

Beside the metrics one by one, a profile says how they move together (`profiling.normality`).

Missing samples (NaN) count as "as usual", deviation 0: they can hide an anomaly, never make one. Three cases are told
apart, none of them silent:

- the newest sample holds nothing that the profile knows: the window is not scored and its container is reported as
  degraded;
- a metric was never measured during commissioning: it is left out of the deviations (there is nothing to deviate from);
- cold start, a service without a profile: the fleet-wide profile (all services pooled, hence wide) stands in and the
  container is reported as degraded. An empty book has no fleet-wide profile either: then nothing is flagged.

    >>> book = ProfileBook.learn(commissioning_window)          # TelemetryWindow of one normal hour
    >>> references = book.references(window.services)          # (N, REFERENCE_WIDTH), for a detector's score
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric, TelemetryWindow
from natwork_ray.domain.values import decode, encode, value
from natwork_ray.errors import InputError
from natwork_ray.profiling.normality import JOINT_LIMIT, JOINT_WIDTH, Alike, learn_joint

Floats = NDArray[np.float32]

# Below its unit a metric is nearly linear, above it logarithmic: kB/s, MB, per cent, ms, requests per second.
UNITS: Floats = np.array([1e3, 1e3, 1e6, 1e6, 0.01, 1e3, 1e3, 1e-3, 1e-3, 1e-3, 1.0, 1.0], dtype=np.float32)
# No service comes near it, and in the smallest unit it is still a float32.
_MOST = np.float32(1e30)
_PER_UNIT = np.float32(1.0) / UNITS
# Smallest scale in log units, about 10 % of the metric: smaller wobbles are not worth an alarm.
SCALE_FLOOR = 0.1
# Deviations beyond this say nothing more, and would swamp a network.
CLIP = 16.0
# Fewer measured samples than this make no profile of a metric (two minutes at the default step).
MIN_SAMPLES = 12
# Scale of a metric that has no profile: every deviation vanishes. Finite, so that it travels through JSON.
UNPROFILED_SCALE = 1e9
# Makes the median absolute deviation of a normal distribution equal to its standard deviation.
_MAD_TO_SD = 1.4826
# Distance of a normal distribution's 95 % quantile from its median, in standard deviations.
_SD_TO_Q95 = 1.645
# What users feel has long tails also in normal operation; what a container consumes has not.
_BURSTING = frozenset({Metric.LATENCY_P50, Metric.LATENCY_P90, Metric.LATENCY_P99, Metric.ERRORS})
FLEET = "*"
_NO_JOINT = tuple(float(x) for x in learn_joint(np.zeros((0, N_METRICS), dtype=np.float32)))
# Width of a reference row: everything that a detector may know of a service's normal hour. Only this module and the
# detectors look inside; everybody else passes rows on as they are.
_CENTRE = slice(0, N_METRICS)
_SCALE = slice(N_METRICS, 2 * N_METRICS)
_JOINT = slice(2 * N_METRICS, 2 * N_METRICS + JOINT_WIDTH)
REFERENCE_WIDTH = _JOINT.stop
# log1p of the largest float32 in the smallest unit stays below 100.
_MAX_CENTRE = 1000.0
_MAX_BOOK_BYTES = 16 * 2**20


@value
class ServiceProfile:
    """Normal operation of one service.

    Attributes:
        service: its name; `*` for the fleet-wide profile.
        samples: measured samples per metric, order of `METRICS`.
        centre: median of log1p(x / unit) per metric.
        scale: robust standard deviation per metric in the same log units, >= `SCALE_FLOOR`; `UNPROFILED_SCALE` where
            fewer than `MIN_SAMPLES` samples were measured.
        joint: how the metrics move together, `JOINT_WIDTH` figures of `profiling.normality`.
    """

    service: str
    samples: tuple[int, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    joint: tuple[float, ...] = _NO_JOINT

    def __post_init__(self) -> None:
        if {len(self.samples), len(self.centre), len(self.scale)} != {N_METRICS}:
            raise InputError(
                f"profile of {self.service!r} does not have {N_METRICS} metrics",
                hint=f"one entry per metric, in this order: {', '.join(METRICS)}",
            )
        if any(s < 0 for s in self.samples) or any(not SCALE_FLOOR <= s <= UNPROFILED_SCALE for s in self.scale):
            raise InputError(
                f"profile of {self.service!r} has a sample count below 0 or a scale outside its range",
                hint=f"scales lie between {SCALE_FLOOR} and {UNPROFILED_SCALE:g}",
            )
        if len(self.joint) != JOINT_WIDTH or any(not abs(j) <= JOINT_LIMIT for j in self.joint):
            raise InputError(
                f"profile of {self.service!r} does not say how its metrics move together",
                hint=f"{JOINT_WIDTH} figures between -{JOINT_LIMIT:g} and {JOINT_LIMIT:g}: learn it anew",
            )

    @property
    def reference(self) -> tuple[float, ...]:
        """The profile as one reference row of `REFERENCE_WIDTH` figures."""
        return (*self.centre, *self.scale, *self.joint)

    @property
    def unprofiled(self) -> tuple[str, ...]:
        """Metrics that were hardly or never measured during commissioning."""
        return tuple(str(m) for m, n in zip(METRICS, self.samples, strict=True) if n < MIN_SAMPLES)


@value
class ProfileBook:
    """The profiles of all services of a fleet. Frozen: learning returns a new book."""

    profiles: tuple[ServiceProfile, ...] = ()
    fleet: ServiceProfile | None = None

    def __post_init__(self) -> None:
        names = [p.service for p in self.profiles]
        if len(set(names)) != len(names):
            raise InputError("profile book holds two profiles of one service", hint="keep the newer one")

    @classmethod
    def learn(cls, window: TelemetryWindow) -> ProfileBook:
        """Learn from normal operation: one window over the commissioning time, containers of one service pooled.

        Raises:
            InputError: infinite or negative samples.
        """
        logs = log_units(window.values)
        services = tuple(dict.fromkeys(window.services))
        profiles = []
        for service in services:
            rows = [i for i, name in enumerate(window.services) if name == service]
            profiles.append(_profile(service, logs[rows].reshape(-1, N_METRICS)))
        fleet = _profile(FLEET, logs.reshape(-1, N_METRICS)) if services else None
        return cls(profiles=tuple(profiles), fleet=fleet)

    @classmethod
    def from_json(cls, data: bytes) -> ProfileBook:
        """Read what `to_json` wrote.

        Raises:
            InputError: anything else.
        """
        if len(data) > _MAX_BOOK_BYTES:
            raise InputError(
                f"profile book of {len(data)} bytes exceeds {_MAX_BOOK_BYTES}", hint="learn it anew from one hour"
            )
        return decode(cls, data)

    def to_json(self) -> bytes:
        """The book as JSON."""
        return encode(self)

    def known(self, services: Sequence[str]) -> NDArray[np.bool_]:
        """(N,) true where the service has a profile of its own."""
        names = {p.service for p in self.profiles}
        return np.array([s in names for s in services], dtype=bool)

    def joined(self, other: ProfileBook) -> ProfileBook:
        """This book with the other's profiles, and fleet-wide profile, taking precedence."""
        merged = {p.service: p for p in (*self.profiles, *other.profiles)}
        return ProfileBook(profiles=tuple(merged.values()), fleet=other.fleet or self.fleet)

    def references(self, services: Sequence[str]) -> Floats:
        """Reference rows (N, REFERENCE_WIDTH) of N services; the fleet-wide profile where a service has none."""
        index = {p.service: i for i, p in enumerate(self.profiles)}
        rows = np.array([index.get(s, len(self.profiles)) for s in services], dtype=np.intp)
        every = (*self.profiles, self.fleet or unprofiled_fleet())
        return np.array([p.reference for p in every], dtype=np.float32)[rows]


def check_samples(values: Floats) -> None:
    """Refuse what no measurement can be.

    Raises:
        InputError: an infinite or negative sample; the message names the place and the metric.
    """
    # One comparison for both: NaN compares false with everything, so missing samples pass.
    bad = (values < 0) | (values == np.inf)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"sample at {place[:-1]} of {METRICS[place[-1]]} is {float(values[place])!r}",
            hint="metrics are finite and not negative; what was not measured is NaN",
        )


def log_units(values: Floats) -> Floats:
    """log1p(x / unit) of samples (..., 12), NaN staying NaN.

    Raises:
        InputError: infinite or negative samples.
    """
    check_samples(values)
    logs = np.minimum(np.asarray(values, dtype=np.float32), _MOST)
    # One rounding error more than log1p near 0 (6e-8), and several times faster.
    logs = np.multiply(logs, _PER_UNIT, out=logs)
    logs += np.float32(1.0)
    return np.asarray(np.log(logs, out=logs))


def unprofiled_fleet() -> ServiceProfile:
    """What stands in where nobody was ever profiled: against it nothing deviates."""
    return ServiceProfile(
        service=FLEET, samples=(0,) * N_METRICS, centre=(0.0,) * N_METRICS, scale=(UNPROFILED_SCALE,) * N_METRICS
    )


def check_references(references: Floats, count: int) -> Alike:
    """Refuse rows that `ProfileBook.references` does not make for `count` windows; says which of them are the same.

    Raises:
        InputError: wrong shape, not finite, or out of range; the message names the row.
    """
    if references.shape != (count, REFERENCE_WIDTH):
        raise InputError(
            f"references have shape {references.shape}",
            hint=f"send one row per window, ({count}, {REFERENCE_WIDTH}), from ProfileBook.references",
        )
    alike = Alike.of(references)
    different = references[alike.first]
    for what, columns, low, high in (
        ("centre", _CENTRE, -_MAX_CENTRE, _MAX_CENTRE),
        ("scale", _SCALE, SCALE_FLOOR, UNPROFILED_SCALE),
        ("joint", _JOINT, -JOINT_LIMIT, JOINT_LIMIT),
    ):
        part = different[:, columns]
        # NaN spreads through both extremes and then compares false.
        if not part.size or (low <= part.min() and part.max() <= high):
            continue
        part = references[:, columns]
        wrong = ~((part >= low) & (part <= high))  # true for NaN as well
        if wrong.any():
            i, k = (int(x) for x in np.argwhere(wrong)[0])
            raise InputError(
                f"reference {i}, {what} {METRICS[k] if k < N_METRICS else k}: {float(part[i, k])!r}",
                hint=f"{what} lies between {low:g} and {high:g}: take rows from ProfileBook.references",
            )
    return alike


def centre_of(references: Floats) -> Floats:
    """(N, 12) of reference rows (N, P)."""
    return references[:, _CENTRE]


def scale_of(references: Floats) -> Floats:
    """(N, 12) of reference rows (N, P)."""
    return references[:, _SCALE]


def joint_of(references: Floats) -> Floats:
    """(N, JOINT_WIDTH) of reference rows (N, P), for `profiling.normality.distances`."""
    return references[:, _JOINT]


def profiled(references: Floats) -> NDArray[np.bool_]:
    """(N, 12) true where the service has a profile of the metric."""
    return np.asarray(references[:, _SCALE] < UNPROFILED_SCALE)


def deviations(values: Floats, references: Floats) -> Floats:
    """Deviations (N, T, 12) of samples (N, T, 12) from reference rows (N, P), NaN staying NaN, clipped to +-CLIP.

    Raises:
        InputError: infinite or negative samples.
    """
    logs = log_units(values)
    centre, scale = references[:, None, _CENTRE], references[:, None, _SCALE]
    return np.asarray(np.clip((logs - centre) / scale, -CLIP, CLIP), dtype=np.float32)


def _profile(service: str, logs: Floats) -> ServiceProfile:
    samples = np.count_nonzero(~np.isnan(logs), axis=0)
    centre = np.zeros(N_METRICS)
    scale = np.full(N_METRICS, UNPROFILED_SCALE)
    for k in np.flatnonzero(samples >= MIN_SAMPLES):
        column = logs[:, k][~np.isnan(logs[:, k])].astype(np.float64)
        centre[k] = np.median(column)
        spread = _MAD_TO_SD * float(np.median(np.abs(column - centre[k])))
        if spread < SCALE_FLOOR or METRICS[k] in _BURSTING:
            low, high = np.quantile(column, [0.05, 0.95])
            spread = max(spread, float(high - centre[k]) / _SD_TO_Q95, float(centre[k] - low) / _SD_TO_Q95)
        scale[k] = max(SCALE_FLOOR, spread)
    apart = np.clip((logs - centre) / scale, -CLIP, CLIP).astype(np.float32)
    measured = apart[~np.isnan(apart).all(axis=1)]
    return ServiceProfile(
        service=service,
        samples=tuple(int(n) for n in samples),
        centre=tuple(float(c) for c in centre),
        scale=tuple(float(s) for s in scale),
        joint=tuple(float(j) for j in learn_joint(measured)),
    )
