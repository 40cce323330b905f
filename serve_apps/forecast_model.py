"""The forecaster behind the forecast door: from a model file's bytes to something that answers at once.

LightGBM is imported when the first version is loaded; the door itself (`forecast_api`) does without.
"""

from __future__ import annotations

import numpy as np

from natwork_ray.domain.telemetry import N_METRICS, TelemetryWindow
from serve_apps.forecast_api import ForecastModelInfo, ServedForecaster

# Containers of a warm-up: one, and a fleet.
_WARM_UP = (1, 64)


def load_served(data: bytes) -> ServedForecaster:
    """A model file's content, ready to serve and warmed up.

    Raises:
        InputError: it is damaged, or no forecaster.
    """
    from natwork_ray.forecasting.model_file import digest, loads

    forecaster = loads(data)
    info = ForecastModelInfo(sha256=digest(data), window=forecaster.window, card=forecaster.card)
    for n in _WARM_UP:
        names = tuple(str(i) for i in range(n))
        calm = np.ones((n, forecaster.window, N_METRICS), dtype=np.float32)
        forecaster.forecast(TelemetryWindow(names, names, end_s=0.0, step_s=forecaster.card.step_s, values=calm))
    return ServedForecaster(forecaster, info)
