"""Unknown (D3.3 section 6.1.1): flagged, and rejected against every known class.

A classifier that knows five anomalies calls a sixth one of the five, or normal. So two tests stand beside it:

- `NoveltyGate` knows normal operation only. How far out does the present lie, in each of thirteen signatures (memory,
  CPU, traffic, latency, and how they move against each other)? The score adds up how rare each is among normal
  samples. It flags what no labelled anomaly resembles.
- `KnownKinds` holds rows of each known anomaly. The distance to the third nearest row of a class, compared with how far
  that class's rows lie from rows of it in *other* recordings, is a conformal p-value. Below `ALPHA` for every class, no
  known anomaly explains the window.

Rules kept:

- Both thresholds are set on recordings that were not learnt from (leave one run of a service out), at stated rates:
  `GATE_RATE` of normal samples flagged, `ALPHA` of a known class's samples rejected by it.
- Distances are measured where spread within a class is the same in all directions (whitened), so that a metric that
  every anomaly shakes does not count like one that none touches. Metrics that never moved in training are left out.
- Spike and step are one class here: a step begins as a spike.

Left out: learning new kinds from what was rejected; that takes a person who names them.

    >>> gate = fit_gate(signatures, groups)
    >>> known = fit_known_kinds(rows, kinds, recordings, seed=7)
    >>> unknown = flagged & known.rejected(approaches(deviating))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric
from natwork_ray.errors import InputError
from natwork_ray.profiling.histories import LATENCIES, TRAFFIC
from natwork_ray.profiling.profile import Floats

# Samples at the end of a history that both tests look at.
RECENT = 3
# Share of normal samples that the gate may flag, on recordings that it was not fitted on.
GATE_RATE = 0.0075
# Share of a known class's samples that may be rejected by it, on recordings that it was not fitted on.
ALPHA = 0.05
N_SIGNATURES = 13

_GATE_CLIP = 12.0
_RSS, _VSIZE, _CPU = (METRICS.index(m) for m in (Metric.MEMORY_RSS, Metric.MEMORY_VSIZE, Metric.CPU))
_RANGE = 24.0  # of a signature: the difference of two clipped deviations
_PER_UNIT = 32.0
BINS = int(2 * _RANGE * _PER_UNIT) + 1
_GROUPS = 10
_NEIGHBOURS = 3
_ROWS_PER_KIND = 500
# Least variance per direction: below it, recordings differ for reasons that have nothing to do with the anomaly.
_LEAST_VARIANCE = 0.03
_STILL = 1e-3
_HINT = "the model file is damaged: train it anew with `natwork train profiler`"


def signatures(recent: Floats) -> Floats:
    """How metrics moved, and moved against each other: (N, 13) from the newest deviations (N, T >= 3, 12).

    Missing samples count as usual. One anomaly shakes many metrics that mean the same (bytes and requests), and some
    anomalies show only in what does not move along: CPU without traffic, memory without use, latency without load.
    """
    usual = np.clip(np.nan_to_num(recent[:, -RECENT:], nan=0.0), -_GATE_CLIP, _GATE_CLIP)
    now, lately = usual[:, -1], usual.mean(axis=1)
    traffic, latency = now[:, TRAFFIC].mean(axis=1), now[:, LATENCIES].mean(axis=1)
    return np.stack(
        [
            now[:, _RSS],
            now[:, _VSIZE],
            now[:, _CPU],
            traffic,
            latency,
            lately[:, _RSS],
            lately[:, _VSIZE],
            lately[:, _CPU],
            lately[:, TRAFFIC].mean(axis=1),
            lately[:, LATENCIES].mean(axis=1),
            now[:, _CPU] - traffic,
            now[:, _VSIZE] - now[:, _RSS],
            latency - traffic,
        ],
        axis=1,
    ).astype(np.float32)


@dataclass(frozen=True, eq=False)
class NoveltyGate:
    """Normal operation, and from where on it is left.

    Attributes:
        rarity: float32 (13, BINS), per signature and bin -log(share of normal samples that lie at least as far out).
        threshold: the score beyond which a window is novel.
    """

    rarity: Floats
    threshold: float

    def scores(self, seen: Floats) -> Floats:
        """How far out of normal signatures (N, 13) lie: the sum of the rarities of all of them."""
        places = _binned(seen) + np.arange(N_SIGNATURES, dtype=np.int32) * BINS
        return np.asarray(self.rarity.reshape(-1)[places].sum(axis=1), dtype=np.float32)

    def novel(self, recent: Floats) -> NDArray[np.bool_]:
        """(N,) true where the newest deviations (N, T >= 3, 12) lie farther out than normal operation does."""
        return np.asarray(self.scores(signatures(recent)) > self.threshold)

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """The arrays by name, for a model file."""
        return {"rarity": self.rarity, "threshold": np.array([self.threshold], dtype=np.float32)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.generic]]) -> NoveltyGate:
        """Read and check what `tensors` gave.

        Raises:
            InputError: anything missing, of another type or shape, not finite or negative.
        """
        rarity, threshold = _floats(tensors, "rarity", 2), _floats(tensors, "threshold", 1)
        if rarity.shape != (N_SIGNATURES, BINS) or threshold.shape != (1,) or (rarity < 0).any():
            raise InputError(f"novelty gate has shape {rarity.shape} or negative figures", hint=_HINT)
        return cls(rarity, float(threshold[0]))


def fit_gate(seen: Floats, groups: NDArray[np.intp]) -> NoveltyGate:
    """Learn the gate from signatures (M, 13) of normal samples.

    The threshold is the score that `GATE_RATE` of them exceed when each group (M,) is scored by a gate that was learnt
    from the others; groups are runs of a service, dealt into at most ten. With one group it is scored by itself.

    Raises:
        InputError: no samples.
    """
    if not len(seen):
        raise InputError("no normal samples to learn from", hint="give runs with a commissioning part")
    dealt = np.unique(groups, return_inverse=True)[1] % _GROUPS
    scores = np.empty(len(seen), dtype=np.float32)
    for group in np.unique(dealt):
        held = dealt == group
        scores[held] = NoveltyGate(_rarity(seen if held.all() else seen[~held]), 0.0).scores(seen[held])
    return NoveltyGate(_rarity(seen), float(np.quantile(scores, 1 - GATE_RATE)))


def approaches(deviating: Floats) -> Floats:
    """(M, 12) where the newest samples of (M, T, 12) stand, and just came from, on a compressed scale.

    The mean of the newest sample and the mean of the last three: one alone is noisy, three alone miss a spike.
    """
    usual = np.nan_to_num(deviating[:, -RECENT:], nan=0.0)
    blended = (usual[:, -1] + usual.mean(axis=1)) / 2
    return np.asarray(np.sign(blended) * np.log1p(np.abs(blended)), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class KnownKinds:
    """Rows of each known anomaly, and how far apart rows of one anomaly are.

    Attributes:
        whitening: float32 (12, 12), into the space where distances are measured.
        rows: float32 (R, 12), known rows in that space.
        kinds: int8 (R,), whose they are; index into `STAGE_2_CLASSES`, spike standing for spike and step.
        usual: float32 (R,), per row its distance to the third nearest row of its kind in other recordings.
    """

    whitening: Floats
    rows: Floats
    kinds: NDArray[np.int8]
    usual: Floats

    @cached_property
    def _by_kind(self) -> tuple[tuple[Floats, Floats], ...]:
        """Per kind its rows, and their usual distances in order."""
        whose = [self.kinds == kind for kind in np.unique(self.kinds)]
        return tuple((self.rows[own], np.sort(self.usual[own])) for own in whose)

    def p_values(self, places: Floats) -> Floats:
        """(M,) the largest conformal p-value that any known kind gives rows (M, 12) of `approaches`."""
        asked = places @ self.whitening
        best = np.zeros(len(asked), dtype=np.float32)
        for rows, usual in self._by_kind:
            distance = _nearest(asked, rows)
            as_far = len(usual) - np.searchsorted(usual, distance, side="left")
            best = np.maximum(best, ((1 + as_far) / (1 + len(usual))).astype(np.float32))
        return best

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """The arrays by name, for a model file."""
        return {"whitening": self.whitening, "rows": self.rows, "kinds": self.kinds, "usual": self.usual}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.generic]]) -> KnownKinds:
        """Read and check what `tensors` gave.

        Raises:
            InputError: anything missing, of another type or shape, or not finite.
        """
        whitening, rows, usual = (_floats(tensors, n, d) for n, d in (("whitening", 2), ("rows", 2), ("usual", 1)))
        kinds = tensors.get("kinds")
        if kinds is None or kinds.dtype != np.int8 or kinds.shape != usual.shape or not len(kinds):
            raise InputError("known kinds are missing or of another type", hint=_HINT)
        if whitening.shape != (N_METRICS, N_METRICS) or rows.shape != (len(kinds), N_METRICS):
            raise InputError(f"known kinds have shapes {whitening.shape} and {rows.shape}", hint=_HINT)
        if len(kinds) > len(STAGE_2_CLASSES) * _ROWS_PER_KIND or (usual < 0).any():
            raise InputError("known kinds hold too many rows or negative distances", hint=_HINT)
        named = kinds.astype(np.int8)
        if ((named < 1) | (named >= len(STAGE_2_CLASSES))).any():
            raise InputError("known kinds name classes that do not exist", hint=_HINT)
        return cls(whitening, rows, named, usual)


def fit_known_kinds(places: Floats, kinds: NDArray[np.int8], recordings: NDArray[np.intp], *, seed: int) -> KnownKinds:
    """Learn the known anomalies from labelled rows.

    Args:
        places: (M, 12), `approaches` of anomalous rows.
        kinds: (M,) index into `STAGE_2_CLASSES`, none of them normal.
        recordings: (M,) which recording a row is from: rows of one recording do not vouch for each other.
        seed: of the choice of at most 500 rows per kind.

    Raises:
        InputError: no rows.
    """
    # Imported late: only training needs it, and it takes a second.
    from sklearn.covariance import LedoitWolf

    if not len(places):
        raise InputError("no labelled anomalies to learn from", hint="give runs with labelled anomalies")
    merged = np.where(kinds == _STEP, _SPIKE, kinds).astype(np.int8)
    moving = places.std(axis=0) > _STILL
    centres = np.stack([places[merged == k].mean(axis=0) for k in merged])
    covariance = LedoitWolf().fit((places - centres)[:, moving]).covariance_
    variance, directions = np.linalg.eigh(covariance)
    whitening = np.zeros((N_METRICS, N_METRICS), dtype=np.float32)
    whitening[np.ix_(moving, np.flatnonzero(moving))] = directions / np.sqrt(variance + _LEAST_VARIANCE)

    rng = np.random.default_rng(seed)
    chosen = np.sort(np.concatenate([_some(np.flatnonzero(merged == k), rng) for k in np.unique(merged)]))
    rows = (places[chosen] @ whitening).astype(np.float32)
    usual = np.empty(len(rows), dtype=np.float32)
    for kind in np.unique(merged):
        own = np.flatnonzero(merged[chosen] == kind)
        of = recordings[chosen][own]
        # A kind recorded once only can be compared with itself alone, which makes its p-values too small.
        apart = of[:, None] != of[None] if len(np.unique(of)) > 1 else ~np.eye(len(of), dtype=bool)
        usual[own] = _nearest(rows[own], rows[own], apart)
    return KnownKinds(whitening, rows, merged[chosen], usual)


_SPIKE = STAGE_2_CLASSES.index(AnomalyKind.TRAFFIC_SPIKE)
_STEP = STAGE_2_CLASSES.index(AnomalyKind.STEP_LOAD)


def _some(rows: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    return rows if len(rows) <= _ROWS_PER_KIND else rng.choice(rows, _ROWS_PER_KIND, replace=False)


def _binned(seen: Floats) -> NDArray[np.int32]:
    """The bin of each signature (N, 13): a thirty-second of a robust standard deviation wide."""
    return np.asarray(np.clip((seen + _RANGE) * _PER_UNIT, 0, BINS - 1), dtype=np.int32)


def _rarity(seen: Floats) -> Floats:
    """(13, BINS) from signatures (M, 13) of normal samples."""
    bins = _binned(seen)
    counts = np.stack([np.bincount(bins[:, k], minlength=BINS) for k in range(N_SIGNATURES)])
    below = np.cumsum(counts, axis=1)
    above = len(seen) - below + counts
    return np.asarray(-np.log((np.minimum(below, above) + 1) / (len(seen) + 1)), dtype=np.float32)


def _nearest(asked: Floats, rows: Floats, allowed: NDArray[np.bool_] | None = None) -> Floats:
    """(M,) distance from each of (M, 12) to its third nearest of (R, 12), or to the farthest where there are fewer."""
    squares = (asked**2).sum(axis=1)[:, None] + (rows**2).sum(axis=1)[None] - 2 * asked @ rows.T
    if allowed is not None:
        squares = np.where(allowed, squares, np.inf)
    last = min(_NEIGHBOURS, squares.shape[1]) - 1
    nearest = np.partition(squares, last, axis=1)[:, : last + 1]
    nearest = np.where(np.isfinite(nearest), nearest, 0.0).max(axis=1)
    return np.asarray(np.sqrt(np.maximum(nearest, 0.0)), dtype=np.float32)


def _floats(tensors: Mapping[str, NDArray[np.generic]], name: str, dimensions: int) -> Floats:
    array = tensors.get(name)
    if array is None or array.dtype != np.float32 or array.ndim != dimensions or not np.isfinite(array).all():
        raise InputError(f"array {name!r} is missing, of another type or not finite", hint=_HINT)
    return np.asarray(array, dtype=np.float32)
