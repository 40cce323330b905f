"""The detector behind the anomaly door: from a model file's bytes to something that answers at once.

Importing this imports torch, which the door itself (`anomaly_api`) does without.
"""

from __future__ import annotations

import numpy as np

from natwork_ray.domain.telemetry import N_METRICS
from natwork_ray.profiling.model_file import digest, loads
from serve_apps.anomaly_wire import ModelInfo, Served

# The sizes of a warm-up: one window, and what a large fleet sends at once.
_WARM_UP = (1, 64, 1024)


def load_served(data: bytes) -> Served:
    """A model file's content, ready to serve and warmed up.

    Raises:
        InputError: it is damaged, or no model.
    """
    detector = loads(data)
    info = ModelInfo(sha256=digest(data), window=detector.window, history=detector.history, card=detector.card)
    served = Served(detector, info, detector.book)
    for n in _WARM_UP:
        # Calm windows and wild ones, so that both stages have run before the first request.
        values = np.zeros((n, detector.history, N_METRICS), dtype=np.float32)
        values[::2, -2:] = 1e9
        detector.score(values, np.tile(served.reference, (n, 1)))
    return served
