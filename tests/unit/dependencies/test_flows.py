"""Whose share jumped: against the source's own history, and only with one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.dependencies.flows import LEAST, MIN_HISTORY, suspects
from natwork_ray.domain.flow_alerts import MAX_SOURCES
from natwork_ray.domain.telemetry import FlowShare
from natwork_ray.errors import InputError


def flows(**shares: float | tuple[float, float]) -> tuple[FlowShare, ...]:
    return tuple(
        FlowShare(source=source, request_share=s[0], failed_share=s[1])
        for source, s in ((n, v if isinstance(v, tuple) else (v, 0.0)) for n, v in shares.items())
    )


USUAL = [flows(a=0.5, b=0.3, c=0.2)] * 5


def test_a_new_source_with_a_large_share_is_suspect() -> None:
    (found,) = suspects(flows(a=0.2, b=0.12, c=0.08, x=0.6), USUAL)
    assert (found.source, found.request_share, found.usual_request_share) == ("x", 0.6, 0.0)


def test_a_large_customer_is_not_suspect_for_being_large() -> None:
    assert suspects(flows(a=0.52, b=0.29, c=0.19), USUAL) == ()


def test_a_surge_of_all_is_nobodys() -> None:
    assert suspects(USUAL[0], USUAL) == ()


def test_a_source_whose_requests_fail_is_suspect_where_it_sends_a_part_that_matters() -> None:
    earlier = [flows(a=(0.9, 0.9), b=(0.1, 0.1))] * 4
    (found,) = suspects(flows(a=(0.9, 0.1), b=(0.1, 0.9)), earlier)
    assert (found.source, found.failed_share, found.usual_failed_share) == ("b", 0.9, 0.1)
    assert suspects(flows(a=(0.99, 0.1), b=(0.01, 0.9)), earlier) == ()


def test_a_source_that_always_swings_has_not_jumped() -> None:
    swinging = [flows(a=a, b=1 - a) for a in (0.1, 0.5, 0.2, 0.6, 0.1)]
    assert suspects(flows(a=0.6, b=0.4), swinging) == ()
    steady = [flows(a=0.2, b=0.8)] * 5
    assert [s.source for s in suspects(flows(a=0.6, b=0.4), steady)] == ["a"]


@pytest.mark.parametrize("moments", range(MIN_HISTORY))
def test_without_a_history_nobody_is_suspect(moments: int) -> None:
    assert suspects(flows(x=1.0), [USUAL[0]] * moments) == ()
    assert suspects(flows(x=1.0), [*[USUAL[0]] * moments, (), ()]) == ()


def test_worst_first_and_bounded() -> None:
    found = suspects(flows(x=0.2, y=0.4, z=(0.2, 0.5)), USUAL)
    assert [s.source for s in found] == ["z", "y", "x"]
    assert len(found) <= MAX_SOURCES


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf")])
def test_shares_that_are_no_fractions_are_errors(share: float) -> None:
    with pytest.raises(InputError, match="fractions"):
        suspects(flows(x=share), USUAL)
    with pytest.raises(InputError):
        suspects((*flows(x=0.1), *flows(x=0.1)), USUAL)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    st.lists(st.lists(st.floats(0, 1), min_size=6, max_size=6), max_size=6),
)
def test_laws(now: list[float], earlier: list[list[float]]) -> None:
    def named(shares: list[float]) -> tuple[FlowShare, ...]:
        return flows(**{f"s{i}": x for i, x in enumerate(shares)})

    found = suspects(named(now), [named(moment) for moment in earlier])
    for s in found:
        assert max(s.request_share, s.failed_share) >= LEAST
        assert s.request_share >= 2 * s.usual_request_share
    # Whoever sends no more than usual is never suspect.
    calm = [named(now)] * 4
    assert suspects(named(now), calm) == ()
