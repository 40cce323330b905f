"""Two-stage detection (D3.3 section 6.1.1): is it anomalous, and if so, which anomaly?

Stage 1 sees every window. Stage 2 sees what stage 1 flagged, and what left normal operation without resembling anything
labelled; it may answer with one of five anomalies, "false positive" (normal after all) or "Unknown". The stages are
trees and distances (`profiling.stages`, `profiling.naming`) in the detector `best`, networks (`profiling.annex_a`) in
`annex-a`; what is done around them is the same, and is here.

Rules kept:

- Stages see deviations from the service's profile (`profiling.profile`), trees also where a metric stands.
- A window is not scored where its newest sample holds nothing that the profile knows: it is missing altogether, or all
  that was measured has no profile, and nothing can deviate. Other missing samples count as "as usual".
- A flag needs evidence: at least one metric measured in the newest sample that stands one robust standard deviation
  or more away from the profile. What is only remembered, or only missing, never becomes a verdict.
- A resource (CPU, memory) far outside what the service ever used, twice in a row, is flagged on less than the
  threshold: where an application shows nothing else, the window's statistics need samples to follow.
- What is novel, though stage 1 did not reach its threshold, is flagged if stage 2 finds that it resembles no known
  anomaly, or if stage 1 finds it more likely anomalous than not: two independent witnesses.
- Hostile input (wrong shape or type, infinite or negative samples, references out of range) is an `InputError`.

    >>> scores = detector.score(window.values, book.references(window.services))
    >>> assessment = detector.assess(window, book)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric, TelemetryWindow
from natwork_ray.errors import InputError
from natwork_ray.profiling.features import observe
from natwork_ray.profiling.model_card import ModelCard
from natwork_ray.profiling.profile import (
    Floats,
    ProfileBook,
    ServiceProfile,
    check_references,
    deviations,
    profiled,
)
from natwork_ray.profiling.stages import StageOne, StageTwo
from natwork_ray.profiling.verdicts import MIN_EVIDENCE, Assessment, Scores, reach_verdicts

# What networks see saturates earlier than what drivers report: beyond this, farther is not more anomalous.
_INPUT_CLIP = 8.0
_INPUT_SCALE = 2.0
# Samples that stage 2 looks at to tell whether anything left normal operation.
_RECENT = 3
# A novel window of a known kind is flagged at this probability, where the threshold is higher.
_LIKELY = 0.5
# What counts as far outside: deviation of the newest sample and of the one before, and what stage 1 must say at least.
_FAR, _FAR_BEFORE, _FAR_LIKELY = 8.0, 4.0, 0.3
_RESOURCES = [METRICS.index(m) for m in (Metric.CPU, Metric.MEMORY_RSS, Metric.MEMORY_VSIZE)]
_UNKNOWN = STAGE_2_CLASSES.index(AnomalyKind.UNKNOWN)
_NORMAL = STAGE_2_CLASSES.index(AnomalyKind.FALSE_POSITIVE)


class TwoStageDetector:
    """Both stages with their card. Stateless: windows and profiles come with each call."""

    def __init__(
        self, stage_1: StageOne, stage_2: StageTwo, card: ModelCard, profiles: tuple[ServiceProfile, ...] = ()
    ) -> None:
        self.stage_1 = stage_1
        self.stage_2 = stage_2
        self.card = card
        self.book = ProfileBook(profiles=profiles, fleet=card.fleet)

    @property
    def window(self) -> int:
        """T, the samples per window that stage 1 looks at; fewer are refused."""
        return self.card.settings.window

    @property
    def history(self) -> int:
        """Samples per window that the detector makes use of when it gets them."""
        return max(self.window, self.stage_2.history)

    def score(self, values: Floats, references: Floats) -> Scores:
        """Score N windows against N profiles.

        Args:
            values: float32 (N, T, 12), SI units, NaN where missing; T at least `window`, of which the last `history`
                samples count.
            references: float32 (N, P), from `ProfileBook.references`.

        Raises:
            InputError: wrong shape or type, infinite or negative samples, or references out of range.
        """
        check_windows(values, self.window)
        alike = check_references(references, len(values))
        observed = observe(values[:, -self.window :], references, alike)
        newest = observed.newest
        known = profiled(references)
        if observed.missing is not None:
            known = known & ~observed.missing[-1]
        scored = np.asarray(known.any(axis=1))
        stands_out = scored & (np.abs(observed.deviating[-1]).max(axis=1) >= MIN_EVIDENCE)
        p = np.zeros(len(values), dtype=np.float32)
        if len(values):
            p = np.where(scored, self.stage_1.probability(observed), np.float32(0.0))
        resources = np.abs(observed.deviating[-2:, :, _RESOURCES]).max(axis=2)
        far = (resources[-1] >= _FAR) & (resources[0] >= _FAR_BEFORE) & (p >= _FAR_LIKELY)
        flagged = np.asarray(stands_out & ((p >= self.card.threshold) | far))
        kinds = np.full(len(values), _NORMAL, dtype=np.int8)
        confidence = (1.0 - p).astype(np.float32)
        novel = np.zeros(len(values), dtype=bool)
        if stands_out.any():
            recent = observed.deviating[-_RECENT:].transpose(1, 0, 2)
            novel[stands_out] = self.stage_2.novel(recent[stands_out])
        candidates = flagged | novel
        contributions = np.zeros(newest.shape, dtype=np.float32)
        if candidates.any():
            found, sure = self.stage_2.name(deviations(values[candidates, -self.history :], references[candidates]))
            kinds[candidates], confidence[candidates] = found, sure
            unexplained = candidates & ~flagged & (kinds != _UNKNOWN) & (p < _LIKELY)
            kinds[unexplained], confidence[unexplained] = _NORMAL, 1.0 - p[unexplained]
            flagged = candidates & ~unexplained
        if flagged.any():
            contributions[flagged] = self.stage_1.contributions(observed.of(flagged))
        return Scores(p, kinds, confidence, newest, flagged, scored, contributions)

    def assess(self, window: TelemetryWindow, book: ProfileBook) -> Assessment:
        """Score a window against the book's profiles, then the detector's own; its fleet profile where neither knows.

        Raises:
            InputError: as `score`.
        """
        book = self.book.joined(book)
        scores = self.score(window.values, book.references(window.services))
        return reach_verdicts(window, scores, known=book.known(window.services))


def check_windows(values: Floats, window: int) -> None:
    """Refuse windows of the wrong type or shape.

    Raises:
        InputError: not float32 (N, T, 12) with T at least `window`.
    """
    if values.dtype != np.float32:
        raise InputError(f"windows are {values.dtype}", hint="send float32")
    if values.ndim != 3 or values.shape[2] != N_METRICS or values.shape[1] < window:
        raise InputError(
            f"windows have shape {values.shape}",
            hint=f"send (windows, samples, {N_METRICS}) with at least {window} samples",
        )


def network_input(deviating: Floats) -> Floats:
    """Deviations (..., 12) as networks see them: saturated, scaled to about unit size, missing as usual (0)."""
    usual = np.nan_to_num(deviating, nan=0.0)
    return np.asarray(np.clip(usual, -_INPUT_CLIP, _INPUT_CLIP) / _INPUT_SCALE, dtype=np.float32)


def named(probability: Floats, reject_below: float) -> tuple[NDArray[np.int8], Floats]:
    """Class and confidence of stage 2 probabilities (M, 7), Unknown where no class is probable enough.

    The confidence of such a rejection is the probability that the best class is not it.
    """
    kinds = probability.argmax(axis=1).astype(np.int8)
    best = probability.max(axis=1)
    rejected = (best < reject_below) & (kinds != _UNKNOWN)
    return np.where(rejected, np.int8(_UNKNOWN), kinds), np.where(rejected, 1 - best, best).astype(np.float32)
