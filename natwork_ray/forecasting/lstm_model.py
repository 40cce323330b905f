"""Annex A's LSTM as a candidate: what goes in, and a trained network ready to run. Torch is imported when it is used.

Channels are the metrics of `CONTEXT` (the targets among them), each as its distance from the service's centre in units
of its spread. The output of the change variant is the change from the newest sample in units of the service's usual
step times the root of the horizon, so that a service that hardly moves is not asked to move like one that does; that of
the level variant is a level, in the units of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from natwork_ray.domain.telemetry import METRICS
from natwork_ray.forecasting.bounds import CONTEXT
from natwork_ray.forecasting.frames import Floats, Frame
from natwork_ray.forecasting.references import CENTRE, SCALE, STEP, Doubles

if TYPE_CHECKING:
    from natwork_ray.forecasting.networks import LstmForecaster

# Distances beyond this say nothing more, and would swamp a network.
CLIP = 10.0


def channels(targets: Sequence[int]) -> tuple[int, ...]:
    """Places in `METRICS` of what the network sees: the targets first."""
    return (*targets, *(k for k in map(METRICS.index, CONTEXT) if k not in targets))


def network_input(frame: Frame, references: Doubles, targets: Sequence[int]) -> Floats:
    """(N, W, C) of a frame of N windows, with references (N, 12, 10)."""
    seen = list(channels(targets))
    centre = references[:, None, seen, CENTRE].astype(np.float32)
    scale = references[:, None, seen, SCALE].astype(np.float32)
    return np.asarray(np.clip((frame.filled[:, :, seen] - centre) / scale, -CLIP, CLIP))


@dataclass(frozen=True, eq=False)
class LstmChange:
    """A trained network.

    Attributes:
        network: Annex A's.
        targets: places in `METRICS` of what is forecast.
        horizons: steps ahead of its outputs.
        residual: whether it predicts changes, or levels.
    """

    network: LstmForecaster
    targets: tuple[int, ...]
    horizons: tuple[int, ...]
    residual: bool = True

    def change(self, frame: Frame, references: Doubles, reach: Doubles) -> Doubles:
        """Expected changes (N, K, H), in units of reach (N, K, H)."""
        from natwork_ray.forecasting.networks import predict

        seen = network_input(frame, references, self.targets)
        count = len(self.targets)
        found = predict(self.network, seen)[..., :count].transpose(0, 2, 1)
        if self.residual:
            steps = references[:, list(self.targets), STEP]
            return np.asarray(found * steps[:, :, None] * np.sqrt(self.horizons) / reach)
        spread = references[:, list(self.targets), SCALE]
        return np.asarray((found - seen[:, -1, :count, None]) * spread[:, :, None] / reach)
