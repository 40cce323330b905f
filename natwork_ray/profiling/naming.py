"""Stage 2 of the detector `best`: which anomaly is it, or is it Unknown (D3.3 section 6.1.1)?

What stage 1 flagged, and what left normal operation without resembling anything labelled (`unknown.NoveltyGate`), is
looked at over four minutes of history (`histories`). A forest of extremely randomised trees names it; where every known
anomaly rejects it (`unknown.KnownKinds`), it is Unknown whatever the forest says.

Training follows the mix that Table 3 is measured on: all anomalous rows, and normal rows in the ratio 1173 to 300. One
draw of so few normal rows is a matter of luck, so thirty are made by seed and each grows its own share of the trees.
Normal rows within three samples of a labelled anomaly are not drawn: labels are set by hand, and those rows belong to
either side.

Rules kept:

- A spike is named as such until it has lasted: then the same episode is called a step. Where the forest is undecided
  between the two it leans to "spike" (`_SPIKE_ODDS`), since both begin alike and few training rows are spikes.
- The tests for Unknown must be as wide as normal hours wander. Recordings show how far; an emulated service is the same
  every day, so its rows are moved at random first (`EMULATED_DRIFT`). The forest is not: it loses by it.
- Rows labelled anomalous of unlabelled type are no examples of anything, and neither is what an emulation calls
  Unknown when it comes to rejecting: otherwise it would make an attack of its kind known.

    >>> namer = fit_namer(runs, by_profile(book), seed=7)
    >>> novel = namer.novel(deviating)                    # every window: cheap
    >>> kinds, confidence = namer.name(deviating[candidates])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.errors import InputError
from natwork_ray.profiling.forest import Forest, fit_forest, joined
from natwork_ray.profiling.histories import HISTORY, features
from natwork_ray.profiling.profile import Floats
from natwork_ray.profiling.unknown import (
    ALPHA,
    RECENT,
    KnownKinds,
    NoveltyGate,
    approaches,
    fit_gate,
    fit_known_kinds,
    signatures,
)
from natwork_ray.profiling.windows import Normaliser

# Normal rows per anomalous row: the mix of Table 3, measured again.
NORMAL_SHARE = 300 / 1173
# Robust standard deviations by which real services are taken to wander where an emulation shows nothing: with one, two
# (what `profiling.drift` calls drifted) are rare and less is usual.
EMULATED_DRIFT = 1.0
_DRAWS = 30
_TREES_PER_DRAW = 6
_NEAR = 3
_SPIKE_ODDS = 1.5
# Enough for trees and distances; an emulation labels far more, and neighbouring rows are alike.
_ROWS_PER_KIND = 2000
_MAX_LEAVES = 64
_NORMAL = STAGE_2_CLASSES.index(AnomalyKind.FALSE_POSITIVE)
_SPIKE = STAGE_2_CLASSES.index(AnomalyKind.TRAFFIC_SPIKE)
_UNKNOWN = STAGE_2_CLASSES.index(AnomalyKind.UNKNOWN)


@dataclass(frozen=True, eq=False)
class Namer:
    """A trained stage 2. Deviations come with each call; nothing is remembered."""

    forest: Forest
    gate: NoveltyGate
    known: KnownKinds

    @property
    def history(self) -> int:
        """Samples of history wanted; of fewer, the first is repeated."""
        return HISTORY

    def novel(self, recent: Floats) -> NDArray[np.bool_]:
        """(N,) true where the newest deviations (N, T >= 3, 12) left normal operation, labelled or not."""
        return self.gate.novel(recent)

    def name(self, deviating: Floats) -> tuple[NDArray[np.int8], Floats]:
        """Kinds and confidence (M,) of candidates with deviations (M, T, 12), newest last, NaN where missing.

        Unknown where every known anomaly rejects the row; its confidence is 1 - the largest p-value. Ask about flagged
        or novel rows only: normal operation resembles no known anomaly either.
        """
        shares = self.shares(deviating)
        kinds = shares.argmax(axis=1).astype(np.int8)
        p = self.known.p_values(approaches(deviating))
        rejected = p < ALPHA
        confidence = np.where(rejected, 1 - p, shares.max(axis=1, initial=0.0))
        return np.where(rejected, np.int8(_UNKNOWN), kinds), confidence.astype(np.float32)

    def shares(self, deviating: Floats) -> Floats:
        """What the forest alone says: shares (M, 7) of `STAGE_2_CLASSES`, nothing rejected. Table 3 is about this."""
        shares = self.forest.shares(features(deviating))
        shares[:, _SPIKE] *= _SPIKE_ODDS
        return np.asarray(shares / shares.sum(axis=1, keepdims=True), dtype=np.float32)

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """All arrays by name, for a model file; `from_tensors` reads them back."""
        parts = {"forest": self.forest.tensors(), "gate": self.gate.tensors(), "known": self.known.tensors()}
        return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.generic]]) -> Namer:
        """Read and check what `tensors` gave.

        Raises:
            InputError: anything missing, odd or of other features or classes.
        """
        forest = Forest.from_tensors(_part(tensors, "forest"))
        wanted = features(np.zeros((1, HISTORY, 12), dtype=np.float32)).shape[1]
        if forest.n_features != wanted or forest.votes.shape[1] != len(STAGE_2_CLASSES):
            raise InputError(
                f"stage 2 was made for {forest.n_features} features and {forest.votes.shape[1]} classes",
                hint="train it anew with `natwork train profiler`",
            )
        return cls(
            forest, NoveltyGate.from_tensors(_part(tensors, "gate")), KnownKinds.from_tensors(_part(tensors, "known"))
        )


def fit_namer(runs: Sequence[LabelledRun], normalise: Normaliser, *, seed: int, drift: float = 0.0) -> Namer:
    """Train stage 2 on labelled runs; the same runs and seed give the same namer.

    Args:
        runs: recordings. To hold a kind out, label its rows -1: then they are neither normal nor an example.
        normalise: deviations (T, 12) of a run's samples, as `windows.by_profile` gives them.
        seed: of the draws, the trees, and the choice of rows where there are very many.
        drift: robust standard deviations by which a service's metrics wander from one day to the next beyond what the
            runs show. The gate and the rejection, not the forest, are fitted on rows that wandered so.

    Raises:
        InputError: no normal rows, or fewer than two kinds of rows.
    """
    rng = np.random.default_rng(seed)
    rows = _Rows.of(runs, normalise)
    anomalous = np.concatenate(
        [_at_most(np.flatnonzero(rows.kinds == kind), rng) for kind in range(1, len(STAGE_2_CLASSES))]
    )
    normal = np.flatnonzero((rows.kinds == _NORMAL) & ~rows.near)
    if not len(anomalous) or not len(normal):
        raise InputError(
            f"{len(anomalous)} rows of labelled type and {len(normal)} normal rows to learn from",
            hint="give labelled runs that hold both",
        )
    draws = [_draw(normal, round(NORMAL_SHARE * len(anomalous)), rng) for _ in range(_DRAWS)]
    chosen = np.unique(np.concatenate([anomalous, *draws]))
    seen = features(rows.histories(chosen))
    forests = []
    for number, draw in enumerate(draws):
        of_draw = np.searchsorted(chosen, np.concatenate([anomalous, draw]))
        forests.append(
            fit_forest(
                seen[of_draw],
                rows.kinds[chosen[of_draw]],
                classes=len(STAGE_2_CLASSES),
                trees=_TREES_PER_DRAW,
                seed=seed + number,
                max_leaves=_MAX_LEAVES,
            )
        )
    wander = np.random.default_rng([seed, 1])
    nameable = anomalous[rows.kinds[anomalous] != _UNKNOWN]
    met = approaches(_wandered(rows.recent(nameable), drift, wander))
    known = fit_known_kinds(met, rows.kinds[nameable], rows.unit[nameable], seed=seed)
    every_normal = np.flatnonzero(rows.kinds == _NORMAL)
    gate = fit_gate(signatures(_wandered(rows.recent(every_normal), drift, wander)), rows.group[every_normal])
    return Namer(joined(forests), gate, known)


@dataclass(frozen=True, eq=False)
class _Rows:
    """All rows of some runs: deviations, labels and whereabouts. Histories are cut only for rows that are asked for."""

    padded: Floats
    place: NDArray[np.intp]
    kinds: NDArray[np.int8]
    near: NDArray[np.bool_]
    unit: NDArray[np.intp]
    group: NDArray[np.intp]

    @classmethod
    def of(cls, runs: Sequence[LabelledRun], normalise: Normaliser) -> _Rows:
        recorded = [run for run in runs if len(run.kinds)]
        if not recorded:
            raise InputError(f"{len(runs)} runs without a sample", hint="give runs that hold samples")
        groups = {key: i for i, key in enumerate(dict.fromkeys((run.service, run.run) for run in recorded))}
        parts, places, begins = [], [], 0
        for run in recorded:
            deviating = normalise(run)
            parts.append(np.concatenate([np.repeat(deviating[:1], HISTORY - 1, axis=0), deviating]))
            places.append(np.arange(len(deviating)) + begins + HISTORY - 1)
            begins += len(parts[-1])
        lengths = [len(run.kinds) for run in recorded]
        return cls(
            padded=np.concatenate(parts),
            place=np.concatenate(places),
            kinds=np.concatenate([run.kinds for run in recorded]),
            near=np.concatenate([_near(run.anomalous) for run in recorded]),
            unit=np.repeat(np.arange(len(recorded)), lengths),
            group=np.repeat([groups[run.service, run.run] for run in recorded], lengths),
        )

    def histories(self, rows: NDArray[np.intp]) -> Floats:
        return self._cut(rows, HISTORY)

    def recent(self, rows: NDArray[np.intp]) -> Floats:
        return self._cut(rows, RECENT)

    def _cut(self, rows: NDArray[np.intp], length: int) -> Floats:
        return np.asarray(self.padded[self.place[rows][:, None] + np.arange(1 - length, 1)])


def _wandered(recent: Floats, drift: float, rng: np.random.Generator) -> Floats:
    """Deviations (M, T, 12) as they would be on M other days: each metric elsewhere, all samples of a row alike."""
    if not drift:
        return recent
    return recent + rng.normal(0.0, drift, (len(recent), 1, recent.shape[2])).astype(np.float32)


def _near(anomalous: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(T,) true for normal samples within three of an anomalous one."""
    spread = np.convolve(anomalous, np.ones(2 * _NEAR + 1), mode="full")[_NEAR : len(anomalous) + _NEAR]
    return np.asarray((spread > 0) & ~anomalous)


def _draw(rows: NDArray[np.intp], wanted: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return rng.choice(rows, min(wanted, len(rows)), replace=False) if wanted else rows[:1]


def _at_most(rows: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    return rows if len(rows) <= _ROWS_PER_KIND else rng.choice(rows, _ROWS_PER_KIND, replace=False)


def _part(tensors: Mapping[str, NDArray[np.generic]], part: str) -> dict[str, NDArray[np.generic]]:
    return {name.removeprefix(f"{part}."): array for name, array in tensors.items() if name.startswith(f"{part}.")}
