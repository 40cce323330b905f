"""Shared by all tests: where the public data are, and one thread per process."""

from __future__ import annotations

import os
from pathlib import Path

# Before numpy and torch are imported anywhere: more threads than cores cost a factor of ten.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public data sets; tests that need it are skipped, and say so, where it is absent."""
    named = os.environ.get("NATWORK_DATA_DIR")
    if not named:
        pytest.skip("NATWORK_DATA_DIR is not set: the public data sets are not here")
    path = Path(named)
    if not path.is_dir():
        pytest.fail(f"NATWORK_DATA_DIR names {path}, which is not a folder")
    return path
