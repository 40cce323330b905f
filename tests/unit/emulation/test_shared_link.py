"""Links shared by concurrent transfers: by hand, against the planner's own simulation, and with cuts."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.emulation.shared_link import SharedLink, fair_rates
from natwork_ray.emulation.virtual_time import VirtualClock, run_in_virtual_time
from natwork_ray.errors import ActionError
from natwork_ray.limi.fluid import Job, Stage, simulate


def ends(flows: list[tuple[float, float, float]], capacity: float) -> list[float]:
    """When flows of (start, bytes, ceiling) end."""
    clock, link = VirtualClock(), SharedLink(capacity)

    async def flow(start_s: float, size: float, ceiling: float) -> float:
        await asyncio.sleep(start_s)
        await link.carry(size, ceiling=ceiling)
        return clock.now_s()

    async def main() -> list[float]:
        return list(await asyncio.gather(*(flow(*f) for f in flows)))

    found = run_in_virtual_time(clock, main)
    assert link.flows == 0
    return found


def test_by_hand() -> None:
    assert ends([(0, 100, 1e9)], 50) == pytest.approx([2])
    assert ends([(0, 100, 20)], 50) == pytest.approx([5])
    # Two of a size take twice as long; a third half-way slows both: 100 and 100 sent by 4 s at 25 each, then a third.
    assert ends([(0, 200, 1e9), (0, 200, 1e9)], 50) == pytest.approx([8, 8])
    assert ends([(0, 200, 1e9), (0, 200, 1e9), (4, 100, 1e9)], 50) == pytest.approx([10, 10, 10])
    # Who leaves makes room.
    assert ends([(0, 50, 1e9), (0, 100, 1e9)], 50) == pytest.approx([2, 3])


def test_who_wants_less_leaves_the_rest_to_others() -> None:
    assert fair_rates([5, 100, 100], 45) == [5, 20, 20]
    assert fair_rates([5, 6], 45) == [5, 6]
    assert fair_rates([], 45) == []


@given(
    st.lists(st.tuples(st.floats(0, 20), st.floats(1, 1e3), st.floats(1, 200)), min_size=1, max_size=6),
    st.floats(5, 300),
)
def test_agrees_with_the_planners_simulation(flows: list[tuple[float, float, float]], capacity: float) -> None:
    jobs = [
        Job(start, (Stage(transfer_bytes=size, links=("link",), rate_bytes_per_s=ceiling),))
        for start, size, ceiling in flows
    ]
    expected = [of[-1] for of in simulate(jobs, {"link": capacity})]
    assert ends(flows, capacity) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(st.lists(st.floats(0, 100), max_size=8), st.floats(0, 100))
def test_rates_are_fair_and_fit(ceilings: list[float], capacity: float) -> None:
    rates = fair_rates(ceilings, capacity)
    assert sum(rates) <= capacity * (1 + 1e-9) + 1e-9
    assert all(0 <= rate <= ceiling for rate, ceiling in zip(rates, ceilings, strict=True))
    held_back = [rate for rate, ceiling in zip(rates, ceilings, strict=True) if rate < ceiling * (1 - 1e-9)]
    if held_back:  # then the link is full, and nobody else has more
        assert sum(rates) == pytest.approx(capacity, abs=1e-6)
        assert max(rates) <= min(held_back) * (1 + 1e-6) + 1e-6


def test_what_a_new_flow_would_get() -> None:
    clock, link = VirtualClock(), SharedLink(90)

    async def main() -> float:
        task = asyncio.create_task(link.carry(1000))
        await asyncio.sleep(1)
        offered = link.offers(1e9)
        task.cancel()
        await asyncio.sleep(0)
        assert link.offers(60) == 60
        return offered

    assert run_in_virtual_time(clock, main) == 45
    assert link.flows == 0


def test_a_change_of_capacity_is_felt_and_a_failure_ends_it() -> None:
    clock, link = VirtualClock(), SharedLink(10)

    async def main() -> None:
        task = asyncio.create_task(link.carry(100))
        await asyncio.sleep(5)
        link.set_capacity(0)
        await asyncio.sleep(100)
        link.set_capacity(50)
        await task
        assert clock.now_s() == pytest.approx(106)
        task = asyncio.create_task(link.carry(100))
        await asyncio.sleep(1)
        link.fail(ActionError("cut", hint="mend it"))
        with pytest.raises(ActionError, match="cut"):
            await task
        await link.carry(0)

    run_in_virtual_time(clock, main)
    assert link.flows == 0
