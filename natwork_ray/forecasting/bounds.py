"""Names and bounds that others need without the models: importing this imports neither LightGBM nor torch."""

from __future__ import annotations

from pathlib import Path

from natwork_ray.domain.telemetry import Metric

# The name under which the loop asks its ModelStore, and the file that comes with the package.
DEFAULT_FORECASTER = "forecaster"
PACKAGED_MODELS = Path(__file__).parent / "models"
PACKAGED_FORECASTER = PACKAGED_MODELS / f"{DEFAULT_FORECASTER}.safetensors"
MAX_MODEL_BYTES = 32 * 2**20

# Samples per window, and steps ahead.
MIN_WINDOW = 4
MAX_WINDOW = 512
MAX_HORIZON = 1024
MAX_HORIZONS = 16
MAX_SERVICES = 4096

# Nominal coverage of every band.
COVERAGE = 0.90
# What D3.3 section 6.3 forecasts.
TARGETS: tuple[Metric, ...] = (Metric.CPU, Metric.MEMORY_RSS)
# What else a forecast looks at: the load that comes in, and how it is served.
CONTEXT: tuple[Metric, ...] = (
    Metric.CPU,
    Metric.MEMORY_RSS,
    Metric.MEMORY_VSIZE,
    Metric.NETWORK_RX,
    Metric.THROUGHPUT,
    Metric.LATENCY_P50,
)
