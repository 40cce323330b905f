"""What the migration models see: a container's load, known before the migration, as numbers on logarithmic scales.

Phases of a migration are sizes divided by rates, so on logarithmic scales their durations are nearly linear in the
inputs. Beside the measured quantities there are six quotients with the path's bandwidth, in seconds: what a whole
transfer of memory, of the working set, of the volume's delta would take; the share of the path that dirtying fills; and
what is left after one pre-copy round. They name what D3.3's phases are made of; the models weigh them, no equation of
`limi.durations` is built in.

    >>> features([load]).shape
    (1, 18)

Left out: `observed_s`, which says how the measuring was done and nothing about the migration.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.errors import InputError

Floats = NDArray[np.float64]

# Measured quantities, with the amount at which the logarithm's scale begins (it keeps 0 finite).
MEASURED: tuple[tuple[str, float], ...] = (
    ("memory_bytes", 4096.0),
    ("dirty_bytes_per_s", 4096.0),
    ("working_set_bytes", 4096.0),
    ("cpu_cores", 0.01),
    ("cpu_limit_cores", 0.01),
    ("volume_bytes", 4096.0),
    ("volume_delta_bytes", 4096.0),
    ("volume_write_bytes_per_s", 4096.0),
    ("network_rx_bytes_per_s", 4096.0),
    ("network_tx_bytes_per_s", 4096.0),
    ("bandwidth_bytes_per_s", 4096.0),
    ("rtt_s", 1e-4),
)
QUOTIENTS = (
    "memory_transfer_s",
    "working_set_transfer_s",
    "volume_delta_transfer_s",
    "larger_transfer_s",
    "dirty_share_of_path",
    "residual_transfer_s",
)
FEATURES: tuple[str, ...] = (*(name for name, _ in MEASURED), *QUOTIENTS)
EXTENT: tuple[str, ...] = (*FEATURES, "dirty_share_per_s", "working_set_share")
_SHORTEST_S = 1e-3
_PAGE_BYTES = 4096.0
MOST = 1e15  # of any quantity: a petabyte, and far from what would overflow


def quantities(loads: Sequence[ContainerLoad]) -> Floats:
    """(N, 12) measured quantities in their own units, checked.

    Raises:
        InputError: a quantity is negative, not finite or beyond all reason, or the path has no bandwidth.
    """
    raw = np.array([[getattr(load, name) for name, _ in MEASURED] for load in loads], dtype=np.float64)
    raw = raw.reshape(len(loads), len(MEASURED))
    wrong = ~((raw >= 0) & (raw <= MOST))  # true for NaN as well
    wrong[:, _BANDWIDTH] |= raw[:, _BANDWIDTH] < 1.0
    if wrong.any():
        i, j = (int(x) for x in np.argwhere(wrong)[0])
        raise InputError(
            f"load {i}, {MEASURED[j][0]}: {float(raw[i, j])!r}",
            hint=f"quantities lie between 0 and {MOST:g}, and the path takes a byte per second at least",
        )
    return raw


def features(loads: Sequence[ContainerLoad]) -> Floats:
    """(N, 18) in the order of `FEATURES`; errors as `quantities`."""
    raw = quantities(loads)
    floors = np.array([floor for _, floor in MEASURED])
    return np.concatenate([np.log(raw + floors), np.log(_quotients(raw) + _SHORTEST_S)], axis=1)


def extent(loads: Sequence[ContainerLoad]) -> Floats:
    """(N, 20) in the order of `EXTENT`, in their own units: where a load lies among those that were trained on.

    The shares are there because a quantity may be usual and yet go with no other: large containers that write next to
    nothing, say. Errors as `quantities`.
    """
    raw = quantities(loads)
    memory = np.maximum(raw[:, 0], _PAGE_BYTES)
    shares = np.stack([raw[:, 1] / memory, raw[:, 2] / memory], axis=1)
    return np.concatenate([raw, _quotients(raw), shares], axis=1)


def _quotients(raw: Floats) -> Floats:
    memory, dirty, working_set = raw[:, 0], raw[:, 1], np.minimum(raw[:, 2], raw[:, 0])
    volume, path = raw[:, 6], raw[:, _BANDWIDTH]
    residual = np.minimum(working_set, dirty * memory / path)
    return np.stack(
        [memory / path, working_set / path, volume / path, np.maximum(memory, volume) / path, dirty / path,
         residual / path], axis=1
    )  # fmt: skip


_BANDWIDTH = [name for name, _ in MEASURED].index("bandwidth_bytes_per_s")
