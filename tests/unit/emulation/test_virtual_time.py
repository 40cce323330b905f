"""Virtual time: timers in order, no waiting, the same within a running loop, and no hanging for ever."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.emulation.virtual_time import VirtualClock, run_in_virtual_time
from natwork_ray.errors import PreconditionError


@given(st.lists(st.floats(0, 1e6), max_size=30))
def test_timers_fire_in_the_order_of_their_times(delays: list[float]) -> None:
    clock = VirtualClock(100.0)
    fired: list[tuple[float, int]] = []

    async def sleeper(number: int, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        fired.append((clock.now_s(), number))

    async def main() -> None:
        await asyncio.gather(*(sleeper(n, d) for n, d in enumerate(delays)))

    run_in_virtual_time(clock, main)
    assert [at for at, _ in fired] == sorted(at for at, _ in fired)
    for at, number in fired:
        assert at == pytest.approx(100.0 + delays[number], abs=1e-6)


def test_the_clock_goes_on_where_it_stopped() -> None:
    clock = VirtualClock()

    async def main() -> float:
        await asyncio.sleep(5)
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(clock, main) == pytest.approx(5)
    assert run_in_virtual_time(clock, main) == pytest.approx(10)
    assert clock.now_s() == pytest.approx(10)


def test_it_runs_inside_of_a_running_loop() -> None:
    clock = VirtualClock()

    async def inner() -> str:
        await asyncio.sleep(3600)
        return "done"

    async def outer() -> str:
        return run_in_virtual_time(clock, inner)

    assert asyncio.run(outer()) == "done"
    assert clock.now_s() == pytest.approx(3600)


def test_time_outs_work() -> None:
    async def main() -> None:
        async with asyncio.timeout(2):
            await asyncio.sleep(3)

    clock = VirtualClock()
    with pytest.raises(TimeoutError):
        run_in_virtual_time(clock, main)
    assert clock.now_s() == pytest.approx(2)


def test_waiting_for_nothing_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(PreconditionError, match="will not come"):
        run_in_virtual_time(VirtualClock(), main)
