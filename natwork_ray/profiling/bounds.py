"""Bounds and names that others need without the networks: importing this does not import torch."""

from __future__ import annotations

from pathlib import Path

# Samples per window. Pooling halves a window once, so one sample alone would leave nothing to average.
MIN_WINDOW = 2
MAX_WINDOW = 512

# The name under which the loop asks its ModelStore, and the file that comes with the package.
DEFAULT_MODEL = "profiler"
ANNEX_A_MODEL = "profiler-annex-a"
PACKAGED_MODELS = Path(__file__).parent / "models"
MAX_MODEL_BYTES = 16 * 2**20

# Run groups at most when tables are measured again: by default every run is a fold of its own.
MAX_FOLDS = 10
