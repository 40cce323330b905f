"""A link that concurrent transfers share: fluid flows with max-min fair rates, exact to rounding.

Each flow may have a ceiling of its own (one encrypted stream does not fill a link). Whenever a flow joins or leaves,
or the link's capacity changes, what was carried so far is settled and every rate is computed anew: the flow with the
lowest ceiling gets the smaller of its ceiling and an even share, what it leaves goes to the others (processor sharing
with ceilings). So two transfers of equal size that start together take twice as long as one, and a third that joins
half-way slows both from then on.

Left out: packets, slow start, and loss.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import dataclass, field

_DONE_BYTES = 1e-6  # rounding: less than that is nothing


@dataclass
class _Flow:
    left: float
    ceiling: float
    done: asyncio.Future[None]
    rate: float = 0.0


def fair_rates(ceilings: list[float], capacity: float) -> list[float]:
    """Max-min fair rates: nobody can get more without taking it from somebody who has less.

    >>> fair_rates([10.0, 100.0, 100.0], 90.0)
    [10.0, 40.0, 40.0]
    """
    rates = [0.0] * len(ceilings)
    left = capacity
    order = sorted(range(len(ceilings)), key=lambda i: (ceilings[i], i))
    for position, i in enumerate(order):
        rates[i] = min(ceilings[i], left / (len(order) - position))
        left -= rates[i]
    return rates


@dataclass
class SharedLink:
    """One direction of a link. `capacity` in bytes per second; 0 while it is cut."""

    capacity: float
    _flows: dict[int, _Flow] = field(default_factory=dict)
    _ids: itertools.count[int] = field(default_factory=itertools.count)
    _settled_s: float = 0.0
    _timer: asyncio.TimerHandle | None = None

    @property
    def flows(self) -> int:
        """How many transfers are under way."""
        return len(self._flows)

    def offers(self, ceiling: float) -> float:
        """The rate that a further flow with that ceiling would get now."""
        return fair_rates([*(f.ceiling for f in self._flows.values()), ceiling], self.capacity)[-1]

    async def carry(self, size_bytes: float, *, ceiling: float = math.inf) -> None:
        """Send so much; returns when the last byte has arrived. Cancelling takes the flow off the link."""
        if size_bytes <= _DONE_BYTES:
            return
        loop = asyncio.get_running_loop()
        self._settle(loop)
        number = next(self._ids)
        flow = _Flow(left=size_bytes, ceiling=ceiling, done=loop.create_future())
        self._flows[number] = flow
        self._share(loop)
        try:
            await flow.done
        finally:
            if self._flows.pop(number, None) is not None:
                self._settle(loop)
                self._share(loop)

    def set_capacity(self, capacity: float) -> None:
        """From now on; flows under way feel it."""
        if self._flows:
            loop = asyncio.get_running_loop()
            self._settle(loop)
            self.capacity = capacity
            self._share(loop)
        else:
            self.capacity = capacity

    def fail(self, error: Exception) -> None:
        """Let every flow under way end with `error`."""
        for flow in self._flows.values():
            if not flow.done.done():
                flow.done.set_exception(error)

    def _settle(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for flow in self._flows.values():
            flow.left -= flow.rate * (now - self._settled_s)
        self._settled_s = now

    def _share(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._flows:
            return
        flows = list(self._flows.values())
        next_s = math.inf
        for flow, rate in zip(flows, fair_rates([f.ceiling for f in flows], self.capacity), strict=True):
            flow.rate = rate
            if rate > 0:
                next_s = min(next_s, max(0.0, flow.left) / rate)
        if math.isfinite(next_s):
            self._timer = loop.call_later(next_s, self._arrive, loop)

    def _arrive(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        self._settle(loop)
        # Rounding of the clock may leave a flow short of its end by less than a nanosecond's worth of bytes.
        for number, flow in list(self._flows.items()):
            if flow.left <= max(_DONE_BYTES, flow.rate * 1e-9):
                del self._flows[number]
                if not flow.done.done():
                    flow.done.set_result(None)
        self._share(loop)
