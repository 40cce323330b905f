"""The newest samples of every container, so that a client may send only what is new.

One ring of fixed length per container, a slot for each step of time. It is a cache and nothing more: whoever asks is
told how many samples there are (`history`), a gap is a gap (NaN), and when the process that holds it dies, the next
windows are short and say so, until they have filled again.

Rules kept:
- A sample belongs to the slot of its time, so one that is sent twice changes nothing, and a late one finds its place.
- A sample older than the ring means that the sender's clock was set back: that container begins anew.
- Bounded: `MAX_CONTAINERS`, the one that was silent longest goes first.

    >>> recent = RecentSamples(step_s=10.0)
    >>> windows, history = recent.append(120.0, ("upf", "amf"), values, length=10)    # values (2, 12)
    >>> windows.shape, history
    ((2, 10, 12), array([1, 1]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.telemetry import N_METRICS
from natwork_ray.errors import InputError
from natwork_ray.profiling.profile import Floats

KEPT = 64
MAX_CONTAINERS = 20_000
_LARGEST_SLOT = 2**53  # beyond it a float no longer tells two steps apart


class Recent(NamedTuple):
    """Windows float32 (N, length, 12), NaN where nothing is known; and (N,) how many of their samples are known."""

    windows: Floats
    history: NDArray[np.int64]


@dataclass
class _Ring:
    values: Floats  # (KEPT, 12), slot s at s % KEPT
    newest: int


class RecentSamples:
    """Rings by container. For one thread."""

    def __init__(self, *, step_s: float, kept: int = KEPT, max_containers: int = MAX_CONTAINERS) -> None:
        """`step_s` lies between two samples; `kept` samples of each container are remembered."""
        if not step_s > 0 or kept < 1 or max_containers < 1:
            raise InputError(
                f"rings of {kept} samples every {step_s} s for {max_containers} containers", hint="all are positive"
            )
        self._step_s, self._kept, self._max = step_s, kept, max_containers
        self._rings: dict[str, _Ring] = {}

    def __len__(self) -> int:
        return len(self._rings)

    def append(self, at_s: float, containers: Sequence[str], values: Floats, *, length: int) -> Recent:
        """Take the samples of one moment in, and give the windows that end with each container's newest sample.

        Args:
            at_s: when they were taken, seconds; the same clock for all.
            containers: N names, each once.
            values: float32 (N, 12), NaN where nothing was measured.
            length: samples per window, 1 to `kept`.

        Raises:
            InputError: a time that is none, a name twice, or a window longer than what is kept.
        """
        if not 1 <= length <= self._kept:
            raise InputError(f"windows of {length} samples", hint=f"the newest {self._kept} are kept")
        slot_at = at_s / self._step_s
        if not 0 <= slot_at <= _LARGEST_SLOT:  # false for NaN as well
            raise InputError(f"samples taken at {at_s} s", hint="send seconds since some moment, such as the epoch")
        if len(set(containers)) != len(containers):
            raise InputError("two samples of one container", hint="send each container once per moment")
        slot = round(slot_at)
        windows = np.full((len(containers), length, N_METRICS), np.nan, dtype=np.float32)
        for i, name in enumerate(containers):
            ring = self._rings.pop(name, None)
            if ring is None or slot <= ring.newest - self._kept:
                ring = _Ring(np.full((self._kept, N_METRICS), np.nan, dtype=np.float32), slot)
            self._rings[name] = ring  # at the end: the first one was silent longest
            self._put(ring, slot, values[i])
            windows[i] = ring.values[np.arange(ring.newest - length + 1, ring.newest + 1) % self._kept]
        while len(self._rings) > self._max:
            del self._rings[next(iter(self._rings))]
        return Recent(windows, np.asarray((~np.isnan(windows).all(axis=2)).sum(axis=1)))

    def _put(self, ring: _Ring, slot: int, sample: Floats) -> None:
        if slot > ring.newest:
            gap = range(max(ring.newest + 1, slot - self._kept + 1), slot)
            ring.values[[s % self._kept for s in gap]] = np.nan
            ring.newest = slot
        ring.values[slot % self._kept] = sample
