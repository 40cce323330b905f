"""The definition of disruption, on cases that can be reckoned by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.domain.migrations import MigrationForecast
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.limi.disruption import Move, measure
from natwork_ray.limi.service_plan import Disruption, Member, Section


def member(name: str, *calls: str, source: str = "a", target: str = "b") -> Member:
    forecast = MigrationForecast(
        method=MigrationMethod.COLD, total_p50_s=1, total_p95_s=1, downtime_p50_s=1, downtime_p95_s=1
    )
    return Member(
        container=name, source=source, target=target, forecast=forecast, path=("a>b",), rate_bytes_per_s=1.0,
        lazy_rate_bytes_per_s=1.0, live=Section(), stopped=Section(fixed_s=1), restore_s=0.0, attach_s=0.0,
        lazy=Section(), calls=calls,
    )  # fmt: skip


def rtt_s(a: str, b: str) -> float:
    return 0.0 if a == b else {frozenset("ab"): 0.01, frozenset("ac"): 0.02, frozenset("bc"): 0.005}[frozenset((a, b))]


def of(moves: list[Move], members: list[Member]) -> Disruption:
    return measure(moves, members=members, rtt_s=rtt_s, split_weight=0.25)


def test_downtimes_that_overlap_count_once() -> None:
    moves = [
        Move(container="x", down=((1.0, 3.0),), moved_s=3.0, degraded=((3.0, 5.0),)),
        Move(container="y", down=((2.0, 4.0), (7.0, 7.5)), moved_s=4.0, degraded=((4.0, 6.0),)),
    ]
    found = of(moves, [])
    assert (found.unavailable_s, found.split_s, found.total_s) == (3.5, 0.0, 3.5)
    assert found.degraded_s == 3.0


def test_a_call_between_two_sites_counts_by_its_share() -> None:
    members = [member("x", "y"), member("y", "z"), member("z")]
    moves = [
        Move(container="x", down=((0.0, 1.0),), moved_s=1.0),
        Move(container="y", down=((4.0, 5.0),), moved_s=5.0),
        Move(container="z", down=((9.0, 10.0),), moved_s=10.0),
    ]
    # From 1 to 4 x-y is apart, from 5 to 9 y-z: one of two calls, 7 s in all.
    found = of(moves, members)
    assert found.unavailable_s == 3.0
    assert found.split_s == pytest.approx(3.5)
    assert found.total_s == pytest.approx(3.0 + 0.25 * 3.5)


@pytest.mark.parametrize(
    ("sources", "targets", "split_s"),
    [
        (("a", "a"), ("b", "b"), 2.0),  # together before and after
        (("a", "a"), ("b", "c"), 2.0),  # apart afterwards by 5 ms, but by 10 ms in between
        (("a", "c"), ("b", "b"), 0.0),  # 20 ms before: 5 ms in between is no worse
    ],
)
def test_only_a_longer_way_than_before_and_after_counts(
    sources: tuple[str, str], targets: tuple[str, str], split_s: float
) -> None:
    members = [
        member("x", "y", source=sources[0], target=targets[0]), member("y", source=sources[1], target=targets[1])
    ]  # fmt: skip
    moves = [
        Move(container="x", down=((0.0, 1.0),), moved_s=1.0), Move(container="y", down=((3.0, 4.0),), moved_s=4.0)
    ]  # fmt: skip
    assert of(moves, members).split_s == pytest.approx(split_s)


def test_one_that_stays_behind_counts_until_the_last_arrival() -> None:
    members = [member("x", "y"), member("y"), member("z")]
    moves = [
        Move(container="x", down=((0.0, 1.0),), moved_s=1.0),
        Move(container="y", down=(), moved_s=None),
        Move(container="z", down=((2.0, 3.0),), moved_s=3.0),
    ]
    assert of(moves, members).split_s == pytest.approx(1.0)


spans = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 5)).map(lambda s: (s[0], s[0] + s[1])), max_size=3)


@given(st.lists(spans, min_size=1, max_size=5))
def test_never_more_than_the_sum_nor_less_than_the_longest(down: list[list[tuple[float, float]]]) -> None:
    moves = [Move(container=str(i), down=tuple(d), moved_s=60.0) for i, d in enumerate(down)]
    found = of(moves, [])
    lengths = [b - a for d in down for a, b in d]
    assert max(lengths, default=0.0) - 1e-9 <= found.unavailable_s <= sum(lengths) + 1e-9
    assert found.total_s == found.unavailable_s
