"""The two networks of Annex A as stages of a detector.

Stage 1 is the light network, stage 2 the larger one, which may answer with one of five anomalies, "false positive"
(normal after all) or "Unknown". Unknown is its seventh output, and also what is said when no class is probable enough
(`TrainingSettings.reject_below`).

    >>> detector = TwoStageDetector(LightStage(light), SevenClassStage(seven, window=8, reject_below=0.5), card)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from natwork_ray.profiling.detector import named, network_input
from natwork_ray.profiling.features import Observed
from natwork_ray.profiling.fitting import contributions_of, predict
from natwork_ray.profiling.networks import LightCnn, SevenClassCnn
from natwork_ray.profiling.profile import Floats


class LightStage:
    """Stage 1 by the light network, in evaluation mode."""

    def __init__(self, network: LightCnn) -> None:
        self.network = network.eval()

    def probability(self, observed: Observed) -> Floats:
        """(N,) the softmax output "anomalous", as the network gives it: not calibrated."""
        return np.asarray(predict(self.network, network_input(observed.deviations()))[:, 1], dtype=np.float32)

    def contributions(self, observed: Observed) -> Floats:
        """(N, 12): gradient times input, summed over the window."""
        return contributions_of(self.network, network_input(observed.deviations()))


class SevenClassStage:
    """Stage 2 by the larger network, in evaluation mode."""

    def __init__(self, network: SevenClassCnn, *, window: int, reject_below: float) -> None:
        self.network = network.eval()
        self.history = window
        self._reject_below = reject_below

    def novel(self, recent: Floats) -> NDArray[np.bool_]:
        """(N,) nothing: the annex knows no detector of normal operation alone."""
        return np.zeros(len(recent), dtype=bool)

    def name(self, deviating: Floats) -> tuple[NDArray[np.int8], Floats]:
        """Class and confidence (M,) of deviations (M, T, 12)."""
        return named(predict(self.network, network_input(deviating[:, -self.history :])), self._reject_below)
