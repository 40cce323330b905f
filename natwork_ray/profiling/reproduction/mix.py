"""The mix on which types are told apart: every anomalous row of known type, and few normal ones.

On all rows four of five are normal, and accuracy says little. So, as declared: 300 normal rows for every 1,173
anomalous ones, drawn at random; the same rule for training and for testing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NORMAL_PER_ANOMALY = 300 / 1173


def mixed_rows(kinds: NDArray[np.int8], seed: int) -> NDArray[np.bool_]:
    """(M,) true for the rows of the mix, of rows with these kinds (M,); one seed, one draw."""
    chosen = kinds > 0
    normal = np.flatnonzero(kinds == 0)
    wanted = min(len(normal), round(NORMAL_PER_ANOMALY * int(chosen.sum())))
    chosen[np.random.default_rng(seed).choice(normal, size=wanted, replace=False)] = True
    return np.asarray(chosen)
