"""Noise of the migration laboratory: every draw from a stream named by what it is for.

The name (seed, key of the migration, phase) is hashed to a uniform number and that to a normal deviate, so that a draw
depends on nothing but its name: not on what was drawn before, nor on how many others migrate.

    >>> Dice(7, DEFAULT_PARAMETERS).factor("m1", "dump") == Dice(7, DEFAULT_PARAMETERS).factor("m1", "dump")
    True
"""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

from natwork_ray.limi.phase_times import DEFAULT_PARAMETERS, DurationParameters

_NORMAL = NormalDist()


class Dice:
    """Streams of one seed."""

    def __init__(self, seed: int, parameters: DurationParameters = DEFAULT_PARAMETERS) -> None:
        self._seed, self._p = str(seed), parameters

    def factor(self, key: str, phase: str) -> float:
        """The noise on one phase of one migration: lognormal, median 1, partly common to all its phases."""
        common = self._p.common_sigma * self.deviation(key, "common")
        return math.exp(common + self._p.phase_sigma * self.deviation(key, phase))

    def measured(self, truth: float, sigma: float, *names: str) -> float:
        """A measurement with a lognormal error of `sigma`, its stream named by `names`."""
        return truth * math.exp(sigma * self.deviation(*names))

    def deviation(self, *names: str) -> float:
        """A standard normal deviate, cut, from the stream of these names; 0 where there shall be no noise."""
        if not self._p.noise_sigma:
            return 0.0
        named = hashlib.blake2b("\0".join((self._seed, *names)).encode(), digest_size=8).digest()
        uniform = ((int.from_bytes(named) >> 11) + 0.5) / 2**53  # as fine as a float is, and never 0 or 1
        bound = self._p.noise_bound_sigmas
        return min(bound, max(-bound, _NORMAL.inv_cdf(uniform)))
