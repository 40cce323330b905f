"""Names under which the actors find each other, and the labels that pin them to machines."""

from __future__ import annotations

NAMESPACE = "natwork"
CONTROL = "natwork-control"
WORLD = "natwork-world"
SUPERVISOR = "natwork-supervisor"
SAMPLES = "natwork-samples"

# A machine of the testbed carries its node's name; the machine that emulates nodes carries the second label.
NODE_LABEL = "natwork/node"
HOST_LABEL = "natwork/emulation-host"

SERVE_ANOMALY = "anomaly"
SERVE_FORECAST = "forecast"
SERVE_GATEWAY = "gateway"
SERVE_MIGRATION_MODELS = "migration-models"


# The application that answers with each model of the ModelStore.
SERVED_MODELS = {"profiler": SERVE_ANOMALY, "forecaster": SERVE_FORECAST}


def limi_name(node: str) -> str:
    """Name of the LiMi agent of a node."""
    return f"natwork-limi-{node}"
