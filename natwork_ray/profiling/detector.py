"""Two-stage detection (D3.3 section 6.1.1): is it anomalous, and if so, which anomaly?

Stage 1, the light network, sees every window. Stage 2, the larger one, sees only what stage 1 flagged, and may answer
with one of five anomalies, "false positive" (normal after all) or "Unknown". Unknown is the network's seventh output,
and also what is said when no class is probable enough (`TrainingSettings.reject_below`).

Rules kept:

- Networks see deviations from the service's profile (`profiling.profile`), never raw metrics.
- A window whose newest sample is missing altogether is not scored. Missing samples count as "as usual".
- A flag needs evidence: at least one metric measured in the newest sample that stands one robust standard deviation
  or more away from the profile. What is only remembered, or only missing, never becomes a verdict.
- Hostile input (wrong shape or type, infinite or negative samples, scales that are not positive) is an `InputError`.

Left out: calibration of the scores, and the test of "Unknown" against every known class.

    >>> scores = detector.score(window.values, *book.arrays(window.services))
    >>> assessment = detector.assess(window, book)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.telemetry import N_METRICS, TelemetryWindow
from natwork_ray.errors import InputError
from natwork_ray.profiling.fitting import predict
from natwork_ray.profiling.model_card import ModelCard
from natwork_ray.profiling.networks import LightCnn, SevenClassCnn
from natwork_ray.profiling.profile import Floats, ProfileBook, deviations
from natwork_ray.profiling.verdicts import MIN_EVIDENCE, Assessment, Scores, reach_verdicts

# What networks see saturates earlier than what drivers report: beyond this, farther is not more anomalous.
_INPUT_CLIP = 8.0
_INPUT_SCALE = 2.0
_UNKNOWN = STAGE_2_CLASSES.index(AnomalyKind.UNKNOWN)
_NORMAL = STAGE_2_CLASSES.index(AnomalyKind.FALSE_POSITIVE)


class TwoStageDetector:
    """Both networks in evaluation mode, with their card. Stateless: windows and profiles come with each call."""

    def __init__(self, light: LightCnn, seven: SevenClassCnn, card: ModelCard) -> None:
        self.light = light.eval()
        self.seven = seven.eval()
        self.card = card

    @property
    def window(self) -> int:
        """T, the samples per window that the networks look at."""
        return self.card.settings.window

    def score(self, values: Floats, centre: Floats, scale: Floats) -> Scores:
        """Score N windows against N profiles.

        Args:
            values: float32 (N, T, 12), SI units, NaN where missing; T at least `window`, of which the last `window`
                samples count.
            centre: (N, 12), from `ProfileBook.arrays`.
            scale: (N, 12), likewise.

        Raises:
            InputError: wrong shape or type, infinite or negative samples, or a scale that is not positive.
        """
        self._check(values, centre, scale)
        deviating = deviations(values[:, -self.window :], centre, scale)
        newest = deviating[:, -1]
        scored = np.asarray(~np.isnan(newest).all(axis=1))
        evidence = (np.abs(np.nan_to_num(newest, nan=0.0)) >= MIN_EVIDENCE).any(axis=1)
        inputs = network_input(deviating)
        p = np.zeros(len(values), dtype=np.float32)
        if scored.any():
            p[scored] = predict(self.light, inputs[scored])[:, 1]
        flagged = np.asarray(scored & evidence & (p >= self.card.threshold))
        kinds = np.full(len(values), _NORMAL, dtype=np.int8)
        confidence = (1.0 - p).astype(np.float32)
        if flagged.any():
            kinds[flagged], confidence[flagged] = named(
                predict(self.seven, inputs[flagged]), self.card.settings.reject_below
            )
        return Scores(p, kinds, confidence, newest, flagged, scored)

    def assess(self, window: TelemetryWindow, book: ProfileBook) -> Assessment:
        """Score a window against the book's profiles; the model's fleet profile stands in where the book is empty.

        Raises:
            InputError: as `score`.
        """
        if book.fleet is None:
            book = ProfileBook(profiles=book.profiles, fleet=self.card.fleet)
        scores = self.score(window.values, *book.arrays(window.services))
        return reach_verdicts(window, scores, known=book.known(window.services))

    def _check(self, values: Floats, centre: Floats, scale: Floats) -> None:
        if values.dtype != np.float32:
            raise InputError(f"windows are {values.dtype}", hint="send float32")
        if values.ndim != 3 or values.shape[2] != N_METRICS or values.shape[1] < self.window:
            raise InputError(
                f"windows have shape {values.shape}",
                hint=f"send (windows, samples, {N_METRICS}) with at least {self.window} samples",
            )
        for name, array in (("centre", centre), ("scale", scale)):
            if array.shape != (len(values), N_METRICS) or not np.isfinite(array).all():
                raise InputError(
                    f"{name} has shape {array.shape} or is not finite",
                    hint=f"send one finite figure per window and metric: ({len(values)}, {N_METRICS})",
                )
        if not (scale > 0).all():
            raise InputError("scale holds figures that are not positive", hint="take it from ProfileBook.arrays")


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
