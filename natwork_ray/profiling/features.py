"""What stage 1 of the default detector sees of a window: 189 numbers, for trees.

Of each metric: how far its newest sample is from the service's profile, and how the last samples run (mean, extremes,
spread, change) over the whole window and over its last four samples. Of all metrics together: how far the newest
sample, and the mean of the last ones, are from any normal state of the service (`profiling.normality`). Besides, where
the metric itself stands, without any profile: a service that the model knows has habits beyond its profile.

Rules kept:

- Causal, and the same for one window as for many: features of a window depend on nothing else.
- Missing samples count as usual; how many of a service's profiled metrics are missing is a feature of its own.
- Metrics that have no profile do not deviate.

    >>> observed = observe(window.values[:, -10:], book.references(window.services))
    >>> inputs(observed).shape
    (N, 189)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from natwork_ray.domain.telemetry import METRICS, N_METRICS
from natwork_ray.profiling.normality import SATURATION, Alike, distances
from natwork_ray.profiling.profile import CLIP, Floats, centre_of, joint_of, log_units, profiled, scale_of

# Samples of the shorter span.
SHORT = 4
_RUN = ("mean", "min", "max", "std", "change", "off_mean")
_STATES = ("newest", "short_mean", "long_mean")
_MISSING = ("newest", "short", "long")

FEATURES: tuple[str, ...] = (
    *(f"{part}.{metric}" for part in ("log", "log_mean", "dev") for metric in METRICS),
    *(f"dev_{span}_{part}.{metric}" for span in ("long", "short") for part in _RUN for metric in METRICS),
    *(f"missing.{part}" for part in _MISSING),
    *(f"{kind}.{state}" for state in _STATES for kind in ("mahalanobis", "nearest")),
)
# Which metric a feature is about, (F,); -1 for those about all together.
METRIC_OF = np.array(
    [METRICS.index(name.partition(".")[2]) if name.partition(".")[2] in set(METRICS) else -1 for name in FEATURES],
    dtype=np.intp,
)


@dataclass(frozen=True, eq=False)
class Observed:
    """N windows of T samples against their profiles; sample by sample, so that statistics run along the first axis.

    Attributes:
        logs: float32 (T, N, 12), log1p(x / unit), as usual where missing.
        deviating: float32 (T, N, 12), deviations from the profile, 0 where missing.
        missing: bool (T, N, 12), true where a metric was not measured; None where nothing is missing.
        references: (N, P).
        alike: which of these are the same; None where nobody looked.
    """

    logs: Floats
    deviating: Floats
    missing: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None
    references: Floats
    alike: Alike | None = None

    @property
    def newest(self) -> Floats:
        """Deviations (N, 12) of the newest sample, NaN where missing."""
        if self.missing is None:
            return np.asarray(self.deviating[-1])
        return np.where(self.missing[-1], np.float32(np.nan), self.deviating[-1])

    @cached_property
    def inputs(self) -> Floats:
        """`inputs` of these windows, made once: probabilities and contributions are both about them."""
        return inputs(self)

    def of(self, rows: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Observed:
        """The windows that `rows`, bool (N,), names."""
        missing = None if self.missing is None else self.missing[:, rows]
        part = Observed(self.logs[:, rows], self.deviating[:, rows], missing, self.references[rows])
        if "inputs" in self.__dict__:
            part.__dict__["inputs"] = self.inputs[rows]
        return part

    def deviations(self) -> Floats:
        """(N, T, 12), 0 where missing."""
        return np.ascontiguousarray(self.deviating.transpose(1, 0, 2))


def observe(values: Floats, references: Floats, alike: Alike | None = None) -> Observed:
    """Samples (N, T, 12) in SI units, NaN where missing, against reference rows (N, P), of which some are `alike`.

    Raises:
        InputError: infinite or negative samples.
    """
    logs = log_units(np.ascontiguousarray(values.transpose(1, 0, 2)))
    missing = np.isnan(logs)
    centre, scale = centre_of(references), scale_of(references)
    anything_missing = bool(missing.any())
    if anything_missing:
        np.copyto(logs, centre, where=missing)
    deviating = logs - centre
    deviating /= scale
    np.clip(deviating, -CLIP, CLIP, out=deviating)
    return Observed(logs, deviating, missing if anything_missing else None, references, alike)


def inputs(observed: Observed) -> Floats:
    """Features float32 (N, F) in the order of `FEATURES`, finite."""
    logs, deviating = observed.logs, observed.deviating
    count = deviating.shape[1]
    out = np.empty((count, len(FEATURES)), dtype=np.float32)
    place = 0

    def put(block: Floats) -> None:
        nonlocal place
        out[:, place : place + block.shape[1]] = block
        place += block.shape[1]

    put(logs[-1])
    put(_mean(logs))
    put(deviating[-1])
    means = []
    for span in (deviating, deviating[-SHORT:]):
        mean = _mean(span)
        apart = span - mean
        put(mean)
        put(np.minimum.reduce(span))
        put(np.maximum.reduce(span))
        put(np.sqrt(np.einsum("tnk,tnk->nk", apart, apart) / len(span)))
        put(span[-1] - span[0])
        put(span[-1] - mean)
        means.append(mean)
    put(_missing(observed))
    states = np.stack([deviating[-1], means[1], means[0]], axis=1)
    np.clip(states, -SATURATION, SATURATION, out=states)
    put(distances(states, joint_of(observed.references), observed.alike).reshape(count, 2 * len(_STATES)))
    return out


def _mean(span: Floats) -> Floats:
    # np.mean over the first axis, without what it costs to be general.
    return np.asarray(np.add.reduce(span) * np.float32(1.0 / len(span)))


def _missing(observed: Observed) -> Floats:
    """(N, 3): share of the profiled metrics that is missing in the newest sample, the last four, and the window."""
    count = observed.deviating.shape[1]
    if observed.missing is None:
        return np.zeros((count, len(_MISSING)), dtype=np.float32)
    expected = profiled(observed.references)
    # Twelve at most, so bytes hold the count.
    silent = (observed.missing & expected).view(np.uint8) @ np.ones(N_METRICS, dtype=np.uint8)
    share = silent / np.maximum(expected.sum(axis=1), 1)
    return np.stack([share[-1], share[-SHORT:].mean(axis=0), share.mean(axis=0)], axis=1).astype(np.float32)
