"""Coroutines in virtual time: an asyncio event loop whose clock jumps to the next timer instead of waiting for it.

The very code that drives real migrations (asyncio, with its time-outs and its tasks) runs here a thousand times faster
and always the same way: callbacks run in the order of their times, those of one moment in the order in which they
were scheduled, and no clock, socket or thread of the machine has a say.

    >>> import asyncio
    >>> clock = VirtualClock(10.0)
    >>> async def wait_a_day() -> float:
    ...     await asyncio.sleep(86400)
    ...     return clock.now_s()
    >>> run_in_virtual_time(clock, wait_a_day)
    86410.0

Left out: real sockets, threads and subprocesses. A coroutine that waits for one of them would wait for ever, which is
reported as an error instead.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from natwork_ray.errors import PreconditionError

T = TypeVar("T")


class VirtualClock:
    """`Clock`: seconds that pass only in `run_in_virtual_time`, and go on where the last run stopped."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """The virtual moment."""
        return self._now_s

    def pass_(self, seconds: float) -> None:
        """Let time pass."""
        self._now_s += seconds


class _JumpingSelector(selectors.SelectSelector):
    """Where a selector would sleep until the next timer, the clock jumps there."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise PreconditionError(
                "everything in virtual time waits for something that will not come",
                hint="wait for virtual timers only, not for sockets, threads or processes",
            )
        self._clock.pass_(timeout)
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(_JumpingSelector(clock))
        self._virtual = clock

    def time(self) -> float:
        return self._virtual.now_s()


def run_in_virtual_time(clock: VirtualClock, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main()` to its end on the virtual clock and return what it returns; tasks that it leaves are cancelled.

    From within a running event loop it runs in a thread of its own, since a thread has one loop; the caller waits.

    Raises:
        PreconditionError: everything waits, and no timer is left.
    """

    def run() -> T:
        with asyncio.Runner(loop_factory=lambda: _VirtualLoop(clock)) as runner:
            return runner.run(main())

    if _in_a_loop():
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="virtual-time") as thread:
            return thread.submit(run).result()
    return run()


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
